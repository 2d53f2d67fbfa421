"""Records a training while it runs, in child processes."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tomoscout.machine.files import write_json, write_table
from tomoscout.machine.progress import Progress
from tomoscout.tracking.options import Tracking
from tomoscout.tracking.store import reason


class Tracker:
    """Records a training while it runs. Only `finish` waits; no method raises, and no child outlives the training. The
    first failure is reported in one line on stderr."""

    def __init__(
        self,
        folder: Path,
        tracking: Tracking,
        default_uri: str,
        facts: Mapping[str, Any],
        *,
        pause: float = 60.0,
        limit: float = 300.0,
    ) -> None:
        """`facts`, kept as `training.json`: name, fingerprint, classes (names), train and validate (runs), device,
        versions (package → version), options (nested). `pause`: minimum of seconds between the starts of two child
        processes, as each takes some seconds of a core. `limit`: seconds after which a child process that hangs ends
        itself."""
        self._folder = folder
        self._enabled = tracking.enabled
        self._facts = dict(facts)
        uri = tracking.uri or default_uri
        self._order = {"folder": str(folder), "uri": uri, "experiment": tracking.experiment, "limit": limit}
        self._pause = pause
        self._started = -math.inf
        self._child: subprocess.Popen[str] | None = None
        self._warned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, history: Sequence[Mapping[str, float]], speed: Mapping[str, float] | None = None) -> None:
        """Write the present state to `metrics.csv` and `training.json`, and start a child process that records it.

        `history`: rows of a `step` and any curves, from the first step on. While a child is recording, or less than
        `pause` after it was started, nothing is recorded.
        """
        try:
            self._write(history, speed)
            if self._enabled and self._is_idle() and time.monotonic() >= self._started + self._pause:
                self._start()
        except Exception as error:
            self._warn(reason(error))

    def describe(self, history: Sequence[Mapping[str, float]], speed: Mapping[str, float] | None = None) -> None:
        """Write the present state, as `update` does, without recording it."""
        try:
            self._write(history, speed)
        except Exception as error:
            self._warn(reason(error))

    def _write(self, history: Sequence[Mapping[str, float]], speed: Mapping[str, float] | None) -> None:
        columns = dict.fromkeys(["step", *(name for row in history for name in row)])
        write_table(self._folder / "metrics.csv", list(columns), history)
        write_json(self._folder / "training.json", self._facts | dict(speed or {}))

    def finish(self, seconds: float = 60.0) -> None:
        """Record the finished folder; waits at most this many seconds."""
        self.close()
        if not self._enabled:
            return
        try:
            self._start().wait(seconds)
        except subprocess.TimeoutExpired:
            self._warn(f"no end after {seconds:g} s")
        except Exception as error:
            self._warn(reason(error))
        self.close()

    def close(self) -> None:
        """Kill the child."""
        if not self._is_idle() and self._child:
            self._child.kill()
            # Even a killed process stays while its file system hangs.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.communicate(timeout=1)
            self._child = None

    def _start(self) -> subprocess.Popen[str]:
        self._started = time.monotonic()
        child = self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "tomoscout.tracking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        # Through the pipe, as all users of the machine can read arguments, and the address may hold a password. The
        # pipe stays open: when it is closed, the child knows that this process has ended.
        assert child.stdin
        child.stdin.write(json.dumps(self._order) + "\n")
        child.stdin.flush()
        return child

    def _is_idle(self) -> bool:
        """Whether no child is running. Reports the failure of the last one."""
        if self._child is None:
            return True
        if self._child.poll() is None:
            return False
        child, self._child = self._child, None
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, complaint = child.communicate(timeout=1)
            if child.returncode:
                self._warn((complaint.strip().splitlines() or [f"ended with code {child.returncode}"])[-1])
        return True

    def _warn(self, what: str) -> None:
        if not self._warned:
            what = what.removeprefix("tracking: ")
            Progress(0).note(
                f"warning: not recorded in MLflow: {what}; the training goes on, `tomoscout track` records it later"
            )
        self._warned = True
