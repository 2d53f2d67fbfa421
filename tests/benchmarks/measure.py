"""Run commands and say what they cost."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

Command = Sequence[str | Path]
TOMOSCOUT: list[str | Path] = [sys.executable, "-m", "tomoscout"]
LOG = "command.log"
COSTS = ["wall s", "CPU s", "MB"]


@dataclass(frozen=True)
class Cost:
    """Wall seconds, CPU seconds of all processes together and of the longest (what the wall time would be were
    nothing else running), and the largest memory of one process in MB."""

    wall: float
    cpu: float
    longest: float
    memory: float

    def __add__(self, other: Cost) -> Cost:
        memory = max(self.memory, other.memory)
        return Cost(self.wall + other.wall, self.cpu + other.cpu, self.longest + other.longest, memory)


def run(*commands: Command, folder: Path, cores: int | None = None) -> Cost:
    """Run commands side by side in `folder`, on the first `cores` cores; a failure ends the benchmark."""
    cpus = first_cores(cores)
    started = time.perf_counter()
    with (folder / LOG).open("wb") as log:
        processes = [
            subprocess.Popen(
                [str(part) for part in command],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: os.sched_setaffinity(0, cpus),
            )
            for command in commands
        ]
        cpu, memory = [], 0.0
        for process in processes:
            # wait4 alone gives the resources of one process and those it waited for.
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            cpu.append(used.ru_utime + used.ru_stime)
            memory = max(memory, used.ru_maxrss / 1024)
    wall = time.perf_counter() - started
    for command, process in zip(commands, processes, strict=True):
        if process.returncode:
            sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{last_lines(folder / LOG)}")
    return Cost(wall, sum(cpu), max(cpu), memory)


def first_cores(cores: int | None) -> list[int]:
    """The first so many of the cores that may be used; all without a number."""
    return sorted(os.sched_getaffinity(0))[:cores]


@contextmanager
def on_cores(cores: int) -> Iterator[None]:
    """Keep this process to the first so many cores. Threads that it already has stay where they are."""
    earlier = os.sched_getaffinity(0)
    os.sched_setaffinity(0, first_cores(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, earlier)


def last_lines(log: Path) -> str:
    """What a log ends with."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Median (smallest–largest)."""
    values = list(values)
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low}–{high})"


def costs(measured: Sequence[Cost]) -> list[str]:
    """Cells for the columns `COSTS`."""
    memory = max(cost.memory for cost in measured)
    return [spread(cost.wall for cost in measured), spread(cost.cpu for cost in measured), f"{memory:.0f}"]


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table under a heading."""
    lines = [f"### {title}", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([*lines, ""])


def machine() -> str:
    """What was measured, and on what."""
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in facts if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in ("tomoscout", "copick", "numpy", "zarr", "snakemake"))
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model}, {memory:.0f} GiB; load at the start "
        f"{os.getloadavg()[0]:.1f}. Python {platform.python_version()}, {versions}.\n"
    )
