"""Predicted positions matched to reference positions: true and false positives, precision-recall curve, F-beta.

Two ways of counting. One-to-one: a prediction and a reference are used once. Challenge: as the scorer of the
CZII CryoET Object Identification challenge counts, where a prediction finds every reference within its reach.
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
    gains (N,): references found by adding this prediction to all those that score higher (0 or 1 one-to-one).
    partners (N,): index of the reference paired with each prediction, -1 for none.
    found (M,): which references are found.
    """

    scores: NDArray[np.float64]
    gains: NDArray[np.int64]
    partners: NDArray[np.int64]
    found: NDArray[np.bool_]

    @property
    def references(self) -> int:
        """M."""
        return len(self.found)

    @property
    def true_positives(self) -> int:
        """References found."""
        return int(self.gains.sum())

    @property
    def false_positives(self) -> int:
        """Predictions less true positives. In the challenge's counting it can fall below 0."""
        return len(self.gains) - self.true_positives

    @property
    def false_negatives(self) -> int:
        """References not found."""
        return self.references - self.true_positives


@dataclass(frozen=True)
class Curve:
    """Precision and recall at every threshold, pooled over runs; K distinct scores.

    thresholds (K,): the distinct scores, descending. A prediction is kept if its score ≥ the threshold.
    found (K,): true positives at each threshold.
    kept (K,): predictions at each threshold.
    references: reference positions in all.
    """

    thresholds: NDArray[np.float64]
    found: NDArray[np.int64]
    kept: NDArray[np.int64]
    references: int

    @property
    def precision(self) -> NDArray[np.float64]:
        """Fraction of the kept predictions that is right, (K,)."""
        return self.found / self.kept

    @property
    def recall(self) -> NDArray[np.float64]:
        """Fraction of the references that is found, (K,). 0 where there are no references."""
        return self.found / max(self.references, 1)

    def f(self, beta: float) -> NDArray[np.float64]:
        """F-beta at each threshold, (K,). 0 where nothing is found."""
        precision, recall = self.precision, self.recall
        below = beta**2 * precision + recall
        above = (1 + beta**2) * (precision * recall)
        return np.divide(above, below, out=np.zeros_like(above), where=below > 0)

    @property
    def average_precision(self) -> float | None:
        """Precision averaged over the steps of recall, without interpolation. None without references."""
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
    """Compare predictions with references that lie within `distance` of them (the limit itself counts).

    Predictions are taken in descending score, equal scores in the order given. One-to-one, the number of true
    positives among the best-scored predictions is the largest any pairing of just those could reach,
    whichever score one stops at; where there is a choice the nearer reference is taken.

    Args:
        predicted: (N, 3) in Å.
        scores: (N,), finite.
        reference: (M, 3) in Å.
        distance: in Å.
        counting: how to count, see the module.

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
    """For each prediction the references within `distance`, nearest first."""
    if not len(predicted) or not len(reference):
        return [[]] * len(predicted)
    from scipy.spatial import KDTree

    # The challenge's scorer asks the same of the same trees, so both agree on the limit to the last bit.
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
    """A maximum matching grown one prediction at a time along augmenting paths (Berge 1957)."""
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
    """Give `start` a reference, moving as few other predictions as possible to another one each.

    References from which a search found no free one join `exhausted`: no later search can find one either.
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
    """Every prediction finds all references in its reach that none before it has found."""
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

    0 where nothing is found. None where there is nothing to find and nothing predicted: such a score says
    nothing and is left out of means.
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
    """Pool the matches of several runs into one curve. Equal scores are kept or dropped together."""
    runs = list(matches)
    scores = np.concatenate([np.zeros(0), *(run.scores for run in runs)])
    gains = np.concatenate([np.zeros(0, dtype=np.int64), *(run.gains for run in runs)])
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], np.cumsum(gains[order])
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])
    return Curve(scores[last], found[last], last + 1, sum(run.references for run in runs))


def best_threshold(curve: Curve, beta: float, default: float = 0.5) -> tuple[float, float | None]:
    """The threshold with the best F-beta, and that F-beta.

    It lies midway between the last score kept and the first one dropped, so that a small change of the scores
    changes nothing; where all are kept it is the lowest score, as nothing is known of what would come below.
    Of equally good thresholds the highest is taken. Where no threshold finds anything: `default`, with an
    F-beta of 0, or None if there is nothing to find and nothing predicted.
    """
    if not curve.found.any():
        return default, None if curve.references == 0 and not len(curve.kept) else 0.0
    f = curve.f(beta)
    best = int(np.argmax(f))
    return float(np.mean(curve.thresholds[best : best + 2])), float(f[best])
