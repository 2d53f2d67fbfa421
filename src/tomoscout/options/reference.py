"""The reference of all options, generated from their definitions."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from tomoscout.learning.losses import LOSSES
from tomoscout.networks import FAMILIES, family_module
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.config import Config
from tomoscout.options.sections import WHERE_IT_RUNS, Section

EXAMPLES: dict[str, Any] = {
    "projects": {"mydata": "/path/to/copick.json"},
    "tomograms": ["wbp@10.0"],
    "targets.picks": "data-portal/0",
}
"""Values for the options that have no default."""


@cache
def describe(section: type[Section]) -> None:
    """Take the docstrings of the options of a section, and of those within, for their descriptions. pydantic could do
    that when it builds the classes, but every command would then wait for the source code to be parsed."""
    docstrings: dict[str, str | None] = {}
    for base in reversed(section.__mro__):
        if issubclass(base, Section):
            docstrings |= dict.fromkeys(base.__annotations__) | _docstrings(base)
    for name, field in section.model_fields.items():
        for kind in (field.annotation, *field.metadata):
            for inner in filter(_is_section, _kinds(kind)):
                describe(inner)
        field.description = field.description or docstrings.get(name)
    section.model_rebuild(force=True)


def _docstrings(section: type[Section]) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0].body  # type: ignore[attr-defined]
    return {
        option.target.id: inspect.cleandoc(text)
        for option, after in pairwise(body)
        if isinstance(option, ast.AnnAssign) and isinstance(option.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(text := getattr(after.value, "value", None), str)
    }


def _kinds(annotation: Any) -> Iterator[Any]:
    yield annotation
    # A validator may state what it reads.
    for part in (*get_args(annotation), getattr(annotation, "json_schema_input_type", None)):
        if part is not None:
            yield from _kinds(part)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _described_config() -> type[Config]:
    for section in (Config, *LOSSES.values(), *(options for _, options in _families())):
        describe(section)
    return Config


def json_schema() -> str:
    """The JSON schema of a configuration file, for editors."""
    schema = _described_config().model_json_schema(ref_template="#/$defs/{model}")
    families = []
    for name, options in _families():
        schema["$defs"][name] = options.model_json_schema()
        families.append({"$ref": f"#/$defs/{name}"})
    others = {
        "type": "object",
        "description": "A family of yours: a Python file or an installed entry point, with its own options.",
        "properties": {"family": {"type": "string", "not": {"enum": list(FAMILIES)}}},
        "required": ["family"],
    }
    one = {"anyOf": [*families, others]}
    alone = {"type": "array", "items": one, "minItems": 1, "maxItems": 1}
    schema["$defs"]["NetworkOptions"] = {"title": "Network", "anyOf": [*families, others, alone]}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _families() -> Iterator[tuple[str, type[NetworkOptions]]]:
    for name in FAMILIES:
        yield name, family_module(name).Options


def commented_yaml() -> str:
    """A configuration file with every option at its default and a comment for each."""
    head = "Every option of tomoscout at its default. Only `projects`, `tomograms` and `targets.picks` must be given."
    return _comment(head, 0) + "".join(_yaml_lines(_described_config(), "", 0))


def _yaml_lines(section: type[Section], path: str, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in section.model_fields.items():
        key = field.alias or name
        nested = _section_of(field)
        yield "\n" + _comment(_meaning(field) or (nested.__doc__ if nested else "") or "", depth)
        if nested:
            yield f"{indent}{key}:\n"
            yield from _yaml_lines(nested, f"{path}{key}.", depth + 1)
        else:
            value = EXAMPLES.get(f"{path}{key}", _default(field))
            yield f"{indent}{key}: {json.dumps(value, ensure_ascii=False)}\n"


def markdown() -> str:
    """The reference as a page: a table per section."""
    page = _PAGE + "".join(_tables(_described_config(), "The whole", ""))
    page += "\n## Families of networks\n\n`train.network.family` chooses one; the options are `train.network.…`.\n"
    page += "".join(_choice(name, options) for name, options in _families())
    page += "\n## Losses\n\n`train.loss` takes one of these by name, as a mapping, or several in a list.\n"
    return page + "".join(_choice(name, loss) for name, loss in LOSSES.items())


def _choice(name: str, section: type[Section]) -> str:
    """The heading and the table of a section that is one of several to choose from."""
    rows = "".join(
        f"| `{key}` | `{json.dumps(_default(field), ensure_ascii=False)}` | {_cell(_meaning(field))} |\n"
        for key, field in section.model_fields.items()
        if key not in ("family", "name")
    )
    return f"\n### {name}\n\n{_one_line(section.__doc__)}\n\n| option | default | meaning |\n|---|---|---|\n{rows}"


_PAGE = """# Configuration

A project needs no more than this:

```yaml
projects:
  mydata: /path/to/copick.json
tomograms: [wbp@10.0]
targets:
  picks: data-portal/0        # every pickable object of this user/session; or a list of name:user/session
```

`config.yaml` beside this file holds every option with its default; `examples/` holds small files for single
purposes; `schema.json` lets an editor check a file as it is written. Unknown keys are refused, with the nearest
known one. Paths are relative to the working directory (`--directory`). All three files are written from the
package by `make docs`.
"""


def _tables(section: type[Section], title: str, path: str) -> Iterator[str]:
    yield f"\n## {title if not path else f'`{path[:-1]}`'}\n\n{_one_line(section.__doc__)}\n\n"
    yield "| option | default | meaning |\n|---|---|---|\n"
    nested = []
    for name, field in section.model_fields.items():
        key = field.alias or name
        inner = _section_of(field)
        if inner:
            nested.append((inner, f"{path}{key}."))
            continue
        default = "required" if field.is_required() else f"`{json.dumps(_default(field), ensure_ascii=False)}`"
        yield f"| `{path}{key}` | {default} | {_cell(_meaning(field))} |\n"
        if each := _section_of_each(field):
            nested.append((each, f"{path}{key}.{{name}}."))
    for inner, place in nested:
        yield from _tables(inner, "", place)


def _section_of(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    if kind is NetworkOptions:
        return type(field.get_default(call_default_factory=True))
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _section_of_each(field: FieldInfo) -> type[Section] | None:
    """The section that each value of a mapping is."""
    _, *kinds = get_args(field.annotation) or (None,)
    return next((kind for kind in kinds if get_origin(field.annotation) is dict and _is_section(kind)), None)


def _default(field: FieldInfo) -> Any:
    value: Any = None if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(value, list):
        return [entry.model_dump() if isinstance(entry, Section) else entry for entry in value]
    return value


def _meaning(field: FieldInfo) -> str:
    """The description of an option, with a note if it only says where work is done."""
    where = " Another value makes no result out of date." if WHERE_IT_RUNS in field.metadata else ""
    return f"{field.description or ''}{where}"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str | None) -> str:
    return _one_line(text).replace("|", "\\|")


def _comment(text: str, depth: int) -> str:
    lines = textwrap.wrap(_one_line(text), width=100 - 2 * depth)
    return "".join(f"{'  ' * depth}# {line}\n" for line in lines)
