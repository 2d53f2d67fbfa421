"""From probabilities and labels to picks by their regions: slow references, sizes, borders, and options by object."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tomoscout.data.geometry import to_voxels
from tomoscout.data.picks import Picks
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking.decoding import Search, find_in_labels, find_in_probability, locate_picks
from tomoscout.tasks.picking.options import Localize, Picking

checked = settings(deadline=None, max_examples=30, derandomize=True)
SPACING = 8.0
PLAIN = Search(30.0, 30.0, "components", 0.5, 0.6, 1.0, 0.0, None, 0.0)
SPHERE = 4 / 3 * np.pi * (30.0 / SPACING) ** 3


def smooth(seed: int, width: float = 1.0) -> np.ndarray:
    """A probability in blobs."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(10, 14, 18)), width)
    return np.clip(128 + 90 * noise / noise.std(), 0, 255).astype(np.uint8)


def ball(shape: tuple[int, int, int], centre: tuple[float, ...], radius: float) -> np.ndarray:
    return np.linalg.norm(np.stack(np.indices(shape), axis=-1) - centre, axis=-1) <= radius


def slow_regions(mask: np.ndarray) -> list[np.ndarray]:
    labels, count = ndimage.label(mask)
    return [labels == number for number in range(1, count + 1)]


def as_rows(picks: Picks) -> list[tuple[float, ...]]:
    places = to_voxels(picks.positions, SPACING)
    return sorted((*place, score) for place, score in zip(places.tolist(), picks.scores.tolist(), strict=True))


@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.5, 0.8]))
@checked
def test_components_of_probabilities(seed: int, threshold: float) -> None:
    probability = smooth(seed)
    found = find_in_probability(probability, SPACING, replace(PLAIN, threshold=threshold))
    regions = slow_regions(probability / 255 >= threshold)
    expected = sorted((*ndimage.center_of_mass(mask), probability[mask].mean() / 255) for mask in regions)
    np.testing.assert_allclose(as_rows(found), expected)
    assert (found.scores >= threshold).all()
    assert (np.diff(found.scores) <= 0).all()
    # The numbers of the regions in memory order.
    places = to_voxels(found.positions, SPACING)
    for place, instance in zip(places, found.instances, strict=True):
        np.testing.assert_allclose(ndimage.center_of_mass(regions[instance - 1]), place)


