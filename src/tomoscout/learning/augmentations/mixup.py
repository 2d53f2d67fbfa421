"""Mixup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tomoscout.learning.augmentations.base import Draws, per_crop
from tomoscout.options.sections import Fraction, Section

if TYPE_CHECKING:
    import torch

MIXUP_ALPHA = 0.2
"""Parameter of the Beta distribution of mixup's shares: 0.1 to 0.4 were best, larger values underfit (Zhang et al.
2018, section 3.1)."""


class Mixup(Section):
    """Blend crops with another of the batch (Zhang et al. 2018). Applied after all other changes: it alone adds to the
    targets."""

    mixup: Fraction = 0.0
    """Share of crops that are blended with another crop of the batch; the loss is blended alike (Zhang et al. 2018).
    How much of each is drawn from Beta(0.2, 0.2), the larger part being the crop itself."""

    def mix(
        self, intensities: torch.Tensor, labels: torch.Tensor, draws: Draws, absent: torch.Tensor | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Blend crops, and make the targets that `augment` returns.

        A crop keeps the larger share (as in MixMatch, Berthelot et al. 2019), so that none becomes almost equal to its
        partner, which the batch already contains.
        """
        import numpy as np
        import torch

        if not self.mixup:
            return intensities, (labels,) if absent is None else (absent, labels)
        blended = (draws.random.random(draws.batch) < self.mixup) & (draws.batch > 1)
        partners = np.arange(draws.batch)
        partners = np.where(
            blended, (partners + draws.random.integers(1, max(draws.batch, 2), draws.batch)) % draws.batch, partners
        )
        shares = draws.random.beta(MIXUP_ALPHA, MIXUP_ALPHA, draws.batch)
        shares = np.where(blended, np.maximum(shares, 1 - shares), 1.0)
        others = torch.from_numpy(partners).to(labels.device, non_blocking=True)
        mixed = torch.lerp(intensities[others], intensities, per_crop(intensities, shares))
        share = torch.from_numpy(shares).to(labels.device, torch.float32, non_blocking=True)
        targets = labels, labels[others], share
        return mixed, targets if absent is None else (absent | absent[others], *targets)
