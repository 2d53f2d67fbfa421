"""The evaluation stage: reads predicted and reference picks of the scored runs and writes their scores."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tomoscout.classes import TargetClass, TargetPlan, plan_targets, read_reference
from tomoscout.config import Config
from tomoscout.errors import TomoscoutError
from tomoscout.inventory import RunRecord, find_runs
from tomoscout.predictions import predicted_picks, segmented_runs
from tomoscout.project import Picks, Project
from tomoscout.scores import PicksOfRuns, evaluate, format_table, write_scores
from tomoscout.splits import chosen_fold, make_split


@dataclass(frozen=True)
class Scored:
    """The runs that are scored, what kind of runs they are, and the classes with the sources of their references."""

    records: tuple[RunRecord, ...]
    kind: str
    classes: tuple[TargetClass, ...]


def scored_runs(config: Config, records: Sequence[RunRecord]) -> Scored:
    """Decide what is scored: the part of the split asked for; validation runs where there are no test runs. Where a
    model from elsewhere is applied and nothing is learnt, every segmented run that has reference picks.

    Raises:
        TomoscoutError: nothing is left to score, or there is nothing to score it by.
    """
    reference = _reference_plan(config, records)
    keys, kind = _scored_keys(config, records, reference)
    particles = tuple(entry for entry in reference.classes if entry.is_particle)
    return Scored(tuple(record for record in records if record.key in keys), kind, particles)


def _reference_plan(config: Config, records: Sequence[RunRecord]) -> TargetPlan:
    """Classes and annotated runs of the reference picks."""
    if config.evaluate.reference is None:
        if not config.learns:
            raise TomoscoutError(
                "evaluate.reference: nothing to score against; give user/session or a list of objects, as the "
                "configuration has no targets either"
            )
        return plan_targets(config, records)
    targets = config.targets.model_copy(update={"picks": config.evaluate.reference, "segmentations": []})
    return plan_targets(config.model_copy(update={"targets": targets}), records)


def _scored_keys(config: Config, records: Sequence[RunRecord], reference: TargetPlan) -> tuple[set[str], str]:
    """The runs that are scored, and what kind they are (of `scores.RUNS`)."""
    segmented = {record.key for record in segmented_runs(config, records)}
    if isinstance(config.evaluate.runs, list):
        listed = {record.key for record in find_runs(list(records), config.evaluate.runs, "evaluate.runs")}
        for key in sorted(listed - segmented):
            raise TomoscoutError(f"evaluate.runs: {key} is not segmented; see segment.runs and its tomograms")
        return listed, "listed"
    if not config.learns:
        if not (annotated := segmented & reference.annotated):
            raise TomoscoutError("evaluate.reference: no run that is segmented has such picks; see segment.runs")
        return annotated, "annotated"
    plan = plan_targets(config, records)
    fold = chosen_fold(config.split, make_split(config, records, plan))
    kind: str = config.evaluate.runs
    if config.segment.models == "folds" and (kind == "validate" or (kind == "test" and not fold.test)):
        what = "there are no test runs" if kind == "test" else "validate"
        raise TomoscoutError(
            f"evaluate.runs: {what}, and every run but those of split.test trained some of the folds; list some there "
            "(the scores of each fold are in the table of the cross-validation)"
        )
    if kind == "test" and not fold.test:
        kind = "validate"
    keys = set(fold.part(kind)) & segmented
    if not keys:
        raise TomoscoutError(f"evaluate.runs: no {kind} run is segmented; see segment.runs and the split")
    return keys, kind


def found_by_model(config: Config, scored: Scored) -> Scored:
    """Without the objects that the model does not look for: localisation writes picks of all others, be they none. Only
    a model from elsewhere may know fewer objects than the reference.

    Raises:
        TomoscoutError: it looks for none of them.
    """
    if config.learns:
        return scored
    projects = {name: Project(name, Path(path)) for name, path in config.projects.items()}
    there = {source for record in scored.records for source in projects[record.project].pick_sources(record.run)}
    known = tuple(entry for entry in scored.classes if predicted_picks(config, entry.name) in there)
    others = ", ".join(entry.name for entry in scored.classes if entry not in known)
    if not known:
        raise TomoscoutError(f"evaluate.reference: the model looks for none of its objects: {others}")
    if others:
        print(f"note: not scored, as the model does not look for them: {others}", file=sys.stderr)
    return replace(scored, classes=known)


def read_pairs(config: Config, scored: Scored) -> tuple[PicksOfRuns, PicksOfRuns]:
    """Predicted and reference picks of the scored runs, by run and object."""
    predictions: dict[str, dict[str, Picks]] = {}
    references: dict[str, dict[str, Picks]] = {}
    for record in scored.records:
        project = Project(record.project, Path(config.projects[record.project]))
        predictions[record.key] = {
            entry.name: project.read_picks(record.run, predicted_picks(config, entry.name)) for entry in scored.classes
        }
        references[record.key] = {entry.name: read_reference(project, record, entry) for entry in scored.classes}
    return predictions, references


def run_evaluate(config: Config, records: Sequence[RunRecord], folder: Path) -> None:
    """Score the picks and write tables and curves into `folder`; prints the table.

    Raises:
        TomoscoutError: nothing is left to score.
    """
    scored = found_by_model(config, scored_runs(config, records))
    predictions, references = read_pairs(config, scored)
    radii = {entry.name: entry.radius for entry in scored.classes if entry.radius is not None}
    scores = evaluate(predictions, references, radii, config.evaluate, scored.kind)
    write_scores(folder, scores)
    print(format_table(scores), end="")
