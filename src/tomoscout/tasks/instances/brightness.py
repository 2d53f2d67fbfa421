"""What stands out of an image, to find images that nobody, or somebody only in part, has annotated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMOOTHING = 2.0
"""Standard deviation in voxels."""
_SURROUNDINGS = 4
"""Surroundings are a box with sides of the image's divided by this."""
_NOISE = 6.0
"""What stands out does so by this many standard deviations of the noise."""
_STRUCTURE = 0.002
"""An image has structure if this share of it stands out."""
_RIM = 3
"""Voxels around labelled objects that may be bright without a label: the blur of the objects."""


def contrast(channel: NDArray[Any]) -> NDArray[np.float32]:
    """How much each voxel ((z,) y, x), smoothed, is brighter than its surroundings, in standard deviations of the noise
    that is left after smoothing.

    The noise is measured by the differences of neighbours. A frame of zeros, as exports put around small regions, has
    no contrast. Without noise, all that is brighter than its surroundings is infinitely so.
    """
    from scipy.ndimage import find_objects, gaussian_filter, uniform_filter

    result = np.zeros(channel.shape, dtype=np.float32)
    boxes = find_objects((channel != 0).astype(np.int8))
    if not boxes:
        return result
    values = _level(channel[boxes[0]].astype(np.float32))
    noise = np.median(np.abs(np.diff(values))) / 0.6745 / math.sqrt(2)
    left = noise * (2 * math.sqrt(math.pi) * _SMOOTHING) ** (-values.ndim / 2)
    sides = [max(3, size // _SURROUNDINGS) for size in values.shape]
    higher = gaussian_filter(values, _SMOOTHING) - uniform_filter(values, sides)
    # Rounding is no contrast.
    least = 1e-5 * float(np.abs(values).max())
    result[boxes[0]] = np.where(np.abs(higher) > least, higher / max(left, 1e-30), 0)
    return result


def _level(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values without their slopes along the axes, which would stand out at the borders."""
    for axis, size in enumerate(values.shape):
        steps = np.arange(size, dtype=np.float32) - (size - 1) / 2
        profile = np.moveaxis(values, axis, -1).reshape(-1, size).mean(axis=0)
        slope = (profile @ steps) / max(float(steps @ steps), 1.0)
        values = values - (slope * steps).reshape([-1 if other == axis else 1 for other in range(values.ndim)])
    return values


def has_structure(channel: NDArray[Any]) -> bool:
    """Whether anything stands out of an image ((z,) y, x) that should be an object."""
    return bool((contrast(channel) > _NOISE).mean() >= _STRUCTURE)


def unlabelled_areas(channel: NDArray[Any], labels: NDArray[np.integer]) -> tuple[NDArray[np.int32], int]:
    """Bright areas without labels, numbered from 1 on, and how many there are.

    Such an area stands out of the image, lies away from labelled objects, and has at least half the size of the median
    object and the mean contrast of the object at the lower quartile.

    Args:
        channel: intensities ((z,) y, x).
        labels: of the same shape, at least one object.
    """
    from scipy.ndimage import binary_dilation, label, mean

    higher = contrast(channel)
    numbers, sizes = np.unique(labels[labels > 0], return_counts=True)
    dimmest = np.percentile(mean(higher, labels, numbers), 25)
    none = np.zeros(labels.shape, dtype=np.int32)
    if dimmest <= _NOISE:
        # Objects darker than their surroundings, as in phase contrast.
        return none, 0
    free = ~binary_dilation(labels > 0, iterations=_RIM)
    areas, count = label((higher > _NOISE) & free)
    if not count:
        return none, 0
    every = np.arange(count + 1)
    large = np.bincount(areas.ravel(), minlength=count + 1) >= np.median(sizes) / 2
    chosen = large & (mean(higher, areas, every) >= dimmest) & (every > 0)
    renumbered = np.where(chosen, np.cumsum(chosen), 0).astype(np.int32)
    return renumbered[areas], int(chosen.sum())
