"""From probabilities to scored positions: planted spheres, slow references, and what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from support.spheres import spheres
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking import peaks
from tomoscout.tasks.picking.decoding import locate_picks
from tomoscout.tasks.picking.options import Picking
from tomoscout.tasks.picking.peaks import LOWEST_SCORE, find_peaks, suppress

checked = settings(deadline=None, max_examples=40, derandomize=True)
few = settings(deadline=None, max_examples=15, derandomize=True)


def scattered(radius: float, seed: int) -> tuple[tuple[int, ...], np.ndarray]:
    """Centres of four spheres at any fraction of a voxel, more than 2.5 radii apart, and a volume that holds them."""
    lattice = radius * np.array([[1.7, y, x] for y in (1.7, 4.8) for x in (1.7, 4.8)])
    shape = np.ceil(radius * np.array([3.4, 6.5, 6.5])).astype(int) + 1
    return tuple(shape.tolist()), lattice + np.random.default_rng(seed).uniform(-0.2, 0.2, (4, 3)) * radius


def by_distance(found: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distances = np.linalg.norm(found[:, None] - centres[None], axis=2)
    return distances.argmin(axis=0), distances.min(axis=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("smoothing", [0.4, 0.6])
@pytest.mark.parametrize("radius", [1.5, 3.0, 5.2, 9.3, 14.0, 26.0])
def test_planted_spheres_are_found(radius: float, smoothing: float, seed: int) -> None:
    shape, centres = scattered(radius, seed)
    probability = spheres(shape, centres, radius, np.array([0.95, 0.8, 0.6, 0.4]))
    found, scores = find_peaks(probability, radius, smoothing=smoothing, separation=1.25 * radius, threshold=0.2)
    nearest, distances = by_distance(found, centres)
    assert len(found) == 4
    assert distances.max() < 0.3
    np.testing.assert_array_equal(nearest, np.arange(4))
    assert (np.diff(scores) <= 0).all()
    assert scores[0] <= 0.95
    assert scores[-1] > 0.2


@pytest.mark.parametrize("radius", [8.0, 12.5, 17.0, 24.0])
def test_the_coarser_grid_moves_no_peak(radius: float, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, centres = scattered(radius, 4)
    probability = spheres(shape, centres, radius, np.array([1, 0.9, 0.7, 0.5]))
    options = {"smoothing": 0.4, "separation": 1.25 * radius, "threshold": 0.15}
    coarse, coarse_scores = find_peaks(probability, radius, **options)
    monkeypatch.setattr(peaks, "NARROWEST", 10**6)
    fine, fine_scores = find_peaks(probability, radius, **options)
    assert len(coarse) == len(fine) == 4
    np.testing.assert_allclose(coarse, fine, atol=0.3)
    np.testing.assert_allclose(coarse_scores, fine_scores, atol=0.05)


def local_maxima(volume: np.ndarray, threshold: float) -> list[tuple[int, ...]]:
    """Voxel by voxel: at or above the threshold, above all neighbours before it, not below those after it."""
    found = []
    for place in np.ndindex(volume.shape):
        value = volume[place]
        if value < threshold or value == 0:
            continue
        good = True
        for step in np.ndindex(3, 3, 3):
            other = tuple(p + s - 1 for p, s in zip(place, step, strict=True))
            if other == place or not all(0 <= o < n for o, n in zip(other, volume.shape, strict=True)):
                continue
            good &= value > volume[other] if other < place else value >= volume[other]
        if good:
            found.append(place)
    return found


def top_of_parabola(volume: np.ndarray, place: tuple[int, ...]) -> list[float]:
    refined = []
    for axis in range(3):
        line = [p if a != axis else slice(None) for a, p in enumerate(place)]
        values, middle = volume[tuple(line)], place[axis]
        if not 0 < middle < len(values) - 1:
            refined.append(float(middle))
            continue
        a, _, _ = coefficients = np.polyfit([-1, 0, 1], values[middle - 1 : middle + 2].astype(float), 2)
        offset = -coefficients[1] / (2 * a) if a < -1e-12 else 0.0
        refined.append(middle + min(max(offset, -0.5), 0.5))
    return refined


def greedy(positions: np.ndarray, separation: float) -> list[int]:
    kept: list[int] = []
    for index, position in enumerate(positions):
        if all(np.sqrt(((position - positions[other]) ** 2).sum()) >= separation for other in kept):
            kept.append(index)
    return kept


@given(st.integers(0, 10_000), st.tuples(*[st.integers(1, 9)] * 3), st.sampled_from([0.0, 0.4, 0.8]))
@checked
def test_every_peak_against_a_slow_reference(seed: int, shape: tuple[int, ...], smoothing: float) -> None:
    # Few distinct values: many equal neighbours.
    probability = (np.random.default_rng(seed).integers(0, 6, shape) * 51).astype(np.uint8)
    radius, threshold = 2.0, 0.35
    found, scores = find_peaks(probability, radius, smoothing=smoothing, separation=1e-9, threshold=threshold)
    volume = probability.astype(np.float32) / np.float32(255)
    if smoothing:
        volume = gaussian_filter(volume, smoothing * radius, mode="nearest", truncate=2.5)
    places = local_maxima(volume, np.float32(threshold))
    assert len(found) == len(places)
    expected = np.array([top_of_parabola(volume, place) for place in places]).reshape(-1, 3)
    values = np.array([volume[place] for place in places], dtype=np.float64)
    order = np.lexsort((*expected.T, -values))
    np.testing.assert_allclose(scores, values[order], atol=1e-6)
    if len(places):
        nearest, distances = by_distance(found, expected)
        assert distances.max() < 1e-4
        np.testing.assert_allclose(scores[nearest], values, atol=1e-6)


points = st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=40, unique=True)


@given(points, st.sampled_from([0.5, 1.0, 2.0, 3.0, 5.5]))
@checked
def test_suppression_against_a_slow_reference(places, separation: float) -> None:
    # Whole coordinates: distances right on the limit, which are far enough.
    positions = np.array(places, dtype=np.float64).reshape(-1, 3)
    assert suppress(positions, separation).tolist() == greedy(positions, separation)


@given(st.integers(0, 10_000), st.floats(0.5, 8), st.sampled_from([2.0, 9.0]))
@few
def test_separation_is_respected_and_nothing_is_removed_without_reason(seed, separation, radius) -> None:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(20, 22, 24)), 1.2)
    probability = (255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)
    options = {"smoothing": 0.4 if radius < 8 else 0.1, "threshold": 0.2}
    everything, all_scores = find_peaks(probability, radius, separation=1e-9, **options)
    found, scores = find_peaks(probability, radius, separation=separation, **options)
    kept = greedy(everything, separation)
    np.testing.assert_array_equal(found, everything[kept])
    np.testing.assert_array_equal(scores, all_scores[kept])
    distances = np.linalg.norm(found[:, None] - found[None], axis=2)
    assert (distances + 1e9 * np.eye(len(found)) >= separation).all()
    for removed in set(range(len(everything))) - set(kept):
        near = np.linalg.norm(found - everything[removed], axis=1) < separation
        assert (scores[near] >= all_scores[removed]).any()


@given(st.integers(0, 10_000), st.sampled_from([1.5, 3.0, 9.0, 13.0]), st.sampled_from([0.0, 0.4, 1.5]))
@few
def test_a_higher_threshold_takes_picks_away_and_changes_none(seed, radius, smoothing) -> None:
    """Thresholds are chosen on the scores of all peaks; they must pick out the same peaks later."""
    random = np.random.default_rng(seed)
    probability = spheres((40, 44, 48), random.uniform(5, 40, (7, 3)), radius * 0.7, random.uniform(0.2, 1, 7))
    options = {"smoothing": smoothing, "separation": 1.25 * radius}
    everything, scores = find_peaks(probability, radius, threshold=LOWEST_SCORE, **options)
    assert len(everything) > 1 or smoothing > 1
    for threshold in [0.3, *scores.tolist()]:
        found, found_scores = find_peaks(probability, radius, threshold=threshold, **options)
        np.testing.assert_array_equal(found_scores, scores[scores >= threshold])
        np.testing.assert_allclose(found, everything[scores >= threshold], atol=1e-9)


def test_what_lies_below_the_threshold_counts_for_the_score() -> None:
    probability = np.zeros((60, 4, 4), dtype=np.uint8)
    probability[10:21] = 255
    probability[28:] = 80
    options = {"smoothing": 2.0, "separation": 100.0}
    (low,), (high,) = (find_peaks(probability, 3.0, threshold=value, **options)[1] for value in (LOWEST_SCORE, 0.5))
    assert low == high


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 1), (2, 2, 2), (1, 3, 4), (3, 3, 3)])
@pytest.mark.parametrize("smoothing", [0.0, 0.4])
def test_a_plateau_is_one_peak(size: tuple[int, ...], smoothing: float) -> None:
    probability = np.zeros((14, 15, 16), dtype=np.uint8)
    probability[tuple(slice(6, 6 + n) for n in size)] = 255
    found, _ = find_peaks(probability, 2.5, smoothing=smoothing, separation=3.0, threshold=0.05)
    assert len(found) == 1
    assert abs(found[0] - (6 + (np.array(size) - 1) / 2)).max() <= (0.51 if smoothing else 1.0)


@pytest.mark.parametrize("excess", [1.0, 1.5])
def test_a_particle_predicted_too_large_and_with_certainty_is_one_peak(excess: float) -> None:
    radius = 4.0
    z, y, x = np.ogrid[:31, :31, :31]
    ball = (z - 15.2) ** 2 + (y - 14.9) ** 2 + (x - 15.4) ** 2 <= (excess * radius) ** 2
    probability = (255 * ball).astype(np.uint8)
    found, scores = find_peaks(probability, radius, smoothing=0.4, separation=1.25 * radius, threshold=0.5)
    assert len(found) == 1
    assert np.linalg.norm(found[0] - [15.2, 14.9, 15.4]) < 0.3
    assert scores[0] <= 1


@pytest.mark.parametrize("radius", [3.0, 9.0])
@pytest.mark.parametrize("centre", [(0, 20, 30), (39, 44, 20), (0, 0, 0), (39, 44, 49), (20, 1, 47)])
def test_particles_cut_by_the_border_are_found(radius: float, centre: tuple[int, ...]) -> None:
    shape = (40, 45, 50)
    whole, score = find_peaks(
        spheres(shape, np.array([[20, 22, 25]]), radius, np.ones(1)),
        radius,
        smoothing=0.4,
        separation=radius,
        threshold=0.2,
    )
    assert len(whole) == 1
    found, scores = find_peaks(
        spheres(shape, np.array([centre]), radius, np.ones(1)), radius, smoothing=0.4, separation=radius, threshold=0.2
    )
    assert len(found) == 1
    assert abs(found[0] - centre).max() <= (1 if radius < 8 else 2)
    assert abs(scores[0] - score[0]) < 0.15


def test_nothing_above_the_threshold_is_nothing_found() -> None:
    low = np.full((6, 7, 8), 20, dtype=np.uint8)
    for probability in (np.zeros((6, 7, 8), dtype=np.uint8), low):
        found, scores = find_peaks(probability, 2.0, smoothing=0.4, separation=2.0, threshold=0.5)
        assert found.shape == (0, 3)
        assert scores.shape == (0,)
    found, _ = find_peaks(np.zeros((6, 7, 8), dtype=np.uint8), 2.0, smoothing=0.4, separation=2.0, threshold=0.0)
    assert len(found) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.23, 0.4, 1.0])
@pytest.mark.parametrize("radius", [2.0, 9.0])
def test_scores_are_probabilities(smoothing: float, radius: float) -> None:
    certain = np.full((30, 30, 30), 255, dtype=np.uint8)
    found, scores = find_peaks(certain, radius, smoothing=smoothing, separation=200.0, threshold=1.0)
    assert len(found) == 1
    assert scores[0] == 1
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 30)).astype(np.uint8)
    _, scores = find_peaks(noise, radius, smoothing=smoothing, separation=1.0, threshold=0.1)
    assert len(scores)
    assert scores.min() >= 0.1
    assert scores.max() <= 1


@given(st.integers(0, 10_000))
@few
def test_positions_lie_inside_the_volume(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 30, 3).tolist())
    probability = random.integers(0, 256, shape).astype(np.uint8)
    for radius in (1.0, 4.0, 10.0):
        found, _ = find_peaks(probability, radius, smoothing=0.1, separation=0.1, threshold=0.1)
        assert (found > -0.5).all()
        assert (found < np.array(shape) - 0.5).all()


CLASSES = (
    TargetClass("membrane", 1, None, None, ()),
    TargetClass("ribosome", 2, 50.0, 40.0, ()),
    TargetClass("apo-ferritin", 3, 25.0, 20.0, ()),
)


def test_picks_are_in_angstrom_and_by_object() -> None:
    shape = (24, 30, 36)
    ribosomes = np.array([[8.0, 10.0, 12.0], [15.0, 20.0, 28.0]])
    ferritins = np.array([[12.0, 5.0, 30.0]])
    probabilities = np.stack(
        [
            np.full(shape, 255, dtype=np.uint8),
            spheres(shape, ribosomes, 4.0, np.array([0.9, 0.6])),
            spheres(shape, ferritins, 2.0, np.array([0.8])),
        ]
    )
    found = locate_picks(probabilities, CLASSES, 10.0, Picking())
    assert list(found) == ["ribosome", "apo-ferritin"]
    np.testing.assert_allclose(found["ribosome"].positions, ribosomes[:, ::-1] * 10, atol=1)
    np.testing.assert_allclose(found["apo-ferritin"].positions, ferritins[:, ::-1] * 10, atol=1)
    high, low = found["ribosome"].scores
    assert 0.9 > high > low
    between = {"ribosome": (high + low) / 2, "apo-ferritin": 1.0}
    kept = locate_picks(probabilities, CLASSES, 10.0, Picking(), between)
    np.testing.assert_array_equal(kept["ribosome"].positions, found["ribosome"].positions[:1])
    assert len(kept["apo-ferritin"]) == 0


def test_separation_is_in_object_radii() -> None:
    centres = np.array([[12.0, 10.0, 10.0], [12.0, 10.0, 16.5]])
    probabilities = np.stack([spheres((24, 24, 30), centres, 2.5, np.array([0.9, 0.6]))] * 3)
    for separation, count in ((1.0, 2), (1.25, 2), (1.4, 1)):
        found = locate_picks(probabilities, CLASSES, 10.0, Picking(separation=separation, smoothing=0.2))
        assert len(found["ribosome"]) == count
