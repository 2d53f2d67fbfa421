"""The Dice loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tomoscout.learning.losses.base import RegionLoss, weighted_mean

if TYPE_CHECKING:
    import torch

    from tomoscout.learning.losses.regions import Regions


class Dice(RegionLoss):
    """1 − soft Dice, 2 TP / (2 TP + FP + FN), averaged over the classes by their weights; TP, FP and FN are sums of
    probabilities without squares (Drozdzal et al. 2016)."""

    name: Literal["Dice"] = "Dice"

    def value(self, regions: Regions, weights: torch.Tensor) -> torch.Tensor:
        """The Tversky loss with alpha and beta of one half."""
        return weighted_mean(regions.tversky_losses(0.5, 0.5), weights)
