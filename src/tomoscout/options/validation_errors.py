"""Messages about invalid configurations: the first error, with its key, what was expected and what was found."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import ValidationError

from tomoscout.machine.errors import cut, shown
from tomoscout.options.config_file import ConfigFile, WrittenNumber
from tomoscout.options.names import NAME_RULE


def first_error(error: ValidationError, files: Sequence[ConfigFile] = ()) -> str:
    """The first error: its key, what was expected and, where the message does not say it, what was found."""
    errors = error.errors(include_url=False)
    # For a union of types, an error inside a value of the right type says more than the errors of the other types.
    inside = [entry for entry in errors if key_of(entry["loc"]).startswith(key_of(errors[0]["loc"]))]
    first = next((entry for entry in inside if entry["type"] == "value_error"), errors[0])
    where = key_of(first["loc"])
    # Otherwise the messages of all types are joined.
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
    """The message for a value that YAML read as something else where text is expected."""
    known = [(file.path, *written) for file in files if (written := file.written(place, value))]
    text = value.text if isinstance(value, WrittenNumber) else known[-1][1] if known else str(value)
    where = f" ({known[-1][0]}, line {known[-1][2]})" if known else ""
    kind = {bool: "a yes or no", float: "a number", int: "a number", WrittenNumber: "a number"}
    return (
        f"text is expected, and YAML takes {cut(text)} for {kind.get(type(value), 'a date')}; put it in quotes, "
        f'"{cut(text)}"{where}, found {shown(value)}'
    )


def key_of(path: Sequence[int | str]) -> str:
    """The dotted key of an error location of pydantic, without the names of types in it."""
    types = re.compile(r"function-|\w+\[|(constrained-\w+|str|int|float)$")
    # For an invalid key, the mapping that holds it.
    path = path[:-2] if path and path[-1] == "[key]" else path
    return ".".join(cut(str(part)) for part in path if not types.match(str(part))) or "top level"
