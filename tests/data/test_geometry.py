"""Å and voxels, there and back."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.data.geometry import inside, to_angstrom, to_voxels

checked = settings(deadline=None, max_examples=60, derandomize=True)
spacings = st.floats(0.5, 50)
triples = st.tuples(*[st.floats(-1e5, 1e5)] * 3)


@given(st.lists(triples, max_size=5), spacings)
@checked
def test_there_and_back(positions: list[tuple[float, float, float]], spacing: float) -> None:
    given_positions = np.array(positions, dtype=float).reshape(-1, 3)
    indices = to_voxels(given_positions, spacing)
    assert indices.shape == given_positions.shape
    np.testing.assert_allclose(to_angstrom(indices, spacing), given_positions, rtol=1e-12, atol=1e-9)


@given(triples, spacings)
@checked
def test_index_is_position_over_spacing_with_axes_turned_round(
    position: tuple[float, float, float], spacing: float
) -> None:
    x, y, z = position
    [(first, second, third)] = to_voxels(np.array([position]), spacing).tolist()
    assert (first, second, third) == (z / spacing, y / spacing, x / spacing)


def test_no_half_voxel_shift() -> None:
    np.testing.assert_array_equal(to_voxels(np.array([[0.0, 10.0, 25.0]]), 10.0), [[2.5, 1.0, 0.0]])
    np.testing.assert_array_equal(to_angstrom(np.array([[3, 2, 1]]), 10.0), [[10.0, 20.0, 30.0]])


# Odd and even sizes: rounding halves to even would take them differently.
quarters = st.integers(-12, 40).map(lambda value: value / 4)


@given(st.tuples(quarters, quarters, quarters), st.tuples(*[st.integers(1, 8)] * 3))
@checked
def test_inside_is_where_the_nearest_voxel_is_one_of_the_volume(
    index: tuple[float, float, float], shape: tuple[int, int, int]
) -> None:
    nearest = [math.floor(value + 0.5) for value in index]
    expected = all(0 <= value < size for value, size in zip(nearest, shape, strict=True))
    assert inside(np.array([index]), shape).tolist() == [expected]


def test_inside_at_the_faces() -> None:
    indices = np.array([[-0.5, 0, 0], [-0.51, 0, 0], [2.49, 3.49, 4.49], [2.5, 0, 0], [0, 3.5, 0], [0, 0, 4.5]])
    assert inside(indices, (3, 4, 5)).tolist() == [True, False, True, False, False, False]
    assert inside(np.zeros((0, 3)), (3, 4, 5)).tolist() == []
