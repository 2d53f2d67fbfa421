"""Errors for the user, and functions that format values in their messages."""

from __future__ import annotations

import errno
import io
import re
import sys

MOST_SHOWN = 120
"""Maximum number of characters of a value in a message."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class TomoscoutError(Exception):
    """An error that the user can correct. The message is one line that names the file, run or key at fault, what was
    found there, and what was expected."""


class TrainingFailed(TomoscoutError):
    """A training that would fail again with the same options on the same kind of machine.

    `validations`: its validation scores before it failed.
    """

    validations: list[float]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.validations = []


def shown(value: object) -> str:
    """The `repr` of a value for a message: in one line, shortened, without passwords."""
    return cut(without_passwords(repr(value)))


def cut(text: str, most: int = MOST_SHOWN) -> str:
    """The text in one line; only the beginning and the end of one that is longer than `most` characters."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]} … {text[-most // 4 :]} ({len(text):,} characters)"


def without_passwords(text: str) -> str:
    """The text with user names, passwords and tokens removed from its URLs. A password may contain / and @."""
    text = re.sub(r"(?<!/)//(?!/)[^/\s@:]*(?::\S*)?@", "//", text)
    return re.sub(r"([?&;][^=&;\s]*(?:pass|pwd|token|secret|key)[^=&;\s]*=)[^&;\s]*", r"\1…", text, flags=re.I)


def printing_never_fails() -> None:
    """Let `print` write question marks for characters that the locale cannot encode, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def foreseen(error: BaseException) -> str | None:
    """The message, in one line, for an error that the user can correct; None for a bug."""
    if isinstance(error, TomoscoutError):
        return str(error)
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"text that is not UTF-8: byte 0x{byte:02x} at position {error.start:,} ({error.reason})"
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{shown(error.object)} holds letters that the locale cannot write ({error.encoding}), as in the name of a "
            "file; set PYTHONUTF8=1 in the environment"
        )
    if isinstance(error, OSError):
        return _system_error(error)
    # The clients of remote storage have errors of their own that are no OSError, and are not imported for their names.
    if type(error).__module__.partition(".")[0] in ("botocore", "gql"):
        return f"remote storage cannot be reached or read; is there a network? ({cut(str(error), 300)})"
    # PyTorch, safetensors and SQLite wrap the error of the operating system in exceptions of their own.
    if cause := error.__cause__ or error.__context__:
        wrapped = next((inner for inner in _chain(cause) if isinstance(inner, OSError) and inner.errno in _FULL), None)
        if wrapped:
            return _system_error(wrapped)
    if re.search(r"No space left on device|disk is full|Disk quota exceeded", str(error)):
        return cut(str(error), 300)
    return None


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _system_error(error: OSError) -> str:
    reason = error.strerror or cut(str(error), 300) or type(error).__name__
    return f"{cut(str(error.filename), 500)}: {reason}" if error.filename is not None else reason
