"""The picking task: its data, its loss, and the scoring of its predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tomoscout.learning.crops import crop_batches
from tomoscout.learning.losses.combined import MarginalLoss
from tomoscout.learning.options import Training
from tomoscout.learning.progression import Validation
from tomoscout.learning.step_memory import Shape, label_targets
from tomoscout.learning.task import Task
from tomoscout.learning.trainer import Batches
from tomoscout.learning.volumes import Storage, labelled_volumes
from tomoscout.tasks.picking import device_peaks
from tomoscout.tasks.picking.data import TrainingData
from tomoscout.tasks.picking.head import PickingHead, Reference
from tomoscout.tasks.picking.model import PickingModel
from tomoscout.tasks.picking.options import Train

TILE = (192, 128, 128)
"""Voxels (z, y, x) that validation predicts at once. It is not `segment.tile`, so that changing that option does not
make trainings out of date."""


class PickingTask(Task):
    """Particles found by their centres, and continuous classes found by their voxels."""

    tile = TILE
    # Peaks are found for one class at a time; memory is needed for smoothed copies and the indices of candidate voxels.
    decoding_memory = 32

    def __init__(self, data: TrainingData, options: Train, loss: nn.Module | None = None) -> None:
        """`loss`: used instead of the loss of the options.

        Raises:
            TomoscoutError: an option names a class that does not exist.
        """
        self.data = data
        self.head = PickingHead(data.plan.classes, data.config.voxel_spacing, options)
        self.metric = f"{options.best_metric} of {options.best_metric_on}"
        self.class_names = [entry.name for entry in data.plan.classes]
        self.training_shapes = data.training_shapes
        self.validation_shapes = data.validation_shapes
        self.labelled = self.head.needs_labels
        self._own_loss = loss
        self._references: Sequence[Reference] = ()

    def loss(self) -> nn.Module:
        """The loss of the options or of the user; as a marginal loss if classes are ignored in some runs."""
        loss = self.head.loss(self._own_loss)
        return loss if self.data.absent is None else MarginalLoss(loss)

    def example_targets(self, patch: Shape, mixup: bool) -> tuple[torch.Tensor, ...]:
        """Targets as `augment` returns them: the labels, with the mask of ignored classes before them if there are
        any."""
        labels = label_targets(patch, mixup)
        if self.data.absent is None:
            return labels
        return torch.zeros((1, self.outputs), dtype=torch.bool), *labels

    def batches(self, options: Training, storage: Storage) -> Batches:
        """Batches of crops near picks, on voxels of continuous classes, and of background."""
        if storage.device.type == "cuda":
            self.head.find = partial(device_peaks.find_peaks, device=storage.device)
        volumes = labelled_volumes(self.data.volumes(), options.crop, storage)
        classes = self.data.plan.classes
        centres = {entry.name: self.data.centres(entry, volumes, options.crop) for entry in classes}
        own = self.head.options
        return crop_batches(
            volumes, centres, options, storage.device, self.data.absent, own.class_sampling, own.harder_classes
        )

    def validation_volumes(self) -> list[NDArray[np.float32]]:
        """The normalised tomograms (z, y, x) of the validation runs."""
        pairs = self.data.validation_volumes(self.labelled)
        self._references = [reference for _, reference in pairs]
        self.head.check_references(self._references, self.data.runs.validate)
        return [volume for volume, _ in pairs]

    def measure(self, predictions: Iterable[NDArray[np.uint8]]) -> Validation:
        """See `PickingHead.measure`."""
        return self.head.measure(list(predictions), self._references)

    def model(self, common: Mapping[str, Any], options: Training, details: Mapping[str, Any]) -> PickingModel:
        """The picking model, with the thresholds chosen in validation."""
        return PickingModel(
            **common,
            classes=self.data.plan.classes,
            thresholds=details["thresholds"],
            voxel_spacings=tuple(self.data.config.target_spacings),
            patch=options.crop,
            picking=self.head.options.picking,
        )
