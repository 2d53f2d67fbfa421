"""Damaged configurations: values of other types and sizes, keys misspelt and twice, and YAML's own surprises."""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from endurance import chain
from endurance.damage import NONSENSE, Place, is_bad_number, part_at, places, put
from endurance.made_project import SETTINGS, MadeProject
from endurance.trials import Case

EXAMPLES = Path(__file__).parents[2] / "config/examples"

VALUES = [
    *NONSENSE,
    False,
    0,
    0.5,
    "../..",
    "/",
    "/dev/null",
    "~/x",
    "$HOME",
    "<results>",
    "{run}",
    "a b",
    "a_b",
    "odd*name?:",
    ".",
    "..",
    "1e5",
    "no",
    "wbp@nan",
    "wbp@0",
    "wbp@1e9",
    datetime.date(2024, 1, 1),
    list(range(500)),
]

# Whose keys are names that the user chooses.
_FREE = {"projects", "exclude", "weights", "maps", "pathvars", "threshold", "networks", "space", "class_weights"}
# Any text will do.
_TEXTS = {"title", "container", "exclude", "pathvars"}


def bases() -> list[dict[str, Any]]:
    """Configurations that are right: those of the tests and the examples, for the project at hand."""
    examples = [yaml.safe_load(path.read_text()) for path in sorted(EXAMPLES.glob("*.yaml"))]
    found = [SETTINGS, {**chain.SETTINGS, **SETTINGS}]
    for example in examples:
        values = {**example, **{key: SETTINGS[key] for key in ("projects", "tomograms", "targets")}}
        values["split"] = {k: v for k, v in example.get("split", {}).items() if k not in ("test", "exclude")}
        found.append(values)
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def configuration_case(project: MadeProject, chance: random.Random) -> Case:
    """A configuration, damaged at one place or two; it is written as my.yaml."""
    values = chance.choice(bases())
    path = project.folder / "my.yaml"
    if chance.random() < 0.35:
        name, change, refused = chance.choice(list(_texts()))
        path.write_bytes(change(yaml.safe_dump(values, allow_unicode=True).encode()))
        return Case(f"configuration: {name}", refused=refused)
    done = [_damage_value(values, chance) for _ in range(chance.choice([1, 1, 2]))]
    path.write_text(yaml.safe_dump(values, allow_unicode=True))
    return Case("configuration: " + "; ".join(text for text, _ in done), refused=any(refused for _, refused in done))


def _damage_value(values: dict[str, Any], chance: random.Random) -> tuple[str, bool]:
    """What was done and whether it must be refused."""
    place = chance.choice(list(places(values)))
    name, kind = ".".join(map(str, place)), chance.random()
    fixed = isinstance(place[-1], str) and not _FREE & set(place[:-1])
    if kind < 0.1:
        del part_at(values, place[:-1])[place[-1]]
        return f"without {name}", False
    if kind < 0.25 and fixed:
        part_at(values, place[:-1])[_misspelt(place[-1], chance)] = part_at(values, place)
        return f"{name} misspelt", True
    new = chance.choice(VALUES)
    put(values, place, new)
    return f"{name}: {str(new)[:30]}", is_bad_number(new) and not _is_text(place)


def _is_text(place: Place) -> bool:
    return bool(_TEXTS & set(place)) or place[0] == "projects"


def _misspelt(key: str, chance: random.Random) -> str:
    at = chance.randrange(len(key))
    return key[:at] + chance.choice("qxz_ ") + key[at:]


def _texts() -> Iterator[tuple[str, Any, bool]]:
    """What is done to the text, its name, and whether it must be refused."""
    yield "a section twice", lambda text: text + b"targets:\n  picks: expert/0\n", True
    yield "a key twice", lambda text: text + b"train: {steps: 5, steps: 6}\n", True
    yield "tabs", lambda text: text.replace(b"  ", b"\t"), True
    yield "not UTF-8", lambda text: text.replace(b"demo", b"d\xe9mo"), True
    yield "Latin-1 in a comment", lambda text: b"# caf\xe9\n" + text, False
    yield "UTF-16", lambda text: text.decode().encode("utf-16"), False
    yield "a byte order mark", lambda text: b"\xef\xbb\xbf" + text, False
    yield "lines end in CR LF", lambda text: text.replace(b"\n", b"\r\n"), False
    yield "a control character", lambda text: text + b"report: {title: a\x07b}\n", True
    yield "code", lambda text: text + b'x: !!python/object/apply:os.system ["touch pwned"]\n', True
    yield "an unknown tag", lambda text: text + b"x: !thing 5\n", True
    yield "a list", lambda text: b"- 1\n- 2\n", True
    yield "a number", lambda text: b"5\n", True
    yield "nothing", lambda text: b"", True
    yield "only a comment", lambda text: b"# nothing\n", True
    yield "two documents", lambda text: text + b"---\n" + text, True
    yield "cut off", lambda text: text[: len(text) // 2] + b": {", True
    yield "an alias of itself", lambda text: text + b"report: &a\n  title: *a\n", True
    yield "an alias of nothing", lambda text: text + b"report: *nothing\n", True
    yield "many aliases", lambda text: text + _many_aliases(), True
    yield "deeply nested", lambda text: text + b"report: " + b"[" * 3000 + b"]" * 3000 + b"\n", True
    yield "octal and date", lambda text: text + b"phantom: {seed: 0o17, runs: 2024-01-01}\n", True
    yield "run names that are no names", lambda text: text.replace(b"- a\n", b"- no\n- 1e5\n- 007\n- 2024_01\n"), False


def _many_aliases() -> bytes:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 8)]
    return ("\n".join(lines) + "\n").encode()
