"""The runs that are scored, and their reference picks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tomoscout.data.inventory import RunRecord, find_runs
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import Config
from tomoscout.plan.annotations import is_annotated, refuse_overwriting, refuse_unreadable
from tomoscout.plan.classes import TargetClass, particle_classes
from tomoscout.plan.extractions import Read, picks_read, predictions, segmentation_read

if TYPE_CHECKING:
    from tomoscout.plan.plan import Plan


@dataclass(frozen=True)
class Scored:
    """The runs that are scored, their kind (a key of `scores.RUNS`), and the classes with the sources of their
    reference picks."""

    records: tuple[RunRecord, ...]
    kind: str
    classes: tuple[TargetClass, ...]


def compared_with(config: Config) -> list[Read]:
    """What is scored beside the picks of this workflow: other picks, and segmentations with their reference."""
    options = config.evaluate
    reads = [read for picks in options.also for read in picks_read("evaluate.also", picks)]
    reads += [segmentation_read("evaluate.segmentations", name) for name in options.segmentations]
    if options.segmentation_reference is not None:
        reads.append(segmentation_read("evaluate.segmentation_reference", options.segmentation_reference))
    return reads


def compares_targets(config: Config) -> bool:
    """Whether segmentations are scored against the targets."""
    return bool(config.evaluate.segmentations) and config.evaluate.segmentation_reference is None


def scored_runs(plan: Plan) -> Scored:
    """Choose the runs to score: a part of the split, with the validation runs in place of absent test runs. Without
    training: every localised run that has reference picks.

    Raises:
        TomoscoutError: there are no runs to score, or no reference picks.
    """
    particles, annotated = _reference(plan)
    keys, kind = _scored_keys(plan, annotated)
    scored = tuple(record for record in plan.records if record.key in keys)
    refuse_unreadable(scored, [source for entry in particles for source in entry.sources], "evaluate.reference")
    return Scored(scored, kind, particles)


def _reference(plan: Plan) -> tuple[tuple[TargetClass, ...], frozenset[str]]:
    """Classes of the reference picks, and the runs (`project/run`) that have annotations of them."""
    config, records = plan.config, plan.records
    if config.evaluate.reference is None:
        if not config.learns:
            raise TomoscoutError(
                "evaluate.reference: nothing to score against; give user/session or a list of objects, as the "
                "configuration has no targets either"
            )
        return _looked_for(config, plan.targets.classes), plan.targets.annotated
    classes, _ = particle_classes(config, records, config.evaluate.reference, "evaluate.reference")
    if predictions(config) is not None:
        refuse_overwriting(config, [source for entry in classes for source in entry.sources], "evaluate.reference")
    classes = _looked_for(config, classes)
    return classes, frozenset(r.key for r in records if any(is_annotated(entry, r) for entry in classes))


def _looked_for(config: Config, classes: Iterable[TargetClass]) -> tuple[TargetClass, ...]:
    """The particles that `localize.objects` does not leave out."""
    wanted = config.localize.objects
    return tuple(e for e in classes if e.is_particle and (wanted is None or e.name in wanted))


def _scored_keys(plan: Plan, with_reference: frozenset[str]) -> tuple[frozenset[str], str]:
    """The runs (`project/run`) that are scored, and their kind (a key of `scores.RUNS`)."""
    config = plan.config
    segmented = frozenset(r.key for r in plan.localized if config.segment_tomogram in r.tomograms)
    if isinstance(config.evaluate.runs, list):
        listed = frozenset(r.key for r in find_runs(list(plan.records), config.evaluate.runs, "evaluate.runs"))
        for key in sorted(listed - segmented):
            raise TomoscoutError(f"evaluate.runs: {key} is not segmented; see segment.runs and its tomograms")
        return listed, "listed"
    if not config.learns:
        if not (annotated := segmented & with_reference):
            raise TomoscoutError("evaluate.reference: no run that is segmented has such picks; see segment.runs")
        return annotated, "annotated"
    fold = plan.fold()
    kind: str = config.evaluate.runs
    if config.segment.models == "folds" and (kind == "validate" or (kind == "test" and not fold.test)):
        what = "there are no test runs" if kind == "test" else "validate"
        raise TomoscoutError(
            f"evaluate.runs: {what}, and every run but those of split.test trained some of the folds; list some there "
            "(the scores of each fold are in the table of the cross-validation)"
        )
    if kind == "test" and not fold.test:
        kind = "validate"
    keys = segmented & set(fold.part(kind))
    if not keys:
        raise TomoscoutError(f"evaluate.runs: no {kind} run is segmented; see segment.runs and the split")
    return keys, kind
