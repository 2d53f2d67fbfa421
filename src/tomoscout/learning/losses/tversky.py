"""The Tversky loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tomoscout.learning.losses.base import RegionLoss, weighted_mean

if TYPE_CHECKING:
    import torch

    from tomoscout.learning.losses.regions import Regions


class Tversky(RegionLoss):
    """Dice with false positives and false negatives weighted apart: 1 − TP / (TP + alpha FP + beta FN) (Salehi et al.
    2017)."""

    SPACE = {"alpha": {"low": 0.1, "high": 0.9}, "beta": {"low": 0.1, "high": 0.9}}

    name: Literal["Tversky"] = "Tversky"
    alpha: float = Field(default=0.3, ge=0)
    """Weight of false positives."""
    beta: float = Field(default=0.7, ge=0)
    """Weight of false negatives."""

    def value(self, regions: Regions, weights: torch.Tensor) -> torch.Tensor:
        """The weighted mean over the classes."""
        return weighted_mean(regions.tversky_losses(self.alpha, self.beta), weights)
