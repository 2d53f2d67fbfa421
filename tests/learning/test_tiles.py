"""The tiles of a volume and their blending: against slow references."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.learning.tiles import Blender, InputSizes, TileGrid, blending_weights, tile_starts
from tomoscout.networks.options import NetworkOptions

checked = settings(deadline=None, max_examples=150, derandomize=True)
few = settings(deadline=None, max_examples=60, derandomize=True)


@given(st.integers(1, 300), st.integers(1, 120), st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75]), st.integers(1, 16))
@checked
def test_tiles(size: int, tile: int, overlap: float, step: int) -> None:
    starts, length = tile_starts(size, tile, overlap, step)
    largest = -(-tile // step) * step
    assert length % step == 0
    assert length <= largest
    covered = np.zeros(max(size, length), dtype=int)
    for start in starts:
        assert 0 <= start <= max(size - length, 0)
        covered[start : start + length] += 1
    assert covered.min() >= 1
    # Starts are whole voxels, so an overlap can fall short by less than one.
    assert all(start + length - following > overlap * length - 1 for start, following in itertools.pairwise(starts))
    assert starts == sorted(starts)
    # As few tiles as possible, as short as possible.
    sizes = ((count, n) for count in itertools.count(1) for n in range(step, largest + 1, step))
    enough = next((c, n) for c, n in sizes if n * (c - (c - 1) * overlap) >= size)
    assert (len(starts), length) == enough


@given(st.integers(1, 200), st.integers(1, 60), st.sampled_from([0.0, 0.15, 0.5, 0.75]))
@checked
def test_weights_sum_to_one_in_the_ratio_of_gaussians(size: int, tile: int, overlap: float) -> None:
    starts, length = tile_starts(size, tile, overlap, 1)
    found = blending_weights(starts, length)
    total = np.zeros(starts[-1] + length)
    for start, weights in zip(starts, found, strict=True):
        total[start : start + length] += weights.numpy()
    np.testing.assert_allclose(total, 1)

    def gaussian(place: int, start: int) -> float:
        return max(math.exp(-0.5 * ((place - start - (length - 1) / 2) / (length / 8)) ** 2), 1e-3)

    for (one, ours), (other, theirs) in itertools.pairwise(zip(starts, found, strict=True)):
        for place in range(other, one + length):
            ratio = float(ours[place - one] / theirs[place - other])
            assert ratio == pytest.approx(gaussian(place, one) / gaussian(place, other))


@given(
    st.lists(st.integers(1, 21), min_size=2, max_size=3),
    st.lists(st.integers(1, 12), min_size=3, max_size=3),
    st.sampled_from([0.0, 0.15, 0.5, 0.75]),
    st.sampled_from([1, 2]),
)
@few
def test_blending_against_a_slow_reference(shape: list[int], tile: list[int], overlap: float, every: int) -> None:
    dimensions = len(shape)
    sizes = InputSizes((1,) * dimensions, (1,) * dimensions)
    grid = TileGrid.of(shape, sizes, tile[:dimensions], overlap, every)
    lengths = [length // every for length in grid.lengths]
    random = np.random.default_rng(0)
    tiles = {corner: random.normal(size=(2, *lengths)) for corner in itertools.product(*grid.starts)}
    covered = [size // every for size in grid.covered]
    weights = [
        blending_weights([n // every for n in a], length) for a, length in zip(grid.starts, lengths, strict=True)
    ]
    expected = np.zeros((2, *covered))
    for numbers in itertools.product(*(range(len(starts)) for starts in grid.starts)):
        corner = tuple(starts[n] for starts, n in zip(grid.starts, numbers, strict=True))
        product = tiles[corner]
        for axis, number in enumerate(numbers):
            along = weights[axis][number].numpy().reshape([-1 if n == axis else 1 for n in range(dimensions)])
            product = product * along
        place = tuple(slice(at // every, at // every + n) for at, n in zip(corner, lengths, strict=True))
        expected[(slice(None), *place)] += product

    asked: list[tuple[int, ...]] = []

    def values(corner: tuple[int, ...]) -> torch.Tensor:
        asked.append(corner)
        return torch.from_numpy(tiles[corner].copy())

    found = np.full((2, *covered), np.nan)
    blender = Blender(grid, values, torch.float64)
    for window, block in blender.blocks():
        place = (slice(None), *window)
        assert np.isnan(found[place]).all()
        found[place] = block.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert set(asked) == set(tiles)
    held = sum(waiting[0].numel() for waiting in blender._waiting.values()) + math.prod(lengths)
    assert held <= grid.values_held


def test_planes_along_the_longest_axis_are_held() -> None:
    grid = TileGrid.of((20, 90, 40), InputSizes((2,) * 3, (2,) * 3), (20, 24, 24), 0.25)
    assert grid.order == [1, 2, 0]
    assert grid.starts[0] == [0]
    length, overlap = grid.lengths, [grid.longest_overlap(axis) for axis in range(3)]
    end_of_plane, end_of_row = 20 * overlap[1] * 40, 20 * length[1] * overlap[2]
    assert grid.values_held == end_of_plane + end_of_row + 20 * length[1] * length[2]
    # A third of what one plane of tiles would be.
    assert grid.values_held < 20 * length[1] * 40 * 1.3
    places = [window[1].start for window, _ in Blender(grid, lambda _: torch.zeros(1, *length), torch.float32).blocks()]
    assert places == sorted(places)


class Sized(NetworkOptions):
    """A network of any family, which takes these sizes."""

    family: str = "sized"
    step: list[int]
    smallest: list[int]

    def size_step(self, dimensions: int = 3) -> tuple[int, ...]:
        return tuple(self.step)

    def smallest_size(self, dimensions: int = 3) -> tuple[int, ...]:
        return tuple(self.smallest)


FOUR = Sized(step=[4, 4, 4], smallest=[8, 8, 8])
THREE = Sized(step=[3, 3, 3], smallest=[3, 3, 3])
LONG = Sized(step=[3, 8, 8], smallest=[9, 8, 40])


@pytest.mark.parametrize(
    ("networks", "step", "smallest"),
    [
        ([FOUR], (4, 4, 4), (8, 8, 8)),
        ([FOUR, FOUR], (4, 4, 4), (8, 8, 8)),
        ([FOUR, THREE], (12, 12, 12), (12, 12, 12)),
        ([LONG], (3, 8, 8), (9, 8, 40)),
        # At least 9 and 40 voxels, in multiples of what both take.
        ([LONG, FOUR], (12, 8, 8), (12, 8, 40)),
        ([LONG, FOUR, THREE], (12, 24, 24), (12, 24, 48)),
    ],
)
def test_sizes_that_all_networks_take(networks: list[NetworkOptions], step: tuple, smallest: tuple) -> None:
    assert InputSizes.of(networks, 3) == InputSizes(step, smallest)
    for options in networks:
        for size, each, least in zip(smallest, options.size_step(), options.smallest_size(), strict=True):
            assert size % each == 0
            assert size >= least
