"""Tables of scores: written to files, read back, and formatted as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, create_model

from tomoscout.machine.errors import TomoscoutError, shown
from tomoscout.machine.files import read_json, read_table, write_json, write_table
from tomoscout.machine.tables import aligned
from tomoscout.options.forms import checked
from tomoscout.options.sections import Fraction
from tomoscout.tasks.picking.intervals import LEVEL
from tomoscout.tasks.picking.score_columns import COLUMNS, INTERVALS, RUN_COLUMNS, Column, f_name, shown_columns
from tomoscout.tasks.picking.scores import RUNS
from tomoscout.tasks.picking.voxel_scores import VOXEL_SCORES

_CURVE = ("precision", "recall", "f")
_ENDS = ("low", "high")


def write_scores(folder: Path, scores: Mapping[str, Any]) -> None:
    """Write objects.csv, runs.csv, curves.csv, segmentations.csv if any were scored and, last, scores.json (all but the
    curves) into `folder`. The tables of objects and runs have the rows of all picks that were scored."""
    beta = scores["beta"]
    names = {column.key: _named(column, beta) for column in COLUMNS}
    names |= {"radius": "radius (Å)", "distance": "distance (Å)", "surface_distance": "surface_distance (Å)"}
    names |= {f"{key}_{end}": f"{names[key]}_{end}" for key in INTERVALS for end in _ENDS}
    sets = [scores, *scores["also"]]
    rows = [{"picks": each["picks"], **_flat(row)} for each in sets for row in each["objects"]]
    columns = ["object", "picks", "radius", "distance", "weight", *_with_ends(COLUMNS)]
    _write_columns(folder / "objects.csv", rows, columns, names)
    rows = [{"picks": each["picks"], **row} for each in sets for row in each["runs"]]
    _write_columns(folder / "runs.csv", rows, ["run", "object", "picks", *(c.key for c in RUN_COLUMNS)], names)
    if scores["segmentations"]:
        _write_segmentations(folder / "segmentations.csv", scores["segmentations"], names)
    points = [
        dict(zip(curve, (curve["object"], *point), strict=True))
        for curve in scores["curves"]
        for point in zip(*(values for key, values in curve.items() if key != "object"), strict=True)
    ]
    columns = ["object", "threshold", "predictions", "true_positives", *_CURVE]
    _write_columns(folder / "curves.csv", points, columns, names)
    write_json(folder / "scores.json", {key: value for key, value in scores.items() if key != "curves"})


def _named(column: Column, beta: float) -> str:
    return f"{column.name(beta)} ({column.unit})" if column.unit else column.name(beta)


def _with_ends(columns: Iterable[Column]) -> Iterator[str]:
    """The keys of columns, those of the ends of an interval after its own."""
    for column in columns:
        yield column.key
        if column.has_interval:
            yield from (f"{column.key}_{end}" for end in _ENDS)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the ends of its intervals as values."""
    ends = {
        f"{key}_{end}": value
        for key, interval in row["intervals"].items()
        for end, value in zip(_ENDS, interval or (None, None), strict=True)
    }
    return {**row, **ends}


def _write_segmentations(path: Path, scored: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    """A row for each class over all runs, and one for each run."""
    ends = [f"{key}_{end}" for key in VOXEL_SCORES for end in _ENDS]
    nothing = dict.fromkeys(ends)
    rows = []
    for entry in scored:
        facts = {key: entry[key] for key in ("segmentation", "class")}
        rows.append({**_flat(entry), "run": "all"})
        rows += [{**facts, **nothing, **row} for row in entry["runs"]]
    columns = ["segmentation", "class", "run", "voxels", "reference", *VOXEL_SCORES, *ends]
    _write_columns(path, rows, columns, names)


def _write_columns(path: Path, rows: Iterable[Mapping[str, Any]], columns: list[str], names: Mapping[str, str]) -> None:
    named = [names.get(column, column) for column in columns]
    write_table(path, named, [dict(zip(named, (row[key] for key in columns), strict=True)) for row in rows])


def _type(column: Column) -> Any:
    if column.is_ratio:
        return Fraction | None
    return NonNegativeFloat | None if column.unit else int


def _form(columns: Iterable[Column], **others: Any) -> type[BaseModel]:
    """The form of a row with these columns and further fields (name and type)."""
    types = {column.key: _type(column) for column in columns}
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in {**types, **others}.items()}
    return create_model("_Row", **fields)


