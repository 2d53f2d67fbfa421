"""Matching of predicted with reference positions: true and false positives, precision-recall curve, F-beta.

Two ways of counting. One-to-one: each prediction and each reference is matched at most once. Challenge: as in the
scorer of the CZII CryoET Object Identification challenge, a prediction matches every reference within its reach.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Counting = Literal["one-to-one", "challenge"]


@dataclass(frozen=True)
class Matches:
    """The predictions of one object in one run, compared with its references; N predictions, M references.

    scores (N,): the predictions' scores.
    gains (N,): how many references are found by adding this prediction to those with higher scores (one-to-one: 0 or
    1).
    partners (N,): index of the reference paired with each prediction, -1 for none.
    found (M,): which references are found.
    """

    scores: NDArray[np.float64]
    gains: NDArray[np.int64]
    partners: NDArray[np.int64]
    found: NDArray[np.bool_]

    @property
    def references(self) -> int:
        """Number of references, M."""
        return len(self.found)

    @property
    def true_positives(self) -> int:
        """Number of references found."""
        return int(self.gains.sum())

    @property
    def false_positives(self) -> int:
        """Number of predictions minus true positives. With challenge counting it can be negative."""
        return len(self.gains) - self.true_positives

    @property
    def false_negatives(self) -> int:
        """Number of references not found."""
        return self.references - self.true_positives


@dataclass(frozen=True)
class Curve:
    """Precision and recall at every threshold, pooled over runs; K distinct scores.

    thresholds (K,): the distinct scores, descending. A prediction is kept if its score ≥ the threshold.
    found (K,): true positives at each threshold.
    kept (K,): predictions at each threshold.
    references: total number of reference positions.
    """

    thresholds: NDArray[np.float64]
    found: NDArray[np.int64]
    kept: NDArray[np.int64]
    references: int

    @property
    def precision(self) -> NDArray[np.float64]:
        """Fraction of the kept predictions that are true positives, (K,)."""
        return self.found / self.kept

    @property
    def recall(self) -> NDArray[np.float64]:
        """Fraction of the references that are found, (K,). 0 if there are no references."""
        return self.found / max(self.references, 1)

    def f(self, beta: float) -> NDArray[np.float64]:
        """F-beta at each threshold, (K,). 0 where nothing is found."""
        precision, recall = self.precision, self.recall
        below = beta**2 * precision + recall
        above = (1 + beta**2) * (precision * recall)
        return np.divide(above, below, out=np.zeros_like(above), where=below > 0)

    @property
    def average_precision(self) -> float | None:
        """Average precision: the precision averaged over the steps of recall, without interpolation. None without
        references."""
        if self.references == 0:
            return None
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.precision))


def count_matches(
    predicted: NDArray[np.floating],
    scores: NDArray[np.floating],
    reference: NDArray[np.floating],
    distance: float,
    counting: Counting = "one-to-one",
) -> Matches:
    """Match predictions with references within `distance` of them (inclusive).

    Predictions are processed in descending order of score, equal scores in the order given. One-to-one, the result is a
    maximum bipartite matching at every threshold: the best-scored predictions down to any score have as many true
    positives as any pairing of them can have. Where there is a choice the nearer reference is taken.

    Args:
        predicted: (N, 3) in Å.
        scores: (N,), finite.
        reference: (M, 3) in Å.
        distance: in Å.
        counting: one-to-one or challenge; see the module.

    Raises:
        ValueError: `scores` are not N finite numbers.
    """
    values: NDArray[np.float64] = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(predicted),) or not np.isfinite(values).all():
        raise ValueError(f"expected {len(predicted)} finite scores, found an array of shape {values.shape}")
    neighbours = _within_reach(_points(predicted), _points(reference), distance)
    order = np.argsort(-values, kind="stable").tolist()
    pair = _pair_once if counting == "one-to-one" else _pair_freely
    return Matches(values, *pair(order, neighbours, len(reference)))


def _points(positions: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(positions, dtype=np.float64).reshape(-1, 3)


def _within_reach(
    predicted: NDArray[np.float64], reference: NDArray[np.float64], distance: float
) -> Sequence[list[int]]:
    """For each prediction the indices of the references within `distance`, nearest first."""
    if not len(predicted) or not len(reference):
        return [[]] * len(predicted)
    from scipy.spatial import KDTree

    # The same query of k-d trees as in the challenge's scorer, so that both agree exactly at the limit.
    reach: list[list[int]] = KDTree(predicted).query_ball_tree(KDTree(reference), r=distance)
    for position, near in zip(predicted, reach, strict=True):
        if len(near) > 1:
            near.sort()
            steps = np.sum((reference[near] - position) ** 2, axis=1)
            near[:] = np.asarray(near)[np.argsort(steps, kind="stable")].tolist()
    return reach


def _pair_once(
    order: list[int], neighbours: Sequence[list[int]], references: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """A maximum bipartite matching, extended by one prediction at a time along augmenting paths (Berge 1957)."""
    partners = [-1] * len(order)
    owners = [-1] * references
    exhausted: set[int] = set()
    gains = np.zeros(len(order), dtype=np.int64)
    for prediction in order:
        gains[prediction] = _augment(prediction, neighbours, partners, owners, exhausted)
    return gains, np.array(partners, dtype=np.int64), np.array(owners, dtype=np.int64) >= 0


def _augment(
    start: int, neighbours: Sequence[list[int]], partners: list[int], owners: list[int], exhausted: set[int]
) -> bool:
    """Match `start` along a shortest augmenting path, found by breadth-first search; returns whether there is one.

    References reached by a search without a free reference are added to `exhausted`: no later search can find a free
    one from them.
    """
    reached_from: dict[int, int] = {}
    queue = deque([start])
    while queue:
        prediction = queue.popleft()
        for reference in neighbours[prediction]:
            if reference in reached_from or reference in exhausted:
                continue
            reached_from[reference] = prediction
            if owners[reference] < 0:
                while reference >= 0:
                    prediction = reached_from[reference]
                    owners[reference] = prediction
                    partners[prediction], reference = reference, partners[prediction]
                return True
            queue.append(owners[reference])
    exhausted.update(reached_from)
    return False


def _pair_freely(
    order: list[int], neighbours: Sequence[list[int]], references: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Every prediction is matched with all references within its reach that no earlier prediction has found."""
    found = np.zeros(references, dtype=bool)
    gains = np.zeros(len(order), dtype=np.int64)
    partners = np.full(len(order), -1, dtype=np.int64)
    for prediction in order:
        fresh = [reference for reference in neighbours[prediction] if not found[reference]]
        if fresh:
            found[fresh] = True
            gains[prediction] = len(fresh)
            partners[prediction] = fresh[0]
    return gains, partners, found


