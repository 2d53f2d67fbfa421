"""The choice of the threshold of each class on the validation runs."""

from __future__ import annotations

import numpy as np

from tomoscout.tasks.picking.matching import Curve
from tomoscout.tasks.picking.peaks import LOWEST_SCORE

DEFAULT_THRESHOLD = 0.5
"""Threshold of a class for which no reference pick is found in the validation runs."""


def robust_threshold(curve: Curve, beta: float) -> tuple[float, float | None]:
    """A threshold that should also do well on other runs than those of the curve, and its F-beta on the curve.

    With few references the best threshold lies just below the lowest score among them, and would lose the weakest
    particles of the next tomogram. So F-beta is first averaged over neighbouring thresholds, with Gaussian weights
    (standard deviation 0.05), and the threshold with the largest average is taken. Without references: the default, and
    None. If no reference is found: the default, and 0.
    """
    if not curve.found.any():
        return DEFAULT_THRESHOLD, 0.0 if curve.references else None
    grid = np.linspace(LOWEST_SCORE, 0.95, 91)
    kept = np.searchsorted(-curve.thresholds, -grid, side="right")
    values = np.concatenate([[0.0], curve.f(beta)])[kept]
    offsets = np.arange(-15, 16)
    weights = np.exp(-0.5 * (offsets / 5) ** 2)
    averaged = np.convolve(np.pad(values, 15, mode="edge"), weights / weights.sum(), mode="valid")
    best = int(np.argmax(averaged))
    return round(float(grid[best]), 3), float(values[best])
