"""Scores of picks: precision, recall, F-beta and average precision, per object, per run and over all."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError
from tomoscout.tasks.picking.intervals import Interval, intervals
from tomoscout.tasks.picking.matching import Matches, count_matches, precision_recall
from tomoscout.tasks.picking.options import Evaluate
from tomoscout.tasks.picking.pair_errors import PairErrors, pair_errors
from tomoscout.tasks.picking.score_columns import COLUMNS, INTERVALS, MEANS, RUN_COLUMNS, numbers, ratios

PicksOfRuns = Mapping[str, Mapping[str, Picks]]
"""Run (`project/run`) → object → picks. A run or object without picks may be left out."""

RUNS = {
    "test": "test runs, which neither trained nor chose the model",
    "validate": "validation runs, which chose the model and its thresholds",
    "train": "training runs, which the model has seen",
    "all": "all runs, those that trained the model among them",
    "listed": "those listed under evaluate.runs",
    "annotated": "all that have reference picks; which of them trained a model is not known here",
}


def match_picks(predicted: Picks, reference: Picks, radius: float, options: Evaluate) -> Matches:
    """Match the picks of one object in one run. `radius`: of the object, in Å."""
    distance = options.distance * radius
    return count_matches(predicted.positions, predicted.scores, reference.positions, distance, options.counting)


def evaluate(
    predictions: PicksOfRuns, references: PicksOfRuns, radii: Mapping[str, float], options: Evaluate, runs_kind: str
) -> dict[str, Any]:
    """Score predicted picks.

    Counts are pooled over runs for every object; the overall score is the weighted mean over objects. An object with
    neither references nor predictions has no score and is left out of the mean. In runs without references every
    prediction is a false positive. Challenge counting differs in both, as the challenge's scorer does: such an object
    scores 0, and runs without any reference are ignored.

    Args:
        predictions: picks to score, per run and object.
        references: the ground truth, per run and object.
        radii: the objects to score, in order, with their radii in Å.
        options: distance, beta, counting, weights.
        runs_kind: the kind of the runs, a key of `RUNS`.

    Returns:
        Scores as JSON types: the options; `objects`, `mean`, `pooled`, `runs` (counts, ratios and errors; None where
        one is not defined), in `objects` and `mean` with `intervals` of the bootstrap over runs; `curves` (per object,
        at every threshold), and which runs were scored, ignored, or empty.

    Raises:
        TomoscoutError: there is no run, a weight is negative, or an object with weight or picks is not scored.
    """
    _check(predictions, references, radii, options)
    runs = sorted({*predictions, *references})
    ignored = [run for run in runs if options.counting == "challenge" and not _count(references, run, radii)]
    scored = [run for run in runs if run not in ignored]
    compared = {
        name: [_compare(predictions, references, run, name, radii, options) for run in scored] for name in radii
    }
    matches = {name: [entry for entry, _ in pairs] for name, pairs in compared.items()}
    errors = {name: [entry for _, entry in pairs] for name, pairs in compared.items()}
    objects = [_score_object(name, radii[name], matches[name], errors[name], options) for name in radii]
    of_objects, of_mean = _intervals(matches, len(scored), options)
    for entry, own in zip(objects, of_objects, strict=True):
        entry["intervals"] = own
    return {
        "beta": options.beta,
        "distance": options.distance,
        "counting": options.counting,
        "runs_kind": runs_kind,
        "objects": objects,
        "mean": {**_mean(objects, options), "intervals": of_mean},
        "pooled": numbers(
            [match for name in radii for match in matches[name]],
            [error for name in radii for error in errors[name]],
            options.beta,
            RUN_COLUMNS,
        ),
        "runs": [
            {
                "run": run,
                "object": name,
                **numbers([matches[name][number]], [errors[name][number]], options.beta, RUN_COLUMNS),
            }
            for number, run in enumerate(scored)
            for name in radii
        ],
        "runs_scored": scored,
        "runs_ignored": ignored,
        "runs_without_references": [run for run in scored if not _count(references, run, radii)],
        "runs_without_predictions": [run for run in scored if not _count(predictions, run, radii)],
        "doubtful_references": [],
        "not_annotated": [],
        "picks": "",
        "also": [],
        "segmentations": [],
        "curves": [{"object": name, **_curve(matches[name], options.beta)} for name in radii],
    }


def _score_object(
    name: str, radius: float, matches: Sequence[Matches], errors: Sequence[PairErrors], options: Evaluate
) -> dict[str, Any]:
    return {
        "object": name,
        "radius": radius,
        "distance": options.distance * radius,
        "weight": options.weights.get(name, 1.0),
        **numbers(matches, errors, options.beta, COLUMNS),
    }


def _intervals(
    matches: Mapping[str, Sequence[Matches]], runs: int, options: Evaluate
) -> tuple[list[dict[str, Interval]], dict[str, Interval]]:
    """Intervals of precision, recall and F of every object, and of their means over objects."""
    objects = len(matches)
    counts = np.array(
        [[[m.true_positives, m.false_positives, m.false_negatives] for m in of_runs] for of_runs in matches.values()],
        dtype=np.float64,
    ).reshape(objects, runs, 3)
    weights = np.array([options.weights.get(name, 1.0) for name in matches])

    def score(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores of the objects, one after the other, and their means."""
        of_objects = ratios(sums.reshape(len(sums), objects, 3), options.beta)
        filled = np.nan_to_num(of_objects) if options.counting == "challenge" else of_objects
        known = np.isfinite(filled) * weights[:, None]
        with np.errstate(invalid="ignore"):
            means = (np.nan_to_num(filled) * known).sum(axis=1) / known.sum(axis=1)
        return np.concatenate([of_objects.reshape(len(sums), -1), means], axis=1)

    found = intervals(np.moveaxis(counts, 0, 1).reshape(runs, 3 * objects), score, options.resamples)
    width = len(INTERVALS)
    rows = [dict(zip(INTERVALS, found[n : n + width], strict=True)) for n in range(0, len(found), width)]
    return rows[:-1], rows[-1]


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


def _compare(
    predictions: PicksOfRuns,
    references: PicksOfRuns,
    run: str,
    name: str,
    radii: Mapping[str, float],
    options: Evaluate,
) -> tuple[Matches, PairErrors]:
    """The matches of one object in one run, and the errors of their pairs."""
    none = Picks.at(np.zeros((0, 3)))
    predicted, reference = (picks.get(run, {}).get(name, none) for picks in (predictions, references))
    matches = match_picks(predicted, reference, radii[name], options)
    return matches, pair_errors(predicted, reference, matches)


def _mean(objects: Sequence[dict[str, Any]], options: Evaluate) -> dict[str, Any]:
    """Weighted means over the objects for which a value is defined; with challenge counting undefined values count as
    0."""
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
