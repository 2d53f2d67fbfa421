"""What a training, its memory plan, a model folder and an exploration know of what is learnt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tomoscout.learning.options import Training
from tomoscout.learning.progression import Validation
from tomoscout.learning.step_memory import Shape, label_targets
from tomoscout.learning.trainer import Batches
from tomoscout.learning.volumes import Storage
from tomoscout.models.folder import Model


class Task(ABC):
    """What is learnt, and from which data. A network for it maps volumes (batch, channels, *space) to (batch, outputs,
    *space); channel 0 is background, channel c the class c, unless the task decodes predictions otherwise.

    Attributes:
        metric: the score that chooses the best weights, for people.
        class_names: what a prediction has a channel for and is scored by: columns of the history. A fine-tuning takes
            over the output channel of a class that its base has, too.
        channels: input channels.
        training_shapes, validation_shapes: voxels (*space) of the volumes.
        tile: voxels (*space) that validation predicts at once, where memory allows it.
        labelled: whether validation keeps label volumes in memory.
        decoding_memory: bytes of main memory per voxel that it takes to decode a prediction.
    """

    metric: str
    class_names: Sequence[str]
    channels: int = 1
    training_shapes: Sequence[Shape]
    validation_shapes: Sequence[Shape]
    tile: Shape
    labelled: bool = True
    decoding_memory: int = 0

    @property
    def outputs(self) -> int:
        """Output channels of the network."""
        return len(self.class_names) + 1

    @abstractmethod
    def loss(self) -> nn.Module:
        """The loss, called with the network's outputs and the targets of a batch."""

    def example_targets(self, patch: Shape, mixup: bool) -> tuple[torch.Tensor, ...]:
        """Targets of one crop, for the memory plan. Unless the task has others: those of `augment`."""
        return label_targets(patch, mixup)

    @abstractmethod
    def batches(self, options: Training, storage: Storage) -> Batches:
        """Read the training volumes into a storage, and say which crops each step trains on.

        Raises:
            TomoscoutError: a volume cannot be used.
        """

    @abstractmethod
    def validation_volumes(self) -> Sequence[NDArray[np.float32]]:
        """The validation volumes, prepared: (*space) or (channels, *space). Their truth is kept for `measure`.

        Raises:
            TomoscoutError: they cannot tell which weights are the best.
        """

    @abstractmethod
    def measure(self, predictions: Sequence[NDArray[np.uint8]]) -> Validation:
        """Decode predictions of the validation volumes (class, *space) and score what is found."""

    @abstractmethod
    def model(self, common: Mapping[str, Any], options: Training, details: Mapping[str, Any]) -> Model:
        """What `model.yaml` is to hold.

        Args:
            common: the fields that every model has, by name.
            options: of the training, with everything planned.
            details: what the validation of the best weights keeps.
        """
