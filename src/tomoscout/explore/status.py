"""The progress of a study, read from its files. Nothing is written. Missing or incomplete files are skipped."""

from __future__ import annotations

import csv
import math
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tomoscout.explore.records import (
    BASELINE,
    Ask,
    Result,
    section_of,
    short,
    trial_folder,
    trial_name,
    trial_numbers,
)
from tomoscout.learning.history import best, series
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.machine.locks import LOCK, owner_of
from tomoscout.plan.paths import Results

_T = TypeVar("_T")

_RECENT = 10
"""Number of latest trials from which the rate is computed, as the speed of a study may change."""

_WIDTH = 110
_ASKED_SHOWN = 8


def find_study(results: Path, name: str | None = None) -> Path:
    """Find the folder of the study `name` (its name in the configuration, or the name of its folder), or of any study
    if None. Of several, the one whose newest trial was modified last.

    Raises:
        TomoscoutError: there is none.
    """
    folder = Results(results).studies
    found = sorted(path.parent for path in folder.glob("*/study.json"))
    named = [study for study in found if name in (None, study.name, study.name.rpartition("-")[0])]
    if not named:
        there = f"; there are {', '.join(study.name for study in found)}" if found else ""
        raise TomoscoutError(f"{folder}: no study{f' {name}' if name else ''} (a folder with study.json){there}")
    return max(named, key=_touched)


def planned_trials(results: Path, study: Path) -> int | None:
    """The number of trials in the latest settings of the workflow; None if these are of another study."""
    options = _read(read_json, Results(results).settings)
    if (section := _read(section_of, study)) and isinstance(options, dict):
        options = options.get(section)
    explore = options.get("explore") if isinstance(options, dict) else None
    if not isinstance(explore, dict) or study.name.rpartition("-")[0] != explore.get("name"):
        return None
    return explore["trials"] if isinstance(explore.get("trials"), int) else None


def _touched(study: Path) -> float:
    asked = trial_numbers(study, "ask.json")
    newest = trial_folder(study, asked[-1]) if asked else study
    return max(_times(newest).values(), default=0.0)


def status_lines(study: Path, planned: int | None = None) -> list[str]:
    """The current state of a study: trials done, the best so far, the rate, and each running trial.

    Args:
        study: its folder.
        planned: the configured number of trials. If None, only trials that were proposed count as waiting.
    """
    now = time.time()
    asked = trial_numbers(study, "ask.json")
    done = {}
    for number in trial_numbers(study, "result.json"):
        result = _read(Result.read, trial_folder(study, number))
        if result:
            done[number] = result
    signs = {number: _times(trial_folder(study, number)) for number in asked if number not in done}
    owners = {number: owner_of(trial_folder(study, number)) for number in signs}
    running = [number for number, owner in owners.items() if owner]
    interrupted = [number for number in signs if number not in running and signs[number].keys() - {"ask.json"}]
    idle = [number for number in signs if number not in running and number not in interrupted]
    waiting = len(idle) if planned is None else max(planned - len(done) - len(running) - len(interrupted), len(idle))
    states = {"running": len(running), "interrupted": len(interrupted), "waiting": waiting}
    lines = [_count_line(study.name, done.values(), states, planned)]
    lines += _best_lines(done.values(), _order(study))
    left = None if planned is None else max(planned - len(done), 0)
    lines.append(_rate_line(_rate(study, asked, done), left, bool(running)))
    for number in (*running, *interrupted):
        progress = _progress(trial_folder(study, number), signs[number], now)
        state = f"{progress}, {owners[number]}" if owners[number] else f"interrupted, {progress}"
        lines.append(f"trial {trial_name(number)}: {state}")
    if idle:
        names = [f"{trial_name(n)} ({_ago(signs[n].get('ask.json'), now)})" for n in idle[:_ASKED_SHOWN]]
        more = f" and {len(idle) - _ASKED_SHOWN} more" if len(idle) > _ASKED_SHOWN else ""
        lines.append(f"asked, not begun: {', '.join(names)}{more}")
    return lines


def _read(reader: Callable[[Path], _T], folder: Path) -> _T | None:
    """The return value of a reader; None if the file is missing or broken."""
    try:
        return reader(folder)
    except (TomoscoutError, OSError):
        return None


