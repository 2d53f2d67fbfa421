"""The tiles of a volume, and how their values are blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from tomoscout.networks.options import NetworkOptions

Window = tuple[slice, ...]
"""A region (*space) of a volume."""


class InputSizes(NamedTuple):
    """The input sizes that a network takes, per axis: multiples of `step`, at least `smallest` voxels."""

    step: tuple[int, ...]
    smallest: tuple[int, ...]

    @classmethod
    def of(cls, networks: Sequence[NetworkOptions], dimensions: int) -> InputSizes:
        """The sizes that all of the networks take, in this number of spatial dimensions."""
        return cls.common([cls(o.size_step(dimensions), o.smallest_size(dimensions)) for o in networks])

    @classmethod
    def common(cls, several: Sequence[InputSizes]) -> InputSizes:
        """The sizes that are among all of several."""
        steps = tuple(math.lcm(*axis) for axis in zip(*(sizes.step for sizes in several), strict=True))
        least = [max(axis) for axis in zip(*(sizes.smallest for sizes in several), strict=True)]
        return cls(steps, tuple(math.ceil(size / step) * step for size, step in zip(least, steps, strict=True)))

    def tiles(self, shape: Sequence[int], tile: Sequence[int], overlap: float) -> list[tuple[list[int], int]]:
        """Starts and length of the tiles along each axis of a volume; see `tile_starts`."""
        return [
            tile_starts(max(size, least), max(largest, least), overlap, step)
            for size, largest, step, least in zip(shape, tile, *self, strict=True)
        ]


def tile_starts(size: int, tile: int, overlap: float, step: int) -> tuple[list[int], int]:
    """Cover `size` voxels with as few tiles as possible, all of one length.

    The length is the shortest multiple of `step`, at most `tile` (rounded up to a multiple of `step`), with which
    neighbours still overlap by the fraction `overlap`. Returns the starts and the length.
    """
    largest = max(step, math.ceil(tile / step) * step)
    if size <= largest:
        return [0], math.ceil(size / step) * step
    count = math.ceil((size - largest * overlap) / (largest * (1 - overlap)))
    length = min(largest, math.ceil(size / (count - (count - 1) * overlap) / step) * step)
    return [round(n * (size - length) / (count - 1)) for n in range(count)], length


def blending_weights(starts: Sequence[int], length: int) -> list[torch.Tensor]:
    """Weights (length,) of every tile along an axis. Those of all tiles at one place sum to 1, in the ratio of
    Gaussians around the centres of the tiles with a standard deviation of one eighth of the length, as in nnU-Net
    (Isensee et al., Nature Methods 2021). No weight is 0: Gaussians are at least 0.001."""
    places = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    gaussian = torch.exp(-0.5 * (places / (length / 8)) ** 2).clamp_min(1e-3)
    total = torch.zeros(starts[-1] + length, dtype=torch.float64)
    for start in starts:
        total[start : start + length] += gaussian
    return [gaussian / total[start : start + length] for start in starts]


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a volume, all of one size.

    `space`: voxels (*space) that are predicted, a multiple of `every`. `starts`, `lengths`: of the tiles, per axis.
    """

    space: tuple[int, ...]
    starts: tuple[list[int], ...]
    lengths: tuple[int, ...]
    every: int

    @classmethod
    def of(
        cls, shape: Sequence[int], sizes: InputSizes, tile: Sequence[int], overlap: float, every: int = 1
    ) -> TileGrid:
        """The tiles of a volume of `shape` (*space); see `tile_starts`. A value is read out of every so many voxels."""
        # Tiles begin and end at voxels that are read out.
        steps = InputSizes(tuple(math.lcm(step, every) for step in sizes.step), sizes.smallest)
        space = tuple(math.ceil(size / every) * every for size in shape)
        plans = steps.tiles(space, tile, overlap)
        starts = tuple([at // every * every for at in places] for places, _ in plans)
        return cls(space, starts, tuple(length for _, length in plans), every)

    @property
    def order(self) -> list[int]:
        """The axes, longest first: tiles are predicted plane by plane along the first of them, so that a plane is
        small."""
        return sorted(range(len(self.space)), key=lambda axis: -self.space[axis])

    @property
    def corners(self) -> list[tuple[int, ...]]:
        """The corner of every tile, in the order in which they are predicted."""
        order = self.order
        places = itertools.product(*(self.starts[axis] for axis in order))
        return [tuple(place[order.index(axis)] for axis in range(len(order))) for place in places]

    @property
    def count(self) -> int:
        """Number of tiles."""
        return math.prod(map(len, self.starts))

    @property
    def covered(self) -> tuple[int, ...]:
        """Voxels (*space) that tiles cover: those of the volume, or a tile where that is longer."""
        return tuple(places[-1] + length for places, length in zip(self.starts, self.lengths, strict=True))

    @property
    def values_held(self) -> int:
        """The most values of a channel that are in memory at once: those that wait for later tiles, and one tile."""
        waiting = 0
        for level, axis in enumerate(self.order):
            sizes = [self.lengths[n] if n in self.order[:level] else self.covered[n] for n in range(len(self.space))]
            sizes[axis] = self.longest_overlap(axis)
            waiting += math.prod(size // self.every for size in sizes)
        return waiting + math.prod(length // self.every for length in self.lengths)

    def longest_overlap(self, axis: int) -> int:
        """Voxels of a tile along an axis that the next one reaches, too."""
        steps = (after - before for before, after in itertools.pairwise(self.starts[axis]))
        return max((self.lengths[axis] - step for step in steps), default=0)

    def window(self, corner: Sequence[int]) -> Window:
        """The voxels of a tile."""
        return tuple(slice(start, start + length) for start, length in zip(corner, self.lengths, strict=True))


class Blender:
    """Blends the values of tiles while they are predicted.

    What no later tile reaches leaves at once, and what one does reach waits: along the first axis the end of a plane,
    along the next the end of a row within a plane, along the last the end of a tile.
    """

    def __init__(
        self, grid: TileGrid, tile_values: Callable[[tuple[int, ...]], torch.Tensor], kind: torch.dtype
    ) -> None:
        """`tile_values`: from the corner of a tile, its values (channels, *space) in `kind`; they are changed."""
        self.grid, self.tile_values, self.kind = grid, tile_values, kind
        self._waiting: dict[int, torch.Tensor] = {}

    @cached_property
    def _weights(self) -> list[list[torch.Tensor]]:
        grid = self.grid
        return [
            blending_weights([start // grid.every for start in starts], length // grid.every)
            for starts, length in zip(grid.starts, grid.lengths, strict=True)
        ]

    def blocks(self) -> Iterator[tuple[Window, torch.Tensor]]:
        """Finished values (channels, *space), each place once, with the places that they have in the prediction."""
        return self._blocks(0, ())

    def _blocks(self, level: int, numbers: tuple[int, ...]) -> Iterator[tuple[Window, torch.Tensor]]:
        """What is finished along all axes from `level` on, for the tiles of the given `numbers` along those before."""
        grid = self.grid
        if level == len(grid.order):
            corner = [0] * level
            for axis, number in zip(grid.order, numbers, strict=True):
                corner[axis] = grid.starts[axis][number]
            yield tuple(slice(0, length // grid.every) for length in grid.lengths), self.tile_values(tuple(corner))
            return
        axis = grid.order[level]
        starts = [start // grid.every for start in grid.starts[axis]]
        length = grid.lengths[axis] // grid.every
        before = 0
        for number, start in enumerate(starts):
            last = number == len(starts) - 1
            done = length if last else starts[number + 1] - start
            for window, values in self._blocks(level + 1, (*numbers, number)):
                self._weigh(values, axis, number, before, done)
                if before:
                    _part(values, axis, 0, before).add_(self._place(values, axis, window, before))
                if not last:
                    self._place(values, axis, window, length - done).copy_(_part(values, axis, done, length - done))
                places = list(window)
                places[axis] = slice(start, start + done)
                yield tuple(places), _part(values, axis, 0, done)
            before = length - done

    def _weigh(self, values: torch.Tensor, axis: int, number: int, before: int, done: int) -> None:
        """Weigh the values that other tiles along this axis reach, at the start and at the end."""
        weights = self._weights[axis][number].to(values)
        shape = [1] * values.ndim
        shape[axis + 1] = -1
        for first, end in ((0, before), (max(before, done), len(weights))):
            if end > first:
                _part(values, axis, first, end - first).mul_(weights[first:end].view(shape))

    def _place(self, values: torch.Tensor, axis: int, window: Window, length: int) -> torch.Tensor:
        """Where values wait for the next tile along an axis: `length` values along it, those of `window` along the
        others."""
        grid = self.grid
        if axis not in self._waiting:
            level = grid.order.index(axis)
            sizes = [grid.lengths[n] if n in grid.order[:level] else grid.covered[n] for n in range(len(grid.space))]
            sizes[axis] = grid.longest_overlap(axis)
            shape = [size // grid.every for size in sizes]
            self._waiting[axis] = torch.empty((len(values), *shape), dtype=self.kind, device=values.device)
        places = list(window)
        places[axis] = slice(0, length)
        return self._waiting[axis][(slice(None), *places)]


def _part(values: torch.Tensor, axis: int, start: int, length: int) -> torch.Tensor:
    return values.narrow(axis + 1, start, length)
