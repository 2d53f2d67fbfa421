"""What the outputs of a network mean: how they become the values of a prediction, and labels."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray


class Readout(ABC):
    """What the outputs of a network mean. `kind`: dtype of a stored prediction. `every`: it has a value for one of so
    many voxels along each axis."""

    kind: torch.dtype
    every: int = 1

    @abstractmethod
    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        """The values (channels, *space), float32 and of their own, that tiles are blended by, of the network's outputs
        (outputs, *space) in any precision."""

    @abstractmethod
    def stored(self, values: torch.Tensor) -> torch.Tensor:
        """Blended values as they are stored."""


class Probabilities(Readout):
    """Softmax probabilities of every class but background, quantised: 255 = 1."""

    kind = torch.uint8

    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        """Probabilities without background."""
        return torch.softmax(outputs, dim=0, dtype=torch.float32)[1:]

    def stored(self, values: torch.Tensor) -> torch.Tensor:
        """Whole 255ths."""
        return (values * 255).round_().clamp_(0, 255).to(torch.uint8)


PROBABILITIES = Probabilities()


def argmax_labels(probabilities: NDArray[np.uint8]) -> NDArray[np.integer]:
    """Labels (*space) from quantised probabilities (class, *space) without background: the most probable class, or
    background (0) if that is more probable than any class."""
    kind = np.uint8 if len(probabilities) <= 255 else np.uint16
    labels = np.zeros(probabilities.shape[1:], dtype=kind)
    # Slice by slice: what is compared stays in the cache, and takes no memory to speak of.
    for out, slices in zip(labels, probabilities.swapaxes(0, 1), strict=True):
        highest = slices.max(axis=0)
        out[:] = slices.argmax(axis=0) + 1
        out[255 - slices.sum(axis=0, dtype=np.int32) > highest] = 0
    return labels
