"""Resampling of volumes to another voxel spacing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LOBES = 3
"""Half the width of the resampling kernel, in voxels of the coarser of the two grids."""


def resampling_matrix(new: range, size: int, ratio: float) -> NDArray[np.float32]:
    """Weights (new voxels, size) by which the `size` values along an axis become those of the voxels `new` of another
    grid. `ratio`: voxels of the new grid per voxel of the old one; the first voxels of both have the same centre.

    A Lanczos kernel (Duchon, Journal of Applied Meteorology 1979), widened for a coarser grid so that what this cannot
    hold does not appear in it as something else (aliasing). Values at the ends are repeated beyond them.
    """
    stretch = max(1.0, 1 / ratio)
    centres = np.array(new) / ratio
    reach = math.ceil(LOBES * stretch)
    places = np.floor(centres)[:, None] + np.arange(-reach, reach + 1)
    distances = (places - centres[:, None]) / stretch
    weights = np.where(abs(distances) < LOBES, np.sinc(distances) * np.sinc(distances / LOBES), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((len(new), size))
    rows = np.repeat(np.arange(len(new)), places.shape[1])
    np.add.at(matrix, (rows, places.clip(0, size - 1).astype(int).ravel()), weights.ravel())
    return matrix.astype(np.float32)


def resampled_size(size: int, ratio: float) -> int:
    """Voxels along an axis of a grid that covers `size` voxels of the old one."""
    return max(1, math.floor((size - 1) * ratio + 1e-9) + 1)


def needed(new: range, size: int, ratio: float) -> range:
    """The old voxels that values of the voxels `new` are made of."""
    reach = math.ceil(LOBES * max(1.0, 1 / ratio))
    return range(
        max(0, math.floor(new.start / ratio) - reach), min(size, math.floor((new.stop - 1) / ratio) + reach + 1)
    )
