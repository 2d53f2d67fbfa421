"""How the intensities of a volume are prepared for a network."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

STANDARDISE_VERSION = 1
"""Increased when the results of `standardise` change: volumes that are kept in files are then prepared again."""

# Arrays are halved until they have at most this many values, which NumPy then sums pairwise.
_PIECE = 2**20


def standardise(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Prepare a volume (*space) for a network, in the same way for training, validation and inference.

    Values are clipped to the 0.1 and 99.9 percentiles (gold beads and edges would otherwise set the scale), then
    shifted and scaled to mean 0 and standard deviation 1. Takes the memory of one more volume.
    """
    step = 2 if volume.size > 2**22 else 1
    low, high = np.percentile(volume[(slice(None, None, step),) * volume.ndim], [0.1, 99.9]).astype(volume.dtype)
    limited = np.clip(volume, low, high)
    mean = limited.mean(dtype=np.float64)
    deviation = math.sqrt(_sum_of_squares(limited.ravel(order="K"), mean) / limited.size)
    limited -= float(mean)
    limited /= deviation or 1.0
    return limited


def _sum_of_squares(values: NDArray[np.float32], mean: np.float64) -> float:
    """Σ (v − mean)², in the order of NumPy's pairwise sum: the standard deviation equals that of `np.std` to the last
    bit, without its two copies in double precision."""
    if values.size <= _PIECE:
        deviations = values - mean
        return float(np.add.reduce(np.multiply(deviations, deviations, out=deviations)))
    half = values.size // 2
    half -= half % 8
    return _sum_of_squares(values[:half], mean) + _sum_of_squares(values[half:], mean)
