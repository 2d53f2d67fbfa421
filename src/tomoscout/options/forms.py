"""Validation of files that are read back, against a form: the class or type that describes their content.

pydantic is used: it reads 10,000 results of trials in 0.2 s, two thirds of the time of checks written in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError, create_model
from pydantic_core import ErrorDetails

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.options.validation_errors import key_of

_T = TypeVar("_T")

_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)

_LONGEST = 60
"""Largest number of characters of a wrong value in messages."""


def read_form(form: type[_T], path: Path, what: str) -> _T:
    """Read a JSON file and validate it against a form; see `checked`.

    Raises:
        TomoscoutError: the file is missing, is not JSON, or its content has another form.
    """
    return checked(form, read_json(path), path, what)


def read_entries(path: Path, what: str, **entries: Any) -> dict[str, Any]:
    """Read a JSON file that holds a mapping with these `entries`, given with their types, and possibly more.

    Raises:
        TomoscoutError: as for `read_form`.
    """
    values: dict[str, Any] = read_json(path)
    checked(_form_of(tuple(entries.items())), values, path, what)
    return values


@cache
def _form_of(entries: tuple[tuple[str, Any], ...]) -> type[BaseModel]:
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in entries}
    return create_model("Entries", **fields)


def checked(form: type[_T], values: object, path: Path, what: str) -> _T:
    """Validate the content of a file. Types are strict (text is not converted to numbers), except for the fields of a
    dataclass, which are strict only where they are declared so (`Field(strict=True)`).

    Args:
        form: what is expected: a class whose fields have types (a pydantic model or a dataclass), or a type.
        values: the content, plain values.
        path: the file, for messages.
        what: what the file is meant to be, such as "the result of a trial", for messages.

    Raises:
        TomoscoutError: the content has another form.
    """
    try:
        # In strict mode, pydantic makes no dataclass from a mapping.
        found: _T = _adapter(form).validate_python(values, strict=None if is_dataclass(form) else True)
        return found
    except ValidationError as error:
        errors = error.errors(include_url=False)
        missing = [key_of(entry["loc"]) for entry in errors if entry["type"] == "missing"]
        reason = f"{', '.join(missing)} missing" if missing else _describe(errors[0])
        raise TomoscoutError(f"{path}: not {what} ({reason})") from None


def _describe(error: ErrorDetails) -> str:
    message, found = error["msg"].removeprefix("Value error, "), repr(error["input"])
    if error["type"] != "value_error":
        message += f", found {found[:_LONGEST]}{'…' if len(found) > _LONGEST else ''}"
    return f"{key_of(error['loc'])}: {message}"
