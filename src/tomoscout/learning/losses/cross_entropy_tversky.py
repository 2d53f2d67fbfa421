"""The sum of cross-entropy and the Tversky loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from tomoscout.learning.losses.base import LossTerm, RegionLoss, VoxelLoss
from tomoscout.learning.losses.cross_entropy import CrossEntropy
from tomoscout.learning.losses.tversky import Tversky


class CrossEntropyTversky(LossTerm):
    """The sum of cross-entropy, which learns every class from the first step on, and the Tversky loss, which counts a
    small object as much as a large one."""

    SPACE = Tversky.SPACE | {"weight_tversky": {"low": 0.05, "high": 5.0, "log": True}}

    name: Literal["CrossEntropyTversky"] = "CrossEntropyTversky"
    alpha: float = Field(default=0.3, ge=0)
    """Weight of false positives in the Tversky loss."""
    beta: float = Field(default=0.7, ge=0)
    """Weight of false negatives in the Tversky loss."""
    weight_tversky: float = Field(default=1.0, gt=0)
    """Weight of the Tversky loss, where cross-entropy has 1."""

    def parts(self) -> Sequence[VoxelLoss | RegionLoss]:
        """Cross-entropy and the Tversky loss."""
        # The weights are checked already; their products may be smaller than an option allows.
        tversky = Tversky.model_construct(weight=self.weight * self.weight_tversky, alpha=self.alpha, beta=self.beta)
        return [CrossEntropy.model_construct(weight=self.weight), tversky]
