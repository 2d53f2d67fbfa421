"""The focal Tversky loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tomoscout.learning.losses.base import RegionLoss, weighted_mean
from tomoscout.learning.losses.focal import Focal
from tomoscout.learning.losses.tversky import Tversky

if TYPE_CHECKING:
    import torch

    from tomoscout.learning.losses.regions import Regions

# Below this value, a Tversky loss is rounding error, and the gradient of its power would have no bound.
_FLAT = 1e-6


class FocalTversky(RegionLoss):
    """The Tversky loss of each class to the power 1/gamma (Abraham & Khan 2019)."""

    SPACE = Tversky.SPACE | Focal.SPACE

    name: Literal["FocalTversky"] = "FocalTversky"
    alpha: float = Field(default=0.3, ge=0)
    """Weight of false positives."""
    beta: float = Field(default=0.7, ge=0)
    """Weight of false negatives."""
    gamma: float = Field(default=1.33, gt=0)
    """Above 1, classes that are found badly count more."""

    def value(self, regions: Regions, weights: torch.Tensor) -> torch.Tensor:
        """The weighted mean over the classes, after the power."""
        return weighted_mean(root(regions.tversky_losses(self.alpha, self.beta), self.gamma), weights)


def root(values: torch.Tensor, gamma: float) -> torch.Tensor:
    """values^(1/gamma) with a bounded gradient: linear below _FLAT."""
    if gamma == 1:
        return values
    return (values.clamp(min=_FLAT) ** (1 / gamma)).where(values > _FLAT, values * _FLAT ** (1 / gamma - 1))
