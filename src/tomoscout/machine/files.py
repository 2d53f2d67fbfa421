"""File input and output: atomic writes, which every file tracked by Snakemake needs; JSON; tables; digests."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tomoscout.machine.errors import TomoscoutError, foreseen


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; flush it to disk and rename it to `path` on success.

    At any time `path` holds either its complete old content or its complete new content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The name is fixed: the next write replaces the temporary file of a killed process.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        # The error of a full disk, raised while writing, names no file.
        if error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` atomically, as UTF-8."""
    write_bytes(path, content.encode())


def to_json(value: object) -> str:
    """The canonical JSON of a value, equal for equal values: sorted keys, no NaN, a newline at the end."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` atomically in the canonical form of `to_json`."""
    write_text(path, to_json(value))


def read_text(path: Path) -> str:
    """Read a text file as UTF-8, whatever the locale.

    Raises:
        TomoscoutError: the file is missing or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TomoscoutError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise TomoscoutError(f"{path}: {foreseen(error)}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file. options/forms.py checks its content.

    Raises:
        TomoscoutError: the file is missing, is not JSON, or holds a number that is not finite (`to_json` writes none).
    """
    try:
        return json.loads(read_text(path), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise TomoscoutError(f"{path}: not valid JSON ({error})") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a comma-separated table.

    Raises:
        TomoscoutError: the file is missing or is no table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle, strict=True))
    except FileNotFoundError:
        raise TomoscoutError(f"{path}: no such file") from None
    except (ValueError, csv.Error) as error:
        raise TomoscoutError(f"{path}: not a comma-separated table ({error})") from None
    for number, row in enumerate(rows, 2):
        # csv stores values beyond the columns under the key None, and None for missing values.
        if None in row or None in row.values():
            raise TomoscoutError(f"{path}: row {number} has more or fewer values than the first has columns")
    return rows


def write_table(path: Path, columns: list[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows as a comma-separated table (tab-separated where `path` ends in .tsv), atomically."""
    text = io.StringIO()
    delimiter = "\t" if path.suffix == ".tsv" else ","
    writer = csv.DictWriter(text, columns, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def digest(value: object) -> str:
    """A short digest of a JSON-like value or of bytes. Equal values have equal digests."""
    if not isinstance(value, bytes | memoryview):
        # No indentation: with it, json does not use its fast encoder.
        value = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    return hashlib.blake2b(value, digest_size=12).hexdigest()


def digest_file(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.blake2b(digest_size=12)).hexdigest()


def digest_folder(folder: Path) -> str:
    """The digest of all files below `folder`: their relative names and contents."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return digest({str(p.relative_to(folder)): digest_file(p) for p in files})
