"""The choice of the threshold of each class on the validation runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoscout.tasks.picking.matching import Curve
from tomoscout.tasks.picking.peaks import LOWEST_SCORE

DEFAULT_THRESHOLD = 0.5
"""Threshold of a class for which no reference pick is found in the validation runs."""

SMOOTHING = 0.2
"""Standard deviation by which square roots of scores are blurred, with one reference pick; with N of them it is
N^(−1/5) times this (Silverman's rule for the density of a sample). The value is the best of several on phantoms: see
tests/benchmarks/README.md."""

PRIOR, FADING = 0.1, 0.1
"""False picks that are taken to be there for each reference pick beside those of the curve, and the score over which
they become e times fewer. Without them, a class of which validation has no false pick would get the lowest
threshold."""

_GRID = np.linspace(LOWEST_SCORE, 0.95, 93)
_DRAWS = 200
_SURE = (10, 90)


@dataclass(frozen=True)
class Threshold:
    """A threshold chosen on validation runs. `score`: F-beta there, None without references."""

    value: float
    score: float | None


def robust_threshold(curve: Curve, beta: float) -> Threshold:
    """A threshold that should also do well on other runs than those of the curve.

    With few references the best threshold on the curve lies just below the lowest score among some of them, and would
    lose the weakest particles of the next tomogram. So every score is taken to be blurred: true and false picks above a
    threshold become sums of probabilities, and the threshold with the best F-beta of these is chosen. Square roots are
    blurred, as small scores differ less between runs than large ones. A few false picks with low scores are expected
    that the curve does not have (`PRIOR`). Without references, or if none is found, the threshold is
    `DEFAULT_THRESHOLD`.
    """
    if not curve.found.any():
        return Threshold(DEFAULT_THRESHOLD, 0.0 if curve.references else None)
    above, true, false = _blurred(curve)
    best = int(np.argmax(_f_beta(above @ true, above @ false, curve.references, beta)))
    kept = int(np.count_nonzero(curve.thresholds >= _GRID[best]))
    score = float(curve.f(beta)[kept - 1]) if kept else 0.0
    return Threshold(round(float(_GRID[best]), 3), score)


def threshold_range(curve: Curve, beta: float) -> tuple[float, float]:
    """Between these lie 80 % of the thresholds that are chosen when the picks of the validation runs, and their
    references, are drawn anew (bootstrap), as for other runs of the same kind."""
    if not curve.found.any():
        return LOWEST_SCORE, 1.0
    above, true, false = _blurred(curve)
    references, found = curve.references, int(true.sum())
    random = np.random.default_rng(0)
    hits = random.binomial(references, found / references, _DRAWS)
    drawn_true = np.array([random.multinomial(count, true / found) for count in hits])
    wrong = max(1, int(false.sum()))
    drawn_false = np.array([random.multinomial(count, false / wrong) for count in random.poisson(false.sum(), _DRAWS)])
    values = _f_beta(drawn_true @ above.T, drawn_false @ above.T, references, beta)
    low, high = np.percentile(_GRID[values.argmax(axis=1)], _SURE)
    return round(float(low), 3), round(float(high), 3)


def _blurred(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """How probably a pick lies above each threshold (thresholds, scores), and the true and false picks of each
    score."""
    from scipy.special import ndtr

    width = SMOOTHING * curve.references**-0.2
    above = ndtr((np.sqrt(curve.thresholds) - np.sqrt(_GRID)[:, None]) / width)
    true = np.diff(curve.found, prepend=0)
    return above, true, np.diff(curve.kept, prepend=0) - true


def _f_beta(true: NDArray[np.float64], false: NDArray[np.float64], references: int, beta: float) -> NDArray[np.float64]:
    """F-beta at every threshold (…, thresholds) from true and false positives, with those that are expected besides."""
    weighted = (1 + beta**2) * true
    expected = false + PRIOR * references * np.exp(-_GRID / FADING)
    result: NDArray[np.float64] = weighted / (weighted + beta**2 * (references - true) + expected)
    return result
