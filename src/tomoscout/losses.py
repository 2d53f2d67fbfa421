"""Losses between logits and labels."""

from __future__ import annotations

import torch
from torch import nn


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy in which a voxel of class c counts `weights[c]` times, divided by the sum of the weights.

    Logits (batch, classes, *space), labels (batch, *space); voxels labelled `ignore` do not count.
    """

    weights: torch.Tensor

    def __init__(self, weights: torch.Tensor, ignore: int) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.ignore = ignore

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean loss."""
        return nn.functional.cross_entropy(logits.float(), labels, weight=self.weights, ignore_index=self.ignore)
