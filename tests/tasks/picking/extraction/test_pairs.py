"""Neighbours and pairs against trying all of them, and the turning of picks along directions."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from tomoscout.tasks.picking.extraction.orientation import turned
from tomoscout.tasks.picking.extraction.pairs import all_pairs, nearest_others, nearest_pairs

checked = settings(deadline=None, max_examples=100, derandomize=True)
seeds = st.integers(0, 10_000)
sizes = st.integers(0, 12)


def drawn(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, (count, 3))


def nearest(index: int, points: np.ndarray, others: np.ndarray | None) -> tuple[float, int]:
    """By trying all."""
    among = points if others is None else others
    ways = [
        (float(np.linalg.norm(points[index] - other)), number)
        for number, other in enumerate(among)
        if others is not None or number != index
    ]
    return min(ways, default=(np.inf, -1))


@given(seeds, sizes, st.one_of(st.none(), sizes))
@checked
def test_the_nearest_are_found(seed: int, count: int, count_of_others: int | None) -> None:
    points = drawn(seed, count)
    others = None if count_of_others is None else drawn(seed + 1, count_of_others)
    distances, indices = nearest_others(points, others)
    expected = [nearest(index, points, others) for index in range(count)]
    assert indices.tolist() == [index for _, index in expected]
    assert distances.tolist() == pytest.approx([distance for distance, _ in expected])


@given(seeds, sizes, st.one_of(st.none(), sizes), st.sampled_from([15.0, 40.0, 500.0]))
@checked
def test_pairs_are_those_there_are(seed: int, count: int, count_of_others: int | None, limit: float) -> None:
    points = drawn(seed, count)
    others = None if count_of_others is None else drawn(seed + 1, count_of_others)
    among = points if others is None else others
    numbers = range(count), range(len(among))
    every = list(combinations(numbers[0], 2) if others is None else product(*numbers))
    near = [(a, b) for a, b in every if np.linalg.norm(points[a] - among[b]) <= limit]
    assert [*map(tuple, all_pairs(points, others, limit).tolist())] == near
    back = points if others is None else others
    mutual = [
        (a, b)
        for a, b in near
        if nearest(a, points, others)[1] == b and nearest(b, back, None if others is None else points)[1] == a
    ]
    assert [*map(tuple, nearest_pairs(points, others, limit).tolist())] == mutual


def test_two_picks_at_one_place_are_each_others_nearest() -> None:
    points = np.array([[1.0, 2, 3], [1, 2, 3], [50, 0, 0]])
    distances, indices = nearest_others(points, None)
    assert indices[:2].tolist() == [1, 0] and distances[:2].tolist() == [0, 0]


@given(seeds)
@checked
def test_z_is_turned_into_the_direction_by_the_smallest_angle(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = np.asarray(Rotation.random(5, random_state=seed).as_matrix())
    directions = rng.normal(size=(5, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    after = turned(before, directions)
    assert after[:, :, 2] == pytest.approx(directions, abs=1e-9)
    assert np.linalg.det(after) == pytest.approx(np.ones(5))
    assert after @ after.transpose(0, 2, 1) == pytest.approx(np.tile(np.eye(3), (5, 1, 1)), abs=1e-9)
    turns = Rotation.from_matrix(after @ before.transpose(0, 2, 1)).magnitude()
    assert turns == pytest.approx(np.arccos(np.einsum("ni,ni->n", before[:, :, 2], directions)), abs=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_z_along_each_axis(axis: int, sign: float) -> None:
    direction = np.zeros((1, 3))
    direction[0, axis] = sign
    after = turned(np.eye(3)[None], direction)[0]
    assert after @ [0, 0, 1] == pytest.approx(direction[0])
    assert np.linalg.det(after) == pytest.approx(1)


def test_without_a_direction_nothing_is_turned() -> None:
    before = np.asarray(Rotation.random(2, random_state=1).as_matrix())
    directions = np.array([[np.nan] * 3, [0.0, 0.0, 1.0]])
    after = turned(before, directions)
    assert (after[0] == before[0]).all() and after[1, :, 2] == pytest.approx([0, 0, 1])
