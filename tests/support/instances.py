"""Objects of simple shapes, how well they are found, and a training of seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TRAIN: dict[str, Any] = {
    "head": "flow",
    "network": {"channels": [8, 16, 32], "strides": [2, 2]},
    "patch": [64, 64],
    "steps": 40,
    "validate_every": 20,
    "batch_size": 4,
    "learning_rate": 0.01,
    "device": "cpu",
}
UNTRAINED = {"steps": 1, "validate_every": 1, "learning_rate": 1e-9}


def ellipses(shape: Sequence[int], *objects: tuple[Sequence[float], Sequence[float]]) -> NDArray[np.int32]:
    """Objects 1… of the given centres and radii; the first lie on top."""
    image = np.zeros(shape, np.int32)
    for number, (centre, radii) in reversed(list(enumerate(objects, 1))):
        grids = zip(np.indices(shape), centre, radii, strict=True)
        image[sum(((grid - middle) / radius) ** 2 for grid, middle, radius in grids) <= 1] = number
    return image


def best_iou(truth: NDArray[np.integer], found: NDArray[np.integer]) -> list[float]:
    """For each object of the truth, the largest IoU with one that was found."""
    best = []
    for number in np.unique(truth[truth > 0]):
        mask = truth == number
        others = [found == other for other in np.unique(found[mask]) if other]
        best.append(max(((mask & other).sum() / (mask | other).sum() for other in others), default=0.0))
    return best
