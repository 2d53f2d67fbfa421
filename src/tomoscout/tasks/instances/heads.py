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
        every: a prediction has a value for one of so many voxels along each axis.
        device: where decoding may compute.
        thresholds: the values of each threshold that `decode` takes, of which validation chooses; the middle one first.
    """

    names: tuple[str, ...]
    every: int = 1
    device: torch.device = torch.device("cpu")
    thresholds: ClassVar[Mapping[str, tuple[float, ...]]]

    @abstractmethod
    def targets(self, labels: torch.Tensor, ignore: int) -> tuple[torch.Tensor, ...]:
        """What the network learns from labels (batch, *space) with 0 for background, and `ignore` for what is not
        known."""

    @abstractmethod
    def loss(self, shape_weight: float = 1.0, *, dice: bool = False) -> nn.Module:
        """The loss, called with the network's outputs and the targets.

        Args:
            shape_weight: of what tells objects apart, against whether a voxel lies in one.
            dice: for the latter, add a Dice loss to the cross-entropy.
        """

    @abstractmethod
    def activated(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (channels, …) as what they mean: the probability of an object, then what `names` says."""

    def read_out(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (channels, *space) as a prediction (values, *space / every), by default `activated`."""
        return self.activated(logits)

    @property
    def values(self) -> int:
        """Values of a prediction at each place."""
        return 1 + len(self.names)

    @abstractmethod
    def decoder(self, prediction: NDArray[np.floating], shape: tuple[int, ...], least: float | None = None) -> Decoder:
        """A function from thresholds to labels, 1…N without gaps. What is the same for all thresholds is done once.

        Args:
            prediction: as `read_out` gives it.
            shape: that of the image and of the labels.
            least: the lowest probability that it will be given as a threshold, by default that of `thresholds`.
        """

    def decode(
        self, prediction: NDArray[np.floating], shape: tuple[int, ...], thresholds: Mapping[str, float]
    ) -> NDArray[np.int32]:
        """Labels of a prediction; see `decoder`."""
        return self.decoder(prediction, shape, thresholds["probability"])(thresholds)


def inside_loss(logits: torch.Tensor, target: torch.Tensor, *, dice: bool) -> torch.Tensor:
    """The mean binary cross-entropy of logits where the target (batch, *space) is not negative; with `dice` plus 1 −
    2 Σpt / (Σp + Σt), over all of them (Milletari et al., 3DV 2016, without their squares)."""
    known = (target >= 0).float()
    wanted = target.clamp_min(0)
    errors = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    entropy = (errors * known).sum() / known.sum().clamp_min(1)
    if not dice:
        return entropy
    found = torch.sigmoid(logits) * known
    return entropy + 1 - 2 * (found * wanted).sum() / (found.sum() + (wanted * known).sum()).clamp_min(1e-3)


def full_resolution(outputs: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """The output of full resolution; networks with deep supervision put it first."""
    return outputs[0] if isinstance(outputs, list | tuple) else outputs
