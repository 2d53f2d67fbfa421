"""The task of instances: its data, its targets and loss, and the scoring of its predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tomoscout.learning.crops import crop_batches
from tomoscout.learning.options import Training
from tomoscout.learning.progression import Validation
from tomoscout.learning.readout import Readout
from tomoscout.learning.step_memory import Shape
from tomoscout.learning.task import Task
from tomoscout.learning.trainer import Batches
from tomoscout.learning.volumes import Storage, labelled_volumes
from tomoscout.tasks.instances.data import LARGEST_LABEL, CellData
from tomoscout.tasks.instances.head_of import head_of
from tomoscout.tasks.instances.heads import Decoder, Head
from tomoscout.tasks.instances.model import CellModel
from tomoscout.tasks.instances.options import CellTraining
from tomoscout.tasks.instances.scores import IOU, Overlaps, mean_ap, overlaps, score
from tomoscout.tasks.instances.shown import Shown

TILES = {2: (1024, 1024), 3: (64, 192, 192)}
"""Voxels ((z,) y, x) that are predicted at once in images, and in volumes."""

CHOOSING = 16
"""Validation images by which the thresholds are chosen: their predictions are compared with every threshold."""

SHOWN = 3
"""Validation images of which a validation keeps what it found, to be drawn."""


class CellTask(Task):
    """Instances in images: each object gets a number of its own."""

    metric = "mean AP at IoU 0.5 to 0.9"
    volume = "image"
    validation_option = "cells.division.validate"
    one_by_one = True
    prepared = True

    def __init__(self, data: CellData, options: CellTraining) -> None:
        self.data = data
        self.options = options
        self.head = head_of(options.head, options.rays, options.DIMENSIONS)
        self.readout = HeadReadout(self.head)
        self.class_names = self.head.names
        self.tile = TILES[options.DIMENSIONS]
        self.channels = len(data.inputs)
        self.training_shapes = data.training_shapes
        self.validation_shapes = data.validation_shapes
        # Of one image copies, distances and positions; of each that chooses thresholds its prediction and labels.
        self.decoding_memory = 96 + 32 * min(CHOOSING, len(data.validation))
        self.shown: list[Shown] = []

    @property
    def predicted(self) -> int:
        return math.ceil(self.head.values / int(self.head.every**self.options.DIMENSIONS))

    @property
    def largest_label(self) -> int:
        return LARGEST_LABEL

    @property
    def score_names(self) -> Sequence[str]:
        return [f"AP{round(100 * iou)}" for iou in IOU]

    def loss(self) -> nn.Module:
        """The loss of the head."""
        return self.head.loss(self.options.shape_weight, dice=self.options.inside_loss == "entropy-dice")

    def example_targets(self, patch: Shape, mixup: bool) -> tuple[torch.Tensor, ...]:
        """Targets of a crop without objects."""
        return self.head.targets(torch.zeros((1, *patch), dtype=torch.int64), LARGEST_LABEL)

    def batches(self, options: Training, storage: Storage) -> Batches:
        """Batches of crops near objects and of background. Targets are made of the labels of a crop, after it was
        augmented: so all augmentations suit all heads."""
        self.head.device = storage.device
        volumes = labelled_volumes(self.data.volumes(), options.crop, storage)
        crops = crop_batches(
            volumes, self.data.centres(volumes, options.crop), options, storage.device, shares=self.data.weights
        )

        def batches(step: int, scores: Mapping[str, float]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            intensities, (labels,) = crops(step, scores)
            return intensities, self.head.targets(labels, storage.ignore)

        return batches

    def validation_volumes(self) -> Sequence[NDArray[np.float32]]:
        """The prepared validation images (channels, (z,) y, x), each read when it is asked for."""
        return _Images(self.data)

    def measure(self, predictions: Iterable[NDArray[Any]]) -> Validation:
        """AP over a range of IoU. The thresholds are those that give the best of it on the first images."""
        rest = iter(predictions)
        annotated, decoders = [], []
        for entry, prediction in zip(self.data.validation[:CHOOSING], rest, strict=False):
            annotated.append(self.data.read_labels(entry))
            decoders.append(self.head.decoder(prediction, annotated[-1].shape))
        thresholds, found = choose_thresholds(self.head, decoders, annotated)
        self.shown = [
            Shown.of(entry.key, self.data.read_image(entry)[0], decode(thresholds), labels, overlap)
            for entry, decode, labels, overlap in zip(
                self.data.validation[:SHOWN], decoders, annotated, found, strict=False
            )
        ]
        del decoders, annotated
        for entry, prediction in zip(self.data.validation[len(found) :], rest, strict=True):
            labels = self.data.read_labels(entry)
            found.append(overlaps(self.head.decode(prediction, labels.shape, thresholds), labels))
        scores = {name: score(found, iou).ap for name, iou in zip(self.score_names, IOU, strict=True)}
        half = score(found, IOU[0])
        details = {
            "thresholds": thresholds,
            "scores": scores,
            "precision": half.precision,
            "recall": half.recall,
            "f1": half.f1,
            "pq": half.pq,
        }
        return Validation(mean_ap(found), scores, details)

    def model(self, common: Mapping[str, Any], options: Training, details: Mapping[str, Any]) -> CellModel:
        """The model, with the thresholds chosen in validation."""
        return CellModel(
            **common,
            told_apart_by=self.options.head,
            rays=self.options.rays if self.options.head == "star" else None,
            inputs=self.data.inputs,
            normalisations=self.data.normalisations,
            calibration=self.data.calibration,
            rescale_tolerance=self.data.options.rescale_tolerance,
            thresholds=details["thresholds"],
            patch=options.crop,
        )


class _Images(Sequence[NDArray[np.float32]]):
    """The prepared validation images, read one at a time."""

    def __init__(self, data: CellData) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data.validation)

    def __getitem__(self, number: Any) -> Any:
        return self._data.read_image(self._data.validation[number])


class HeadReadout(Readout):
    """What a head reads out of the outputs of a network; distances are too large for whole 255ths."""

    kind = torch.float16

    def __init__(self, head: Head) -> None:
        self.head = head
        self.every = head.every

    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        return self.head.read_out(outputs.float())

    def stored(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(torch.float16)


def choose_thresholds(
    head: Head, decoders: Sequence[Decoder], annotated: Sequence[NDArray[np.int32]]
) -> tuple[dict[str, float], list[Overlaps]]:
    """The thresholds with the best mean AP, one after the other, and how well objects are found with them."""
    thresholds = {name: values[0] for name, values in head.thresholds.items()}

    def compare(chosen: Mapping[str, float]) -> list[Overlaps]:
        return [overlaps(decode(chosen), labels) for decode, labels in zip(decoders, annotated, strict=True)]

    best = compare(thresholds)
    for name, (_, *others) in head.thresholds.items():
        for value in others:
            changed = {**thresholds, name: value}
            found = compare(changed)
            if mean_ap(found) > mean_ap(best):
                thresholds, best = changed, found
    return thresholds, best
