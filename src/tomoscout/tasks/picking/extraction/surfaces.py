"""Surfaces of segmentations, as points with outward normals, and where positions lie with respect to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import to_angstrom

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice, slice]

PATCH = 2.0
"""Radius in voxels of the patch of a surface that is taken together."""
LARGEST_PATCH = 32
"""Most points of a patch; a surface has about one per face of a voxel."""
FACING = 0.5
"""Points belong to one patch if the cosine between their normals is larger: not the far side of a thin sheet."""
AT_ONCE = 50_000
"""Patches that are in memory at the same time."""


class Nearest(NamedTuple):
    """For each of N positions: the signed distance (N,) to the surface in Å, negative inside; the nearest point (N, 3)
    as x, y, z in Å; and the outward normal there (N, 3). Without a surface infinite, and NaN."""

    distances: Array
    points: Array
    normals: Array


@dataclass(frozen=True)
class Surface:
    """Points (N, 3) of a surface as x, y, z in Å, outward unit normals (N, 3), mean curvatures (N,) in 1/Å, positive
    where the inside is convex, and Å per voxel."""

    points: Array
    normals: Array
    curvatures: Array
    voxel_spacing: float

    @classmethod
    def through(cls, indices: Array, normals: Array, voxel_spacing: float) -> Surface:
        """The surface through points at fractional indices (N, 3) with unit normals (N, 3), both as z, y, x. The points
        around each are taken together as a patch, which evens out the steps of voxels."""
        from scipy.spatial import KDTree

        tree = KDTree(indices)
        starts = range(0, len(indices), AT_ONCE)
        parts = [_even(tree, indices, normals, slice(start, start + AT_ONCE)) for start in starts]
        points, facing, curved = (np.concatenate(part) for part in zip(*parts, strict=True))
        flipped = np.ascontiguousarray(facing[:, ::-1])
        return cls(to_angstrom(points, voxel_spacing), flipped, curved / voxel_spacing, voxel_spacing)

    @classmethod
    def none(cls, voxel_spacing: float) -> Surface:
        """A surface without points."""
        return cls(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), voxel_spacing)

    @cached_property
    def _tree(self) -> Any:
        from scipy.spatial import KDTree

        return KDTree(self.points)

    def nearest(self, positions: Array) -> Nearest:
        """The signed distance, nearest point and normal for positions (N, 3) as x, y, z in Å.

        Around the nearest of its points the surface is a sphere of the mean curvature κ there, or a plane. A position
        at o from the point, whose normal is n, has the normal w = n + κ o there, not yet of length 1, and the distance
        (2 n·o + κ o·o) / (1 + |w|). Beyond the rim of a surface the distance is that to the nearest point.
        """
        if not len(self.points):
            nowhere = np.full((len(positions), 3), np.nan)
            return Nearest(np.full(len(positions), np.inf), nowhere, nowhere)
        if not len(positions):
            return Nearest(np.zeros(0), np.zeros((0, 3)), np.zeros((0, 3)))
        straight, chosen = self._tree.query(positions)
        points, curved = self.points[chosen], self.curvatures[chosen][:, None]
        offsets = positions - points
        normals = self.normals[chosen] + curved * offsets
        length = np.linalg.norm(normals, axis=1)
        heights = np.einsum("ni,ni->n", self.normals[chosen] + normals, offsets) / (1 + length)
        normals = np.where(length[:, None] > 0.1, normals / np.maximum(length, 0.1)[:, None], self.normals[chosen])
        feet = positions - heights[:, None] * normals
        beyond = np.linalg.norm(feet - points, axis=1) > PATCH * self.voxel_spacing
        distances = np.where(beyond, np.copysign(straight, heights), heights)
        return Nearest(
            distances,
            np.where(beyond[:, None], points, feet),
            np.where(beyond[:, None], self.normals[chosen], normals),
        )


def _even(tree: Any, points: Array, normals: Array, part: slice) -> tuple[Array, Array, Array]:
    """A part of the points (N, 3), normals (N, 3) and curvatures (N,) of a surface in voxels, each of the patch around
    a point.

    A point of the patch that is l beside the middle has the height h, and a normal n that the curvature tilts: h + n·l
    / 2 is the height of the surface in the middle, and Σ n·l / Σ l·l the mean curvature, both exact for a paraboloid.
    """
    around, own = points[part], normals[part]
    count = min(LARGEST_PATCH, len(points))
    members = tree.query(around, k=np.arange(1, count + 1), distance_upper_bound=PATCH)[1]
    there = members < len(points)
    members = np.where(there, members, 0)
    facing = normals[members]
    there &= np.einsum("nki,ni->nk", facing, own) > FACING
    mean = np.einsum("nk,nki->ni", there, facing)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    offsets = points[members] - around[:, None]
    heights = np.einsum("nki,ni->nk", offsets, mean)
    beside = offsets - heights[..., None] * mean[:, None]
    tilts = there * np.einsum("nki,nki->nk", facing, beside)
    height = (there * heights + tilts / 2).sum(axis=1) / there.sum(axis=1)
    apart = (there * np.einsum("nki,nki->nk", beside, beside)).sum(axis=1)
    return around + height[:, None] * mean, mean, tilts.sum(axis=1) / np.maximum(apart, 1.0)


def boundary(mask: Mask, voxel_spacing: float, smoothing: float) -> Surface:
    """The surface where a mask (z, y, x) begins: the middles of the faces between its voxels and others, with the
    gradient of the mask as normals.

    At the sides of the volume the mask is taken to go on, so that it has no surface there. `voxel_spacing` is in Å,
    `smoothing` the standard deviation in Å of the Gaussian that smooths the gradient.
    """
    width = max(smoothing / voxel_spacing, 1.0)
    box = box_of(mask, margin=int(np.ceil(4 * width)) + 1)
    if box is None:
        return Surface.none(voxel_spacing)
    part = mask[box]
    middles, across = _faces(part)
    smoothed = part.astype(np.float32)
    outwards = -np.stack([_at(derivative(smoothed, width, axis), middles) for axis in range(3)], axis=1)
    # Where both sides are alike, as in the middle of a hole, the gradient says nothing.
    steep = np.linalg.norm(outwards, axis=1, keepdims=True)
    outwards = np.where(steep > 1e-6, outwards, across)
    normals = outwards / np.linalg.norm(outwards, axis=1, keepdims=True)
    start = np.array([side.start for side in box])
    return Surface.through(middles + start, normals, voxel_spacing)


def box_of(mask: Mask, margin: int) -> Box | None:
    """The box around all voxels of a mask and `margin` voxels more on each side, within the volume; None if the mask is
    empty."""
    sides = []
    for axis in range(3):
        there = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        if not len(there):
            return None
        sides.append(slice(int(there[0]), int(there[-1]) + 1))
    return widened((sides[0], sides[1], sides[2]), margin, mask.shape)


def widened(box: Box, margin: int, shape: Sequence[int]) -> Box:
    """A box and `margin` voxels more on each side, within a volume of `shape` (z, y, x)."""
    z, y, x = (
        slice(max(side.start - margin, 0), min(side.stop + margin, size)) for side, size in zip(box, shape, strict=True)
    )
    return z, y, x


def derivative(volume: NDArray[np.float32], width: float, *axes: int) -> NDArray[np.float32]:
    """The derivative along axes, one for each order, of a volume (z, y, x) smoothed by a Gaussian of standard deviation
    `width` in voxels. The volume goes on at its sides as it ends."""
    from scipy.ndimage import gaussian_filter

    orders = [axes.count(axis) for axis in range(3)]
    smoothed: NDArray[np.float32] = gaussian_filter(volume, width, order=orders, mode="nearest")
    return smoothed


def _faces(mask: Mask) -> tuple[Array, Array]:
    """The middles (N, 3) of the faces between voxels of a mask and others, as fractional indices z, y, x, and the
    direction (N, 3) from the mask across each."""
    middles, across = [], []
    for axis in range(3):
        first = [slice(None)] * 3
        first[axis] = slice(-1)
        second = [slice(None)] * 3
        second[axis] = slice(1, None)
        inside = mask[tuple(first)]
        places = np.argwhere(inside != mask[tuple(second)])
        step = np.zeros(3)
        step[axis] = 1.0
        middles.append(places + step / 2)
        across.append(np.where(inside[tuple(places.T)][:, None], step, -step))
    return np.concatenate(middles), np.concatenate(across)


def _at(volume: NDArray[np.float32], indices: Array) -> Array:
    """The values of a volume at fractional indices (N, 3), by linear interpolation."""
    from scipy.ndimage import map_coordinates

    return np.asarray(map_coordinates(volume, indices.T, order=1, mode="nearest"), dtype=np.float64)
