"""Scoring of validation runs and the thresholds it chooses, against counting by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from tomoscout.classes import TargetClass
from tomoscout.config import Picking, Train
from tomoscout.errors import TomoscoutError
from tomoscout.heads import PickingHead, Reference, robust_threshold
from tomoscout.matching import count_matches, precision_recall
from tomoscout.peaks import locate_picks
from tomoscout.project import Picks

torch.set_num_threads(1)
checked = settings(deadline=None, max_examples=40, derandomize=True)
few = settings(deadline=None, max_examples=10, derandomize=True)

RIBOSOME = TargetClass("ribosome", 1, 40.0, 32.0, ())
FERRITIN = TargetClass("ferritin", 2, 25.0, 20.0, ())
MEMBRANE = TargetClass("membrane", 3, None, None, ())
SHAPE = (20, 30, 34)
SPACING = 10.0


def head(*classes: TargetClass) -> PickingHead:
    return PickingHead(classes, SPACING, Picking(distance=0.5))


def blobs(positions: Sequence[Sequence[float]], heights: Sequence[float], radius: float = 3.0) -> np.ndarray:
    """Probabilities of particles at x, y, z in Å."""
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    volume = np.zeros(SHAPE)
    for position, height in zip(positions, heights, strict=True):
        cx, cy, cz = np.array(position) / SPACING
        squared = (z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2
        volume = np.maximum(volume, height * np.exp(-squared / radius**2))
    return np.rint(255 * volume).astype(np.uint8)


NOTHING = np.zeros(SHAPE, dtype=np.uint8)


def reference(labels: np.ndarray | None = None, **positions: Sequence[Sequence[float]]) -> Reference:
    picks = {name: Picks.at(np.array(where, dtype=np.float64).reshape(-1, 3)) for name, where in positions.items()}
    return Reference(picks, labels)


def counted(predicted: np.ndarray, truth: np.ndarray, distance: float) -> int:
    """True positives: the largest number of pairs within reach."""
    if not len(predicted) or not len(truth):
        return 0
    near = np.linalg.norm(predicted[:, None] - truth[None], axis=2) <= distance
    rows, columns = linear_sum_assignment(~near)
    return int(near[rows, columns].sum())


def f_beta(found: int, predicted: int, truth: int, beta: float) -> float:
    return (1 + beta**2) * found / (predicted + beta**2 * truth) if found else 0.0


CENTRES = [[60, 60, 60], [150, 220, 140], [280, 90, 100], [240, 240, 60]]


def test_perfect_probabilities_score_one() -> None:
    result = head(RIBOSOME).measure([blobs(CENTRES, [0.9] * 4)[None]], [reference(ribosome=CENTRES)], 4)
    assert result.score == 1
    assert result.scores == {"ribosome": 1.0}
    assert result.details["scores"] == result.scores
    assert 0.05 <= result.details["thresholds"]["ribosome"] < 0.9


@given(st.integers(0, 10_000), st.sampled_from([0.5, 1.0, 4.0]))
@few
def test_the_score_is_that_of_the_picks_made_at_the_threshold(seed: int, beta: float) -> None:
    random = np.random.default_rng(seed)
    predictions, references = [], []
    for _ in range(2):
        truth = random.uniform(30, [310, 270, 170], (5, 3))
        false = random.uniform(30, [310, 270, 170], (4, 3))
        near = truth + random.normal(scale=8, size=truth.shape)
        predictions.append(blobs(np.concatenate([near, false]), random.uniform(0.1, 1, 9))[None])
        references.append(reference(ribosome=truth))
    result = head(RIBOSOME).measure(predictions, references, beta)
    threshold = result.details["thresholds"]
    found = kept = 0
    for probabilities, truth in zip(predictions, references, strict=True):
        picks = locate_picks(probabilities, [RIBOSOME], SPACING, Picking(distance=0.5), threshold)["ribosome"]
        found += counted(picks.positions, truth.picks["ribosome"].positions, 0.5 * 40.0)
        kept += len(picks)
    assert result.score == pytest.approx(f_beta(found, kept, 10, beta))


def slow_threshold(scores: np.ndarray, true: np.ndarray, references: int, beta: float) -> np.ndarray:
    """F-beta at 0.05, 0.06 … 0.95, each averaged with its neighbours by a Gaussian of 0.05."""
    grid = [0.05 + 0.01 * n for n in range(91)]
    values = [
        f_beta(int(true[scores >= value - 1e-12].sum()), int((scores >= value - 1e-12).sum()), references, beta)
        for value in grid
    ]
    averaged = []
    for n in range(91):
        total = weights = 0.0
        for offset in range(-15, 16):
            weight = math.exp(-0.5 * (offset / 5) ** 2)
            total += weight * values[min(max(n + offset, 0), 90)]
            weights += weight
        averaged.append(total / weights)
    return np.array([grid, values, averaged])


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(0, 20), st.sampled_from([0.5, 1.0, 4.0]))
@checked
def test_thresholds_maximise_averaged_f_beta(seed: int, right: int, wrong: int, beta: float) -> None:
    random = np.random.default_rng(seed)
    truth = np.arange(right + 3)[:, None] * [1000.0, 0, 0]
    predicted = np.concatenate([truth[:right], truth[:1] + [500, 0, 0] + np.arange(wrong)[:, None] * [1000.0, 0, 0]])
    scores = np.concatenate([random.beta(4, 3, right), random.beta(2, 4, wrong)])
    curve = precision_recall([count_matches(predicted, scores, truth, 20.0)])
    grid, values, averaged = slow_threshold(scores, np.arange(len(scores)) < right, right + 3, beta)
    threshold, score = robust_threshold(curve, beta)
    chosen = int(np.argmin(abs(grid - threshold)))
    assert threshold == pytest.approx(grid[chosen])
    assert score == pytest.approx(values[chosen])
    assert averaged[chosen] == pytest.approx(averaged.max())


def test_a_threshold_keeps_its_distance_from_the_weakest_pick() -> None:
    scores = np.array([0.9, 0.85, 0.8, 0.75])
    truth = np.arange(4)[:, None] * [1000.0, 0, 0]
    threshold, score = robust_threshold(precision_recall([count_matches(truth, scores, truth, 1.0)]), 4)
    assert score == 1
    assert threshold < 0.65


def test_a_class_that_validation_does_not_hold_has_no_score_and_the_default_threshold() -> None:
    probabilities = np.stack([blobs(CENTRES, [0.9] * 4), blobs(CENTRES[:2], [0.8, 0.7], 2.0)])
    result = head(RIBOSOME, FERRITIN).measure([probabilities], [reference(ribosome=CENTRES, ferritin=[])], 4)
    assert result.score == 1
    assert result.scores == {"ribosome": 1.0}
    assert result.details["thresholds"]["ferritin"] == 0.5


@pytest.mark.parametrize("predicted", [[], [[60, 200, 100]]])
def test_a_class_of_which_nothing_is_found_counts_as_zero(predicted: list[list[float]]) -> None:
    probabilities = np.stack([blobs(CENTRES, [0.9] * 4), blobs(predicted, [0.9] * len(predicted), 2.0)])
    result = head(RIBOSOME, FERRITIN).measure([probabilities], [reference(ribosome=CENTRES, ferritin=CENTRES[:1])], 4)
    assert result.scores == {"ribosome": 1.0, "ferritin": 0.0}
    assert result.score == 0.5
    # Not the lowest of all: that would flood every tomogram with false picks.
    assert result.details["thresholds"]["ferritin"] == 0.5


def test_false_picks_in_a_run_without_references_count() -> None:
    runs = [blobs(CENTRES, [0.9] * 4)[None], blobs(CENTRES, [0.9] * 4)[None]]
    result = head(RIBOSOME).measure(runs, [reference(ribosome=CENTRES), reference(ribosome=[])], 1)
    assert result.score == pytest.approx(2 * 0.5 / 1.5)


def test_picks_found_several_times_are_found_once() -> None:
    truth = [[100.0, 150.0, 100.0]]
    twice = blobs([[90, 150, 100], [110, 150, 100]], [0.9, 0.9], 1.0)
    picking = Picking(smoothing=0, separation=0.4, distance=0.5)
    result = PickingHead([RIBOSOME], SPACING, picking).measure([twice[None]], [reference(ribosome=truth)], 1)
    assert result.score == pytest.approx(2 / 3)


@pytest.mark.parametrize("classes", [(RIBOSOME,), (RIBOSOME, FERRITIN)])
def test_no_reference_at_all_is_an_error(classes: tuple[TargetClass, ...]) -> None:
    probabilities = np.stack([blobs(CENTRES, [0.9] * 4)] * len(classes))
    nothing = reference(**{entry.name: [] for entry in classes})
    with pytest.raises(TomoscoutError, match="validation: no run has a reference"):
        head(*classes).measure([probabilities], [nothing], 4)


def slow_dice(probabilities: Sequence[np.ndarray], labels: Sequence[np.ndarray], label: int) -> float:
    both = total = 0
    for probability, truth in zip(probabilities, labels, strict=True):
        for place in np.ndindex(truth.shape):
            predicted, true = probability[place] / 255 > 0.5, truth[place] == label
            both += predicted and true
            total += int(predicted) + int(true)
    return 2 * both / total


def test_continuous_classes_are_scored_by_dice() -> None:
    random = np.random.default_rng(0)
    labels = [random.integers(0, 2, (5, 6, 7)) for _ in range(2)]
    probabilities = [random.integers(0, 256, (1, 5, 6, 7)).astype(np.uint8) for _ in range(2)]
    entry = TargetClass("membrane", 1, None, None, ())
    result = head(entry).measure(probabilities, [reference(truth) for truth in labels], 4)
    expected = slow_dice([probability[0] for probability in probabilities], labels, 1)
    assert result.score == result.scores["membrane"] == pytest.approx(expected)
    assert result.details["thresholds"] == {}


def test_particles_alone_choose_the_model_where_there_are_any() -> None:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[:4] = 3
    probabilities = np.stack([blobs(CENTRES, [0.9] * 4), NOTHING, np.where(labels == 3, 200, 0).astype(np.uint8)])
    probabilities[2, 2:] = 0
    truth = reference(labels, ribosome=CENTRES, ferritin=[])
    result = head(RIBOSOME, FERRITIN, MEMBRANE).measure([probabilities], [truth], 4)
    assert result.scores == {"ribosome": 1.0, "membrane": pytest.approx(2 / 3)}
    assert result.score == 1


def test_a_continuous_class_that_validation_does_not_hold_has_no_score() -> None:
    probabilities = np.stack([blobs(CENTRES, [0.9] * 4), NOTHING, np.full(SHAPE, 200, dtype=np.uint8)])
    truth = reference(np.zeros(SHAPE, dtype=np.uint8), ribosome=CENTRES, ferritin=[])
    assert "membrane" not in head(RIBOSOME, FERRITIN, MEMBRANE).measure([probabilities], [truth], 4).scores
    alone = TargetClass("membrane", 1, None, None, ())
    with pytest.raises(TomoscoutError, match="validation: no run has a reference"):
        head(alone).measure([probabilities[2:]], [reference(np.zeros(SHAPE, dtype=np.uint8))], 4)


@pytest.mark.parametrize("balance", [0.0, 1.0, 3.0])
def test_small_objects_weigh_more_in_the_loss(balance: float) -> None:
    options = Train(foreground_weight=5, size_balance=balance)
    picking_head = head(RIBOSOME, FERRITIN, MEMBRANE)
    loss = picking_head.loss(options, 255)
    assert picking_head.outputs == 4
    assert loss.weights.tolist() == pytest.approx([1, 5, 5 * (32 / 20) ** balance, 5])
    assert head(MEMBRANE).loss(options, 255).weights.tolist() == [1, 5]
