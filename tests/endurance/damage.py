"""Ways to damage values and files that several kinds of input share."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Place = tuple[Any, ...]
"""Keys and indices that lead to a value inside nested ones."""

NONSENSE: list[Any] = [
    None,
    True,
    -1,
    10**30,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    " ",
    "x" * 5000,
    "é ∂\u202e",
    "NaN",
    [],
    [[]],
    [None],
    {},
    {"a": {"b": [{}]}},
]
"""Values that are right in few places."""


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where there is a value inside `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*at, key)
        yield from places(part, (*at, key))


def part_at(value: Any, place: Place) -> Any:
    """The value at a place."""
    for key in place:
        value = value[key]
    return value


def put(value: Any, place: Place, new: Any) -> None:
    """Replace the value at a place."""
    part_at(value, place[:-1])[place[-1]] = new


def is_bad_number(value: Any) -> bool:
    """Whether NaN or infinity is in it."""
    return isinstance(value, float) and not math.isfinite(value)


def damage_json(path: Path, chance: random.Random, nonsense: list[Any] = NONSENSE) -> str:
    """Remove a value of a JSON file, or put nonsense in its place; returns what was done."""
    values = json.loads(path.read_text())
    place = chance.choice(list(places(values)))
    name = ".".join(map(str, place))
    if chance.random() < 0.3:
        del part_at(values, place[:-1])[place[-1]]
        done = f"without {name}"
    else:
        new = chance.choice([n for n in nonsense if n != part_at(values, place)])
        put(values, place, new)
        done = f"{name}: {json.dumps(new)[:40]}"
    path.write_text(json.dumps(values))
    return done


def damage_file(path: Path, chance: random.Random) -> str:
    """Make of a file what a full disk, a broken copy or a slip of the hand would; returns what was done."""
    content = path.read_bytes()
    cut = chance.randrange(max(1, len(content)))
    kinds: dict[str, Any] = {
        "cut off": lambda: path.write_bytes(content[:cut]),
        "empty": lambda: path.write_bytes(b""),
        "zeros from the middle on": lambda: path.write_bytes(content[:cut] + bytes(len(content) - cut)),
        "not UTF-8": lambda: path.write_bytes(content[:cut] + b"\xff\xfe\x80" + content[cut:]),
        "other JSON": lambda: path.write_text(chance.choice(["[]", "null", "5", '"x"', "{}", "[" * 3000])),
        "a folder": lambda: _replace(path, lambda: path.mkdir()),
        "a link to nowhere": lambda: _replace(path, lambda: path.symlink_to("nowhere")),
        "a link to itself": lambda: _replace(path, lambda: path.symlink_to(path.name)),
        "gone": lambda: path.unlink(),
    }
    kind = chance.choice(list(kinds))
    kinds[kind]()
    return kind


def damage_folder(path: Path, chance: random.Random) -> str:
    """Make of a folder what should not be there; returns what was done."""
    kinds: dict[str, Any] = {
        "a file": lambda: path.write_text("x"),
        "empty": lambda: path.mkdir(),
        "a link to nowhere": lambda: path.symlink_to("nowhere"),
        "a link to itself": lambda: path.symlink_to(path.name),
        "a link to its parent": lambda: path.symlink_to(".."),
    }
    kind = chance.choice(list(kinds))
    shutil.rmtree(path)
    kinds[kind]()
    return kind


def _replace(path: Path, make: Any) -> None:
    path.unlink()
    make()
