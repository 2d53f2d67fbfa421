"""Scores of segmentations, voxel by voxel, against a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.tasks.picking.extraction.surfaces import box_of
from tomoscout.tasks.picking.intervals import intervals

Mask = NDArray[np.bool_]
VOXEL_SCORES = ("dice", "iou", "surface_distance")
"""What is computed of a class; the last in Å."""


@dataclass(frozen=True)
class Overlap:
    """What scores need of a class in one run, or in several together: numbers of voxels of the segmentation, of the
    reference and of both; `apart`, the sum in Å of the distances of the voxels on each surface to the other one, and
    `surface`, how many there are. Both are 0 where the segmentation or the reference is empty."""

    voxels: float
    reference: float
    both: float
    apart: float
    surface: float


def overlap(found: Mask, reference: Mask, voxel_spacing: float) -> Overlap:
    """Compare two masks (z, y, x); `voxel_spacing` in Å.

    Raises:
        ValueError: their shapes differ.
    """
    if found.shape != reference.shape:
        raise ValueError(f"shapes {found.shape} and {reference.shape} differ")
    box = box_of(found | reference, margin=1)
    if box is None:
        return Overlap(0, 0, 0, 0, 0)
    ours, theirs = found[box], reference[box]
    apart, surface = _apart(ours, theirs) if ours.any() and theirs.any() else (0.0, 0)
    both = int((ours & theirs).sum())
    return Overlap(int(ours.sum()), int(theirs.sum()), both, apart * voxel_spacing, surface)


def _apart(ours: Mask, theirs: Mask) -> tuple[float, int]:
    """The sum of the distances in voxels between two surfaces, both ways, and the number of voxels on them."""
    from scipy.ndimage import binary_erosion, distance_transform_edt

    surfaces = [mask & ~binary_erosion(mask, border_value=1) for mask in (ours, theirs)]
    # A mask that fills the volume has no surface in it.
    surfaces = [surface if surface.any() else mask for surface, mask in zip(surfaces, (ours, theirs), strict=True)]
    total = 0.0
    for surface, other in (surfaces, surfaces[::-1]):
        total += float(distance_transform_edt(~other)[surface].sum())
    return total, int(sum(surface.sum() for surface in surfaces))


def voxel_scores(runs: Mapping[str, Overlap], resamples: int) -> dict[str, Any]:
    """Dice, IoU and average symmetric surface distance (Å) of a class, from the sums over runs (`project/run`), with
    intervals of the bootstrap over runs; None where one is not defined. `runs`: the same of each run."""
    counts = np.array([astuple(entry) for entry in runs.values()], dtype=np.float64).reshape(-1, 5)
    ends = intervals(counts, _scores, resamples)
    return {
        **_described(counts.sum(axis=0)),
        "intervals": dict(zip(VOXEL_SCORES, ends, strict=True)),
        "runs": [{"run": run, **_described(row)} for run, row in zip(runs, counts, strict=True)],
    }


def _described(counts: NDArray[np.float64]) -> dict[str, Any]:
    values = [float(value) if np.isfinite(value) else None for value in _scores(counts[None])[0]]
    return {
        "voxels": int(counts[0]),
        "reference": int(counts[1]),
        **dict(zip(VOXEL_SCORES, values, strict=True)),
    }


def _scores(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums (N, 5) in the order of `Overlap` → Dice, IoU and surface distance (N, 3), NaN where not defined."""
    voxels, reference, both, apart, surface = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([2 * both / (voxels + reference), both / (voxels + reference - both), apart / surface], axis=1)
