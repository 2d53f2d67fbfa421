"""The learning curve: scores over the number of training runs, as a chart and in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tomoscout.options.forms import read_form
from tomoscout.report.plots import Chart, Dot, Line

ALL = "all"
"""In place of an object: the score that selected the models."""


@dataclass(frozen=True)
class CurveRow:
    """Scores of the models that were trained on `percent` of the training runs, for an object or for `all`.

    `picks`: annotated picks in their runs, the mean over the draws; None for what has no picks. `scores`: one for each
    draw, None where no validation run holds the object.
    """

    percent: int
    runs: int
    object: str
    picks: int | None
    scores: list[float | None]

    @property
    def known(self) -> list[float]:
        """The scores that there are."""
        return [score for score in self.scores if score is not None]

    @property
    def mean(self) -> float | None:
        """The mean over the draws."""
        return fmean(self.known) if self.known else None

    @property
    def spread(self) -> float | None:
        """The highest score less the lowest; None where there are fewer than two."""
        return max(self.known) - min(self.known) if len(self.known) > 1 else None


@dataclass(frozen=True)
class Curve:
    """A learning curve: the fingerprint of its trainings, the score that selected its models, what it shows in words,
    and its rows by number of runs."""

    fingerprint: str
    metric: str
    sentences: list[str]
    rows: list[CurveRow]


def read_curve(path: Path) -> Curve:
    """Read the .json file of a learning curve.

    Raises:
        TomoscoutError: the file is missing or is no learning curve.
    """
    return read_form(Curve, path, "a learning curve")


def describe_last_step(rows: Iterable[CurveRow]) -> str:
    """Whether the last step up in runs raised the score by more than the draws differ."""
    *before, last = [row for row in rows if row.object == ALL]
    if not before:
        return f"All fractions are equally many training runs ({last.runs}): there is nothing to compare."
    earlier = before[-1]
    gain = fmean(last.known) - fmean(earlier.known)
    step = f"From {earlier.runs:,} to {last.runs:,} training runs the score changes by {gain:+.3f}"
    if last.spread is None or earlier.spread is None:
        return f"{step}; with one draw (learning_curve.draws) nothing is known of how far scores differ by chance."
    spread = max(last.spread, earlier.spread)
    if gain > spread:
        return f"{step}, more than draws differ (up to {spread:.3f}): more annotated runs still help."
    return f"{step}, while draws differ by up to {spread:.3f}: that more annotated runs still help does not show."


def curve_chart(rows: Sequence[CurveRow]) -> Chart:
    """The scores over the number of runs, which is on a logarithmic scale: the mean over draws with a dot for each, and
    behind it the objects."""
    whole = [row for row in rows if row.object == ALL]
    objects = dict.fromkeys(row.object for row in rows if row.object != ALL)
    lines = [Line(name, "context", _means(row for row in rows if row.object == name)) for name in objects]
    dots = [
        Dot(_place(row), score, f"{score:.3f}, training runs: {row.runs:,}, draw {draw}")
        for row in whole
        for draw, score in enumerate(row.scores)
        if score is not None
    ]
    places = [_place(row) for row in whole]
    return Chart(
        "Learning curve",
        "training runs",
        "score",
        (min(places) - 0.25, max(places) + 0.25),
        (0, 1),
        [*lines, Line("mean", "line", _means(whole))],
        dots,
        420,
        230,
        [(_place(row), f"{row.runs:,}") for row in whole],
    )


def _place(row: CurveRow) -> float:
    return math.log2(row.runs)


def _means(rows: Iterable[CurveRow]) -> list[tuple[float, float]]:
    return [(_place(row), row.mean) for row in rows if row.mean is not None]
