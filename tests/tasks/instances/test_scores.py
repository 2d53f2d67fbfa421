"""Scores of instances, against a matcher that compares every pair of objects and assigns them optimally."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from tomoscout.tasks.instances.scores import IOU, Overlaps, intervals, mean_ap, overlaps, score

checked = settings(deadline=None, max_examples=40, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
Labels = NDArray[np.int32]


def squares(*corners: tuple[int, int], size: int = 10, shape: tuple[int, int] = (40, 60)) -> Labels:
    labels = np.zeros(shape, np.int32)
    for number, (y, x) in enumerate(corners, 1):
        labels[y : y + size, x : x + size] = number
    return labels


def pair(seed: int, shape: tuple[int, ...] = (24, 28)) -> tuple[Labels, Labels]:
    """Objects, and the same ones moved, torn and joined a little; numbers with gaps."""
    random = np.random.default_rng(seed)
    seen = ndimage.distance_transform_edt(random.random(shape) > 8 / np.prod(shape), return_indices=True)[1]
    numbers = 3 * np.ravel_multi_index(tuple(seen), shape) + 2
    annotated = np.where(ndimage.gaussian_filter(random.normal(size=shape), 2) > -0.05, numbers, 0).astype(np.int32)
    found = np.roll(annotated, random.integers(-2, 3, len(shape)), tuple(range(len(shape))))
    torn = random.random(shape) < 0.1
    return np.where(torn, 0, found + (found > 0) * random.integers(1, 9)).astype(np.int32), annotated


def by_hand(found: Labels, annotated: Labels, iou: float) -> tuple[int, int, int, float]:
    """Matches, found, annotated objects and the mean IoU of matches."""
    ours = [found == number for number in np.unique(found) if number]
    theirs = [annotated == number for number in np.unique(annotated) if number]
    table = np.array([[(a & b).sum() / (a | b).sum() for b in ours] for a in theirs]).reshape(len(theirs), len(ours))
    # Every match counts more than any IoU: the most matches, and of these the best.
    rows, columns = linear_sum_assignment(np.where(table > iou, 1000 + table, 0), maximize=True)
    matches = [table[row, column] for row, column in zip(rows, columns, strict=True) if table[row, column] > iou]
    return len(matches), len(ours), len(theirs), float(np.mean(matches)) if matches else 0.0


@given(seeds, st.sampled_from([(24, 28), (6, 12, 10)]), st.sampled_from(IOU))
@checked
def test_matches_are_those_of_the_optimal_assignment(seed: int, shape: tuple[int, ...], iou: float) -> None:
    found, annotated = pair(seed, shape)
    at = score([overlaps(found, annotated)], iou)
    matched, ours, theirs, quality = by_hand(found, annotated, iou)
    assert (at.matched, at.found, at.annotated) == (matched, ours, theirs)
    assert at.quality == pytest.approx(quality)
    assert at.ap == pytest.approx(matched / max(1, ours + theirs - matched))
    assert at.precision == pytest.approx(matched / max(1, ours))
    assert at.recall == pytest.approx(matched / max(1, theirs))
    assert at.f1 == pytest.approx(2 * matched / max(1, ours + theirs))
    assert at.pq == pytest.approx(quality * matched / max(0.5, matched + (ours - matched + theirs - matched) / 2))


@given(seeds)
@checked
def test_numbers_of_objects_say_nothing(seed: int) -> None:
    found, annotated = pair(seed)
    random = np.random.default_rng(seed)
    names = np.concatenate([[0], 1 + random.permutation(found.max())]) * 1000
    ours, theirs = overlaps(found, annotated), overlaps(names[found], annotated)
    np.testing.assert_array_equal(ours.matched, theirs.matched)
    assert sorted(ours.hit) == sorted(theirs.hit)
    assert (ours.merges, ours.splits) == (theirs.merges, theirs.splits)


@given(seeds)
@checked
def test_the_other_way_round_merges_are_splits(seed: int) -> None:
    found, annotated = pair(seed)
    one, other = overlaps(found, annotated), overlaps(annotated, found)
    np.testing.assert_array_equal(one.matched, other.hit)
    assert (one.merges, one.splits) == (other.splits, other.merges)


def test_the_truth_scores_one() -> None:
    annotated = squares((2, 2), (2, 20), (20, 30))
    same = overlaps(annotated, annotated)
    assert mean_ap([same]) == 1
    assert (same.merges, same.splits) == (0, 0)
    at = score([same], 0.9)
    assert (at.precision, at.recall, at.f1, at.pq) == (1, 1, 1, 1)


def test_an_iou_at_the_threshold_is_no_match() -> None:
    annotated = squares((2, 2))
    found = np.where(np.arange(60) < 7, annotated, 0)
    shared = overlaps(found, annotated)
    assert shared.matched.tolist() == [0.5]
    assert score([shared], 0.5).matched == 0


def test_one_object_for_two_is_a_merge() -> None:
    annotated = squares((2, 2), (2, 12), (20, 2), (20, 30))
    found = annotated.copy()
    found[annotated == 2] = 1
    shared = overlaps(found, annotated)
    assert (shared.merges, shared.splits) == (1, 0)
    assert (score([shared], 0.5).matched, shared.found, shared.annotated) == (2, 3, 4)


def test_two_objects_for_one_are_a_split() -> None:
    annotated = squares((2, 2), (20, 30))
    found = annotated.copy()
    found[2:12, 7:12] = 9
    shared = overlaps(found, annotated)
    assert (shared.merges, shared.splits) == (0, 1)
    assert (score([shared], 0.5).matched, shared.found, shared.annotated) == (1, 3, 2)


def test_a_small_overlap_is_neither_merge_nor_split() -> None:
    annotated, found = squares((2, 2), (2, 12)), squares((2, 4), (2, 14))
    shared = overlaps(found, annotated)
    assert (shared.merges, shared.splits) == (0, 0)


def test_images_without_objects() -> None:
    nothing, something = np.zeros((40, 60), np.int32), squares((2, 2), (20, 20))
    empty = overlaps(nothing, nothing)
    assert (empty.found, empty.annotated, empty.merges, empty.splits) == (0, 0, 0, 0)
    assert mean_ap([empty]) == mean_ap([]) == 0
    # An empty image of which nothing is found changes no score.
    found = overlaps(something, something)
    assert score([found, empty], 0.5) == score([found], 0.5)
    false, missed = score([overlaps(something, nothing)], 0.5), score([overlaps(nothing, something)], 0.5)
    assert (false.found, false.annotated, false.ap, false.precision, false.recall) == (2, 0, 0, 0, 0)
    assert (missed.found, missed.annotated, missed.ap, missed.precision, missed.recall) == (0, 2, 0, 0, 0)


def test_objects_of_several_images_count_alike() -> None:
    one, other = squares((2, 2)), squares((2, 2), (2, 20), (2, 40), (20, 2))
    images = [overlaps(np.zeros_like(one), one), overlaps(other, other)]
    assert score(images, 0.5).ap == 4 / 5


def test_what_is_to_be_ignored_counts_in_neither() -> None:
    ignore = 2**31 - 1
    annotated = squares((2, 2), (20, 20))
    annotated[:, 40:] = ignore
    found = squares((2, 2), (20, 20), (5, 45))
    found[20:30, 30:50] = 2
    found[20:30, 20:30] = 2
    annotated[20:30, 30:40] = 2
    shared = overlaps(found, annotated, ignore)
    assert (shared.found, shared.annotated) == (2, 2)
    assert shared.matched.tolist() == [1.0, 1.0]
    everything = overlaps(found, np.full_like(annotated, ignore), ignore)
    assert (everything.found, everything.annotated) == (0, 0)


def test_images_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        overlaps(np.zeros((4, 5), np.int32), np.zeros((5, 4), np.int32))


def test_the_mean_ap_is_that_over_the_thresholds() -> None:
    annotated = squares((2, 2))
    found = np.where(np.arange(60) < 9, annotated, 0)
    # 70 of 100 voxels: above 0.5 to 0.65.
    assert mean_ap([overlaps(found, annotated)]) == pytest.approx(4 / 9)


def some_images(count: int, seed: int = 0) -> list[Overlaps]:
    return [overlaps(*pair(seed + number)) for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 8, 40])
def test_an_interval_holds_the_value(count: int) -> None:
    images = some_images(count)
    for iou, (low, high) in intervals(images).items():
        assert low - 1e-4 <= score(images, iou).ap <= high + 1e-4
        assert 0 <= low <= high <= 1


def test_an_interval_is_narrower_with_more_images() -> None:
    few, many = intervals(some_images(6)), intervals(16 * some_images(6))
    widths = [sum(high - low for low, high in limits.values()) for limits in (few, many)]
    # As the root of the number of images.
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.2)


def test_an_interval_is_that_of_a_plain_bootstrap() -> None:
    images = some_images(12)
    random = np.random.default_rng(5)
    values = [score([images[n] for n in random.integers(0, 12, 12)], 0.5).ap for _ in range(2000)]
    assert intervals(images, draws=4000)[0.5] == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=0.02)


def test_intervals_are_the_same_each_time_and_there_are_some_without_images() -> None:
    assert intervals(some_images(5)) == intervals(some_images(5))
    assert set(intervals([])) == set(IOU)
    assert set(intervals([]).values()) == {(0.0, 0.0)}


def test_thousands_of_fragments_take_little_memory() -> None:
    annotated = np.kron(np.arange(1, 401).reshape(20, 20), np.ones((30, 30), int))
    found = np.arange(1, 360_001).reshape(600, 600)
    tracemalloc.start()
    compared = overlaps(found, annotated)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (compared.annotated, compared.found) == (400, 360_000)
    # A table of all pairs would have 1.2 GB.
    assert peak < 2e8


def test_numbers_may_be_as_large_as_there_are() -> None:
    annotated = np.array([[0, 0, 7], [2**31 - 3, 2**31 - 3, 7]])
    assert overlaps(annotated, annotated).matched.tolist() == [1.0, 1.0]
