"""Who is at work in a working directory: Snakemake, and the jobs that it started.

Snakemake marks the files that it works with as locked; a Snakemake that is killed leaves the marks, and the user must
remove them (`--unlock`). Here every Snakemake of this workflow and every command of its jobs holds a lock file (flock)
of its own, which the system frees however they end: so the next Snakemake knows whether the marks are still valid.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import platform
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tomoscout.machine.locks import holder_of, take
from tomoscout.machine.messages import say

FOLDER = "TOMOSCOUT_AT_WORK"
"""Environment variable that names the folder of the lock files to the commands of a job."""

_SNAKEMAKE = Path(".snakemake")
_NAMED = 5


def let_jobs_tell() -> None:
    """Let the commands that this process starts register themselves in its working directory (see `at_work_as`)."""
    os.environ[FOLDER] = str((_SNAKEMAKE / "at_work").absolute())


@cache  # Once, however many modules a Snakefile imports.
def begin_work() -> None:
    """Register this Snakemake in its working directory. If earlier ones were killed and no other process is at work,
    remove the marks that they left; if another is, print which.

    Raises:
        OSError: files cannot be written or removed there.
    """
    folder = Path(os.environ[FOLDER])
    own = _register(folder, "snakemake")
    if own is None:
        return
    atexit.register(_end_work, own)
    marks = _marks()
    others, left_behind = _look(folder, own)
    if others and marks:
        more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        say(f"at work in this folder: {', '.join(others[:_NAMED])}{more}")
    if others or not left_behind:
        return
    # Older marks belong to other processes than those that were killed.
    began = min(path.stat().st_mtime for path in left_behind)
    for path in [*(mark for mark in marks if mark.stat().st_mtime >= began), *left_behind]:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def at_work_as(command: str) -> Iterator[None]:
    """Register a command while it runs, if a Snakemake of this workflow started it."""
    folder = os.environ.get(FOLDER)
    own = _register(Path(folder), command) if folder else None
    try:
        yield
    finally:
        if own:
            own.unlink(missing_ok=True)


def _register(folder: Path, what: str) -> Path | None:
    """Lock a new file until this process ends; None on a file system without locks."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{platform.node()}-{os.getpid()}-{time.time_ns()}"
    # Before it is locked, another process may take it for one left behind, and remove it: then try again.
    with contextlib.suppress(OSError):
        while not take(path, f"{what} (process {os.getpid()} on {platform.node()})"):
            pass
        return path
    return None


def _look(folder: Path, own: Path) -> tuple[list[str], list[Path]]:
    """The other processes at work, as text, and the lock files of those that were killed."""
    others, left_behind = [], []
    for path in sorted(folder.iterdir()):
        if path == own:
            continue
        holder = holder_of(path)
        if holder:
            others.append(holder)
        elif path.exists():
            left_behind.append(path)
    return others, left_behind


def _marks() -> list[Path]:
    return sorted((_SNAKEMAKE / "locks").glob("*.lock"))


def _end_work(own: Path) -> None:
    # If Snakemake was stopped while it removed its marks, the next one must find them left behind.
    with contextlib.suppress(OSError):
        if not _marks():
            own.unlink(missing_ok=True)
