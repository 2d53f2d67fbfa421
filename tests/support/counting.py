"""Scores from counts, written out."""

from __future__ import annotations


def f_beta(found: int, predicted: int, truth: int, beta: float) -> float:
    """F-beta of `found` of `predicted` and of `truth`."""
    return (1 + beta**2) * found / (predicted + beta**2 * truth) if found else 0.0
