"""Segmentations scored voxel by voxel, a part of the evaluation stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.inventory import RunRecord
from tomoscout.data.labels import stored_labels
from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation, nearest_segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.names import Source
from tomoscout.plan.annotations import target_segmentation
from tomoscout.plan.plan import Plan
from tomoscout.plan.scored import Scored, compares_targets
from tomoscout.tasks.picking.voxel_scores import Overlap, overlap, voxel_scores


def score_segmentation(plan: Plan, scored: Scored, name: str) -> list[dict[str, Any]]:
    """The scores of every class of a segmentation, `name:user/session`, over the scored runs that have it and its
    reference.

    Raises:
        TomoscoutError: no scored run has both, they have no class in common, or their shapes differ.
    """
    against = "targets" if compares_targets(plan.config) else str(plan.config.evaluate.segmentation_reference)
    by_class: dict[str, dict[str, Overlap]] = {}
    for record in scored.records:
        for label, found in _compare(plan, record, name):
            by_class.setdefault(label, {})[record.key] = found
    if not by_class:
        raise TomoscoutError(f"evaluate.segmentations: no scored run has both {name} and {against}")
    return [
        {"segmentation": name, "against": against, "class": label, **voxel_scores(runs, plan.config.evaluate.resamples)}
        for label, runs in by_class.items()
    ]


def _compare(plan: Plan, record: RunRecord, name: str) -> Iterator[tuple[str, Overlap]]:
    """Each class with its voxels in a run; none if the run lacks the segmentation or its reference."""
    config = plan.config
    project = Project(record.project, Path(config.projects[record.project]))
    there = project.segmentations(record.run)
    found = nearest_segmentation(there, Source.parse(name), config.voxel_spacing, multilabel=True)
    if found is None or (reference := _reference(plan, there, found)) is None:
        return
    missing = config.targets.allow_missing_chunks
    ours, theirs = (
        project.read_segmentation(record.run, one, allow_missing_chunks=missing) for one in (found, reference)
    )
    if found.voxel_spacing != reference.voxel_spacing or ours.shape != theirs.shape:
        raise TomoscoutError(
            f"evaluate.segmentations: {record.key}: {found} has {ours.shape} voxels z, y, x and {reference} "
            f"{theirs.shape}; expected the same voxels"
        )
    labels = _labels(plan, project)
    for label in _shared_classes(found, reference, ours, theirs, labels):
        masks = _mask(found, ours, labels.get(label)), _mask(reference, theirs, labels.get(label))
        yield label, overlap(*masks, found.voxel_spacing)


def _labels(plan: Plan, project: Project) -> dict[str, int]:
    """The label on disk of every class that is learnt, and of every object that has one in the copick config."""
    learnt = [entry.name for entry in plan.targets.classes] if plan.config.learns else []
    labelled = [name for name, entry in project.objects.items() if entry.label is not None]
    return stored_labels(project.config, list(dict.fromkeys([*learnt, *labelled])))


def _shared_classes(
    found: Segmentation,
    reference: Segmentation,
    ours: NDArray[Any],
    theirs: NDArray[Any],
    labels: Mapping[str, int],
) -> list[str]:
    """The classes to compare: the one of a binary segmentation, else all with voxels in either.

    Raises:
        TomoscoutError: a binary segmentation is compared with a multilabel one, and its name is no class of that.
    """
    if not found.is_multilabel and not reference.is_multilabel:
        return [found.name]
    binary = next((one for one in (found, reference) if not one.is_multilabel), None)
    if binary is None:
        values = {*np.unique(ours).tolist(), *np.unique(theirs).tolist()}
        return [name for name, label in labels.items() if label in values]
    if binary.name not in labels:
        raise TomoscoutError(
            f"evaluate.segmentations: {binary} is compared with labels, and '{binary.name}' has none; labels: "
            f"{', '.join(f'{name} {label}' for name, label in labels.items()) or 'none'}"
        )
    return [binary.name]


def _mask(segmentation: Segmentation, volume: NDArray[Any], label: int | None) -> NDArray[np.bool_]:
    """The voxels of a label, or of a binary segmentation all but 0."""
    mask: NDArray[np.bool_] = volume == label if segmentation.is_multilabel else volume != 0
    return mask


def _reference(plan: Plan, there: list[Segmentation], found: Segmentation) -> Segmentation | None:
    """What a segmentation is compared with, at its voxel spacing if there is one."""
    if compares_targets(plan.config):
        target = target_segmentation(plan.config, found.voxel_spacing)
        return target if target in there else None
    source = Source.parse(plan.config.evaluate.segmentation_reference or "")
    return nearest_segmentation(there, source, found.voxel_spacing, multilabel=found.is_multilabel)