@given(st.integers(0, 10_000))
@checked
def test_components_of_labels(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = np.kron(random.choice([0, 2, 5, 9], (5, 6, 7), p=[0.5, 0.2, 0.2, 0.1]), np.ones((2, 2, 2), dtype=int))
    values = {"a": 5, "b": 2}
    searches = {"a": PLAIN, "b": replace(PLAIN, radius=12.0)}
    slabs = (labels[start : start + 3] for start in range(0, 10, 3))
    found = find_in_labels(slabs, SPACING, values, searches)
    assert list(found) == ["a", "b"]
    for name, label in values.items():
        sphere = 4 / 3 * np.pi * (searches[name].radius / SPACING) ** 3
        regions = slow_regions(labels == label)
        expected = sorted((*ndimage.center_of_mass(mask), min(mask.sum() / sphere, 1.0)) for mask in regions)
        np.testing.assert_allclose(as_rows(found[name]), expected)
        assert sorted(found[name].instances.tolist()) == list(range(1, len(regions) + 1))


def test_sizes_are_those_of_spheres_in_radii() -> None:
    probability, strict = smooth(3, 0.8), replace(PLAIN, threshold=0.8)
    every = find_in_probability(probability, SPACING, strict)
    volumes = np.sort([mask.sum() for mask in slow_regions(probability >= 204)])
    assert len(volumes) == len(every) > 8
    low, high = ((volume / SPHERE) ** (1 / 3) for volume in (volumes[2] + 0.5, volumes[-3] + 0.5))
    kept = find_in_probability(probability, SPACING, replace(strict, smallest=low, largest=high))
    between = (volumes > volumes[2]) & (volumes <= volumes[-3])
    assert 0 < len(kept) == between.sum() < len(every)


def test_too_large_is_what_remains_after_parting() -> None:
    shape = (24, 24, 40)
    mask = ball(shape, (12, 12, 13), 6.0) | ball(shape, (12, 12, 24.5), 6.0)
    search = replace(PLAIN, method="watershed", radius=6 * SPACING, largest=1.1)
    for found in (
        find_in_labels([mask.astype(np.uint8)], SPACING, {"a": 1}, {"a": search})["a"],
        find_in_probability(mask * np.uint8(200), SPACING, search),
    ):
        np.testing.assert_allclose(np.sort(to_voxels(found.positions, SPACING)[:, 2]), [13, 24.5], atol=0.3)
        # One component of two particles.
        assert found.instances.tolist() == [1, 1]
    together = replace(search, method="components")
    assert len(find_in_labels([mask.astype(np.uint8)], SPACING, {"a": 1}, {"a": together})["a"]) == 0


def test_the_score_of_a_part_is_its_own() -> None:
    shape = (24, 24, 40)
    probability = np.zeros(shape, dtype=np.uint8)
    probability[ball(shape, (12, 12, 13), 6.0)] = 250
    probability[ball(shape, (12, 12, 25.0), 6.0)] = 150
    found = find_in_probability(probability, SPACING, replace(PLAIN, method="watershed"))
    np.testing.assert_allclose(found.scores, [250 / 255, 150 / 255], atol=0.01)
    np.testing.assert_allclose(to_voxels(found.positions, SPACING)[:, 2], [13, 25], atol=0.3)


@pytest.mark.parametrize("method", ["peaks", "components", "watershed"])
def test_picks_near_the_ends_are_left_out(method: str) -> None:
    """A ball moved along x: its pick goes where its middle is nearer to the end than the border."""
    radius, shape = 3.0, (16, 16, 30)
    for x in range(3, 27):
        probability = ball(shape, (8, 8, x), radius) * np.uint8(255)
        search = replace(PLAIN, method=method, radius=24.0, target_radius=24.0, threshold=0.2, border=40.0)
        found = find_in_probability(probability, SPACING, search)
        # Half a voxel lies beyond the centre of the last one.
        assert len(found) == (min(x + 0.5, 30 - 0.5 - x) * SPACING >= 40.0), x
        assert len(find_in_probability(probability, SPACING, replace(search, border=0.0))) == 1


def test_a_threshold_that_is_a_step_of_the_quantised_probability() -> None:
    probability = np.array([[[101, 102, 0, 103, 0]]], dtype=np.uint8)
    found = find_in_probability(probability, SPACING, replace(PLAIN, threshold=0.4))
    assert sorted(to_voxels(found.positions, SPACING)[:, 2]) == [1, 3]
    everything = find_in_probability(probability, SPACING, replace(PLAIN, threshold=0.0))
    assert sorted(to_voxels(everything.positions, SPACING)[:, 2]) == [0.5, 3]


def test_nothing_is_nothing_found() -> None:
    empty = np.zeros((4, 5, 6), dtype=np.uint8)
    for method in ("peaks", "components", "watershed"):
        search = replace(PLAIN, method=method, border=8.0)
        assert len(find_in_probability(empty, SPACING, search)) == 0
        assert len(find_in_labels([empty], SPACING, {"a": 1}, {"a": search})["a"]) == 0


def test_peaks_have_no_instances_and_are_those_of_validation() -> None:
    probability = smooth(5, 1.5)
    entry = TargetClass("a", 1, 30.0, 16.0, ())
    search = Search.of_peaks(entry, Picking(), 0.4)
    found = find_in_probability(probability, SPACING, search)
    expected = locate_picks(probability[None], [entry], SPACING, Picking(), {"a": 0.4})["a"]
    assert len(found) > 1
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_array_equal(found.scores, expected.scores)
    # Numbered from the best on.
    np.testing.assert_array_equal(found.instances, 1 + np.arange(len(found)))
    assert (np.diff(found.scores) <= 0).all()


def test_options_by_object() -> None:
    base = Search.of_peaks(TargetClass("a", 1, 30.0, 16.0, ()), Picking(smoothing=0.3, separation=1.5), 0.2)
    options = Localize.model_validate(
        {
            "method": {"a": "watershed", "c": "components"},
            "threshold": {"c": 0.7, "d": 0.1},
            "smoothing": {"d": 0.5},
            "smallest": {"a": 0.4},
            "largest": 1.0,
            "border": {"b": 50},
        }
    )
    a, b, c, d = (base.with_options(options, name) for name in "abcd")
    assert (a.method, b.method, c.method, d.method) == ("watershed", "peaks", "components", "peaks")
    # A model's thresholds are those of peaks.
    assert (a.threshold, b.threshold, c.threshold, d.threshold) == (0.5, 0.2, 0.7, 0.1)
    assert (a.smoothing, d.smoothing, a.separation) == (0.3, 0.5, 1.5)
    assert (a.smallest, b.smallest) == (0.4, 0.25)
    assert a.largest == d.largest == 1.0
    assert (a.border, b.border) == (0.0, 50.0)
