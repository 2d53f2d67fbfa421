"""Intervals against what they promise: how often they hold the true score, in a simulation; and its parts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from tomoscout.tasks.picking.intervals import LEVEL, intervals
from tomoscout.tasks.picking.matching import f_beta
from tomoscout.tasks.picking.score_columns import ratios

BETA = 4.0


def drawn_runs(rng: np.random.Generator, runs: int) -> np.ndarray:
    """Found, false and missed (runs, 3) of runs that differ in how many particles they hold and how many are found."""
    particles = rng.poisson(rng.gamma(4.0, 5.0, runs))
    found = rng.binomial(particles, rng.beta(8.0, 2.0, runs))
    false = rng.poisson(rng.gamma(2.0, 2.0, runs))
    return np.stack([found, false, particles - found], axis=1).astype(float)


TRUE = ratios(np.array([20 * 0.8, 4.0, 20 * 0.2]), BETA)
"""Of the expected counts: what all runs together approach."""


@pytest.mark.parametrize("runs", [5, 12, 40])
def test_intervals_hold_the_truth_as_often_as_they_say(runs: int) -> None:
    rng, trials = np.random.default_rng(runs), 400
    held = np.zeros(3)
    for _ in range(trials):
        counts = drawn_runs(rng, runs)
        found = intervals(counts, lambda sums: ratios(sums, BETA), 400)
        held += [low <= true <= high for (low, high), true in zip(found, TRUE, strict=True)]
    # Within what chance allows in one of a thousand such tests, around a rate of 92 to 98 %.
    least, most = binom.ppf([0.0005, 0.9995], trials, [LEVEL - 0.03, LEVEL + 0.03])
    assert ((held >= least) & (held <= most)).all(), held / trials


def test_many_counts_at_once_are_scored_like_each_alone() -> None:
    counts = np.random.default_rng(0).integers(0, 4, (500, 3))
    for (found, false, missed), row in zip(counts.tolist(), ratios(counts.astype(float), BETA), strict=True):
        f = f_beta(found, false, missed, BETA)
        precision = found / (found + false) if found + false else None
        recall = found / (found + missed) if found + missed else None
        for value, expected in zip(row, (precision, recall, f), strict=True):
            assert np.isnan(value) if expected is None else value == pytest.approx(expected)


def test_more_runs_say_more() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for runs in (10, 100, 1000):
        low, high = intervals(drawn_runs(rng, runs), lambda sums: ratios(sums, BETA), 400)[2]
        widths.append(high - low)
    assert widths[0] > 1.5 * widths[1] > 3 * widths[2]


@pytest.mark.parametrize(("runs", "resamples"), [(0, 100), (1, 100), (5, 0)])
def test_without_runs_or_draws_there_are_none(runs: int, resamples: int) -> None:
    assert intervals(np.ones((runs, 3)), lambda sums: ratios(sums, BETA), resamples) == [None] * 3
