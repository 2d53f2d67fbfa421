"""The field that leads every voxel of an object to the middle of the object.

T, the length of the shortest path within the object to its middle, solves the eikonal equation |grad T| = 1. It is
computed with the upwind scheme of Rouy and Tourin (SIAM Journal on Numerical Analysis 29, 1992), for all objects at
once. The field is the direction in which T falls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_FAR = 1e9


def flow_field(labels: torch.Tensor, steps: int = 4096) -> torch.Tensor:
    """Unit vectors (batch, dimensions, *space) from each voxel towards the middle of its object, along the shortest
    path within the object; 0 in the background and in the middle itself. Each piece of an object has a middle.

    Args:
        labels: (batch, *space), an integer type; 0 and negative numbers are background. An object is what has one
            number in one image.
        steps: the longest path in voxels that is followed.
    """
    dimensions = labels.ndim - 1
    inside = torch.nonzero(labels > 0)
    field = torch.zeros((dimensions, labels.numel()), device=labels.device)
    if len(inside):
        places, groups = _objects(labels, inside)
        neighbours = _neighbours(labels, inside)
        lengths = _path_lengths(neighbours, places, groups, steps)
        # One more entry: what a neighbour outside of the object refers to.
        before, after = lengths[neighbours].unbind(1)
        own = lengths[:-1]
        falls = (own - torch.minimum(before, after)).clamp_min(0) * torch.where(before <= after, -1.0, 1.0)
        falls = torch.where(own < _FAR, falls, 0.0)
        strides = torch.tensor([labels.stride(axis) for axis in range(labels.ndim)], device=labels.device)
        field[:, (inside * strides).sum(1)] = falls / falls.norm(dim=0).clamp_min(1e-6)
    return field.view(dimensions, *labels.shape).movedim(0, 1)


def _objects(labels: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (voxels, dimensions) of the voxels of objects, and the number 0… of the object of each."""
    values = labels[tuple(inside.T)].long()
    _, groups = torch.unique(inside[:, 0] * (values.max() + 1) + values, return_inverse=True)
    return inside[:, 1:].float(), groups


def _middles(places: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Which voxels (voxels,) are the middle of their object: that nearest to its centroid. Of several, the first and
    those that touch it: two far from each other, as in a ring, would make two objects of one."""
    count, voxels = int(groups.max()) + 1, len(groups)
    # Sums of whole numbers are exact in double precision, in any order.
    sums = torch.zeros((count, places.shape[1]), dtype=torch.float64, device=places.device)
    centroids = (
        sums.index_add_(0, groups, places.double()) / torch.bincount(groups, minlength=count).clamp_min(1)[:, None]
    )
    distances = (places - centroids[groups]).square().sum(1)
    nearest = torch.full((count,), _FAR, dtype=distances.dtype, device=places.device)
    as_near = distances <= nearest.scatter_reduce_(0, groups, distances, "amin")[groups] + 1e-6
    order = torch.where(as_near, torch.arange(voxels, device=places.device), voxels - 1)
    first = torch.full((count,), voxels - 1, device=places.device).scatter_reduce_(0, groups, order, "amin")
    return as_near & ((places - places[first[groups]]).abs().amax(1) <= 1)


def _neighbours(labels: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Which voxels (dimensions, 2, voxels) of the list `inside` lie before and after each along each axis; the number
    of voxels where the neighbour does not belong to the object."""
    last = len(inside)
    numbers = torch.full(labels.shape, last, device=labels.device)
    numbers[tuple(inside.T)] = torch.arange(last, device=labels.device)
    sides = []
    for axis in range(1, labels.ndim):
        pair = torch.full((2, *labels.shape), last, device=labels.device)
        size = labels.shape[axis]
        ahead, behind = labels.narrow(axis, 1, size - 1), labels.narrow(axis, 0, size - 1)
        same = ahead == behind
        pair[0].narrow(axis, 1, size - 1).copy_(torch.where(same, numbers.narrow(axis, 0, size - 1), last))
        pair[1].narrow(axis, 0, size - 1).copy_(torch.where(same, numbers.narrow(axis, 1, size - 1), last))
        sides.append(pair[(slice(None), *inside.T)])
    return torch.stack(sides)


def _path_lengths(neighbours: torch.Tensor, places: torch.Tensor, groups: torch.Tensor, steps: int) -> torch.Tensor:
    """Length of the shortest path to the middle (voxels + 1,), the last for what is outside. Pieces of an object that
    cannot reach its middle, as when the border of a crop cuts it, get middles of their own."""
    lengths = torch.full((neighbours.shape[2] + 1,), _FAR, device=neighbours.device)
    sources = torch.nonzero(_middles(places, groups))[:, 0]
    while len(sources):
        lengths[sources] = 0.0
        lengths = _spread(lengths, neighbours, steps)
        apart = torch.nonzero(lengths[:-1] >= _FAR)[:, 0]
        sources = apart[_middles(places[apart], groups[apart])] if len(apart) else apart
    return lengths


def _spread(lengths: torch.Tensor, neighbours: torch.Tensor, steps: int) -> torch.Tensor:
    """Path lengths from all voxels whose length is 0."""
    sources = torch.nonzero(lengths[:-1] == 0)[:, 0]
    for step in range(steps):
        solved = _solve(_ascending([torch.minimum(*lengths[pair]) for pair in neighbours]))
        solved[sources] = 0.0
        # A value is final once its neighbours on the way are: whether anything changes is looked at now and then.
        if step % 8 == 7 and torch.equal(solved, lengths[:-1]):
            break
        lengths[:-1] = solved
    return lengths


def _ascending(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of which each holds the next larger values: a network of exchanges, faster than to sort so few."""
    found = list(values)
    for last in range(len(found) - 1, 0, -1):
        for at in range(last):
            low, high = found[at], found[at + 1]
            found[at], found[at + 1] = torch.minimum(low, high), torch.maximum(low, high)
    return found


def _solve(nearest: Sequence[torch.Tensor]) -> torch.Tensor:
    """Solve sum over axes of max(T − nearest, 0)² = 1 for T. `nearest`: for each axis the smaller of the two
    neighbours, in rising order."""
    found = nearest[0] + 1
    total, squares = nearest[0], nearest[0].square()
    for count, value in enumerate(nearest[1:], 2):
        total, squares = total + value, squares + value.square()
        root = (total.square() - count * (squares - 1)).clamp_min(0).sqrt()
        found = torch.where(found > value, (total + root) / count, found)
    return found
