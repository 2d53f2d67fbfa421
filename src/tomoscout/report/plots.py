"""Charts of the HTML pages, drawn as SVG by their templates: precision-recall curves, curves of a training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tomoscout.learning.history import Points, best, object_columns, series

Ticks = Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Line:
    """A line of a chart: its CSS class, and the name shown when it is pointed at."""

    name: str
    style: str
    points: Points


@dataclass(frozen=True)
class Dot:
    """A marked point of a chart: its CSS class, and the note shown when it is pointed at."""

    x: float
    y: float
    note: str
    style: str = "dot"


@dataclass(frozen=True)
class Chart:
    """A line chart in the units of its data, lines from back to front; the page's template draws it as SVG. `x_ticks`,
    `y_ticks`: positions and labels to use instead of round numbers."""

    title: str
    x_label: str
    y_label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    lines: list[Line]
    dots: list[Dot]
    width: float = 260
    height: float = 220
    x_ticks: Ticks | None = None
    y_ticks: Ticks | None = None

    TOP, RIGHT, BOTTOM, LEFT = 12, 18, 36, 40

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The position of a point in the SVG; outside of the ranges it is clipped to their edge."""
        across, up = (
            min(max((value - low) / (high - low), 0), 1)
            for value, (low, high) in ((x, self.x_range), (y, self.y_range))
        )
        plot_width, plot_height = self.width - self.LEFT - self.RIGHT, self.height - self.TOP - self.BOTTOM
        return round(self.LEFT + across * plot_width, 1), round(self.TOP + (1 - up) * plot_height, 1)

    def path(self, points: Points) -> str:
        """An SVG path through points, without points that have the same position as the one before."""
        return "M" + "L".join(f"{x} {y}" for (x, y), _ in groupby(self.place(*point) for point in points))

    def marks(self) -> list[tuple[str, list[Dot]]]:
        """The dots, with consecutive ones of the same style grouped."""
        return [(style, list(dots)) for style, dots in groupby(self.dots, key=lambda dot: dot.style)]

    def ticks(self) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
        """Position and label of the ticks along x, and along y."""
        (left, right), (low, high) = self.x_range, self.y_range
        across = ticks(left, right) if self.x_ticks is None else self.x_ticks
        up = ticks(low, high) if self.y_ticks is None else self.y_ticks
        x_ticks = [(self.place(value, low)[0], label) for value, label in across]
        return x_ticks, [(self.place(left, value)[1], label) for value, label in up]


def ticks(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
    """About `count` round numbers from `low` to `high`, with labels."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(n * step, f"{n * step:,.{digits}f}") for n in range(first, last + 1)]


def precision_recall_charts(scores: Mapping[str, Any]) -> list[Chart]:
    """A precision-recall chart for each object that has references: its curve in front of those of the others."""
    curves = {
        curve["object"]: list(zip(curve["recall"], curve["precision"], strict=True)) for curve in scores["curves"]
    }
    charts = []
    for entry in scores["objects"]:
        name = entry["object"]
        if not entry["references"]:
            continue
        lines = [Line(other, "context", points) for other, points in curves.items() if other != name]
        lines.append(Line(name, "line", curves[name]))
        dots = [Dot(*curves[name][-1], "all picks")] if curves[name] else []
        charts.append(Chart(name, "recall", "precision", (0, 1), (0, 1), lines, dots))
    return charts


def history_charts(history: Iterable[Mapping[str, Any]]) -> list[Chart]:
    """Charts of a training from the rows of metrics.csv: the loss, and the scores of every validation."""
    rows = list(history)
    loss, score = thin(series(rows, "loss")), series(rows, "score")
    last = max((step for step, _ in loss + score), default=0)
    charts = []
    if len(loss) > 1:
        top = max(value for _, value in loss) or 1
        charts.append(Chart("Loss", "step", "loss", (0, last), (0, top), [Line("loss", "line", loss)], [], 420, 230))
    if score and last > 0:
        top_step, top_score = best(score)
        dots = [Dot(step, value, f"{value:.3f} at step {step:,.0f}") for step, value in score]
        dots.append(Dot(top_step, top_score, f"best: {top_score:.3f} at step {top_step:,.0f}", "best"))
        title = f"Validation score, best {top_score:.3f} at step {top_step:,.0f}"
        lines = [Line(name, "context", series(rows, name)) for name in object_columns(rows)]
        lines.append(Line("mean", "line", score))
        charts.append(Chart(title, "step", "score", (0, last), (0, 1), lines, dots, 420, 230))
    return charts


def thin(points: Points, count: int = 300) -> list[tuple[float, float]]:
    """At most `count` points: means over intervals of equal length."""
    length = math.ceil(len(points) / count)
    stretches = [points[start : start + length] for start in range(0, len(points), max(length, 1))]
    return [(sum(x for x, _ in s) / len(s), sum(y for _, y in s) / len(s)) for s in stretches]
