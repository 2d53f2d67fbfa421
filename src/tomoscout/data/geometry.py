"""Every conversion between Å and voxels.

Arrays are (z, y, x); coordinates in files and in the API are (x, y, z) in Å; index = Å / voxel spacing without a
half-voxel shift, as in copick and its tools.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]

ROUNDING = 1e-9
"""Tolerance in voxels: far more than rounding errors of positions and radii, far less than any relevant distance."""


def to_voxels(positions: NDArray[np.float64], voxel_spacing: float) -> NDArray[np.float64]:
    """Positions (N, 3) as x, y, z in Å → fractional indices (N, 3) as z, y, x."""
    return np.ascontiguousarray(np.asarray(positions, dtype=np.float64).reshape(-1, 3)[:, ::-1] / voxel_spacing)


def to_angstrom(indices: NDArray[np.floating], voxel_spacing: float) -> NDArray[np.float64]:
    """Fractional indices (N, 3) as z, y, x → positions (N, 3) as x, y, z in Å."""
    return np.ascontiguousarray(np.asarray(indices, dtype=np.float64).reshape(-1, 3)[:, ::-1] * voxel_spacing)


def nearest_voxels(indices: NDArray[np.intp], voxel_spacing: float, other: float) -> NDArray[np.intp]:
    """Along an axis, the voxels of a grid of the spacing `other` that are nearest to the voxels `indices` of one of
    `voxel_spacing` (Å); both share the origin. Half-way between two voxels the lower one is taken, so that a voxel
    twice as large covers two."""
    places = to_voxels(to_angstrom(np.repeat(indices[:, None], 3, axis=1), voxel_spacing), other)[:, 0]
    return np.ceil(places - 0.5 - ROUNDING).astype(np.intp)


def inside(indices: NDArray[np.float64], shape: Shape) -> NDArray[np.bool_]:
    """Which indices (N, 3) round to a voxel of a volume of `shape`: a boolean (N,)."""
    nearest = np.floor(indices + 0.5)
    within: NDArray[np.bool_] = np.all((nearest >= 0) & (nearest < np.array(shape)), axis=1)
    return within
