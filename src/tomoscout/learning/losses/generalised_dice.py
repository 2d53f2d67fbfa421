"""The generalised Dice loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tomoscout.learning.losses.base import RegionLoss, above_zero

if TYPE_CHECKING:
    import torch

    from tomoscout.learning.losses.regions import Regions


class GeneralisedDice(RegionLoss):
    """Dice over all classes together, each weighted by the inverse square of its volume, at least one voxel:
    1 − 2 Σ w TP / Σ w (2 TP + FP + FN) (Sudre et al. 2017)."""

    name: Literal["GeneralisedDice"] = "GeneralisedDice"

    def value(self, regions: Regions, weights: torch.Tensor) -> torch.Tensor:
        """1 − 2 Σ w TP / Σ w (2 TP + FP + FN), written as one fraction."""
        weights = weights / regions.true.clamp(min=1) ** 2
        volumes = regions.true + regions.predicted
        return (weights * (volumes - 2 * regions.both)).sum() / above_zero((weights * volumes).sum())
