"""Tables of scores: written to files, read back, and formatted as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, PositiveFloat, create_model

from tomoscout.machine.errors import TomoscoutError, shown
from tomoscout.machine.files import read_json, read_table, write_json, write_table
from tomoscout.machine.tables import aligned
from tomoscout.options.forms import checked
from tomoscout.options.sections import Fraction
from tomoscout.tasks.picking.score_columns import COLUMNS, RUN_COLUMNS, Column, f_name
from tomoscout.tasks.picking.scores import RUNS

_CURVE = ("precision", "recall", "f")


def write_scores(folder: Path, scores: Mapping[str, Any]) -> None:
    """Write objects.csv, runs.csv, curves.csv and, last, scores.json (all but the curves) into `folder`."""
    names = {column.key: column.name(scores["beta"]) for column in COLUMNS}
    names |= {"radius": "radius (Å)", "distance": "distance (Å)"}
    columns = ["object", "radius", "distance", "weight", *(column.key for column in COLUMNS)]
    _write_columns(folder / "objects.csv", scores["objects"], columns, names)
    columns = ["run", "object", *(column.key for column in RUN_COLUMNS)]
    _write_columns(folder / "runs.csv", scores["runs"], columns, names)
    points = [
        dict(zip(curve, (curve["object"], *point), strict=True))
        for curve in scores["curves"]
        for point in zip(*(values for key, values in curve.items() if key != "object"), strict=True)
    ]
    columns = ["object", "threshold", "predictions", "true_positives", *_CURVE]
    _write_columns(folder / "curves.csv", points, columns, names)
    write_json(folder / "scores.json", {key: value for key, value in scores.items() if key != "curves"})


def _write_columns(path: Path, rows: Iterable[Mapping[str, Any]], columns: list[str], names: Mapping[str, str]) -> None:
    named = [names.get(column, column) for column in columns]
    write_table(path, named, [dict(zip(named, (row[key] for key in columns), strict=True)) for row in rows])


def _form(columns: Iterable[Column], **others: Any) -> type[BaseModel]:
    """The form of a row with these columns and further fields (name and type)."""
    types = {column.key: Fraction | None if column.is_ratio else int for column in columns}
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in {**types, **others}.items()}
    return create_model("_Row", **fields)


_OfObject = _form(COLUMNS, object=str, radius=float, distance=float, weight=float)
_OfRun = _form(RUN_COLUMNS, run=str, object=str)
_Mean = _form([column for column in COLUMNS if column.is_ratio], left_out=list[str])
_Pooled = _form(RUN_COLUMNS)


class _OfReference(BaseModel):
    run: str
    object: str
    outside: int
    repeated: int


class _Scores(BaseModel):
    """The form of `scores.json`."""

    beta: PositiveFloat
    distance: PositiveFloat
    counting: Literal["one-to-one", "challenge"]
    runs_kind: Literal[tuple(RUNS)]  # type: ignore[valid-type]
    objects: list[_OfObject]  # type: ignore[valid-type]
    mean: _Mean  # type: ignore[valid-type]
    pooled: _Pooled  # type: ignore[valid-type]
    runs: list[_OfRun]  # type: ignore[valid-type]
    runs_scored: list[str]
    runs_ignored: list[str]
    runs_without_references: list[str]
    runs_without_predictions: list[str]
    doubtful_references: list[_OfReference]
    not_annotated: list[dict[str, str]]


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
    """The scores as a plain text table: a row per object, and a last row with sums of counts and means of ratios."""
    columns = [column for column in COLUMNS if column.is_printed]
    header = ["object", *(column.name(scores["beta"]).replace("_", " ") for column in columns)]
    rows = [[entry["object"], *_cells(columns, entry)] for entry in scores["objects"]]
    weighted = len({entry["weight"] for entry in scores["objects"]}) > 1
    rows.append(["weighted mean" if weighted else "mean", *_cells(columns, {**scores["pooled"], **scores["mean"]})])
    lines = aligned([header, *rows])
    rule = "─" * len(lines[0])
    return "\n".join([*describe_runs(scores), "", lines[0], rule, *lines[1:-1], rule, lines[-1]]) + "\n"


def _cells(columns: Iterable[Column], row: Mapping[str, Any]) -> list[str]:
    return [_fixed(row[column.key]) if column.is_ratio else f"{row[column.key]}" for column in columns]


def _fixed(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
