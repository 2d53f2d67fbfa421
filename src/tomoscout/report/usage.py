"""What the jobs of each stage used: time, memory, processors, from the benchmark files that Snakemake writes."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """The jobs of a stage: their number, the time of all and of the longest in seconds, the largest memory in MB, the
    processor time of all in seconds (None where a job was too short to be measured), and of every column about GPUs,
    which Snakemake has none of itself, the largest value."""

    stage: str
    jobs: int
    seconds: float
    longest: float
    memory: float | None
    processor: float | None
    gpu: dict[str, float] = field(default_factory=dict)


def read_usage(folder: Path, jobs: Mapping[str, Iterable[str]]) -> list[Usage]:
    """The usage of each stage.

    Args:
        folder: the folder of the benchmark files.
        jobs: stage → the names of its files there, without their suffix. Those that are missing or cannot be read are
            passed over: a job that was run without Snakemake has none.
    """
    found = []
    for stage, names in jobs.items():
        rows = [row for name in names for row in _rows(folder / f"{name}.tsv")]
        if rows:
            found.append(_sum_up(stage, rows))
    return found


def _rows(path: Path) -> list[dict[str, float]]:
    """The last measurement in a file, as the only one: a job that is tried again writes the file again."""
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            rows = [_numbers(row) for row in csv.DictReader(handle, delimiter="\t")]
    except (OSError, ValueError, csv.Error):
        return []
    return [row for row in rows[-1:] if "s" in row]


def _numbers(row: Mapping[str | None, object]) -> dict[str, float]:
    values = {}
    for name, text in row.items():
        try:
            value = float(str(text))
        except ValueError:
            continue  # "NA" or "-" of a short job, or a column that is no number.
        if name and math.isfinite(value):
            values[name] = value
    return values


def _sum_up(stage: str, rows: list[dict[str, float]]) -> Usage:
    def of(name: str) -> list[float]:
        return [row[name] for row in rows if name in row]

    gpu = dict.fromkeys(name for row in rows for name in row if "gpu" in name.lower())
    times, memory, processor = of("s"), of("max_rss"), of("cpu_time")
    return Usage(
        stage,
        len(rows),
        sum(times),
        max(times),
        max(memory, default=None),
        sum(processor) if processor else None,
        {name: max(of(name)) for name in gpu},
    )
