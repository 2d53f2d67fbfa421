"""What is wrong with a configuration, in words: the first error with its key, what was expected and what was found."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import ValidationError

from tomoscout.machine.errors import cut, shown
from tomoscout.options.config_file import ConfigFile, WrittenNumber
from tomoscout.options.names import NAME_RULE


def first_error(error: ValidationError, files: Sequence[ConfigFile] = ()) -> str:
    """The first thing wrong: its key, what was expected and, where the message does not say it, what was found."""
    errors = error.errors(include_url=False)
    # Where there is a choice of types, what is wrong with a value of the right one says more than that it is no other.
    inside = [entry for entry in errors if key_of(entry["loc"]).startswith(key_of(errors[0]["loc"]))]
    first = next((entry for entry in inside if entry["type"] == "value_error"), errors[0])
    where = key_of(first["loc"])
    # Otherwise each type says what it would take.
    messages = dict.fromkeys(entry["msg"] for entry in errors if key_of(entry["loc"]) == where)
    message = cut(", or ".join(messages).removeprefix("Value error, "), 1500)
    if first["type"] == "string_pattern_mismatch":
        message = NAME_RULE
        if first["loc"][0] == "projects":
            message = "a name must hold no space, slash or colon, and be more than dots"
    if first["type"] == "string_type" and first["input"] is not None and not isinstance(first["input"], dict | list):
        return f"{where}: {_unquoted(first['input'], first['loc'], files)}"
    found = "" if first["type"] in ("missing", "value_error") else f", found {shown(first['input'])}"
    return f"{where}: {message}{found}"


def _unquoted(value: object, place: tuple[int | str, ...], files: Sequence[ConfigFile]) -> str:
    """What to do where text is expected and YAML took what stands there for something else."""
    known = [(file.path, *written) for file in files if (written := file.written(place, value))]
    text = value.text if isinstance(value, WrittenNumber) else known[-1][1] if known else str(value)
    where = f" ({known[-1][0]}, line {known[-1][2]})" if known else ""
    kind = {bool: "a yes or no", float: "a number", int: "a number", WrittenNumber: "a number"}
    return (
        f"text is expected, and YAML takes {cut(text)} for {kind.get(type(value), 'a date')}; put it in quotes, "
        f'"{cut(text)}"{where}, found {shown(value)}'
    )


def key_of(path: Sequence[int | str]) -> str:
    """The key that a path of pydantic's stands for: without the types among it."""
    types = re.compile(r"function-|\w+\[|(constrained-\w+|str|int|float)$")
    # Of a key that is wrong itself, the mapping that it stands in.
    path = path[:-2] if path and path[-1] == "[key]" else path
    return ".".join(cut(str(part)) for part in path if not types.match(str(part))) or "top level"
