"""The placement of the particles and vesicles of a phantom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import Shape, to_voxels

Array = NDArray[np.float64]

# Lipid bilayer: distance of the head groups from its mid-plane, and the standard deviation of each layer, both in Å.
HEAD_GROUPS = 18.0
HEAD_GROUP_WIDTH = 8.0
# The segmentation of membranes contains all voxels this near to the mid-plane of the bilayer (Å).
HALF_THICKNESS = 30.0
# Range of the semi-axes of a vesicle, relative to the longest that the smallest side of the volume allows.
VESICLE_SIZE = (0.5, 0.9)


@dataclass(frozen=True)
class Membranes:
    """The bilayers of a tomogram: their density and mask, and the vesicles that they enclose, bilayer and all, numbered
    from 1 on; all (z, y, x). The middle of each is an ellipsoid along the axes: centres and semi-axes (N, 3) as x, y, z
    in Å."""

    centres: Array
    semi_axes: Array
    density: NDArray[np.float32]
    mask: NDArray[np.bool_]
    vesicles: NDArray[np.uint16]

    @property
    def count(self) -> int:
        """The number of vesicles, N."""
        return len(self.centres)


def scatter(
    radii: Array,
    extent: Array,
    random: np.random.Generator,
    free: Callable[[Array], Array] | None = None,
    tries: int = 2000,
) -> Array:
    """Random sequential placement of spheres in a box, the largest first.

    `radii` (N,) and `extent` (3,) are in Å; `free` gives the free distance in Å around each of (M, 3) points. Returns
    centres (N, 3) as x, y, z in Å, NaN for a sphere that found no place in `tries` attempts. No two spheres overlap and
    all lie within 0 … extent.
    """
    centres = np.full((len(radii), 3), np.nan)
    for index in np.argsort(-radii, kind="stable"):
        radius = radii[index]
        if (extent < 2 * radius).any():
            continue
        candidates = random.uniform(radius, extent - radius, (tries, 3))
        placed = ~np.isnan(centres[:, 0])
        distances = np.linalg.norm(candidates[:, None] - centres[placed], axis=2)
        fits = (distances >= radius + radii[placed]).all(axis=1)
        if free is not None:
            fits &= free(candidates) >= radius
        if fits.any():
            centres[index] = candidates[fits.argmax()]
    return centres


def orientations(count: int, random: np.random.Generator) -> Array:
    """Rotation matrices (N, 3, 3), uniform over all rotations: a normal deviate in 4D is a uniform quaternion
    (Shoemake 1992)."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_quat(random.standard_normal((count, 4))).as_matrix()).reshape(count, 3, 3)


def vesicles(count: int, shape: Shape, voxel_spacing: float, random: np.random.Generator) -> Membranes:
    """Up to `count` closed ellipsoidal bilayers that touch neither each other nor the sides of the volume."""
    extent = extent_of(shape, voxel_spacing)
    semi_axes = random.uniform(*VESICLE_SIZE, (count, 3)) * max(extent.min() / 2 - HALF_THICKNESS, HALF_THICKNESS)
    centres = scatter(semi_axes.max(axis=1) + HALF_THICKNESS, extent, random)
    density = np.zeros(shape, dtype=np.float32)
    mask = np.zeros(shape, dtype=bool)
    enclosed = np.zeros(shape, dtype=np.uint16)
    found = ~np.isnan(centres[:, 0])
    centres, semi_axes = centres[found], semi_axes[found]
    for number, (centre, axes) in enumerate(zip(centres, semi_axes, strict=True), 1):
        box = box_around(centre, axes.max() + HALF_THICKNESS, shape, voxel_spacing)
        z, y, x = np.ogrid[box]
        offsets = [i * voxel_spacing - c for i, c in zip((x, y, z), centre, strict=True)]
        outwards = _distance_to_ellipsoid(offsets, axes)
        depth = np.abs(outwards)
        density[box] += np.exp(-0.5 * ((depth - HEAD_GROUPS) / HEAD_GROUP_WIDTH) ** 2)
        mask[box] |= depth <= HALF_THICKNESS
        enclosed[box][outwards <= HALF_THICKNESS] = number
    return Membranes(centres, semi_axes, density, mask, enclosed)


def room_around(mask: NDArray[np.bool_], voxel_spacing: float) -> Callable[[Array], Array]:
    """A function that gives a lower bound of the distance in Å from points (N, 3), as x, y, z in Å, to the nearest
    voxel of `mask`."""
    from scipy.ndimage import distance_transform_edt

    distances = distance_transform_edt(~mask)

    def room(points: Array) -> Array:
        nearest = np.floor(to_voxels(points, voxel_spacing) + 0.5).astype(int)
        # A point is up to half of a voxel's diagonal away from the centre of its nearest voxel.
        return np.asarray((distances[tuple(nearest.T)] - np.sqrt(3) / 2) * voxel_spacing, dtype=np.float64)

    return room


def extent_of(shape: Shape, voxel_spacing: float) -> Array:
    """The far corner of a volume: x, y, z in Å of its last voxel."""
    return (np.array(shape[::-1]) - 1.0) * voxel_spacing


def box_around(centre: Array, reach: float, shape: tuple[int, ...], voxel_spacing: float) -> tuple[slice, ...]:
    """The voxels (z, y, x) within `reach` Å of a centre (x, y, z in Å) along every axis, cut at the volume's sides."""
    index = to_voxels(centre, voxel_spacing)[0]
    start = np.maximum(np.floor(index - reach / voxel_spacing).astype(int), 0)
    stop = np.minimum(np.ceil(index + reach / voxel_spacing).astype(int) + 1, shape)
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))


def _distance_to_ellipsoid(offsets: list[Array], semi_axes: Array) -> Array:
    """Signed distance to the surface f = 1 of an ellipsoid, to first order: (f − 1) / |∇f|, where f² = Σ (x/a)²."""
    level = np.sqrt(sum((o / a) ** 2 for o, a in zip(offsets, semi_axes, strict=True)))
    slope = np.sqrt(sum((o / a**2) ** 2 for o, a in zip(offsets, semi_axes, strict=True)))
    return np.asarray((level - 1) * np.maximum(level, 1e-6) / np.maximum(slope, 1e-9))
