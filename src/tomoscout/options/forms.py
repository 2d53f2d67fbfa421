"""Files that people may have changed: read by the form they must have, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.messages import key_of

_T = TypeVar("_T")

_LONGEST = 60
"""Characters of a wrong value that are shown."""


def checked(form: type[_T], values: object, path: Path, what: str) -> _T:
    """The content of a file as a form says: a class whose fields have types, or a type.

    Args:
        form: what is expected.
        values: the content, plain values.
        path: the file, for messages.
        what: what the file is meant to be, such as "the result of a trial", for messages.

    Raises:
        TomoscoutError: the content has another form.
    """
    try:
        return TypeAdapter(form).validate_python(values, strict=True)
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
