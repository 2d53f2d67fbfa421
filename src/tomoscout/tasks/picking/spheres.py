"""Target spheres: every particle becomes the voxels within the target radius of its pick."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import ROUNDING

ROOM = 1 + ROUNDING
"""Factor on radii in searches for the voxels and neighbours of a sphere, so that rounding loses none on its surface."""


@dataclass(frozen=True)
class Spheres:
    """Target spheres of a run: centres (N, 3) as fractional indices z, y, x; radii (N,) in voxels; labels (N,)."""

    centres: NDArray[np.float64]
    radii: NDArray[np.float64]
    labels: NDArray[np.int64]


def rasterise(labels: NDArray[np.integer], spheres: Spheres) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Write spheres into a label volume (z, y, x) in place, over existing labels.

    A voxel belongs to a sphere if its centre lies within the radius. Where spheres overlap, the sphere whose centre is
    nearer relative to its radius gets the voxel; at equal distance the earlier one. Returns the number of voxels of
    each sphere (N,), and which spheres overlap one with a different label (N,).
    """
    rows = np.column_stack([spheres.centres, spheres.radii, spheres.labels])
    _, first, of_sphere = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    if len(first) < len(rows):
        # Duplicates get no voxels; they are removed, or each would be compared with all others.
        kept = np.sort(first)
        places = np.searchsorted(kept, first)
        distinct = Spheres(spheres.centres[kept], spheres.radii[kept], spheres.labels[kept])
        some_voxels, some_met = rasterise(labels, distinct)
        voxels = np.zeros(len(rows), dtype=np.int64)
        voxels[kept] = some_voxels
        return voxels, some_met[places[of_sphere.ravel()]]
    voxels = np.zeros(len(spheres.labels), dtype=np.int64)
    met = np.zeros(len(spheres.labels), dtype=bool)
    neighbours = _overlapping_pairs(spheres)
    for index, (centre, radius, label) in enumerate(zip(spheres.centres, spheres.radii, spheres.labels, strict=True)):
        box = _box(centre, radius, labels.shape)
        own = _relative_distance(box, centre, radius)
        sphere = own <= 1
        mask = sphere.copy()
        for other in neighbours.get(index, ()):
            theirs = _relative_distance(box, spheres.centres[other], spheres.radii[other])
            nearer = own <= theirs if index < other else own < theirs
            if spheres.labels[other] != label and not met[index]:
                met[index] = bool((sphere & (theirs <= 1)).any())
            mask &= nearer
        labels[box][mask] = label
        voxels[index] = np.count_nonzero(mask)
    return voxels, met


def _box(centre: NDArray[np.float64], radius: float, shape: tuple[int, ...]) -> tuple[slice, ...]:
    low = np.maximum(np.ceil(centre - radius * ROOM), 0).astype(int)
    high = np.minimum(np.floor(centre + radius * ROOM) + 1, shape).astype(int)
    return tuple(slice(a, max(a, b)) for a, b in zip(low.tolist(), high.tolist(), strict=True))


def _relative_distance(box: tuple[slice, ...], centre: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Squared distance of every voxel of a box from a centre, in units of the squared radius."""
    z, y, x = (
        (np.arange(part.start, part.stop) - middle) ** 2 for part, middle in zip(box, centre.tolist(), strict=True)
    )
    squared: NDArray[np.float64] = z[:, None, None] + y[:, None] + x
    squared /= radius**2
    return squared


def _overlapping_pairs(spheres: Spheres) -> dict[int, list[int]]:
    """Sphere → spheres that it touches, found by a sweep along y, where tomograms are long."""
    order = np.argsort(spheres.centres[:, 1], kind="stable")
    centres, radii = spheres.centres[order], spheres.radii[order]
    radii = radii * ROOM
    reach = 2 * float(radii.max(initial=0))
    ends = np.searchsorted(centres[:, 1], centres[:, 1] + reach, side="right")
    pairs: dict[int, list[int]] = {}
    for start, end in enumerate(ends.tolist()):
        following = slice(start + 1, end)
        distance = ((centres[following] - centres[start]) ** 2).sum(axis=1)
        for offset in np.flatnonzero(distance <= (radii[following] + radii[start]) ** 2).tolist():
            first, second = int(order[start]), int(order[start + 1 + offset])
            pairs.setdefault(first, []).append(second)
            pairs.setdefault(second, []).append(first)
    return pairs
