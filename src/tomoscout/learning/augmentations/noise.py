"""Noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tomoscout.learning.augmentations.base import Change, Draws, per_crop, rows_of

if TYPE_CHECKING:
    import torch


class Noise(Change):
    """Add Gaussian noise."""

    SPACE = {"noise": {"low": 0.0, "high": 0.5}}

    noise: float = Field(default=0.1, ge=0)
    """Add Gaussian noise of up to this many standard deviations."""

    def apply(self, intensities: torch.Tensor, labels: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Add noise from a generator of the device. Its seed and its standard deviations are drawn with NumPy."""
        import torch

        deviations = draws.between(0, self.noise) * draws.chosen()
        seed = int(draws.random.integers(2**62))
        if not self.noise:
            return intensities, labels
        chosen = deviations > 0
        if not chosen.any():
            return intensities, labels
        device, rows = intensities.device, rows_of(intensities, chosen)
        generator = torch.Generator(device).manual_seed(seed)
        shape = (len(rows), *intensities.shape[1:])
        noise = torch.randn(shape, generator=generator, device=device, dtype=intensities.dtype)
        return intensities.index_add(0, rows, noise.mul_(per_crop(intensities, deviations[chosen]))), labels
