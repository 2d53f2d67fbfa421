"""Charts of a study: how the search went, and the score over each of its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from tomoscout.explore.axes import Axis, rounded, short
from tomoscout.explore.records import Result, trial_name
from tomoscout.learning.history import Points
from tomoscout.report.plots import Chart, Dot, Line, Ticks, ticks


def score_text(value: float | None) -> str:
    """A score with four digits."""
    return "no score" if value is None else f"{value:.4f}"


def in_order(results: Iterable[Result]) -> list[Result]:
    """The results from best to worst: completed trials, pruned trials, trials without a score."""
    return sorted(results, key=lambda r: (r.state != "COMPLETE", r.value is None, -(r.value or 0.0), r.number))


def best_of(results: Iterable[Result]) -> Result | None:
    """The best of the completed trials; of equal scores the first."""
    return next((result for result in in_order(results)[:1] if result.state == "COMPLETE"), None)


def describe(result: Result) -> str:
    """A trial and its score as text."""
    return f"{trial_name(result.number)}{'' if result.state == 'COMPLETE' else ' pruned'}: {score_text(result.value)}"


def marked(results: Sequence[Result]) -> list[tuple[Result, str]]:
    """Trials from the worst to the best, each with the CSS class of its mark."""
    best = best_of(results)
    return [(result, "best" if result is best else _style(result)) for result in reversed(in_order(results))]


def _style(result: Result) -> str:
    return "unscored" if result.value is None else "dot" if result.state == "COMPLETE" else "pruned"


def score_range(results: Iterable[Result]) -> tuple[float, float]:
    """The range of scores from the lowest that is no outlier to the highest. Outliers (Tukey 1977) lie below the lower
    quartile by more than 1.5 times the interquartile range."""
    scores = [result.value for result in results if result.value is not None]
    if not scores:
        return 0.0, 1.0
    low = min(scores)
    if len(scores) > 3:
        lower, _, upper = quantiles(scores, method="inclusive")
        low = max(low, lower - 1.5 * (upper - lower))
    return rounded(low, max(scores))


def history_chart(results: Sequence[Result], heights: tuple[float, float]) -> Chart:
    """The score of every trial, and the best score so far."""
    last = max((result.number for result in results), default=0)
    dots = [
        Dot(result.number, heights[0] if result.value is None else result.value, describe(result), style)
        for result, style in marked(results)
    ]
    sides = (-0.5, last + 0.5)
    lines = [Line("the best so far", "line", _reached(results, last))]
    title = "Score of every trial"
    return Chart(title, "trial", "score", sides, heights, lines, dots, 480, 250, whole_ticks(*sides))


def _reached(results: Iterable[Result], last: int) -> Points:
    """The best score so far as a step function."""
    stairs: list[tuple[float, float]] = []
    for result in sorted(results, key=lambda result: result.number):
        score = result.value if result.state == "COMPLETE" else None
        if score is not None and (not stairs or score > stairs[-1][1]):
            stairs += [(result.number, stairs[-1][1])] if stairs else []
            stairs.append((result.number, score))
    return [*stairs, (last, stairs[-1][1])] if stairs else []


def curves_chart(results: Sequence[Result]) -> Chart:
    """The scores of every trial over its validations."""
    lines, dots = [], []
    for result, style in marked(results):
        points = sorted((float(number), score) for number, score in result.intermediate.items())
        if not points:
            continue
        note = f"{describe(result)} ({', '.join(f'{score:.4f}' for _, score in points)})"
        lines.append(Line(note, {"best": "line", "dot": "curve"}.get(style, "curve stopped"), points))
        if result.state == "PRUNED":
            dots.append(Dot(*points[-1], f"{note}; {result.reason}", style))
        elif style == "best" or len(points) == 1:
            dots.append(Dot(*max(points, key=lambda point: point[1]), note, style))
    scores = [score for line in lines for _, score in line.points]
    heights = rounded(min(scores), max(scores)) if scores else (0.0, 1.0)
    last = max((line.points[-1][0] for line in lines), default=1)
    sides = (1.0, last) if last > 1 else (0.5, 1.5)
    return Chart("Learning curves", "validation", "score", sides, heights, lines, dots, 480, 250, whole_ticks(*sides))


def whole_ticks(low: float, high: float) -> Ticks:
    """The ticks of the range that are whole numbers."""
    return [(value, f"{value:,.0f}") for value, _ in ticks(low, high) if abs(value - round(value)) < 1e-9]


@dataclass(frozen=True)
class RowsChart(Chart):
    """A chart with text labels on the left. `LEFT`: the width of the labels."""

    LEFT: int = 40


def slice_charts(results: Sequence[Result], axes: Iterable[Axis], heights: tuple[float, float]) -> list[Chart]:
    """The score over each parameter. A choice has a row for each value, and the score is the horizontal axis."""
    trials = marked(results)
    return [
        (_rows_chart if axis.choices else _slice_chart)(
            axis, [(result, style) for result, style in trials if axis.name in result.params], len(trials), heights
        )
        for axis in axes
    ]


def _slice_chart(axis: Axis, trials: Sequence[tuple[Result, str]], total: int, heights: tuple[float, float]) -> Chart:
    dots = [
        Dot(axis.position(value), heights[0] if score is None else score, note, style)
        for value, score, note, style in _slice(axis, trials)
    ]
    label = f"{axis.name} (logarithmic)" if axis.log else axis.name
    title = _title(axis, trials, total)
    return Chart(title, label, "score", (0, 1), heights, [], dots, 340, 220, axis.ticks())


def _rows_chart(axis: Axis, trials: Sequence[tuple[Result, str]], total: int, heights: tuple[float, float]) -> Chart:
    dots, by_choice = [], dict[str, list[float]]()
    for (result, _), (value, score, note, style) in zip(trials, _slice(axis, trials), strict=True):
        dots.append(Dot(heights[0] if score is None else score, 1 - axis.place(value, result.number), note, style))
        by_choice.setdefault(short(value), []).extend([] if score is None else [score])
    half = 0.4 / len(axis.choices)
    lines = []
    for choice, scores in sorted(by_choice.items()):
        if scores:
            middle, place = median(scores), 1 - axis.position(choice)
            note = f"{choice}: median {middle:.4f} of {len(scores):,} trials"
            lines.append(Line(note, "median", [(middle, place - half), (middle, place + half)]))
    rows = [(1 - place, _cut(label)) for place, label in axis.ticks()]
    title = _title(axis, trials, total)
    room = max(40, 14 + 6 * max(len(label) for _, label in rows))
    return RowsChart(title, "score", "", heights, (0, 1), lines, dots, 340, 220, None, rows, room)


def _slice(axis: Axis, trials: Sequence[tuple[Result, str]]) -> list[tuple[object, float | None, str, str]]:
    """For each trial: the value of the parameter, the score, a tooltip and a CSS class."""
    found = []
    for result, style in trials:
        value = result.params[axis.name]
        found.append((value, result.value, f"{describe(result)} at {short(value, 6)}", style))
    return found


def _title(axis: Axis, trials: Sequence[object], total: int) -> str:
    return axis.name if len(trials) == total else f"{axis.name} · {len(trials):,} trials"


def _cut(label: str, length: int = 22) -> str:
    return label if len(label) <= length else f"{label[: length - 1]}…"
