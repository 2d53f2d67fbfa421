"""The thresholds chosen on the validation runs, against the rule written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.counting import f_beta
from tomoscout.tasks.picking.matching import count_matches, precision_recall
from tomoscout.tasks.picking.thresholds import DEFAULT_THRESHOLD, robust_threshold

checked = settings(deadline=None, max_examples=40, derandomize=True)


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


def test_what_validation_says_nothing_about_has_the_default_threshold() -> None:
    nowhere = np.zeros((0, 3))
    without = precision_recall([count_matches(nowhere, np.zeros(0), nowhere, 1.0)])
    assert robust_threshold(without, 4) == (DEFAULT_THRESHOLD, None)
    missed = precision_recall([count_matches(nowhere, np.zeros(0), np.ones((2, 3)), 1.0)])
    assert robust_threshold(missed, 4) == (DEFAULT_THRESHOLD, 0.0)
