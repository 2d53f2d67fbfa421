"""Matching against slow references: a matching solver run on every prefix, and the challenge's rules written anew."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from tomoscout.tasks.picking.matching import (
    Matches,
    best_threshold,
    count_matches,
    f_beta,
    precision_recall,
)

Points = NDArray[np.float64]
checked = settings(deadline=None, max_examples=60, derandomize=True)

# Whole coordinates and few distinct scores: crowded scenes, distances right on the limit, and many ties.
positions = st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=14)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Points, Points, Points, float]:
    predicted, reference = (np.array(draw(positions), dtype=np.float64).reshape(-1, 3) for _ in range(2))
    scores = [draw(st.integers(0, 6)) / 8 for _ in predicted]
    return predicted, np.array(scores), reference, draw(st.sampled_from([1.0, 2.0, 3.0]))


def within(predicted: Points, reference: Points, distance: float) -> NDArray[np.bool_]:
    return np.linalg.norm(predicted[:, None] - reference[None], axis=2) <= distance


def largest_pairing(near: NDArray[np.bool_]) -> int:
    if not near.size:
        return 0
    return int((maximum_bipartite_matching(csr_matrix(near), perm_type="column") >= 0).sum())


@given(scenes())
@checked
def test_every_prefix_is_a_maximum_matching(scene) -> None:
    predicted, scores, reference, distance = scene
    matches = count_matches(predicted, scores, reference, distance)
    order = np.argsort(-scores, kind="stable")
    near = within(predicted, reference, distance)[order]
    found = np.cumsum(matches.gains[order])
    assert found.tolist() == [largest_pairing(near[: n + 1]) for n in range(len(near))]


@given(scenes())
@checked
def test_pairs_are_within_reach_and_used_once(scene) -> None:
    predicted, scores, reference, distance = scene
    matches = count_matches(predicted, scores, reference, distance)
    paired = np.flatnonzero(matches.partners >= 0)
    assert paired.tolist() == np.flatnonzero(matches.gains).tolist()
    assert sorted(matches.partners[paired]) == np.flatnonzero(matches.found).tolist()
    assert len(set(matches.partners[paired])) == len(paired) == matches.true_positives
    assert within(predicted, reference, distance)[paired, matches.partners[paired]].all()
    assert matches.true_positives + matches.false_positives == len(predicted)
    assert matches.true_positives + matches.false_negatives == len(reference)


def challenge_counts(predicted: Points, reference: Points, distance: float) -> tuple[int, int, int]:
    near = within(predicted, reference, distance)
    found = int(near.any(axis=0).sum()) if near.size else 0
    return found, len(predicted) - found, len(reference) - found


@given(scenes())
@checked
def test_challenge_counting_at_every_threshold(scene) -> None:
    predicted, scores, reference, distance = scene
    matches = count_matches(predicted, scores, reference, distance, "challenge")
    counts = matches.true_positives, matches.false_positives, matches.false_negatives
    assert counts == challenge_counts(predicted, reference, distance)
    assert matches.found.sum() == counts[0]
    curve = precision_recall([matches])
    for threshold, found, kept in zip(curve.thresholds, curve.found, curve.kept, strict=True):
        expected = challenge_counts(predicted[scores >= threshold], reference, distance)
        assert (found, kept - found, curve.references - found) == expected


@given(st.lists(scenes(), max_size=3))
@checked
def test_curve_pools_runs_and_keeps_ties_together(runs) -> None:
    matches = [count_matches(*scene) for scene in runs]
    curve = precision_recall(matches)
    all_scores = np.concatenate([np.zeros(0), *(scores for _, scores, _, _ in runs)])
    assert curve.thresholds.tolist() == sorted(set(all_scores.tolist()), reverse=True)
    assert curve.references == sum(len(reference) for _, _, reference, _ in runs)
    for index, threshold in enumerate(curve.thresholds):
        kept = [scene[0][scene[1] >= threshold] for scene in runs]
        found = sum(largest_pairing(within(p, s[2], s[3])) for p, s in zip(kept, runs, strict=True))
        predictions = sum(map(len, kept))
        assert (curve.found[index], curve.kept[index]) == (found, predictions)
        assert curve.precision[index] == found / predictions
        f = f_beta(found, predictions - found, curve.references - found, 4)
        assert curve.f(4)[index] == pytest.approx(f, abs=1e-12)


@given(st.lists(scenes(), max_size=3), st.sampled_from([0.5, 1.0, 4.0]))
@checked
def test_best_threshold_is_best_and_lies_between_scores(runs, beta: float) -> None:
    matches = [count_matches(*scene) for scene in runs]
    curve = precision_recall(matches)
    threshold, f = best_threshold(curve, beta)
    if not sum(m.true_positives for m in matches):
        assert threshold == 0.5
        assert f == (None if not any(len(s[0]) + len(s[2]) for s in runs) else 0)
        return
    kept = [count_matches(p[s >= threshold], s[s >= threshold], r, d) for p, s, r, d in runs]
    counts = [sum(getattr(m, what) for m in kept) for what in ("true_positives", "false_positives", "false_negatives")]
    assert f == pytest.approx(f_beta(*counts, beta), abs=1e-12)
    assert f == pytest.approx(max(curve.f(beta)), abs=1e-12)
    gap = np.abs(curve.thresholds - threshold)
    assert threshold == curve.thresholds[-1] or (gap > 0.04).all()


def test_average_precision_sums_over_the_steps_of_recall() -> None:
    gains = np.array([1, 0, 1, 0])
    matches = Matches(np.array([0.9, 0.8, 0.7, 0.6]), gains, gains - 1, np.array([True, True, False, False]))
    assert precision_recall([matches]).average_precision == pytest.approx((1 / 1 + 2 / 3) / 4)
    only_false = count_matches(np.zeros((2, 3)), np.ones(2), np.zeros((0, 3)), 5)
    assert precision_recall([only_false]).average_precision is None


def fivefold() -> tuple[Points, Points, Points]:
    """50 references; 10 of them found five times each."""
    reference = np.stack([np.arange(50) * 200.0, np.full(50, 70.0), np.full(50, 300.0)], axis=1)
    offsets = np.array([[0, 0, 0], [9, 0, 0], [-9, 0, 0], [0, 9, 0], [0, 0, 9]], dtype=float)
    predicted = (reference[:10, None] + offsets).reshape(-1, 3)
    return predicted, np.linspace(1, 0.5, 50), reference


def test_a_reference_found_five_times_is_found_once() -> None:
    predicted, scores, reference = fivefold()
    matches = count_matches(predicted, scores, reference, 30)
    curve = precision_recall([matches])
    assert (curve.precision[-1], curve.recall[-1]) == (0.2, 0.2)
    assert f_beta(matches.true_positives, matches.false_positives, matches.false_negatives, 4) == pytest.approx(0.2)
    # The exact one of each five comes first, so it is the one that counts.
    assert np.flatnonzero(matches.gains).tolist() == list(range(0, 50, 5))


def test_a_later_prediction_moves_an_earlier_one_to_its_other_reference() -> None:
    reference = np.array([[0.0, 0, 0], [10, 0, 0]])
    predicted = np.array([[4.0, 0, 0], [-5, 0, 0]])
    matches = count_matches(predicted, np.array([0.9, 0.8]), reference, 7)
    assert matches.gains.tolist() == [1, 1]
    assert matches.partners.tolist() == [1, 0]


def test_the_nearer_reference_is_taken_where_there_is_a_choice() -> None:
    reference = np.array([[9.0, 0, 0], [0, 0, 0], [2, 0, 0]])
    matches = count_matches(np.array([[3.0, 0, 0]]), np.ones(1), reference, 20)
    assert matches.partners.tolist() == [2]


def test_the_limit_itself_counts() -> None:
    reference = np.array([[0.0, 0, 0]])
    for counting in ("one-to-one", "challenge"):
        for step, expected in (0.0, 1), (0.01, 0):
            predicted = np.array([[3.0, 4, step]])
            assert count_matches(predicted, np.ones(1), reference, 5, counting).true_positives == expected


def test_a_long_chain_of_moves_needs_no_deep_recursion() -> None:
    # Each prediction lies between two references and takes the nearer, left one; the last one, on the far
    # left, moves them all to the right.
    count = 3000
    reference = np.zeros((count + 1, 3))
    reference[:, 0] = np.arange(count + 1) * 10
    predicted = np.zeros((count + 1, 3))
    predicted[:count, 0] = np.arange(count) * 10 + 4
    predicted[count, 0] = -5
    matches = count_matches(predicted, np.linspace(1, 0.1, count + 1), reference, 7)
    assert matches.true_positives == count + 1
    assert matches.partners.tolist() == [*range(1, count + 1), 0]


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="2 finite scores"):
        count_matches(np.zeros((2, 3)), np.ones(3), np.zeros((1, 3)), 5)
    with pytest.raises(ValueError, match="1 finite scores"):
        count_matches(np.zeros((1, 3)), np.array([np.nan]), np.zeros((1, 3)), 5)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((0, 0, 0), None),
        ((0, 3, 0), 0.0),
        ((0, 0, 3), 0.0),
        ((0, 2, 3), 0.0),
        ((5, 0, 0), 1.0),
        ((3, 1, 2), 17 * 0.75 * 0.6 / (16 * 0.75 + 0.6)),
    ],
)
def test_f_beta(counts: tuple[int, int, int], expected: float | None) -> None:
    assert f_beta(*counts, 4) == (expected if expected is None else pytest.approx(expected))


def test_best_threshold_without_anything_to_go_by() -> None:
    nothing = precision_recall([])
    assert best_threshold(nothing, 4) == (0.5, None)
    assert best_threshold(nothing, 4, default=0.3) == (0.3, None)
    missed = count_matches(np.zeros((0, 3)), np.zeros(0), np.zeros((2, 3)), 5)
    assert best_threshold(precision_recall([missed]), 4) == (0.5, 0.0)
    false = count_matches(np.zeros((2, 3)), np.ones(2), np.zeros((0, 3)), 5)
    assert best_threshold(precision_recall([false]), 4) == (0.5, 0.0)
