"""How the intensities of a volume are prepared for a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STANDARDISE_VERSION = 2
"""Increased when the results of `standardise` change: volumes that are kept in files are then prepared again."""

# Of a volume with more voxels than the first number, a sample is measured: every second voxel along each axis, or so
# few that there are no more than the second number.
_ALL, _MOST = 2**22, 2**24


@dataclass(frozen=True)
class Intensities:
    """What the intensities of a volume are prepared by: limits, and mean and standard deviation within them."""

    low: float
    high: float
    mean: float
    deviation: float

    @classmethod
    def of(cls, sample: NDArray[np.float32]) -> Intensities:
        """Those of a volume, from every n-th voxel along each axis; see `sampled_every`. The limits are the 0.1 and
        99.9 percentiles, as gold beads and edges would otherwise set the scale."""
        low, high = np.percentile(sample, [0.1, 99.9]).astype(sample.dtype)
        limited = np.clip(sample, low, high).astype(np.float64)
        return cls(float(low), float(high), float(limited.mean()), float(limited.std()) or 1.0)

    def prepare(self, part: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """A part of the volume with its values clipped, shifted and scaled to mean 0 and standard deviation 1. `out`:
        where to put them, `part` itself perhaps."""
        limited = np.clip(part, np.float32(self.low), np.float32(self.high), out=out)
        limited -= np.float32(self.mean)
        limited /= np.float32(self.deviation)
        return limited


def sampled_every(shape: Sequence[int]) -> int:
    """Along each axis of a volume of `shape` (*space), intensities are measured in every so-many-th voxel."""
    size = math.prod(shape)
    return 1 if size <= _ALL else max(2, math.ceil((size / _MOST) ** (1 / len(shape))))


def standardise(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Prepare a volume (*space) for a network, in the same way for training, validation and inference."""
    step = sampled_every(volume.shape)
    return Intensities.of(volume[(slice(None, None, step),) * volume.ndim]).prepare(volume)
