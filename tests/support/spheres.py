"""Probabilities of spheres."""

from __future__ import annotations

import numpy as np


def spheres(shape: tuple[int, ...], centres: np.ndarray, radius: float, heights: np.ndarray) -> np.ndarray:
    """What a network says of spheres: a probability of `heights` inside, soft edges, as uint8."""
    probability = np.zeros(shape)
    for centre, height in zip(centres, heights, strict=True):
        # Beyond twice the radius the probability rounds to zero.
        low = np.maximum(np.floor(centre - 2 * radius), 0).astype(int)
        box = tuple(slice(a, int(b)) for a, b in zip(low, np.ceil(centre + 2 * radius) + 1, strict=True))
        indices = np.ogrid[tuple(slice(part.start, min(part.stop, n)) for part, n in zip(box, shape, strict=True))]
        distance = np.sqrt(sum((index - middle) ** 2 for index, middle in zip(indices, centre, strict=True)))
        soft = height / (1 + np.exp((distance - radius) / (0.15 * radius)))
        probability[box] = np.maximum(probability[box], soft)
    return np.rint(255 * probability).astype(np.uint8)