def f_beta(true_positives: int, false_positives: int, false_negatives: int, beta: float) -> float | None:
    """F-beta = (1 + β²) P R / (β² P + R); recall counts β times as much as precision (van Rijsbergen 1979).

    0 if there are no true positives. None if there are neither references nor predictions: such scores are undefined
    and left out of means.
    """
    predictions = true_positives + false_positives
    references = true_positives + false_negatives
    if predictions == 0 and references == 0:
        return None
    if true_positives == 0:
        return 0.0
    precision, recall = true_positives / predictions, true_positives / references
    return (1 + beta**2) * (precision * recall) / (beta**2 * precision + recall)


def precision_recall(matches: Iterable[Matches]) -> Curve:
    """Pool the matches of several runs into one precision-recall curve. Equal scores are kept or dropped together."""
    runs = list(matches)
    scores = np.concatenate([np.zeros(0), *(run.scores for run in runs)])
    gains = np.concatenate([np.zeros(0, dtype=np.int64), *(run.gains for run in runs)])
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], np.cumsum(gains[order])
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    return Curve(scores[last], found[last], last + 1, sum(run.references for run in runs))


def best_threshold(curve: Curve, beta: float, default: float = 0.5) -> tuple[float, float | None]:
    """The threshold with the best F-beta, and that F-beta.

    It lies midway between the last score kept and the first one dropped, so that a small change of the scores has no
    effect; if all are kept it is the lowest score. Of equally good thresholds the highest is taken. If no threshold
    finds a reference: `default`, with an F-beta of 0, or None if there are neither references nor predictions.
    """
    if not curve.found.any():
        return default, None if curve.references == 0 and not len(curve.kept) else 0.0
    f = curve.f(beta)
    best = int(np.argmax(f))
    return float(np.mean(curve.thresholds[best : best + 2])), float(f[best])
