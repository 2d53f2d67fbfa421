"""The interface of the heads: what a network predicts for every voxel, and how this becomes instances."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Decoder = Callable[[Mapping[str, float]], NDArray[np.int32]]


class Head(ABC):
    """How instances are told apart. A network for it predicts (batch, 1 + len(names), *space): a logit that there is an
    object, then what tells it from its neighbours.

    Attributes:
        names: names of the channels after the first.
        thresholds: the values of each threshold that `decode` takes, of which validation chooses; the middle one first.
    """

    names: tuple[str, ...]
    thresholds: ClassVar[Mapping[str, tuple[float, ...]]]

    @abstractmethod
    def targets(self, labels: torch.Tensor, ignore: int) -> tuple[torch.Tensor, ...]:
        """What the network learns from labels (batch, *space) with 0 for background, and `ignore` for what is not
        known."""

    @abstractmethod
    def loss(self) -> nn.Module:
        """The loss, called with the network's outputs and the targets."""

    @abstractmethod
    def read_out(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (channels, *space) as a prediction (channels, *space): the probability of an object, then the rest."""

    @abstractmethod
    def decoder(self, prediction: NDArray[np.floating]) -> Decoder:
        """A function from thresholds to labels (*space), 1…N without gaps, of a prediction (channels, *space). What is
        the same for all thresholds is done once."""

    def decode(self, prediction: NDArray[np.floating], thresholds: Mapping[str, float]) -> NDArray[np.int32]:
        """Labels of a prediction; see `decoder`."""
        return self.decoder(prediction)(thresholds)


def full_resolution(outputs: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """The output of full resolution; networks with deep supervision put it first."""
    return outputs[0] if isinstance(outputs, list | tuple) else outputs
