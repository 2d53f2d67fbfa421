"""The data of a training: tomograms, targets and picks of the training and validation runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import inside, to_voxels
from tomoscout.data.inventory import RunRecord
from tomoscout.data.picks import Picks
from tomoscout.data.project import Project
from tomoscout.learning.normalisation import standardise
from tomoscout.learning.sampling import Centres, largest_jitter
from tomoscout.learning.volumes import LabelledVolume, VolumeSource
from tomoscout.machine.files import digest
from tomoscout.options.config import Config
from tomoscout.options.names import TomogramUri
from tomoscout.plan.classes import TargetClass, rescaled
from tomoscout.plan.folds import Fold, training_tomograms
from tomoscout.plan.targets import TargetPlan, ignored_classes
from tomoscout.tasks.picking.head import Reference
from tomoscout.tasks.picking.reference import read_reference, sound_reference
from tomoscout.tasks.picking.targets import draw_target, read_target

MOST_VOXELS = 50_000
"""Largest number of voxels of a continuous class that are kept per tomogram as centres of crops."""

Shape = tuple[int, int, int]


class TrainingData:
    """Reads the tomograms, targets and picks of the runs of a fold."""

    def __init__(
        self,
        config: Config,
        plan: TargetPlan,
        records: Sequence[RunRecord],
        runs: Fold,
    ) -> None:
        self.config = config
        # A training may learn spheres of another size than those of the targets that are written.
        self.plan = replace(plan, classes=rescaled(plan.classes, config.train.radius_scale))
        self._redraws = self.plan.classes != plan.classes and config.targets.existing is None
        self.runs = runs
        self.projects = {name: Project(name, Path(path)) for name, path in config.projects.items()}
        self.training = training_tomograms(config, records, runs)
        # The split ensures that every validation run has `segment.tomogram`.
        by_key = {record.key: record for record in records}
        self.validation = [by_key[key] for key in runs.validate]

    @property
    def training_shapes(self) -> list[Shape]:
        """Shapes (z, y, x) of the training tomograms: every kind of every run."""
        return [record.tomograms[uri] for record, uri in self.training]

    @property
    def validation_shapes(self) -> list[Shape]:
        """Shapes (z, y, x) of the validation tomograms."""
        return [record.tomograms[self.config.segment_tomogram] for record in self.validation]

    @property
    def absent(self) -> NDArray[np.bool_] | None:
        """Which classes are ignored in which training volumes, (volume, 1 + classes) with background first; None if no
        class is ignored anywhere."""
        ignored = [ignored_classes(self.config, self.plan, record.key) for record, _ in self.training]
        names = ["", *(entry.name for entry in self.plan.classes)]
        return np.array([[name in of_run for name in names] for of_run in ignored]) if any(ignored) else None

    def volumes(self) -> list[VolumeSource]:
        """The training tomograms, each with its target."""
        return [
            VolumeSource(
                f"{record.key} {uri}",
                digest([record.tomograms[uri], record.contents.get(uri), self.plan.inputs[record.key], self._radii]),
                partial(self._read, record, uri),
            )
            for record, uri in self.training
        ]

    def _read(self, record: RunRecord, uri: str) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
        tomogram = self.projects[record.project].read_tomogram(record.run, uri)
        return tomogram, self._target(record, uri, tomogram.shape)

    @property
    def _radii(self) -> list[float | None] | None:
        """The target radii, where they are not those of the targets that are written."""
        return [entry.target_radius for entry in self.plan.classes] if self._redraws else None

    def _target(self, record: RunRecord, uri: str, shape: tuple[int, ...]) -> NDArray[np.integer]:
        project = self.projects[record.project]
        if self._redraws:
            return draw_target(project, self.config, self.plan, record, uri)
        voxel_spacing = TomogramUri.parse(uri).voxel_spacing
        return read_target(project, self.config, self.plan, record, voxel_spacing, (shape[0], shape[1], shape[2]))

    def validation_volumes(self, with_labels: bool) -> list[tuple[NDArray[np.float32], Reference]]:
        """The normalised tomograms (z, y, x) of the validation runs, each with its reference."""
        return [self._validation_volume(record, with_labels) for record in self.validation]

    def _validation_volume(self, record: RunRecord, with_labels: bool) -> tuple[NDArray[np.float32], Reference]:
        spacing = self.config.voxel_spacing
        tomogram = self.projects[record.project].read_tomogram(record.run, self.config.segment_tomogram)
        picks = {
            entry.name: sound_reference(self._picks(record, entry), tomogram.shape, spacing, entry.radius).picks
            for entry in self.plan.classes
            if entry.radius is not None
        }
        labels = self._target(record, self.config.segment_tomogram, tomogram.shape) if with_labels else None
        ignored = frozenset(ignored_classes(self.config, self.plan, record.key))
        return standardise(tomogram), Reference(picks, labels, ignored)

    def _picks(self, record: RunRecord, entry: TargetClass) -> Picks:
        return read_reference(self.projects[record.project], record, entry)

    def centres(self, entry: TargetClass, volumes: Sequence[LabelledVolume], patch: Sequence[int]) -> Centres:
        """Centres of crops of a class: its picks, or voxels of a continuous class."""
        places = []
        reach = 0.0
        for number, ((record, uri), volume) in enumerate(zip(self.training, volumes, strict=True)):
            spacing = TomogramUri.parse(uri).voxel_spacing
            if entry.is_particle:
                indices = to_voxels(self._picks(record, entry).positions, spacing)
                found = np.rint(indices[inside(indices, record.tomograms[uri])]).astype(np.int64)
            else:
                found = np.argwhere((volume.labels == entry.label).cpu().numpy())
                found = found[:: max(1, -(-len(found) // MOST_VOXELS))]
            places.append(np.column_stack([np.full(len(found), number), found]))
            # The jitter is limited so that a crop keeps the whole particle, also at the finest voxel spacing.
            reach = max(reach, (entry.target_radius or 0.0) / spacing)
        return Centres(np.concatenate(places), largest_jitter(patch, reach))
