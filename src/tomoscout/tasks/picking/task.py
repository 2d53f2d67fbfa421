"""Picking as a task to learn: its data, its loss, and how its predictions are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from tomoscout.tasks.picking.data import TrainingData
from tomoscout.tasks.picking.head import PickingHead, Reference
from tomoscout.tasks.picking.model import PickingModel
from tomoscout.tasks.picking.options import Train

TILE = (160, 160, 160)
"""Voxels that validation predicts at once. Not those of `segment`: trying another tile there must not train again."""


class PickingTask(Task):
    """Particles found by their centres, and continuous classes found by their voxels."""

    tile = TILE
    # Non-maximum suppression works on one class at a time: smoothed copies, and indices of the voxels that could be a
    # peak.
    decoding_memory = 32

    def __init__(self, data: TrainingData, options: Train, loss: nn.Module | None = None) -> None:
        """`loss`: in place of that of the options.

        Raises:
            TomoscoutError: an option names a class that there is not.
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
        """That of the options; where a class is not annotated in every run, a marginal loss over it."""
        loss = self.head.loss(self._own_loss)
        return loss if self.data.absent is None else MarginalLoss(loss)

    def example_targets(self, patch: Shape, mixup: bool) -> tuple[torch.Tensor, ...]:
        """As of `augment`: before the labels the classes that are not annotated, where there are such."""
        labels = label_targets(patch, mixup)
        if self.data.absent is None:
            return labels
        return torch.zeros((1, self.outputs), dtype=torch.bool), *labels

    def batches(self, options: Training, storage: Storage) -> Batches:
        """Crops near picks, on voxels of continuous classes, and of background."""
        volumes = labelled_volumes(self.data.volumes(), options.crop, storage)
        classes = self.data.plan.classes
        centres = {entry.name: self.data.centres(entry, volumes, options.crop) for entry in classes}
        return crop_batches(volumes, centres, options, storage.device, self.data.absent)

    def validation_volumes(self) -> list[NDArray[np.float32]]:
        """The tomograms of the validation runs, prepared."""
        pairs = self.data.validation_volumes(self.labelled)
        self._references = [reference for _, reference in pairs]
        self.head.check_references(self._references, self.data.runs.validate)
        return [volume for volume, _ in pairs]

    def measure(self, predictions: Sequence[NDArray[np.uint8]]) -> Validation:
        """See `PickingHead.measure`."""
        return self.head.measure(predictions, self._references)

    def model(self, common: Mapping[str, Any], options: Training, details: Mapping[str, Any]) -> PickingModel:
        """With the thresholds that validation chose."""
        return PickingModel(
            **common,
            classes=self.data.plan.classes,
            thresholds=details["thresholds"],
            voxel_spacings=tuple(self.data.config.target_spacings),
            patch=options.crop,
            picking=self.head.options.picking,
        )
