"""How good picks are: precision, recall, F-beta and average precision, per object, per run and over all."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, PositiveFloat

from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError, shown
from tomoscout.machine.files import read_json, read_table, write_json, write_table
from tomoscout.machine.tables import aligned
from tomoscout.options.forms import checked
from tomoscout.options.sections import Fraction
from tomoscout.tasks.picking.matching import Matches, count_matches, f_beta, precision_recall
from tomoscout.tasks.picking.options import Evaluate

PicksOfRuns = Mapping[str, Mapping[str, Picks]]
"""Run (`project/run`) → object → picks. A run or object without picks may be left out."""

COUNTS = ["references", "predictions", "true_positives", "false_positives", "false_negatives"]
RATIOS = ["precision", "recall", "f"]
MEANS = [*RATIOS, "average_precision"]

RUNS = {
    "test": "test runs, which neither trained nor chose the model",
    "validate": "validation runs, which chose the model and its thresholds",
    "train": "training runs, which the model has seen",
    "all": "all runs, those that trained the model among them",
    "listed": "those listed under evaluate.runs",
    "annotated": "all that have reference picks, of a model trained elsewhere",
}


def match_picks(predicted: Picks, reference: Picks, radius: float, options: Evaluate) -> Matches:
    """Match the picks of one object in one run. `radius`: the object's, in Å."""
    distance = options.distance * radius
    return count_matches(predicted.positions, predicted.scores, reference.positions, distance, options.counting)


def evaluate(
    predictions: PicksOfRuns, references: PicksOfRuns, radii: Mapping[str, float], options: Evaluate, runs_kind: str
) -> dict[str, Any]:
    """Score predicted picks.

    Counts are pooled over runs, for every object; the overall score is the weighted mean over objects. An object
    with neither references nor predictions has no score and no part in the mean. Runs without references count:
    whatever is predicted there is false. The challenge's counting differs in both: such an object scores 0, and
    runs without any reference at all are ignored, as the challenge's scorer does.

    Args:
        predictions: picks to score, per run and object.
        references: the truth, per run and object.
        radii: the objects to score, in order, with their radii in Å.
        options: distance, beta, counting, weights.
        runs_kind: which runs these are, of `RUNS`.

    Returns:
        JSON-like scores: the options; `objects`, `mean`, `pooled`, `runs` (counts and ratios; None where one is not
        defined), `curves` (per object, at every threshold), and which runs were scored, ignored, or empty.

    Raises:
        TomoscoutError: no run, or a weight or picks of an object that is not scored.
    """
    _check(predictions, references, radii, options)
    runs = sorted({*predictions, *references})
    ignored = [run for run in runs if options.counting == "challenge" and not _count(references, run, radii)]
    scored = [run for run in runs if run not in ignored]
    matches = {
        name: [_match_run(predictions, references, run, name, radii, options) for run in scored] for name in radii
    }
    objects = [
        {
            "object": name,
            "radius": radii[name],
            "distance": options.distance * radii[name],
            "weight": options.weights.get(name, 1.0),
            **_score(matches[name], options.beta),
            "average_precision": precision_recall(matches[name]).average_precision,
        }
        for name in radii
    ]
    return {
        "beta": options.beta,
        "distance": options.distance,
        "counting": options.counting,
        "runs_kind": runs_kind,
        "objects": objects,
        "mean": _mean(objects, options),
        "pooled": _score([match for name in radii for match in matches[name]], options.beta),
        "runs": [
            {"run": run, "object": name, **_score([matches[name][number]], options.beta)}
            for number, run in enumerate(scored)
            for name in radii
        ],
        "runs_scored": scored,
        "runs_ignored": ignored,
        "runs_without_references": [run for run in scored if not _count(references, run, radii)],
        "runs_without_predictions": [run for run in scored if not _count(predictions, run, radii)],
        "doubtful_references": [],
        "not_annotated": [],
        "curves": [{"object": name, **_curve(matches[name], options.beta)} for name in radii],
    }


