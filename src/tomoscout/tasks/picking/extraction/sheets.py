"""The middle of a segmentation that is itself a sheet, such as a membrane, with two sides that are told apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscout.tasks.picking.extraction.surfaces import Array, Box, Mask, Surface, widened

NEIGHBOURS = 8
"""Points of a sheet with which each is compared to tell sides apart."""
REACH = 3.0
"""In voxels: points farther apart belong to different sheets."""
STEP = 0.25
"""In voxels: the steps in which the two surfaces of a sheet are looked for."""
FLAT = 1.0
"""In voxels: a sheet is flat if its points lie nearer than this, on average, to the plane through their middle."""


def middle(mask: Mask, voxel_spacing: float, smoothing: float) -> Surface:
    """The middle surface of a sheet-like mask (z, y, x).

    The ridge of the distance to the mask's boundary is moved along the normal to the middle between its two surfaces.
    The normal is the direction in which the logarithm of the smoothed mask is curved most. Its sign is carried from
    point to point along the minimum spanning tree of neighbours whose normals differ least (Hoppe et al., SIGGRAPH
    1992), and is then chosen for each connected sheet: outwards is away from what it encloses or is bent around, and
    for a flat sheet towards larger z (or else y, x).

    `voxel_spacing` is in Å, `smoothing` the standard deviation of the Gaussian in Å, at least half of the thickness.
    """
    from scipy.ndimage import find_objects, label

    # Piece by piece, so that the space between them takes no time and memory.
    numbered, _ = label(mask)
    boxes = find_objects(numbered)
    if not boxes:
        return Surface.none(voxel_spacing)
    ridges, depths = zip(*(_ridge(mask, numbered, number, box) for number, box in enumerate(boxes, 1)), strict=True)
    thickness = float(np.median(np.concatenate(depths)))
    width = max(smoothing / voxel_spacing, thickness, 1.0)
    found = [_middles(mask, box, ridge, width, thickness) for box, ridge in zip(boxes, ridges, strict=True)]
    middles, normals = (np.concatenate(parts) for parts in zip(*found, strict=True))
    # One point for each voxel: several of the ridge may have the same middle.
    _, kept = np.unique(np.floor(middles + 0.5).astype(int), axis=0, return_index=True)
    middles, normals = middles[kept], normals[kept]
    normals *= _signs(middles, normals)[:, None]
    return Surface.through(middles, normals, voxel_spacing)


def _ridge(
    mask: Mask, numbered: NDArray[np.integer], number: int, box: Box
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The voxels (N, 3) of a numbered piece of a mask, which lies in `box`, from where it is nowhere deeper nearby, and
    their depths (N,): the distances in voxels to what is not in the mask."""
    from scipy.ndimage import distance_transform_edt, maximum_filter

    region = widened(box, 2, mask.shape)
    part = mask[region]
    depth = part.astype(np.float32)
    # A mask that fills its box has no boundary in it.
    if not part.all():
        nearest = distance_transform_edt(part, return_distances=False, return_indices=True)
        inside = np.nonzero(part)
        depth[inside] = np.sqrt(sum((other[inside] - place) ** 2 for other, place in zip(nearest, inside, strict=True)))
    ridge = np.argwhere((numbered[region] == number) & (depth > maximum_filter(depth, 3) - 0.75))
    return ridge + _start(region), depth[tuple(ridge.T)]


def _middles(mask: Mask, box: Box, ridge: NDArray[np.intp], width: float, thickness: float) -> tuple[Array, Array]:
    """The points (N, 3) in the middle of a piece of a mask, which lies in `box` and has a `ridge` (N, 3), and the
    normals (N, 3) there, as z, y, x and of either sign. `width` of the Gaussian and `thickness` are in voxels."""
    region = widened(box, int(np.ceil(4 * width)) + 1, mask.shape)
    places = ridge - _start(region)
    normals = _normals(mask[region], places, width)
    return ridge + _to_the_middle(mask[region], places, normals, 2 * thickness + 2)[:, None] * normals, normals


def _start(region: Box) -> NDArray[np.intp]:
    return np.array([side.start for side in region])


