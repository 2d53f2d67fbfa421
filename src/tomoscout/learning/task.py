"""The interface of a task to trainings, memory plans, model folders and explorations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tomoscout.learning.options import Training
from tomoscout.learning.progression import Validation
from tomoscout.learning.readout import PROBABILITIES, Readout
from tomoscout.learning.step_memory import Shape, label_targets
from tomoscout.learning.trainer import Batches
from tomoscout.learning.volumes import Storage
from tomoscout.models.folder import Model


class Task(ABC):
    """The subject of a training: its data, network outputs, loss and score. A network for it maps volumes (batch,
    channels, *space) to (batch, outputs, *space); channel 0 is background, channel c the class c, unless the task
    decodes predictions otherwise.

    Attributes:
        metric: name of the score that selects the best weights, for messages.
        class_names: names of the outputs after the first. A fine-tuning takes over the output channel of a name that
            its base has, too.
        channels: number of input channels.
        volume, validation_option: what a volume is called in messages, and the option that says which validate.
        training_shapes, validation_shapes: voxels (*space) of the volumes.
        readout: what the outputs of the network mean.
        tile: voxels (*space) that validation predicts at once, if memory suffices.
        prepared: whether the task's volumes are as the network takes them; otherwise their channels are standardised.
        one_by_one: whether validation reads, predicts and decodes one volume at a time; otherwise all stay in memory.
        labelled: whether validation keeps label volumes in memory.
        decoding_memory: bytes of main memory per voxel that decoding a prediction takes.
    """

    metric: str
    class_names: Sequence[str]
    channels: int = 1
    volume: str = "tomogram"
    validation_option: str = "split.validate"
    training_shapes: Sequence[Shape]
    validation_shapes: Sequence[Shape]
    readout: Readout = PROBABILITIES
    tile: Shape
    prepared: bool = False
    one_by_one: bool = False
    labelled: bool = True
    decoding_memory: int = 0

    @property
    def outputs(self) -> int:
        """Output channels of the network."""
        return len(self.class_names) + 1

    @property
    def predicted(self) -> int:
        """Channels of a prediction."""
        return len(self.class_names)

    @property
    def largest_label(self) -> int:
        """The largest number in the labels of the volumes."""
        return len(self.class_names)

    @property
    def score_names(self) -> Sequence[str]:
        """Names of the scores of a validation (columns of the history)."""
        return self.class_names

    @abstractmethod
    def loss(self) -> nn.Module:
        """The loss, called with the network's outputs and the targets of a batch."""

    def example_targets(self, patch: Shape, mixup: bool) -> tuple[torch.Tensor, ...]:
        """Targets of one crop, for the memory plan; by default those of `augment`."""
        return label_targets(patch, mixup)

    @abstractmethod
    def batches(self, options: Training, storage: Storage) -> Batches:
        """Read the training volumes into a storage and return the source of batches.

        Raises:
            TomoscoutError: a volume cannot be used.
        """

    @abstractmethod
    def validation_volumes(self) -> Sequence[NDArray[np.float32]]:
        """The prepared validation volumes, (*space) or (channels, *space). The task keeps their ground truth for
        `measure`.

        Raises:
            TomoscoutError: the volumes cannot be used to select the best weights.
        """

    @abstractmethod
    def measure(self, predictions: Iterable[NDArray[Any]]) -> Validation:
        """Decode predictions of the validation volumes (channels, *space) and score the result. A task that works
        `one_by_one` keeps none of them."""

    @abstractmethod
    def model(self, common: Mapping[str, Any], options: Training, details: Mapping[str, Any]) -> Model:
        """The content of `model.yaml`.

        Args:
            common: the fields that every model has, by name.
            options: the options of the training, with network and patch planned.
            details: `Validation.details` of the best weights.
        """
