"""Base class of the augmentations, and helpers to draw random numbers for the crops of a batch.

NumPy and torch are imported where they are used, since options are read while the workflow is parsed.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from tomoscout.options.sections import Section

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class Change(Section):
    """An augmentation: options in the section `augmentation`, and the change that they make to crops."""

    SPACE: ClassVar[dict[str, Any]] = {}
    """Search space of its options."""

    @abstractmethod
    def apply(self, intensities: torch.Tensor, labels: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Change intensities (batch, channels, *space) and labels (batch, *space) of each crop.

        It draws the same number of random numbers, in the same order, whether its options are on or off: turning one on
        does not change the other augmentations.

        Raises:
            TomoscoutError: an option does not fit the shape of the crops.
        """


class Draws:
    """Random numbers for each crop of a batch."""

    def __init__(self, batch: int, probability: float, random: np.random.Generator) -> None:
        self.batch = batch
        self.probability = probability
        self.random = random

    def between(self, low: float, high: float) -> NDArray[np.float64]:
        """Uniform random numbers (batch,) from low to high."""
        return low + (high - low) * self.random.random(self.batch)

    def chosen(self) -> NDArray[np.bool_]:
        """Which crops (batch,) an option is applied to."""
        return self.random.random(self.batch) < self.probability


def on_device(like: torch.Tensor, values: NDArray[np.float64]) -> torch.Tensor:
    """Numbers on the device of a tensor, in its dtype."""
    import torch

    return torch.from_numpy(values).to(like.device, like.dtype, non_blocking=True)


def per_crop(like: torch.Tensor, values: NDArray[np.float64]) -> torch.Tensor:
    """One number for each crop (batch,), in a shape that is broadcast over the crops."""
    return on_device(like, values).view(-1, *[1] * (like.ndim - 1))


def rows_of(like: torch.Tensor, chosen: NDArray[np.bool_]) -> torch.Tensor:
    """Indices of the chosen crops, on the device of a tensor."""
    import numpy as np
    import torch

    return torch.from_numpy(np.flatnonzero(chosen)).to(like.device, non_blocking=True)
