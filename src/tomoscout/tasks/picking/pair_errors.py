"""How far predictions lie from the references with which they are paired, and how they are turned against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.picks import Picks
from tomoscout.tasks.picking.matching import Matches

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PairErrors:
    """Of K pairs: `distances` (K,) in Å; `angles` (K,) of the rotation between their orientations and `tilts` (K,)
    between their z axes, in degrees, without elements where the predictions or the references have no orientation."""

    distances: Array
    angles: Array
    tilts: Array


def pair_errors(predicted: Picks, reference: Picks, matches: Matches) -> PairErrors:
    """The errors of the pairs among the picks of one object in one run."""
    paired = np.flatnonzero(matches.partners >= 0)
    found, truth = predicted[paired], reference[matches.partners[paired]]
    distances = np.linalg.norm(found.positions - truth.positions, axis=1)
    if not _are_turned(predicted) or not _are_turned(reference):
        return PairErrors(distances, np.zeros(0), np.zeros(0))
    traces = np.einsum("nij,nij->n", found.rotations, truth.rotations)
    cosines = np.einsum("ni,ni->n", found.rotations[:, :, 2], truth.rotations[:, :, 2])
    return PairErrors(distances, _degrees((traces - 1) / 2), _degrees(cosines))


def _are_turned(picks: Picks) -> bool:
    """Whether picks have orientations: in copick those without have the identity, all of them."""
    return bool((picks.rotations != np.eye(3)).any())


def _degrees(cosines: Array) -> Array:
    angles: Array = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    return angles


def median(parts: Sequence[Array]) -> float | None:
    """The median of all parts together; None if there is nothing."""
    together = np.concatenate([np.zeros(0), *parts])
    return float(np.median(together)) if len(together) else None