def _check(predictions: PicksOfRuns, references: PicksOfRuns, radii: Mapping[str, float], options: Evaluate) -> None:
    if not predictions and not references:
        raise TomoscoutError("evaluate: there is no run to score")
    for name, weight in options.weights.items():
        if name not in radii:
            near = difflib.get_close_matches(name, radii, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"scored objects: {', '.join(radii)}"
            raise TomoscoutError(f"evaluate.weights: '{name}' is not a scored object; {hint}")
        if weight < 0:
            raise TomoscoutError(f"evaluate.weights: the weight of '{name}' is {weight:g}; expected 0 or more")
    for kind, picks_of_runs in ("predictions", predictions), ("references", references):
        for run, picks in picks_of_runs.items():
            for name in picks:
                if name not in radii:
                    raise TomoscoutError(f"{run}: {kind} of '{name}', an object without a radius, cannot be scored")


def _count(picks: PicksOfRuns, run: str, radii: Mapping[str, float]) -> int:
    return sum(len(picks.get(run, {}).get(name, ())) for name in radii)


def _match_run(
    predictions: PicksOfRuns,
    references: PicksOfRuns,
    run: str,
    name: str,
    radii: Mapping[str, float],
    options: Evaluate,
) -> Matches:
    none = Picks.at(np.zeros((0, 3)))
    predicted, reference = (picks.get(run, {}).get(name, none) for picks in (predictions, references))
    return match_picks(predicted, reference, radii[name], options)


def _score(matches: Sequence[Matches], beta: float) -> dict[str, Any]:
    """Counts and ratios of several matches together."""
    found = sum(match.true_positives for match in matches)
    false = sum(match.false_positives for match in matches)
    missed = sum(match.false_negatives for match in matches)
    return {
        "references": found + missed,
        "predictions": found + false,
        "true_positives": found,
        "false_positives": false,
        "false_negatives": missed,
        "precision": found / (found + false) if found + false else None,
        "recall": found / (found + missed) if found + missed else None,
        "f": f_beta(found, false, missed, beta),
    }


def _mean(objects: Sequence[dict[str, Any]], options: Evaluate) -> dict[str, Any]:
    """Weighted means over the objects for which a value is defined (the challenge takes 0 where none is)."""
    means: dict[str, Any] = {}
    for key in MEANS:
        values = [(entry[key], entry["weight"]) for entry in objects]
        if options.counting == "challenge":
            values = [(value or 0.0, weight) for value, weight in values]
        kept = [(value, weight) for value, weight in values if value is not None]
        total = sum(weight for _, weight in kept)
        means[key] = sum(value * weight for value, weight in kept) / total if total else None
    undefined = [entry["object"] for entry in objects if entry["f"] is None]
    return {**means, "left_out": [] if options.counting == "challenge" else undefined}


def _curve(matches: Sequence[Matches], beta: float) -> dict[str, list[float]]:
    curve = precision_recall(matches)
    return {
        "threshold": curve.thresholds.tolist(),
        "predictions": curve.kept.tolist(),
        "true_positives": curve.found.tolist(),
        "precision": curve.precision.tolist(),
        "recall": curve.recall.tolist(),
        "f": curve.f(beta).tolist(),
    }


def f_name(beta: float) -> str:
    """`F4`, `F0.5`."""
    return f"F{beta:g}"


def write_scores(folder: Path, scores: Mapping[str, Any]) -> None:
    """Write objects.csv, runs.csv, curves.csv and, last, scores.json (all but the curves) into `folder`."""
    ratios = {"f": f_name(scores["beta"])}
    shape = {"radius": "radius (Å)", "distance": "distance (Å)"}
    columns = ["object", *shape, "weight", *COUNTS, *MEANS]
    _write_columns(folder / "objects.csv", scores["objects"], columns, {**shape, **ratios})
    _write_columns(folder / "runs.csv", scores["runs"], ["run", "object", *COUNTS, *RATIOS], ratios)
    points = [
        dict(zip(curve, (curve["object"], *point), strict=True))
        for curve in scores["curves"]
        for point in zip(*(values for key, values in curve.items() if key != "object"), strict=True)
    ]
    columns = ["object", "threshold", "predictions", "true_positives", *RATIOS]
    _write_columns(folder / "curves.csv", points, columns, ratios)
    write_json(folder / "scores.json", {key: value for key, value in scores.items() if key != "curves"})


def _write_columns(path: Path, rows: Iterable[Mapping[str, Any]], columns: list[str], names: Mapping[str, str]) -> None:
    named = [names.get(column, column) for column in columns]
    write_table(path, named, [dict(zip(named, (row[key] for key in columns), strict=True)) for row in rows])


class _Counts(BaseModel):
    references: int
    predictions: int
    true_positives: int
    false_positives: int
    false_negatives: int
    precision: Fraction | None
    recall: Fraction | None
    f: Fraction | None


class _OfObject(_Counts):
    object: str
    radius: float
    distance: float
    weight: float
    average_precision: Fraction | None


class _OfRun(_Counts):
    run: str
    object: str


class _Mean(BaseModel):
    precision: Fraction | None
    recall: Fraction | None
    f: Fraction | None
    average_precision: Fraction | None
    left_out: list[str]


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
    objects: list[_OfObject]
    mean: _Mean
    pooled: _Counts
    runs: list[_OfRun]
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
    numbers = {"threshold": float, "predictions": int, "true_positives": int, **dict.fromkeys(RATIOS, float)}
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
    """Which runs were scored and how, in sentences."""
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
    """The scores as a plain text table, a row per object and one for the mean."""
    header = ["object", "references", "predictions", "precision", "recall", f_name(scores["beta"]), "average precision"]
    rows = [
        [entry["object"], f"{entry['references']}", f"{entry['predictions']}", *(_fixed(entry[key]) for key in MEANS)]
        for entry in scores["objects"]
    ]
    pooled, mean = scores["pooled"], scores["mean"]
    totals = [f"{pooled['references']}", f"{pooled['predictions']}"]
    weighted = len({entry["weight"] for entry in scores["objects"]}) > 1
    rows.append(["weighted mean" if weighted else "mean", *totals, *(_fixed(mean[key]) for key in MEANS)])
    lines = aligned([header, *rows])
    rule = "─" * len(lines[0])
    return "\n".join([*describe_runs(scores), "", lines[0], rule, *lines[1:-1], rule, lines[-1]]) + "\n"


def _fixed(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