_Interval = Annotated[list[NonNegativeFloat], Field(min_length=2, max_length=2)] | None
_Intervals = create_model("_Intervals", **dict.fromkeys(INTERVALS, (_Interval, ...)))  # type: ignore[call-overload]
_OfObject = _form(COLUMNS, object=str, radius=float, distance=float, weight=float, intervals=_Intervals)
_OfRun = _form(RUN_COLUMNS, run=str, object=str)
_Mean = _form([column for column in COLUMNS if column.is_ratio], left_out=list[str], intervals=_Intervals)
_Pooled = _form(RUN_COLUMNS)


class _Set(BaseModel):
    """The scores of one set of picks."""

    picks: str
    objects: list[_OfObject]  # type: ignore[valid-type]
    mean: _Mean  # type: ignore[valid-type]
    pooled: _Pooled  # type: ignore[valid-type]
    runs: list[_OfRun]  # type: ignore[valid-type]
    runs_without_predictions: list[str]


class _VoxelRow(BaseModel):
    voxels: int
    reference: int
    dice: Fraction | None
    iou: Fraction | None
    surface_distance: NonNegativeFloat | None


class _VoxelRun(_VoxelRow):
    run: str


class _VoxelScores(_VoxelRow):
    """The scores of a class of a segmentation."""

    segmentation: str
    against: str
    class_: str = Field(alias="class")
    intervals: dict[Literal[VOXEL_SCORES], _Interval]  # type: ignore[valid-type]
    runs: list[_VoxelRun]


class _OfReference(BaseModel):
    run: str
    object: str
    outside: int
    repeated: int


class _Scores(_Set):
    """The form of `scores.json`."""

    beta: PositiveFloat
    distance: PositiveFloat
    counting: Literal["one-to-one", "challenge"]
    runs_kind: Literal[tuple(RUNS)]  # type: ignore[valid-type]
    runs_scored: list[str]
    runs_ignored: list[str]
    runs_without_references: list[str]
    doubtful_references: list[_OfReference]
    not_annotated: list[dict[str, str]]
    also: list[_Set]
    segmentations: list[_VoxelScores]


def read_scores(folder: Path) -> dict[str, Any]:
    """The scores that `write_scores` wrote.

    Raises:
        TomoscoutError: a file is missing or broken.
    """
    scores: dict[str, Any] = read_json(folder / "scores.json")
    checked(_Scores, scores, folder / "scores.json", "scores")
    path = folder / "curves.csv"
    numbers = {"threshold": float, "predictions": int, "true_positives": int, **dict.fromkeys(_CURVE, float)}
    curves: dict[str, dict[str, list[float]]] = {
        entry["object"]: {key: [] for key in numbers} for entry in scores["objects"]
    }
    try:
        for row in read_table(path):
            row["f"] = row[f_name(scores["beta"])]
            for key, number in numbers.items():
                value = number(row[key])
                if not math.isfinite(value):
                    raise ValueError(f"{key} {row[key]}")
                curves[row["object"]][key].append(value)
    except (KeyError, ValueError) as error:
        raise TomoscoutError(f"{path}: not the curves of scores.json ({shown(error)}); evaluate again") from None
    return {**scores, "curves": [{"object": name, **curve} for name, curve in curves.items()]}


