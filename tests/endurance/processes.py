"""Commands of tomoscout in processes forked from one that has imported everything, and killed at a chosen moment."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomoscout

SECONDS = 60.0
"""After so long a command hangs; each takes a few seconds."""

# What is imported only where it is needed, most of a command's time.
_LATE = [
    *("copick.impl.filesystem", "fsspec.implementations.local", "zarr"),
    *("optuna", "jinja2", "matplotlib.pyplot", "PIL.PngImagePlugin"),
    *("scipy.fft", "scipy.ndimage", "scipy.optimize", "scipy.spatial", "scipy.stats"),
    *("monai.networks.nets", "monai.losses", "torch._dynamo"),
]

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Kill:
    """A signal, sent `seconds` after the start, or after the command is about to change its `change`th file."""

    signal: signal.Signals
    seconds: float
    change: int | None = None

    def __str__(self) -> str:
        when = "after the start" if self.change is None else f"after it came to its change {self.change} of files"
        return f"{self.signal.name} {1000 * self.seconds:.2f} ms {when}"


@dataclass(frozen=True)
class Ended:
    """How a command ended. `code`: None where it was still running after `SECONDS`. `changes`: how many files it
    created, wrote, renamed or removed; 0 where it was killed."""

    code: int | None
    output: str
    seconds: float
    changes: int


def import_everything() -> None:
    """Import all that a command imports while it runs."""
    for module in pkgutil.walk_packages(tomoscout.__path__, "tomoscout."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _LATE:
        importlib.import_module(name)


def run(work: list[str] | Callable[[], None], folder: Path, kill: Kill | None = None, limit: float = SECONDS) -> Ended:
    """Do some work in `folder`, in a process group of its own: a function, or a command by its arguments."""
    output = folder.parent / "output.txt"
    output.write_bytes(b"")
    reading, writing = os.pipe()
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        os.close(reading)
        _become(work, folder, output, kill, writing)
    os.close(writing)
    if kill and kill.change is None:
        _send_later(process, kill)
    code = wait_for(process, limit)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    with os.fdopen(reading) as handle:
        changes = int(handle.read() or 0)
    return Ended(code, output.read_text(errors="replace"), time.monotonic() - started, changes)


def wait_for(process: int, limit: float) -> int | None:
    """The exit code of a child (negative: the signal that ended it), or None where it is still there after `limit`
    seconds and was killed."""
    watched = os.pidfd_open(process)
    try:
        ended = select.select([watched], [], [], limit)[0]
    finally:
        os.close(watched)
    if not ended:
        os.killpg(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code if ended else None


def _send_later(process: int, kill: Kill) -> None:
    watched = os.pidfd_open(process)
    try:
        if not select.select([watched], [], [], kill.seconds)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, kill.signal)
    finally:
        os.close(watched)


def _become(work: list[str] | Callable[[], None], folder: Path, output: Path, kill: Kill | None, writing: int) -> None:
    """Be the process that does the work. Never returns."""
    code = 70
    counter = _Changes(folder, kill)
    try:
        os.setsid()
        os.chdir(folder)
        with output.open("ab") as handle:
            os.dup2(handle.fileno(), 1)
            os.dup2(handle.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
        sys.addaudithook(counter)
        code = _exit_code(work if callable(work) else lambda: _command(work))
        sys.stdout.flush()
        os.write(writing, str(counter.count).encode())
    finally:
        os._exit(code)


def _command(arguments: list[str]) -> None:
    from tomoscout.cli import main

    main(arguments, prog_name="tomoscout")


def _exit_code(work: Callable[[], None]) -> int:
    try:
        work()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


class _Changes:
    """Counts the files below a folder that this process is about to change, and is killed at one of them."""

    def __init__(self, folder: Path, kill: Kill | None) -> None:
        self.count = 0
        self._folder = str(folder)
        self._kill = kill

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_change = event in _CHANGES or (event == "open" and bool(arguments[2] & _WRITES))
        if not is_change or not self._is_below(arguments[0]):
            return
        self.count += 1
        if self._kill and self.count == self._kill.change:
            _die(self._kill)

    def _is_below(self, path: Any) -> bool:
        # Of a file that is open already only the number is known.
        if not isinstance(path, str | bytes):
            return False
        name = os.fsdecode(path)
        return not name.startswith("/") or name.startswith(self._folder)


def _die(kill: Kill) -> None:
    if kill.signal != signal.SIGKILL:
        os.kill(os.getpid(), kill.signal)
    elif kill.seconds:
        # The default action of this signal is the system's: Python cleans nothing up.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, kill.seconds)
    else:
        os.kill(os.getpid(), signal.SIGKILL)
