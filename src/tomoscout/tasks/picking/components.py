"""Connected components of label volumes, those of all labels in one pass.

A volume is reduced to its runs: voxels of one label that follow each other along x. Runs that touch are joined, and
what is known of a component is summed over its runs. A volume is read slab by slab and never kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import Shape


@dataclass(frozen=True)
class Runs:
    """The runs of a volume of `shape` (z, y, x) in memory order: where they start in the flattened volume, their
    lengths and their labels, (R,) each."""

    shape: Shape
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.integer]


class Regions(NamedTuple):
    """Components, or parts of them. `voxels` (N,): how many; `centres` (N, 3): their centres of mass as fractional
    indices z, y, x; `means` (N,) of the values inside, 0 without values; `components` (N,): the number of the
    component, from 1 in memory order."""

    voxels: NDArray[np.float64]
    centres: NDArray[np.float64]
    means: NDArray[np.float64]
    components: NDArray[np.int64]


def read_runs(slabs: Iterable[NDArray[np.integer]], labels: Collection[int]) -> Runs:
    """The runs of some labels in a volume.

    Args:
        slabs: whole planes (n, y, x) of the volume, from the first on.
        labels: the labels wanted, without 0.
    """
    starts, lengths, values, planes, plane = [], [], [], 0, (0, 0)
    for slab in slabs:
        plane = slab.shape[1], slab.shape[2]
        flat = np.ascontiguousarray(slab).reshape(-1)
        changes = np.empty(len(flat), dtype=bool)
        np.not_equal(flat[1:], flat[:-1], out=changes[1:])
        changes[:: plane[1]] = True
        places = np.flatnonzero(changes)
        chosen = np.isin(flat[places], list(labels))
        starts.append(places[chosen] + planes * plane[0] * plane[1])
        lengths.append(np.diff(places, append=len(flat))[chosen])
        values.append(flat[places[chosen]])
        planes += len(slab)
    return Runs((planes, *plane), np.concatenate(starts), np.concatenate(lengths), np.concatenate(values))


def spans(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1, … of every span, one span after the other."""
    before = np.cumsum(lengths) - lengths
    found: NDArray[np.int64] = np.repeat(starts - before, lengths) + np.arange(lengths.sum())
    return found


def _touching(runs: Runs, some: NDArray[np.int64], step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of runs of one label: one of `some`, and one that has a voxel `step` voxels after a voxel of it."""
    begin = runs.starts[some] + step
    first = np.searchsorted(runs.starts + runs.lengths, begin, side="right")
    counts = np.searchsorted(runs.starts, begin + runs.lengths[some], side="left") - first
    one, other = np.repeat(some, counts), spans(first, counts)
    same = runs.labels[one] == runs.labels[other]
    return one[same], other[same]


class Components:
    """The components of the runs of a volume: voxels of one label that are connected through shared faces.

    `labels`, `voxels`, `centres` (z, y, x) and `scatter` are (N,) or (N, 3), in memory order. `scatter` is the mean
    squared distance of the voxels to their centre over that in a ball of equal volume: 1 for a ball, more for anything
    else.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self._of_run = self._joined()
        z, y, x = np.unravel_index(runs.starts, runs.shape)
        middles = np.column_stack([z, y, x + (runs.lengths - 1) / 2])
        self.voxels = self._sums(runs.lengths)
        self.centres = np.column_stack([self._sums(runs.lengths * axis) for axis in middles.T]) / self.voxels[:, None]
        self.labels = runs.labels[self._rows[self._firsts[:-1]]]
        # Of the middles, of the voxels along their runs, and of the points within a voxel (1/12 along each axis).
        squares = (middles**2).sum(axis=1) + (runs.lengths.astype(np.float64) ** 2 - 1) / 12 + 3 / 12
        moments = self._sums(runs.lengths * squares) / self.voxels - (self.centres**2).sum(axis=1)
        self.scatter = moments / (0.6 * (3 * self.voxels / (4 * np.pi)) ** (2 / 3))

    def _joined(self) -> NDArray[np.int64]:
        """The component of each run."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        runs, (_, rows, row) = self.runs, self.runs.shape
        every = np.arange(len(runs.starts))
        # What follows the last row of a plane is the first row of the next plane, which does not touch it.
        inner = every[runs.starts // row % rows < rows - 1] if len(every) else every
        pairs = [_touching(runs, inner, row), _touching(runs, every, row * rows)]
        one, other = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
        graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(len(every), len(every)))
        return connected_components(graph, directed=False)[1].astype(np.int64) if len(every) else every

    def _sums(self, values: NDArray[np.floating] | NDArray[np.integer]) -> NDArray[np.float64]:
        """The sum over the runs of each component."""
        return np.bincount(self._of_run, values).astype(np.float64)

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        """The runs, those of a component after each other."""
        return np.argsort(self._of_run, kind="stable")

    @cached_property
    def _firsts(self) -> NDArray[np.int64]:
        """Where the runs of each component begin in `_rows`, and where the last ends."""
        return np.append(0, np.cumsum(np.bincount(self._of_run)))

    def regions(self, chosen: NDArray[np.int64], values: NDArray[np.uint8] | None = None) -> Regions:
        """Some of the components, by their numbers from 0. `values`: volume (z, y, x) of which `means` are."""
        means = np.zeros(len(chosen)) if values is None else self._means(values)[chosen]
        return Regions(self.voxels[chosen], self.centres[chosen], means, chosen + 1)

    def _means(self, values: NDArray[np.uint8]) -> NDArray[np.float64]:
        if not len(self.voxels):
            return np.zeros(0)
        inside = values.reshape(-1)[spans(self.runs.starts, self.runs.lengths)]
        firsts = np.cumsum(self.runs.lengths) - self.runs.lengths
        return self._sums(np.add.reduceat(inside, firsts, dtype=np.int64)) / self.voxels

    def mask(self, number: int) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
        """The box around a component, and which voxels of the box belong to it. `number`: from 0."""
        rows = self._rows[self._firsts[number] : self._firsts[number + 1]]
        lengths = self.runs.lengths[rows]
        z, y, x = np.unravel_index(self.runs.starts[rows], self.runs.shape)
        low = z.min(), y.min(), x.min()
        high = z.max() + 1, y.max() + 1, (x + lengths).max()
        mask = np.zeros(np.subtract(high, low), dtype=bool)
        starts = np.ravel_multi_index((z - low[0], y - low[1], x - low[2]), mask.shape)
        mask.reshape(-1)[spans(starts, lengths)] = True
        return tuple(map(slice, map(int, low), map(int, high))), mask