def _times(folder: Path) -> dict[str, float]:
    """Modification times of the files of a folder, by name. Hidden files, which are still being written, are left
    out."""
    times = {}
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return {}
    for path in paths:
        written = _written(path)
        if written is not None:
            times[path.name] = written
    return times


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _count_line(name: str, done: Iterable[Result], others: Mapping[str, int], planned: int | None) -> str:
    states = [result.state for result in done]
    of = "" if planned is None else f" of {planned:,}"
    complete = states.count("COMPLETE")
    return (
        f"{name}: {len(states):,}{of} trials done ({complete:,} complete, {len(states) - complete:,} pruned), "
        + ", ".join(f"{count:,} {state}" for state, count in others.items() if count or state != "interrupted")
    )


def _order(study: Path) -> list[str]:
    """The parameters in the order of the study: those that others depend on come first."""
    try:
        return [entry["name"] for entry in read_json(study / "study.json")["space"]]
    except (TomoscoutError, OSError, KeyError, TypeError):
        return []


def _best_lines(done: Iterable[Result], order: Sequence[str]) -> list[str]:
    complete = [(result.value, result) for result in done if result.state == "COMPLETE" and result.value is not None]
    if not complete:
        return ["best so far –"]
    value, result = max(complete, key=lambda entry: (entry[0], -entry[1].number))
    names = [name for name in order if name in result.params]
    names += [name for name in result.params if name not in names]
    # A no-break space keeps a name and its value on one line.
    params = ", ".join(f"{name}\xa0{short(result.params[name])}" for name in names) or BASELINE
    text = f"best so far {value:.4f}, trial {trial_name(result.number)}: {params}"
    lines = textwrap.wrap(text, _WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return [line.replace("\xa0", " ") for line in lines]


def _rate(study: Path, asked: Sequence[int], done: Mapping[int, Result]) -> float | None:
    """Trials per second, from the times at which the last trials ended; None if these times are unusable, for example
    after copying."""
    ends = sorted(filter(None, (_written(trial_folder(study, number) / "result.json") for number in done)))
    if len(ends) > _RECENT:
        start: float | None = ends[-_RECENT - 1]
        ends = ends[-_RECENT:]
    else:
        begins = (_written(trial_folder(study, number) / "ask.json") for number in asked)
        start = min(filter(None, begins), default=None)
    if not ends or start is None or ends[-1] - start < 1:
        return None
    return len(ends) / (ends[-1] - start)


def _rate_line(rate: float | None, left: int | None, alive: bool) -> str:
    """`left`: number of remaining trials, None if not known. `alive`: whether a trial runs."""
    speed = f"rate {'–' if rate is None else f'{rate * 3600:.3g} per hour'}"
    if left == 0:
        return f"{speed}, nothing left to do"
    if not alive:
        return f"{speed}, no trial runs, time left –"
    return f"{speed}, time left {'–' if rate is None or left is None else f'about {_duration(left / rate)}'}"


def _progress(folder: Path, times: Mapping[str, float], now: float) -> str:
    """The step and the score of a training, and when it last wrote a file. The first file it writes is its lock."""
    ask = _read(Ask.read, folder)
    rows = _rows(folder / "metrics.csv")
    steps = series(rows, "step")
    scores = series(rows, "score")
    planned = ask.train.get("steps") if ask else None
    of = f" of {planned:,}" if isinstance(planned, int) else ""
    parts = [f"step {steps[-1][0]:,.0f}{of}" if steps else "before its first validation"]
    if scores:
        parts.append(f"score {scores[-1][1]:.4f} (best {best(scores)[1]:.4f})")
    newest = max((time for name, time in times.items() if name != "ask.json"), default=_written(folder / LOCK))
    parts.append(f"last sign of life {_ago(newest, now)}")
    return ", ".join(parts)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(path.read_text(encoding="utf-8", errors="replace").splitlines()))
    except (OSError, csv.Error):
        return []


def _ago(moment: float | None, now: float) -> str:
    return "–" if moment is None else f"{_duration(max(0.0, now - moment))} ago"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    if hours < 1:
        return f"{minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes:02d} min"
