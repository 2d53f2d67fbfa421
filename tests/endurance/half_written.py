"""What a reader would trip over in a folder now: files under their own name whose content is not complete."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import yaml


def half_written(folder: Path) -> list[str]:
    """A line for every visible file and zarr array below `folder` that is not whole."""
    problems = []
    for path in _visible(folder):
        check = _CHECKS.get(path.suffix)
        if check and not _holds(check, path):
            problems.append(f"{path.relative_to(folder)} is half-written ({path.stat().st_size} bytes)")
        elif path.suffix == ".zarr":
            problems += [f"{path.relative_to(folder)}: {problem}" for problem in _zarr_problems(path)]
    return problems


def vanished(before: Path, now: Path) -> list[str]:
    """A line for every volume and picks file of a project that was there before and is not there now."""
    data = [*before.rglob("*.zarr"), *before.rglob("Picks/*.json")]
    names = [path.relative_to(before) for path in data if not path.name.startswith(".")]
    return [f"{name} has vanished" for name in names if not (now / name).exists()]


def _visible(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        yield path
        if path.is_dir() and path.suffix != ".zarr":
            yield from _visible(path)


def _holds(check: Callable[[bytes], object], path: Path) -> bool:
    try:
        return bool(check(path.read_bytes()))
    except (ValueError, yaml.YAMLError, FileNotFoundError):
        return False


def _is_safetensors(content: bytes) -> bool:
    size = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + size])
    ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    return len(content) == 8 + size + max(ends)


_CHECKS: dict[str, Callable[[bytes], object]] = {
    ".json": lambda content: json.loads(content) is not None,
    ".yaml": lambda content: content.endswith(b"\n") and yaml.safe_load(content) is not None,
    ".html": lambda content: content.rstrip().endswith(b"</html>"),
    ".png": lambda content: content.endswith(b"IEND\xaeB\x60\x82"),
    ".csv": lambda content: content.endswith(b"\n"),
    ".tsv": lambda content: content.endswith(b"\n"),
    ".safetensors": _is_safetensors,
}


def _zarr_problems(folder: Path) -> Iterator[str]:
    for name in (".zgroup", ".zattrs", "0/.zarray"):
        if not _holds(_CHECKS[".json"], folder / name):
            yield f"{name} is missing or half-written"
            return
    array = json.loads((folder / "0/.zarray").read_text())
    counts = [math.ceil(size / chunk) for size, chunk in zip(array["shape"], array["chunks"], strict=True)]
    for place in product(*map(range, counts)):
        chunk = folder / "0" / array["dimension_separator"].join(map(str, place))
        # Blosc writes the size of the whole at bytes 12 to 15.
        content = chunk.read_bytes() if chunk.exists() else b""
        if int.from_bytes(content[12:16], "little") != len(content) or not content:
            yield f"chunk {chunk.relative_to(folder)} is missing or half-written"
