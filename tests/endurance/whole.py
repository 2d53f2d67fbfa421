"""The whole workflow, started by Snakemake as a user starts it, and killed with everything it started."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from endurance.chain import OTHER, copy_folder, outcome, stages, succeed, write_settings
from endurance.processes import Ended

ROOT = Path(__file__).parents[2]
SECONDS = 400.0
"""After so long the workflow hangs; undisturbed it takes less than one minute."""
PATIENCE = 60.0
"""Seconds that it may take to end when it is told to."""
PAUSE = 0.02
"""Seconds between two looks at the results."""

TRACKED = {"tracking": {"enabled": True}}


@dataclass(frozen=True)
class WholeStart:
    """A folder the workflow starts from, and how it ends undisturbed."""

    history: str
    before: Path
    expected: dict[str, str]
    undisturbed: Ended


@dataclass(frozen=True)
class WholeKill:
    """A signal to all that was started, after a time, or `seconds` after so many changes of results were seen."""

    signal: signal.Signals
    seconds: float
    change: int | None = None

    @classmethod
    def at_random(cls, undisturbed: Ended, chance: random.Random) -> WholeKill:
        """When and how to kill what took `undisturbed`."""
        kind = chance.choices([signal.SIGKILL, signal.SIGINT, signal.SIGTERM], [0.6, 0.25, 0.15])[0]
        if chance.random() < 0.5:
            return cls(kind, 10 ** chance.uniform(-4, -1), chance.randint(1, undisturbed.changes))
        return cls(kind, chance.uniform(0, undisturbed.seconds))

    def __str__(self) -> str:
        when = "after the start" if self.change is None else f"after change {self.change} of the results"
        return f"{self.signal.name} {self.seconds:.3f} s {when}"


class Whole:
    """The workflow with its undisturbed runs, in a new folder and over results of other settings."""

    def __init__(self, base: Path, phantom: Path) -> None:
        """`phantom`: a folder with the phantom alone."""
        self._output = base / "snakemake.txt"
        work = base / "work"
        copy_folder(phantom, work)
        new = self._start("in a new folder", {}, work, base / "whole-new")
        copy_folder(phantom, work)
        write_settings(work, OTHER | TRACKED)
        self._succeed(work)
        self.starts = [new, self._start("over other results", {}, work, base / "whole-again")]

    def _start(self, history: str, changes: dict[str, dict[str, object]], work: Path, before: Path) -> WholeStart:
        write_settings(work, changes | TRACKED)
        copy_folder(work, before)
        undisturbed = self._succeed(work)
        self.list_runs(work)
        return WholeStart(history, before, outcome(work), undisturbed)

    def _succeed(self, work: Path) -> Ended:
        ended = self.run(work)
        if ended.code != 0:
            raise RuntimeError(f"snakemake fails undisturbed:\n{ended.output}")
        return ended

    def list_runs(self, work: Path) -> None:
        """Bring the inventory up to date: when the workflow did so last depends on how often it was started."""
        inventory = stages()[1]
        succeed(inventory, work)

    def run(self, work: Path, kill: WholeKill | None = None) -> Ended:
        """Give the command, and kill it."""
        started = time.monotonic()
        with self._output.open("wb") as output:
            process = subprocess.Popen(
                self._command(),
                cwd=work,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            )
            changes = _follow(process, work / "results", kill)
            code = _end(process, kill)
        return Ended(code, self._output.read_text(errors="replace"), time.monotonic() - started, changes)

    def _command(self) -> list[str]:
        # One thread, as the stages have when they are run alone: sums depend on it.
        command = "snakemake all explore --cores 2 --set-threads train_model=1 segment_runs=1 --configfile my.yaml"
        return [sys.executable, "-m", *command.split(), "--snakefile", str(ROOT / "Snakefile")]


def _follow(process: subprocess.Popen[bytes], results: Path, kill: WholeKill | None) -> int:
    """Wait for the end or for the moment to kill; returns how many changes of the results were seen."""
    started, changes, seen = time.monotonic(), 0, _look(results)
    while process.poll() is None and time.monotonic() - started < SECONDS:
        if kill and kill.change is None and time.monotonic() - started >= kill.seconds:
            break
        now = _look(results)
        changes += len(now ^ seen)
        seen = now
        if kill and kill.change is not None and changes >= kill.change:
            time.sleep(kill.seconds)
            break
        time.sleep(PAUSE)
    return changes


def _end(process: subprocess.Popen[bytes], kill: WholeKill | None) -> int | None:
    """Send the signal; the exit code, or None where it had to be killed after all."""
    try:
        if kill:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, kill.signal)
        return process.wait(PATIENCE if kill else 0)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _look(folder: Path) -> set[tuple[str, int]]:
    seen = set()
    for path, _, files in os.walk(folder):
        for file in (Path(path, name) for name in files):
            with contextlib.suppress(OSError):
                seen.add((str(file), file.stat().st_mtime_ns))
    return seen
