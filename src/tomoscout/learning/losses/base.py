"""Base classes of the losses: of single voxels, of the regions of classes, or sums of such losses.

Torch is imported where it is used, since options are read while the workflow is parsed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tomoscout.options.sections import Section

if TYPE_CHECKING:
    import torch

    from tomoscout.learning.losses.regions import Regions


class LossTerm(Section):
    """A loss, or one of several that are added up."""

    SPACE: ClassVar[dict[str, Any]] = {}
    """Search space of its options. Losses that share an option have the same range for it."""

    weight: float = Field(default=1.0, gt=0)
    """Its share in the sum."""

    def parts(self) -> Sequence[VoxelLoss | RegionLoss]:
        """The losses that are added up to this one, each with its weight."""
        raise NotImplementedError


class VoxelLoss(LossTerm):
    """A weighted mean over voxels. A voxel has the weight of its class."""

    def parts(self) -> Sequence[VoxelLoss]:
        """The loss itself."""
        return [self]

    @abstractmethod
    def values(self, negative_log_likelihood: torch.Tensor) -> torch.Tensor:
        """The loss of each voxel, from the negative log-likelihood −log p of its label, in any shape."""


class RegionLoss(LossTerm):
    """A comparison of the predicted region of each class with the true one."""

    def parts(self) -> Sequence[RegionLoss]:
        """The loss itself."""
        return [self]

    @abstractmethod
    def value(self, regions: Regions, weights: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar. `weights` (C+1): weights of the classes, 0 for those that are not in the batch."""


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The mean of values by weights of the same shape; 0 if all weights are 0."""
    return (values * weights).sum() / above_zero(weights.sum())


def above_zero(value: torch.Tensor) -> torch.Tensor:
    """The value, or the smallest normal number if it is 0, to be used as a divisor."""
    import torch

    return value.clamp(min=torch.finfo(value.dtype).tiny)
