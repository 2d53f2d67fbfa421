"""octopi, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from functools import cache
from pathlib import Path
from typing import Any, Self

from measure import first_cores, last_lines

VERSION = "1.7.0"
REQUIREMENTS = ["torch==2.13.0", f"octopi=={VERSION}"]


@cache
def octopi() -> Path:
    """The octopi command; installed into `.bench/octopi` unless TOMOSCOUT_BENCH_OCTOPI names an environment."""
    home = Path(os.environ.get("TOMOSCOUT_BENCH_OCTOPI", Path(__file__).parents[2] / ".bench" / "octopi"))
    command = home / "bin" / "octopi"
    if not command.exists():
        print(f"installing {' '.join(REQUIREMENTS)} into {home}", file=sys.stderr)
        venv.create(home, with_pip=True)
        subprocess.run([home / "bin" / "pip", "install", "--quiet", *REQUIREMENTS], check=True)
    found = subprocess.run(
        [home / "bin" / "python", "-c", "from importlib.metadata import version; print(version('octopi'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    if found != VERSION:
        sys.exit(f"{home}: octopi {found}; the comparison is with {VERSION}")
    return command


class Octopi:
    """octopi's Python API in a process of its own, on the first `cores` cores. It waits without work in between, so
    that tools can take turns. `settings` are those of `octopi_worker.Worker`, the tasks its methods."""

    def __init__(self, log: Path, cores: int, **settings: Any) -> None:
        cpus = first_cores(cores)
        self._log = log
        with log.open("wb") as handle:
            self._process = subprocess.Popen(
                [octopi().with_name("python"), Path(__file__).with_name("octopi_worker.py")],
                cwd=log.parent,
                env={**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": str(cores)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=handle,
                text=True,
                preexec_fn=lambda: os.sched_setaffinity(0, cpus),
            )
        self._send(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        assert self._process.stdin is not None
        if failure:
            self._process.kill()
        self._process.stdin.close()
        self._process.wait()

    def _send(self, values: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(values) + "\n")
        self._process.stdin.flush()

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        """Have a task done; a failure ends the benchmark."""
        assert self._process.stdout is not None
        answer = ""
        try:
            self._send({"task": task, **arguments})
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not answer:
            sys.exit(f"octopi ended during {task}:\n{last_lines(self._log)}")
        found: dict[str, Any] = json.loads(answer)
        return found
