"""A weighted sum of the Tversky and the focal loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from tomoscout.learning.losses.base import LossTerm, RegionLoss, VoxelLoss
from tomoscout.learning.losses.focal import Focal
from tomoscout.learning.losses.tversky import Tversky


class WeightedFocalTversky(LossTerm):
    """A weighted sum of the Tversky and the focal loss."""

    # Only the ratio of the weights is searched: weight_focal stays 0.5.
    SPACE = Tversky.SPACE | Focal.SPACE | {"weight_tversky": {"low": 0.05, "high": 5.0, "log": True}}

    name: Literal["WeightedFocalTversky"] = "WeightedFocalTversky"
    alpha: float = Field(default=0.3, ge=0)
    """Weight of false positives in the Tversky loss."""
    beta: float = Field(default=0.7, ge=0)
    """Weight of false negatives in the Tversky loss."""
    gamma: float = Field(default=2.0, ge=0)
    """Gamma of the focal loss."""
    weight_tversky: float = Field(default=0.5, ge=0)
    """Weight of the Tversky loss."""
    weight_focal: float = Field(default=0.5, ge=0)
    """Weight of the focal loss."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not self.weight_tversky + self.weight_focal:
            raise ValueError("weight_tversky and weight_focal are both 0")
        return self

    def parts(self) -> Sequence[VoxelLoss | RegionLoss]:
        """The Tversky and the focal loss; one with a weight of 0 is left out."""
        # The weights are checked already; their products may be smaller than an option allows.
        tversky = Tversky.model_construct(weight=self.weight * self.weight_tversky, alpha=self.alpha, beta=self.beta)
        focal = Focal.model_construct(weight=self.weight * self.weight_focal, gamma=self.gamma)
        return [*([tversky] if self.weight_tversky else []), *([focal] if self.weight_focal else [])]
