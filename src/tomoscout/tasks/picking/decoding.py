"""Decoding of class probabilities into picks, by the peaks of each class. Another method, such as connected components,
would be a module beside `peaks`, with its options beside `Peaks`, and be called here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import to_angstrom
from tomoscout.data.picks import Picks
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking.options import Peaks
from tomoscout.tasks.picking.peaks import LOWEST_SCORE, find_peaks

FindPeaks = Callable[..., tuple[NDArray[np.float64], NDArray[np.float64]]]
"""A function like `peaks.find_peaks`."""


def locate_picks(
    probabilities: NDArray[np.uint8],
    classes: Sequence[TargetClass],
    voxel_spacing: float,
    options: Peaks,
    thresholds: Mapping[str, float] | None = None,
    find: FindPeaks = find_peaks,
) -> dict[str, Picks]:
    """Picks in Å of every particle class.

    Args:
        probabilities: quantised, (class, z, y, x), 255 = 1.
        classes: in the order of the probabilities.
        voxel_spacing: Å per voxel.
        options: smoothing and separation.
        thresholds: class name → smallest score of a pick. Default: `LOWEST_SCORE`, so that thresholds can be chosen.
        find: finds the peaks of a class.
    """
    found = {}
    for entry, probability in zip(classes, probabilities, strict=True):
        if entry.radius is None or entry.target_radius is None:
            continue
        indices, scores = find(
            probability,
            entry.target_radius / voxel_spacing,
            smoothing=options.smoothing,
            separation=options.separation * entry.radius / voxel_spacing,
            threshold=LOWEST_SCORE if thresholds is None else thresholds[entry.name],
        )
        found[entry.name] = Picks.at(to_angstrom(indices, voxel_spacing), scores)
    return found
