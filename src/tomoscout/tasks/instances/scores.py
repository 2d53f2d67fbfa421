"""Scores of instances against annotated ones.

Two objects match where their intersection over union (IoU) is above a threshold of at least 0.5: then neither can match
another. AP is TP / (TP + FP + FN), as StarDist and Cellpose report it; PQ the panoptic quality (Kirillov et al., CVPR
2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from tomoscout.tasks.instances.prepare import renumbered

IOU = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""The thresholds of scores."""

COVERED = 0.5
"""An object lies in another where this share of its voxels does: for merges and splits."""


@dataclass(frozen=True)
class Overlaps:
    """What matching needs of one image.

    `matched` (annotated,), `hit` (found,): the largest IoU of each object with one of the other image, in the order of
    their numbers. `merges`: found objects that cover more than one annotated one. `splits`: annotated objects that
    cover more than one found one.
    """

    matched: NDArray[np.float64]
    hit: NDArray[np.float64]
    merges: int
    splits: int

    @property
    def annotated(self) -> int:
        """How many objects are annotated."""
        return len(self.matched)

    @property
    def found(self) -> int:
        """How many objects were found."""
        return len(self.hit)


def overlaps(found: NDArray[np.integer], annotated: NDArray[np.integer], ignore: int | None = None) -> Overlaps:
    """Compare two label images (*space), 0 background. Voxels annotated as `ignore` count in neither.

    Raises:
        ValueError: their shapes differ.
    """
    if found.shape != annotated.shape:
        raise ValueError(f"shapes {found.shape} and {annotated.shape} differ")
    ours, theirs = found.ravel(), annotated.ravel()
    if ignore is not None:
        ours, theirs = ours[theirs != ignore], theirs[theirs != ignore]
    ours, theirs = renumbered(ours), renumbered(theirs)
    sizes_ours, sizes_theirs = np.bincount(ours)[1:], np.bincount(theirs)[1:]
    both = (ours > 0) & (theirs > 0)
    row, column = theirs[both] - 1, ours[both] - 1
    # Of thousands of objects nearly all pairs are apart.
    voxels = coo_array((np.ones(len(row)), (row, column)), (len(sizes_theirs), len(sizes_ours)))
    pairs = voxels.tocsr().tocoo()
    row, column, shared = pairs.row, pairs.col, pairs.data
    shares = shared / (sizes_theirs[row] + sizes_ours[column] - shared)
    matched, hit = np.zeros(len(sizes_theirs)), np.zeros(len(sizes_ours))
    np.maximum.at(matched, row, shares)
    np.maximum.at(hit, column, shares)
    merges = np.bincount(column[shared > COVERED * sizes_theirs[row]]) > 1
    splits = np.bincount(row[shared > COVERED * sizes_ours[column]]) > 1
    return Overlaps(matched, hit, int(merges.sum()), int(splits.sum()))


@dataclass(frozen=True)
class Score:
    """Scores of several images together, at one IoU."""

    iou: float
    matched: int
    found: int
    annotated: int
    quality: float

    @property
    def precision(self) -> float:
        """Share of the found objects that match an annotated one."""
        return self.matched / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Share of the annotated objects that are matched."""
        return self.matched / self.annotated if self.annotated else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.matched / max(1, self.found + self.annotated)

    @property
    def ap(self) -> float:
        """TP / (TP + FP + FN)."""
        return self.matched / max(1, self.found + self.annotated - self.matched)

    @property
    def pq(self) -> float:
        """Panoptic quality: the mean IoU of matches × F1."""
        return self.quality * self.f1


def score(images: Sequence[Overlaps], iou: float) -> Score:
    """Score images together: each object counts once, wherever it lies."""
    assert iou >= 0.5, "below, a match need not be unique"
    best = np.concatenate([image.matched for image in images]) if images else np.empty(0)
    matches = best[best > iou]
    found, annotated = sum(image.found for image in images), sum(image.annotated for image in images)
    return Score(iou, len(matches), found, annotated, float(matches.mean()) if len(matches) else 0.0)


def mean_ap(images: Sequence[Overlaps]) -> float:
    """The mean of AP over all thresholds: the score that selects weights."""
    return float(np.mean([score(images, iou).ap for iou in IOU]))


def intervals(images: Sequence[Overlaps], draws: int = 1000) -> dict[float, tuple[float, float]]:
    """95 % intervals of AP at each IoU: percentiles of the bootstrap over images (Efron, Annals of Statistics 1979)."""
    counts = np.array([[image.found + image.annotated, *_matches(image)] for image in images], float)
    drawn = np.random.default_rng(0).integers(0, max(1, len(images)), (draws, len(images)))
    totals = counts[drawn].sum(1) if len(images) else np.zeros((draws, 1 + len(IOU)))
    ap = totals[:, 1:] / np.maximum(totals[:, :1] - totals[:, 1:], 1)
    low, high = np.percentile(ap, [2.5, 97.5], axis=0).round(4).tolist()
    return {iou: (low[number], high[number]) for number, iou in enumerate(IOU)}


def _matches(image: Overlaps) -> list[int]:
    return [int((image.matched > iou).sum()) for iou in IOU]