def _normals(mask: Mask, places: NDArray[np.intp], width: float) -> Array:
    """The direction (N, 3), as z, y, x and of either sign, in which the logarithm of the mask, smoothed by a Gaussian
    of standard deviation `width`, is curved most at each of the places (N, 3). Of a flat sheet that logarithm is nearly
    a parabola, whose differences are its derivatives."""
    from scipy.ndimage import gaussian_filter

    reach = 2
    smoothed = gaussian_filter(np.pad(mask.astype(np.float32), reach, mode="edge"), width, mode="nearest")

    def beside(step: NDArray[np.intp]) -> Array:
        values: Array = np.log(smoothed[tuple((places + reach + step).T)].astype(np.float64))
        return values

    axes = np.eye(3, dtype=np.intp)
    curvature = np.empty((len(places), 3, 3))
    for first in range(3):
        for second in range(first, 3):
            along, across = axes[first] + axes[second], axes[first] - axes[second]
            bent = beside(along) + beside(-along) - beside(across) - beside(-across)
            curvature[:, first, second] = curvature[:, second, first] = bent
    # In ascending order: the first belongs to the most negative curvature.
    directions: Array = np.linalg.eigh(curvature)[1][:, :, 0]
    return directions


def _to_the_middle(mask: Mask, places: NDArray[np.intp], normals: Array, reach: float) -> Array:
    """How far (N,), in voxels along the normals, the middle between the two surfaces of a sheet is from places in it; 0
    where a surface is not within `reach`."""
    from scipy.ndimage import map_coordinates

    ends = np.full((2, len(places)), np.nan)
    for end, sign in zip(ends, (1.0, -1.0), strict=True):
        inside = np.arange(len(places))
        for step in np.arange(0.0, reach, STEP):
            positions = places[inside] + sign * step * normals[inside]
            there = map_coordinates(mask, positions.T, np.float32, order=1, mode="nearest") >= 0.5
            end[inside[~there]] = step
            inside = inside[there]
            if not len(inside):
                break
    middles: Array = np.nan_to_num((ends[0] - ends[1]) / 2)
    return middles


def _signs(points: Array, normals: Array) -> Array:
    """The sign (N,) of each normal that lets it point outwards; points and normals (N, 3) are in voxels."""
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    tree = _spanning_tree(points, normals)
    count, sheet = connected_components(tree, directed=False)
    signs = np.ones(len(points))
    firsts = np.unique(sheet, return_index=True)[1]
    for first in firsts:
        order, before = breadth_first_order(tree, first, directed=False)
        # The tree is walked in order, so that the sign of the point before is known.
        for point in order[1:].tolist():
            same = normals[point] @ normals[before[point]] >= 0
            signs[point] = signs[before[point]] if same else -signs[before[point]]
    members = np.bincount(sheet, minlength=count)
    signed = signs[:, None] * normals
    centres = np.stack([np.bincount(sheet, points[:, axis], count) for axis in range(3)], axis=1) / members[:, None]
    heights = np.einsum("ni,ni->n", points - centres[sheet], signed)
    bent = np.bincount(sheet, heights, count) / members
    facing = np.stack([np.bincount(sheet, signed[:, axis], count) for axis in range(3)], axis=1) / members[:, None]
    # For a flat sheet the first axis, in the order z, y, x, along which it faces at all.
    first_axis = (np.abs(facing) > 0.1).argmax(axis=1)
    along = facing[np.arange(count), first_axis]
    outwards = np.where(np.abs(bent) >= FLAT, bent, along) >= 0
    signs *= np.where(outwards, 1.0, -1.0)[sheet]
    return signs


def _spanning_tree(points: Array, normals: Array) -> NDArray[np.float64]:
    """The minimum spanning tree, or one for each sheet, of neighbouring points as a sparse matrix (N, N): two are the
    nearer, the less their normals differ and the more the way between them is along the sheet."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import minimum_spanning_tree
    from scipy.spatial import KDTree

    count = min(NEIGHBOURS + 1, len(points))
    ways, others = KDTree(points).query(points, k=np.arange(1, count + 1), distance_upper_bound=REACH)
    first = np.repeat(np.arange(len(points)), count)
    second, way = others.ravel(), ways.ravel()
    near = np.isfinite(way) & (way > 0)
    first, second, way = first[near], second[near], way[near]
    differ = 1 - np.abs(np.einsum("ni,ni->n", normals[first], normals[second]))
    leaves = np.abs(np.einsum("ni,ni->n", normals[first], points[second] - points[first])) / way
    # A weight of 0 would be no edge.
    weights = coo_array((1e-3 + differ + leaves, (first, second)), (len(points), len(points)))
    tree: NDArray[np.float64] = minimum_spanning_tree(weights.tocsr())
    return tree
