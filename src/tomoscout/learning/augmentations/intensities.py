"""Contrast, scale and offset of intensities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tomoscout.learning.augmentations.base import Change, Draws, per_crop, rows_of

if TYPE_CHECKING:
    import torch


class Intensities(Change):
    """Contrast, scale and offset, drawn together."""

    intensity_scale: float = Field(default=0.1, ge=0, lt=1)
    """Multiply intensities by a factor from 1 ± this."""
    intensity_shift: float = Field(default=0.1, ge=0)
    """Add an offset of up to ± this, in standard deviations of the tomogram."""
    contrast: float = Field(default=0.0, ge=0, lt=1)
    """Raise intensities, scaled to 0…1 within the crop, to a power from 1 ± this; the crop keeps its mean and standard
    deviation."""

    def apply(self, intensities: torch.Tensor, labels: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Change all channels of a crop by the same numbers."""
        import numpy as np
        import torch

        chosen = draws.chosen()
        powers = draws.between(1 - self.contrast, 1 + self.contrast)
        factors = draws.between(1 - self.intensity_scale, 1 + self.intensity_scale)
        shifts = draws.between(-self.intensity_shift, self.intensity_shift)
        if self.contrast and chosen.any():
            rows = rows_of(intensities, chosen)
            images = raise_to(intensities[rows], per_crop(intensities, powers[chosen]))
            intensities = intensities.index_copy(0, rows, images)
        if self.intensity_scale or self.intensity_shift:
            factors, shifts = np.where(chosen, factors, 1.0), np.where(chosen, shifts, 0.0)
            intensities = torch.addcmul(per_crop(intensities, shifts), intensities, per_crop(intensities, factors))
        return intensities, labels


def raise_to(images: torch.Tensor, powers: torch.Tensor) -> torch.Tensor:
    """Raise the channels of crops, each scaled to 0…1, to a power, and restore their mean and standard deviation (as
    nnU-Net does, Isensee et al. 2021). The order of the intensities stays the same."""
    import torch

    within = tuple(range(2, images.ndim))
    tiny = torch.finfo(images.dtype).tiny
    low, high = images.amin(within, keepdim=True), images.amax(within, keepdim=True)
    raised = ((images - low) / (high - low).clamp(min=tiny)).pow(powers)
    deviation, mean = torch.std_mean(images, within, correction=0, keepdim=True)
    other_deviation, other_mean = torch.std_mean(raised, within, correction=0, keepdim=True)
    return (raised - other_mean) * (deviation / other_deviation.clamp(min=tiny)) + mean
