"""What a network's output channels mean: how they are trained, read and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.classes import TargetClass
from tomoscout.config import Picking, Train
from tomoscout.errors import TomoscoutError
from tomoscout.losses import WeightedCrossEntropy
from tomoscout.matching import Curve, count_matches, precision_recall
from tomoscout.peaks import LOWEST_SCORE, locate_picks
from tomoscout.project import Picks
from tomoscout.trainer import Validation

DEFAULT_THRESHOLD = 0.5
"""For a class that validation says nothing about."""


def robust_threshold(curve: Curve, beta: float) -> tuple[float, float | None]:
    """A threshold that does well on the runs of the curve and should on others, and its F-beta on the curve.

    With a dozen references the best threshold lies just below the weakest of them, where the next tomogram's
    weakest is lost. So F-beta is first averaged over neighbouring thresholds, with Gaussian weights of width 0.05.
    Where there are no references: the default, and None. Where none is found: the default, and 0.
    """
    if not curve.found.any():
        return DEFAULT_THRESHOLD, 0.0 if curve.references else None
    grid = np.linspace(LOWEST_SCORE, 0.95, 91)
    kept = np.searchsorted(-curve.thresholds, -grid, side="right")
    values = np.concatenate([[0.0], curve.f(beta)])[kept]
    offsets = np.arange(-15, 16)
    weights = np.exp(-0.5 * (offsets / 5) ** 2)
    averaged = np.convolve(np.pad(values, 15, mode="edge"), weights / weights.sum(), mode="valid")
    best = int(np.argmax(averaged))
    return round(float(grid[best]), 3), float(values[best])


@dataclass(frozen=True)
class Reference:
    """The truth of one validation run: picks by object, and the label volume (z, y, x) for continuous classes."""

    picks: Mapping[str, Picks]
    labels: NDArray[np.integer] | None


class PickingHead:
    """Semantic segmentation for picking: channel 0 is background, channel c the class labelled c."""

    def __init__(self, classes: Sequence[TargetClass], voxel_spacing: float, picking: Picking) -> None:
        self.classes = tuple(classes)
        self.voxel_spacing = voxel_spacing
        self.picking = picking

    @property
    def outputs(self) -> int:
        """Channels of the network."""
        return len(self.classes) + 1

    def loss(self, options: Train, ignore: int) -> torch.nn.Module:
        """The loss between logits and labels.

        A small sphere has few voxels, so each of them counts more: by the ratio of the largest target radius to its
        own, to the power of `size_balance`.
        """
        radii = [entry.target_radius for entry in self.classes]
        largest = max((radius for radius in radii if radius), default=1.0)
        weights = [
            options.foreground_weight * (largest / (radius or largest)) ** options.size_balance for radius in radii
        ]
        return WeightedCrossEntropy(torch.tensor([1.0, *weights]), ignore)

    def measure(
        self, predictions: Sequence[NDArray[np.uint8]], references: Sequence[Reference], beta: float
    ) -> Validation:
        """Score predictions on validation runs: mean F-beta over the particle classes with references, each at its
        best threshold; with continuous classes alone, their mean voxel Dice.

        Raises:
            TomoscoutError: no class has anything to be scored by.
        """
        located = [
            locate_picks(probabilities, self.classes, self.voxel_spacing, self.picking) for probabilities in predictions
        ]
        scores: dict[str, float] = {}
        thresholds: dict[str, float] = {}
        chosen_by: list[str] = []
        for entry in self.classes:
            if entry.radius is None:
                score = self._dice(entry, predictions, references)
            else:
                reach = self.picking.distance * entry.radius
                curve = precision_recall(
                    count_matches(
                        picks[entry.name].positions, picks[entry.name].scores, truth.picks[entry.name].positions, reach
                    )
                    for picks, truth in zip(located, references, strict=True)
                )
                thresholds[entry.name], score = robust_threshold(curve, beta)
            if score is not None:
                scores[entry.name] = score
                if entry.is_particle or not any(other.is_particle for other in self.classes):
                    chosen_by.append(entry.name)
        if not chosen_by:
            raise TomoscoutError("validation: no run has a reference of any class; choose other validation runs")
        details: dict[str, Any] = {"scores": scores, "thresholds": thresholds}
        return Validation(float(np.mean([scores[name] for name in chosen_by])), scores, details)

    @staticmethod
    def _dice(
        entry: TargetClass, predictions: Sequence[NDArray[np.uint8]], references: Sequence[Reference]
    ) -> float | None:
        """2 |A ∩ B| / (|A| + |B|) over all voxels of all runs (Dice 1945)."""
        both = either = true = 0
        for probabilities, reference in zip(predictions, references, strict=True):
            if reference.labels is not None:
                predicted, truth = probabilities[entry.label - 1] >= 128, reference.labels == entry.label
                both += int(np.count_nonzero(predicted & truth))
                true += int(np.count_nonzero(truth))
                either += int(np.count_nonzero(predicted)) + int(np.count_nonzero(truth))
        return 2 * both / either if true else None
