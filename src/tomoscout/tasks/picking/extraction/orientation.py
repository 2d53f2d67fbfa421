"""Orientation of picks along directions, such as the normals of a surface."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def turned(rotations: Array, directions: Array) -> Array:
    """Rotations (N, 3, 3), object → tomogram, turned by the smallest angle so that the object's z axis lies along
    directions (N, 3), unit vectors as x, y, z; unchanged where a direction is NaN.

    The rotation from a to b is I + [v] + [v]² / (1 + a·b), with v = a × b and [v] its cross-product matrix (Rodrigues
    1840). Where b is opposite to a, it is half a turn about the object's x axis.
    """
    axes = rotations[:, :, 2]
    cosines = np.einsum("ni,ni->n", axes, directions)
    cross = np.zeros((len(axes), 3, 3))
    x, y, z = np.cross(axes, directions).T
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -z, y, -x
    cross -= cross.transpose(0, 2, 1)
    opposite = cosines < -1 + 1e-9
    turns = np.eye(3) + cross + cross @ cross / np.where(opposite, 1.0, 1 + cosines)[:, None, None]
    sides = rotations[:, :, 0]
    turns[opposite] = (2 * sides[:, :, None] * sides[:, None, :] - np.eye(3))[opposite]
    unknown = np.isnan(directions).any(axis=1)
    after: Array = turns @ rotations
    after[unknown] = rotations[unknown]
    return after
