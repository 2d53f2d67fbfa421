"""The evaluation stage: reads predicted and reference picks of the scored runs and writes their scores."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tomoscout.data.inventory import RunRecord, find_runs
from tomoscout.data.picks import Picks
from tomoscout.data.project import Project
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import Config
from tomoscout.plan.classes import (
    TargetClass,
    TargetPlan,
    is_annotated,
    particle_classes,
    plan_targets,
    read_reference,
    refuse_overwriting,
    refuse_unreadable,
    sound_reference,
)
from tomoscout.plan.predictions import predicted_picks, segmented_runs
from tomoscout.plan.splits import chosen_fold, make_split
from tomoscout.stages.batches import read_manifest
from tomoscout.tasks.picking.scores import PicksOfRuns, evaluate, format_table, write_scores


@dataclass(frozen=True)
class Scored:
    """The runs that are scored, what kind of runs they are, and the classes with the sources of their references."""

    records: tuple[RunRecord, ...]
    kind: str
    classes: tuple[TargetClass, ...]


def scored_runs(config: Config, records: Sequence[RunRecord], plan: TargetPlan | None = None) -> Scored:
    """Decide what is scored: the part of the split asked for; validation runs where there are no test runs. Where a
    model from elsewhere is applied and nothing is learnt, every segmented run that has reference picks. `plan`: that of
    the targets, where it is made already.

    Raises:
        TomoscoutError: nothing is left to score, or there is nothing to score it by.
    """
    if config.learns and plan is None:
        plan = plan_targets(config, records)
    particles, annotated = _reference(config, records, plan)
    keys, kind = _scored_keys(config, records, plan, annotated)
    scored = tuple(record for record in records if record.key in keys)
    refuse_unreadable(scored, [source for entry in particles for source in entry.sources], "evaluate.reference")
    return Scored(scored, kind, particles)


def _reference(
    config: Config, records: Sequence[RunRecord], plan: TargetPlan | None
) -> tuple[tuple[TargetClass, ...], frozenset[str]]:
    """Classes of the reference picks, and the runs (`project/run`) that have any."""
    if config.evaluate.reference is None:
        if plan is None:
            raise TomoscoutError(
                "evaluate.reference: nothing to score against; give user/session or a list of objects, as the "
                "configuration has no targets either"
            )
        return tuple(entry for entry in plan.classes if entry.is_particle), plan.annotated
    classes, _ = particle_classes(config, records, config.evaluate.reference, "evaluate.reference")
    refuse_overwriting(config, [source for entry in classes for source in entry.sources], "evaluate.reference")
    return classes, frozenset(r.key for r in records if any(is_annotated(entry, r) for entry in classes))


def _scored_keys(
    config: Config, records: Sequence[RunRecord], plan: TargetPlan | None, with_reference: frozenset[str]
) -> tuple[set[str], str]:
    """The runs that are scored, and what kind they are (of `scores.RUNS`)."""
    segmented = {record.key for record in segmented_runs(config, records)}
    if isinstance(config.evaluate.runs, list):
        listed = {record.key for record in find_runs(list(records), config.evaluate.runs, "evaluate.runs")}
        for key in sorted(listed - segmented):
            raise TomoscoutError(f"evaluate.runs: {key} is not segmented; see segment.runs and its tomograms")
        return listed, "listed"
    if plan is None:
        if not (annotated := segmented & with_reference):
            raise TomoscoutError("evaluate.reference: no run that is segmented has such picks; see segment.runs")
        return annotated, "annotated"
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


def found_by_model(config: Config, scored: Scored, localized: Path) -> Scored:
    """Without the objects that the model does not look for. Only a model from elsewhere may know fewer objects than the
    reference. `localized`: folder of the localisation's manifests.

    Raises:
        TomoscoutError: it looks for none of them.
    """
    if config.learns:
        return scored
    found = {name for record in scored.records for name in read_manifest(localized, record, picks=dict)["picks"]}
    known = tuple(entry for entry in scored.classes if entry.name in found)
    others = ", ".join(entry.name for entry in scored.classes if entry not in known)
    if not known:
        raise TomoscoutError(f"evaluate.reference: the model looks for none of its objects: {others}")
    if others:
        print(f"note: not scored, as the model does not look for them: {others}", file=sys.stderr)
    return replace(scored, classes=known)


class Pairs(NamedTuple):
    """Predicted and reference picks of the scored runs, by run and object; the reference picks that are in doubt: by
    run and object how many lie outside of the tomogram, and how many repeat another; and the objects that are not
    annotated in a run and not counted there (`targets.unannotated: ignore`)."""

    predictions: PicksOfRuns
    references: PicksOfRuns
    doubtful: list[dict[str, Any]]
    ignored: list[dict[str, str]]


def read_pairs(config: Config, scored: Scored, localized: Path) -> Pairs:
    """Read the picks of the scored runs. `localized`: folder of the localisation's manifests.

    Reference picks in doubt are left out, unless the challenge's counting is asked for, which counts them.

    Raises:
        TomoscoutError: the picks there are not the ones that the localisation wrote.
    """
    predictions: dict[str, dict[str, Picks]] = {}
    references: dict[str, dict[str, Picks]] = {}
    doubtful, ignored = [], []
    for record in scored.records:
        project = Project(record.project, Path(config.projects[record.project]))
        manifest = read_manifest(localized, record, picks=dict)
        predictions[record.key], references[record.key] = {}, {}
        for entry in scored.classes:
            if config.targets.unannotated == "ignore" and not is_annotated(entry, record):
                ignored.append({"run": record.key, "object": entry.name})
                continue
            source = predicted_picks(config, entry.name)
            if entry.name in manifest["picks"]:
                project.require(record.run, source, str(manifest.get("inputs")), "localize")
            predictions[record.key][entry.name] = project.read_picks(record.run, source)
            reference = read_reference(project, record, entry)
            shape, radius = record.tomograms[config.segment_tomogram], entry.radius or 0.0
            sound = sound_reference(reference, shape, config.voxel_spacing, radius)
            if sound.outside or sound.repeated:
                counts = {"outside": sound.outside, "repeated": sound.repeated}
                doubtful.append({"run": record.key, "object": entry.name, **counts})
            is_challenge = config.evaluate.counting == "challenge"
            references[record.key][entry.name] = reference if is_challenge else sound.picks
    return Pairs(predictions, references, doubtful, ignored)


def run_evaluate(config: Config, records: Sequence[RunRecord], localized: Path, folder: Path) -> None:
    """Score the picks and write tables and curves into `folder`; prints the table. `localized`: folder of the
    localisation's manifests.

    Raises:
        TomoscoutError: nothing is left to score, or the picks are not the ones that the localisation wrote.
    """
    scored = found_by_model(config, scored_runs(config, records), localized)
    pairs = read_pairs(config, scored, localized)
    radii = {entry.name: entry.radius for entry in scored.classes if entry.radius is not None}
    scores = evaluate(pairs.predictions, pairs.references, radii, config.evaluate, scored.kind)
    scores |= {"doubtful_references": pairs.doubtful, "not_annotated": pairs.ignored}
    write_scores(folder, scores)
    print(format_table(scores), end="")
