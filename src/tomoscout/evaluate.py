"""The evaluation stage: reads predicted and reference picks of the scored runs and writes their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tomoscout.classes import TargetClass, plan_targets, read_reference
from tomoscout.config import Config
from tomoscout.errors import TomoscoutError
from tomoscout.inventory import RunRecord
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
    """Decide what is scored: the part of the split asked for; validation runs where there are no test runs.

    Raises:
        TomoscoutError: nothing is left to score.
    """
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
    keys = set(fold.part(kind)) & {record.key for record in segmented_runs(config, records)}
    if not keys:
        raise TomoscoutError(f"evaluate.runs: no {kind} run is segmented; see segment.runs and the split")
    classes = plan.classes
    if config.evaluate.reference is not None:
        targets = config.targets.model_copy(update={"picks": config.evaluate.reference, "segmentations": []})
        classes = plan_targets(config.model_copy(update={"targets": targets}), records).classes
    particles = tuple(entry for entry in classes if entry.is_particle)
    return Scored(tuple(record for record in records if record.key in keys), kind, particles)


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
    scored = scored_runs(config, records)
    predictions, references = read_pairs(config, scored)
    radii = {entry.name: entry.radius for entry in scored.classes if entry.radius is not None}
    scores = evaluate(predictions, references, radii, config.evaluate, scored.kind)
    write_scores(folder, scores)
    print(format_table(scores), end="")
