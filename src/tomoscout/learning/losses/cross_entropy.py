"""Cross-entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tomoscout.learning.losses.base import VoxelLoss

if TYPE_CHECKING:
    import torch


class CrossEntropy(VoxelLoss):
    """Cross-entropy, −log p of a voxel's class; a voxel counts by the weight of its class."""

    name: Literal["CrossEntropy"] = "CrossEntropy"

    def values(self, negative_log_likelihood: torch.Tensor) -> torch.Tensor:
        """−log p, the negative log-likelihood itself."""
        return negative_log_likelihood
