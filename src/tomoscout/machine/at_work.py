"""Records which processes work in a working directory: Snakemake and the jobs that it started.

Snakemake marks the files that it works on as locked. If it is killed, the marks remain and the user must remove them
(`--unlock`). Every Snakemake process of this workflow, and every command of its jobs, therefore holds a lock file
(flock) of its own. The operating system releases these locks even if a process is killed, so the next Snakemake process
can tell whether the marks are stale.
"""

from __future__ import annotations

import atexit
import base64
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
"""Environment variable that gives the commands of a job the folder of the lock files."""

_SNAKEMAKE = Path(".snakemake")
_NAMED = 5


_WRITTEN_ONCE = ("ask.json", "result.json")
"""Files of trials, which are written atomically and never again."""


def let_jobs_tell() -> None:
    """Let the commands that this process starts register themselves in its working directory (see `at_work_as`)."""
    os.environ[FOLDER] = str((_SNAKEMAKE / "at_work").absolute())


@cache  # Runs once, even if a Snakefile imports several modules.
def begin_work() -> None:
    """Register this Snakemake process in its working directory.

    If earlier Snakemake processes were killed and no other process is at work, remove the marks that they left. If
    other processes are at work and there are marks, print which processes these are.

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
    # Marks older than the oldest lock file left behind were not made by the killed processes.
    began = min(path.stat().st_mtime for path in left_behind)
    killed = [mark for mark in marks if mark.stat().st_mtime >= began]
    for path in [*killed, *_marks_of_whole_files(), *left_behind]:
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
    """Create and lock a file until this process ends. Returns None on a file system without locks."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{platform.node()}-{os.getpid()}-{time.time_ns()}"
    # Before the file is locked, another process may take it for one left behind and remove it: try again.
    with contextlib.suppress(OSError):
        while not take(path, f"{what} (process {os.getpid()} on {platform.node()})"):
            pass
        return path
    return None


def _look(folder: Path, own: Path) -> tuple[list[str], list[Path]]:
    """Return the other processes at work, as text, and the lock files left by processes that were killed."""
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


def _marks_of_whole_files() -> Iterator[Path]:
    """The marks of files of trials that are there, though Snakemake takes them for incomplete. It would run the jobs
    that make these files, and none of those that follow, which depend on them as `ancient`."""
    folder = _SNAKEMAKE / "incomplete"
    for mark in filter(Path.is_file, folder.rglob("*")):
        # The path of the file in base 64; of a long one the parts but the last begin with @.
        name = "".join(part.removeprefix("@") for part in mark.relative_to(folder).parts)
        with contextlib.suppress(ValueError):
            path = Path(base64.urlsafe_b64decode(name).decode())
            if path.name in _WRITTEN_ONCE and path.exists():
                yield mark


def _end_work(own: Path) -> None:
    # If Snakemake was stopped before it removed its marks, keep the lock file: the next process then removes both.
    with contextlib.suppress(OSError):
        if not _marks():
            own.unlink(missing_ok=True)
