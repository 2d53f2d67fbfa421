"""The history of a training: rows of `metrics.csv`, and a plot of them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tomoscout.machine.files import write_bytes

Points = Sequence[tuple[float, float]]


def object_columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns of metrics.csv that hold the scores of single classes."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return [column for column in columns if column not in ("step", "loss", "learning_rate", "score")]


def series(rows: Iterable[Mapping[str, Any]], column: str) -> list[tuple[float, float]]:
    """(step, value) of every row whose value in `column` is a finite number."""
    found = []
    for row in rows:
        try:
            step, value = float(row["step"]), float(row[column])
        except (KeyError, TypeError, ValueError):
            continue
        if math.isfinite(value):
            found.append((step, value))
    return found


def best(points: Points) -> tuple[float, float]:
    """The point with the highest value; of equal values the first."""
    return max(points, key=lambda point: point[1])


def draw_history(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG of loss and validation scores over steps from the rows of metrics.csv (`step`, `loss`, `score` and
    a column per object; values may be missing). Equal rows give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(rows)
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes, label in (left, "loss"), (right, "score"):
        axes.set(xlabel="step", ylabel=label, xlim=(0, max((step for step, _ in series(rows, "step")), default=1)))
        axes.grid(color="#e6e6e6")
        axes.spines[["top", "right"]].set_visible(False)
    left.plot(*_columns(series(rows, "loss")), color="#0b7285")
    left.set_ylim(bottom=0)
    for name in object_columns(rows):
        right.plot(*_columns(series(rows, name)), linewidth=1, label=name)
    if score := series(rows, "score"):
        step, value = best(score)
        right.plot(*_columns(score), color="black", linewidth=2, marker="o", markersize=3.5, label="mean")
        right.plot([step], [value], color="black", marker="o", markersize=9, fillstyle="none")
        right.set_title(f"best {value:.3f} at step {step:,.0f}", fontsize=10)
        right.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    right.set_ylim(0, 1)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    write_bytes(path, stream.getvalue())


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
