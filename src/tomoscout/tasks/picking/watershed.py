"""The watershed that parts touching particles: it floods the distance to the surface from its tops."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscout.tasks.picking.components import Components, Regions
from tomoscout.tasks.picking.peaks import suppress

DIP = 0.35
"""Voxels by which the distance to the surface falls between two particles. Between two tops of one particle, which come
from the grid and from noise at its surface, it falls by less: of rods and ellipsoids in all directions none is parted,
and all balls that touch are, of a radius of three voxels or more."""

BLUR = 0.5
"""Standard deviation in voxels of the Gaussian that takes the steps of the grid from the distance."""

BALL = 1.1
"""Largest scatter (`Components.scatter`) of a component that is taken for one particle without a look at its distances:
two balls whose middles are one radius apart have 1.12 or more."""


def parted(
    components: Components, chosen: NDArray[np.int64], separation: float, values: NDArray[np.uint8] | None = None
) -> Regions:
    """The particles that components consist of.

    Args:
        components: those of a volume.
        chosen: numbers, from 0, of the components to part.
        separation: smallest distance in voxels of the tops of two particles.
        values: volume (z, y, x) of which `Regions.means` are.
    """
    like_balls = components.scatter[chosen] <= BALL
    found = [components.regions(chosen[like_balls], values)]
    for number in chosen[~like_balls]:
        box, mask = components.mask(number)
        inside, which = np.argwhere(mask), part(mask, separation)[mask] - 1
        voxels = np.bincount(which).astype(np.float64)
        centres = np.column_stack([np.bincount(which, inside[:, n]) / voxels + box[n].start for n in range(3)])
        means = np.zeros(len(voxels)) if values is None else np.bincount(which, values[box][mask]) / voxels
        found.append(Regions(voxels, centres, means, np.full(len(voxels), number + 1)))
    return Regions(*map(np.concatenate, zip(*found, strict=True)))


def part(mask: NDArray[np.bool_], separation: float) -> NDArray[np.int32]:
    """The particles of one component.

    Args:
        mask: the voxels (z, y, x) of the component, which are connected.
        separation: smallest distance in voxels of the tops of two particles.

    Returns:
        Volume (z, y, x) with 1, 2 … in the particles and 0 outside.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    inside = np.pad(mask, 1)
    depth = gaussian_filter(distance_transform_edt(inside).astype(np.float32), BLUR) * inside
    tops = _tops(depth, separation)
    if len(tops) == 1:
        return mask.astype(np.int32)
    from skimage.segmentation import watershed

    markers = np.zeros(depth.shape, dtype=np.int32)
    markers[tuple(tops.T)] = np.arange(1, len(tops) + 1)
    parts: NDArray[np.int32] = watershed(-depth, markers, mask=inside)[1:-1, 1:-1, 1:-1]
    return parts


def _tops(depth: NDArray[np.float32], separation: float) -> NDArray[np.int64]:
    """Indices (N, 3) of the deepest voxels of the particles: maxima of the depth from which it falls by `DIP` on every
    way to a deeper one (h-maxima), without those nearer than `separation` to a deeper one."""
    from scipy.ndimage import label, maximum_position
    from skimage.morphology import local_maxima, reconstruction

    summits, count = label(local_maxima(reconstruction(depth - DIP, depth)), structure=np.ones((3, 3, 3)))
    tops = np.array(maximum_position(depth, summits, np.arange(1, count + 1)), dtype=np.int64).reshape(-1, 3)
    order = np.lexsort((*tops.T, -depth[tuple(tops.T)]))
    return tops[order][suppress(tops[order].astype(np.float64), separation)]
