"""Parallel coordinates plot: a line for every trial, through its value of each parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tomoscout.explore.axes import Axis, short
from tomoscout.explore.charts import describe, marked
from tomoscout.explore.records import Result

SHADES = 7
"""Number of colour shades that stand for scores."""

_LEAST_IN_FRONT, _MOST_IN_FRONT = 5, 30
"""The best tenth of the trials is drawn in front, but at least and at most these numbers of them."""

_LEFT, _RIGHT, _TOP, _ROW = 236, 24, 14, 54
_ABSENT = 208
"""Horizontal position of the line of a trial on the axis of a parameter that the trial lacks."""


class Path(NamedTuple):
    """The line of a trial: its CSS classes, its SVG path, and its tooltip."""

    style: str
    course: str
    note: str


class Label(NamedTuple):
    """A tick of an axis and its label. `drop`: distance of the label below the axis."""

    x: float
    text: str
    drop: int


@dataclass(frozen=True)
class Row:
    """The horizontal axis of a parameter. `partial`: some trials lack the parameter."""

    name: str
    y: float
    labels: list[Label]
    partial: bool


@dataclass(frozen=True)
class Parallel:
    """Axes from top to bottom, that of the score first, and lines from the worst trial to the best."""

    title: str
    rows: list[Row]
    lines: list[Path]
    height: float

    WIDTH = 1000.0
    LEFT, RIGHT, ABSENT = _LEFT, WIDTH - _RIGHT, _ABSENT


def parallel_chart(
    title: str, results: Sequence[Result], axes: Sequence[Axis], heights: tuple[float, float]
) -> Parallel:
    """The parallel coordinates plot of trials. `heights`: the range of scores."""
    score = Axis("score", *heights)
    trials = marked(results)
    rows = [_row(score, 0, any(result.value is None for result, _ in trials))]
    rows += [_row(axis, n, any(axis.name not in r.params for r, _ in trials)) for n, axis in enumerate(axes, 1)]
    front = min(max(len(trials) // 10, _LEAST_IN_FRONT), _MOST_IN_FRONT)
    lines = []
    for place, (result, style) in enumerate(trials):
        shade = None if result.value is None else min(max(score.position(result.value), 0), 1)
        styles = [f"shade-{min(int(shade * SHADES), SHADES - 1)}" if shade is not None else "shadeless"]
        styles += ["back"] if place < len(trials) - front else ["first"] if style == "best" else []
        values = {"score": result.value, **result.params}
        course = [_across(axis, values, result.number) for axis in (score, *axes)]
        steps = (f"{x:.0f} {row.y:g}" for x, row in zip(course, rows, strict=True))
        shown = [f"{axis.name} {short(values[axis.name], 6)}" for axis in axes if axis.name in values]
        lines.append(Path(" ".join(styles), "M" + "L".join(steps), ", ".join([describe(result), *shown])))
    return Parallel(title, rows, lines, _TOP + _ROW * len(rows))


def _across(axis: Axis, values: Mapping[str, Any], number: int) -> float:
    value = values.get(axis.name)
    if axis.name not in values or (value is None and not axis.choices):
        return _ABSENT
    return _x(min(max(axis.place(value, number), 0), 1))


def _x(position: float) -> float:
    return _LEFT + position * (Parallel.RIGHT - _LEFT)


def _row(axis: Axis, number: int, partial: bool) -> Row:
    labels: list[Label] = []
    ends = [0.0, 0.0]
    for position, text in axis.ticks(8):
        x, half = _x(position), 3.2 * len(text)
        # A label that would overlap the one before it is put one line further down.
        line = 0 if x - half > ends[0] else 1
        ends[line] = x + half
        labels.append(Label(round(x, 1), text, 15 + 12 * line))
    return Row(axis.name, _TOP + _ROW * number, labels, partial)
