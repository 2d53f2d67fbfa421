"""The thresholds chosen on the validation runs, against the rule written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.counting import f_beta
from tomoscout.tasks.picking.matching import count_matches, precision_recall
from tomoscout.tasks.picking.thresholds import DEFAULT_THRESHOLD, Threshold, robust_threshold, threshold_range

checked = settings(deadline=None, max_examples=40, derandomize=True)


def slow_threshold(scores: np.ndarray, true: np.ndarray, references: int, beta: float) -> np.ndarray:
    """F-beta at 0.03, 0.04 … 0.95 as they are, and with each score blurred by a normal distribution of its root."""
    grid = [0.03 + 0.01 * n for n in range(93)]
    width = 0.2 / references ** (1 / 5)
    values, blurred = [], []
    for value in grid:
        kept = scores >= value - 1e-12
        values.append(f_beta(int(true[kept].sum()), int(kept.sum()), references, beta))
        found = wrong = 0.0
        for score, is_true in zip(scores, true, strict=True):
            chance = (1 + math.erf((math.sqrt(score) - math.sqrt(value)) / width / math.sqrt(2))) / 2
            found, wrong = found + chance * is_true, wrong + chance * (not is_true)
        wrong += 0.1 * references * math.exp(-value / 0.1)
        precision, recall = found / (found + wrong), found / references
        blurred.append((1 + beta**2) * precision * recall / (beta**2 * precision + recall))
    return np.array([grid, values, blurred])


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(0, 20), st.sampled_from([0.5, 1.0, 4.0]))
@checked
def test_thresholds_maximise_blurred_f_beta(seed: int, right: int, wrong: int, beta: float) -> None:
    random = np.random.default_rng(seed)
    truth = np.arange(right + 3)[:, None] * [1000.0, 0, 0]
    predicted = np.concatenate([truth[:right], truth[:1] + [500, 0, 0] + np.arange(wrong)[:, None] * [1000.0, 0, 0]])
    scores = np.concatenate([random.beta(4, 3, right), random.beta(2, 4, wrong)])
    curve = precision_recall([count_matches(predicted, scores, truth, 20.0)])
    grid, values, blurred = slow_threshold(scores, np.arange(len(scores)) < right, right + 3, beta)
    threshold = robust_threshold(curve, beta)
    chosen = int(np.argmin(abs(grid - threshold.value)))
    assert threshold.value == pytest.approx(grid[chosen])
    assert threshold.score == pytest.approx(values[chosen])
    assert blurred[chosen] == pytest.approx(blurred.max())


def test_more_picks_make_surer() -> None:
    def spread(count: int) -> float:
        random = np.random.default_rng(1)
        truth = np.arange(count)[:, None] * [1000.0, 0, 0]
        places = np.concatenate([truth, truth + np.array([500, 0, 0])])
        scores = np.concatenate([random.beta(4, 3, count), random.beta(2, 5, count)])
        curve = precision_recall([count_matches(places, scores, truth, 20.0)])
        low, high = threshold_range(curve, 1)
        assert low <= robust_threshold(curve, 1).value <= high
        return high - low

    assert spread(1000) < spread(10) / 2


def test_a_threshold_keeps_its_distance_from_the_weakest_pick() -> None:
    scores = np.array([0.9, 0.85, 0.8, 0.75])
    truth = np.arange(4)[:, None] * [1000.0, 0, 0]
    threshold = robust_threshold(precision_recall([count_matches(truth, scores, truth, 1.0)]), 4)
    assert threshold.score == 1
    assert threshold.value < 0.65


def test_what_validation_says_nothing_about_has_the_default_threshold() -> None:
    nowhere = np.zeros((0, 3))
    without = precision_recall([count_matches(nowhere, np.zeros(0), nowhere, 1.0)])
    assert robust_threshold(without, 4) == Threshold(DEFAULT_THRESHOLD, None)
    missed = precision_recall([count_matches(nowhere, np.zeros(0), np.ones((2, 3)), 1.0)])
    assert robust_threshold(missed, 4) == Threshold(DEFAULT_THRESHOLD, 0.0)
    assert threshold_range(without, 4) == threshold_range(missed, 4) == (0.03, 1.0)
