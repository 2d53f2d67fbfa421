"""The focal loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tomoscout.learning.losses.base import VoxelLoss

if TYPE_CHECKING:
    import torch


class Focal(VoxelLoss):
    """Cross-entropy in which voxels that are right already count less: (1 − p)^gamma · −log p (Lin et al. 2017). The
    average is by the weights of the classes alone."""

    SPACE = {"gamma": {"low": 0.1, "high": 3.0}}

    name: Literal["Focal"] = "Focal"
    gamma: float = Field(default=2.0, ge=0)
    """How much less: a voxel counts (1 − p) to this power."""

    def values(self, negative_log_likelihood: torch.Tensor) -> torch.Tensor:
        """(1 − p)^gamma · −log p."""
        return focal_values(negative_log_likelihood, self.gamma)


def focal_values(negative_log_likelihood: torch.Tensor, gamma: float) -> torch.Tensor:
    """(1 − p)^gamma · −log p. 1 − p is limited to at least 1e-8: this changes no value, but bounds the gradient at p =
    1 for gamma < 1."""
    if gamma == 0:
        return negative_log_likelihood
    return (-(-negative_log_likelihood).expm1()).clamp(min=1e-8) ** gamma * negative_log_likelihood
