"""Scores of segmentations against every voxel looked at alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tomoscout.tasks.picking.voxel_scores import Overlap, overlap, voxel_scores

SPACING = 13.5


def on_surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    """The voxels of a mask with a neighbour, along an axis and within the volume, that is not in it."""
    found = []
    for place in map(tuple, np.argwhere(mask)):
        for axis in range(3):
            for step in (-1, 1):
                other = list(place)
                other[axis] += step
                if 0 <= other[axis] < mask.shape[axis] and not mask[tuple(other)]:
                    found.append(place)
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("seed", range(12))
def test_random_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = (rng.random((6, 7, 8)) < rng.uniform(0.05, 0.9) for _ in range(2))
    found = overlap(ours, theirs, SPACING)
    first, second = set(map(tuple, np.argwhere(ours))), set(map(tuple, np.argwhere(theirs)))
    surfaces = on_surface(ours), on_surface(theirs)
    apart = [
        min(math.dist(one, other) for other in surfaces[1 - side]) * SPACING
        for side in (0, 1)
        for one in surfaces[side]
    ]
    assert (found.voxels, found.reference, found.both) == (len(first), len(second), len(first & second))
    assert found.surface == len(apart) and found.apart == pytest.approx(sum(apart))
    scores = voxel_scores({"p/a": found}, 100)
    assert scores["dice"] == pytest.approx(2 * len(first & second) / (len(first) + len(second)))
    assert scores["iou"] == pytest.approx(len(first & second) / len(first | second))
    assert scores["surface_distance"] == pytest.approx(sum(apart) / len(apart))


def test_the_box_around_both_changes_nothing() -> None:
    ours, theirs = (np.zeros((40, 40, 40), dtype=bool) for _ in range(2))
    ours[10:15, 10:15, 10:15] = theirs[12:17, 10:15, 10:15] = True
    assert overlap(ours, theirs, 10.0) == overlap(ours[8:20, 8:20, 8:20], theirs[8:20, 8:20, 8:20], 10.0)


def test_runs_are_summed_and_empty_ones_say_nothing() -> None:
    full, empty = np.ones((2, 2, 2), dtype=bool), np.zeros((2, 2, 2), dtype=bool)
    nothing = overlap(empty, empty, 10.0)
    assert nothing == Overlap(0, 0, 0, 0, 0)
    missed = overlap(empty, full, 10.0)
    assert missed == Overlap(0, 8, 0, 0, 0)
    scores = voxel_scores({"p/a": nothing, "p/b": missed, "p/c": Overlap(8, 8, 8, 0, 8)}, 100)
    assert (scores["dice"], scores["iou"], scores["surface_distance"]) == (pytest.approx(16 / 24), 0.5, 0.0)
    low, high = scores["intervals"]["dice"]
    assert low <= scores["dice"] <= high
    assert [row["dice"] for row in scores["runs"]] == [None, 0.0, 1.0]
    assert [row["surface_distance"] for row in scores["runs"]] == [None, None, 0.0]


def test_masks_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2, 2, 2\) and \(2, 2, 3\) differ"):
        overlap(np.ones((2, 2, 2), dtype=bool), np.ones((2, 2, 3), dtype=bool), 10.0)
