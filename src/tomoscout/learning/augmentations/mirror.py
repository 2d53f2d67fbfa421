"""Mirror images and quarter turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tomoscout.learning.augmentations.base import Change, Draws
from tomoscout.machine.errors import TomoscoutError

if TYPE_CHECKING:
    import torch


class Mirror(Change):
    """Mirror along each axis, and turn by quarters about the beam."""

    flip: bool = True
    """Mirror along each axis with probability one half."""
    rotate90: bool = False
    """Quarter turns about the beam axis. Carries the missing wedge from x to y: only for wedge-free data."""

    def apply(self, intensities: torch.Tensor, labels: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Move voxels without changing their values."""
        import torch

        if self.rotate90 and labels.shape[-1] != labels.shape[-2]:
            found = tuple(labels.shape[1:])
            raise TomoscoutError(f"augmentation.rotate90 needs crops as wide as they are high, found {found}")
        flips = draws.random.random((draws.batch, 3)) < 0.5
        turns = draws.random.integers(4, size=draws.batch)
        if not (self.flip or self.rotate90):
            return intensities, labels
        space = range(-1, -labels.ndim, -1)
        moved = torch.empty_like(intensities), torch.empty_like(labels)
        for row in range(draws.batch):
            axes = [axis for axis in space if self.flip and flips[row, axis]]
            quarters = int(turns[row]) if self.rotate90 else 0
            for before, after in zip((intensities, labels), moved, strict=True):
                crop = before[row].rot90(quarters, (-2, -1)) if quarters else before[row]
                after[row] = crop.flip(axes) if axes else crop
        return moved
