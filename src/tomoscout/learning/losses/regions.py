"""The regions of classes, true and predicted, that region losses compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

SMOOTH = 1e-5
"""Added to either side of the fraction of a Tversky loss."""


@dataclass(frozen=True)
class Regions:
    """Of each class: its true volume, the predicted one, and their intersection, in voxels; (batch, C+1), or (C+1) for
    all crops together."""

    both: torch.Tensor
    predicted: torch.Tensor
    true: torch.Tensor

    @classmethod
    def of(cls, probabilities: torch.Tensor, labels: torch.Tensor, ignore: int) -> Regions:
        """Of each crop: probabilities (batch, C+1, *space), labels (batch, *space)."""
        labels = labels.flatten(1)[:, None]
        classes = torch.arange(probabilities.shape[1], device=labels.device)[:, None]
        # Masks in the type of what they are multiplied with: several times as fast on a CPU.
        inside, known = (labels == classes).to(probabilities), (labels != ignore).to(probabilities)
        probabilities = probabilities.flatten(2) * known
        return cls((probabilities * inside).sum(2), probabilities.sum(2), inside.sum(2))

    @classmethod
    def total(cls, regions: Sequence[Regions], shares: torch.Tensor) -> Regions:
        """Over all crops of several label volumes, with their shares (volumes, batch)."""

        def add(name: str) -> torch.Tensor:
            parts = torch.stack([getattr(region, name) for region in regions])
            return (parts * shares.to(parts)[:, :, None]).sum((0, 1))

        return cls(add("both"), add("predicted"), add("true"))

    def tversky_losses(self, alpha: float, beta: float, smooth: float = SMOOTH) -> torch.Tensor:
        """1 − TP / (TP + alpha FP + beta FN) of each class, `smooth` added on either side of the fraction (Salehi et
        al. 2017)."""
        false_positive, false_negative = self.predicted - self.both, self.true - self.both
        return 1 - (self.both + smooth) / (self.both + alpha * false_positive + beta * false_negative + smooth)