def describe_runs(scores: Mapping[str, Any]) -> list[str]:
    """Sentences that say which runs were scored, and how."""
    count = len(scores["runs_scored"])
    runs = f"{count} {'run' if count == 1 else 'runs'} ({RUNS[scores['runs_kind']]})"
    sentences = [f"Scored on {runs}; {scores['counting']} counting within {scores['distance']:g} × radius."]
    for key, words in (
        ("runs_without_references", "without reference picks, where every prediction is false"),
        ("runs_without_predictions", "without predictions"),
    ):
        if scores[key]:
            sentences.append(f"{len(scores[key])} of them {words}: {', '.join(scores[key])}.")
    if scores["runs_ignored"]:
        sentences.append(f"Ignored by this counting, without any reference: {', '.join(scores['runs_ignored'])}.")
    if scores["doubtful_references"]:
        sentences.append(_describe_doubtful(scores))
    if scores["not_annotated"]:
        where = ", ".join(f"{row['run']} {row['object']}" for row in scores["not_annotated"])
        sentences.append(f"Not annotated, and so not scored: {where}.")
    if any(scores["mean"]["intervals"].values()):
        sentences.append(f"Intervals of {LEVEL:.0%} are of the bootstrap over runs.")
    if scores["mean"]["left_out"]:
        names = ", ".join(scores["mean"]["left_out"])
        sentences.append(f"Not in the mean, with nothing to find and nothing predicted: {names}.")
    return sentences


def _describe_doubtful(scores: Mapping[str, Any]) -> str:
    rows = scores["doubtful_references"]
    counts = {key: sum(row[key] for row in rows) for key in ("outside", "repeated")}
    where = ", ".join(f"{row['run']} {row['object']} {row['outside'] + row['repeated']}" for row in rows[:5])
    counted = "counted all the same, as the challenge does" if scores["counting"] == "challenge" else "not counted"
    return (
        f"Reference picks outside of their tomogram: {counts['outside']}, of a particle that was picked before: "
        f"{counts['repeated']}; {counted} ({where}{', …' if len(rows) > 5 else ''})."
    )


def format_table(scores: Mapping[str, Any]) -> str:
    """The scores as plain text: a table for the picks, with a row per object and a last row with sums of counts and
    means of ratios; one for each of the other picks; and one for segmentations."""
    parts = [describe_runs(scores), _table(scores, scores["beta"])]
    parts += [[f"{each['picks']}:", "", *_table(each, scores["beta"])] for each in scores["also"]]
    if scores["segmentations"]:
        parts.append(_voxel_table(scores["segmentations"]))
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _table(scores: Mapping[str, Any], beta: float) -> list[str]:
    columns = shown_columns(scores["objects"], [column for column in COLUMNS if column.is_printed])
    has_intervals = any(scores["mean"]["intervals"].values())
    rows = [["object", *_heads(columns, beta, has_intervals)]]
    rows += [[entry["object"], *_cells(columns, entry, has_intervals)] for entry in scores["objects"]]
    weighted = len({entry["weight"] for entry in scores["objects"]}) > 1
    together = {**scores["pooled"], **scores["mean"]}
    rows.append(["weighted mean" if weighted else "mean", *_cells(columns, together, has_intervals)])
    lines = aligned(rows)
    rule = "─" * max(map(len, lines))
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def _heads(columns: Iterable[Column], beta: float, has_intervals: bool) -> Iterator[str]:
    for column in columns:
        yield _named(column, beta).replace("_", " ")
        if has_intervals and column.key == "f":
            yield f"{LEVEL:.0%}"


def _cells(columns: Iterable[Column], row: Mapping[str, Any], has_intervals: bool) -> Iterator[str]:
    """The values of a row. Of the intervals only that of F is printed."""
    for column in columns:
        value = row[column.key]
        yield fixed(value) if column.is_ratio else measured(value) if column.unit else f"{value}"
        if has_intervals and column.key == "f":
            yield between(row["intervals"]["f"])


def _voxel_table(scored: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = [["segmentation", "class", "Dice", f"{LEVEL:.0%}", "IoU", "surface distance (Å)"]]
    for entry in scored:
        values = fixed(entry["dice"]), between(entry["intervals"]["dice"]), fixed(entry["iou"])
        rows.append([entry["segmentation"], entry["class"], *values, measured(entry["surface_distance"])])
    lines = aligned(rows)
    return [lines[0], "─" * max(map(len, lines)), *lines[1:]]


def fixed(value: float | None) -> str:
    """A ratio as text."""
    return "–" if value is None else f"{value:.3f}"


def measured(value: float | None) -> str:
    """A distance or an angle as text."""
    return "–" if value is None else f"{value:.1f}"


def between(interval: Sequence[float] | None) -> str:
    """An interval as text."""
    return "–" if interval is None else f"{interval[0]:.3f}–{interval[1]:.3f}"
