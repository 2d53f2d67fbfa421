"""What a network's output channels mean: how they are trained, read and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.classes import TargetClass
from tomoscout.config import Localize, Train
from tomoscout.errors import TomoscoutError
from tomoscout.losses import WeightedCrossEntropy
from tomoscout.matching import best_threshold, count_matches, precision_recall
from tomoscout.peaks import LOWEST_SCORE, locate_picks
from tomoscout.project import Picks
from tomoscout.trainer import Validation


@dataclass(frozen=True)
class Reference:
    """The truth of one validation run: picks by object, and the label volume (z, y, x) for continuous classes."""

    picks: Mapping[str, Picks]
    labels: NDArray[np.integer] | None


class PickingHead:
    """Semantic segmentation for picking: channel 0 is background, channel c the class labelled c."""

    def __init__(
        self, classes: Sequence[TargetClass], voxel_spacing: float, localize: Localize, distance: float
    ) -> None:
        """`distance`: a prediction matches a reference pick within this many radii."""
        self.classes = tuple(classes)
        self.voxel_spacing = voxel_spacing
        self.localize = localize
        self.distance = distance

    @property
    def outputs(self) -> int:
        """Channels of the network."""
        return len(self.classes) + 1

    def loss(self, options: Train, ignore: int) -> torch.nn.Module:
        """The loss between logits and labels."""
        weights = torch.full((self.outputs,), float(options.foreground_weight))
        weights[0] = 1.0
        return WeightedCrossEntropy(weights, ignore)

    def measure(
        self, predictions: Sequence[NDArray[np.uint8]], references: Sequence[Reference], beta: float
    ) -> Validation:
        """Score predictions on validation runs: mean F-beta over the particle classes with references, each at its
        best threshold; with continuous classes alone, their mean voxel Dice.

        Raises:
            TomoscoutError: no class has anything to be scored by.
        """
        located = [
            locate_picks(probabilities, self.classes, self.voxel_spacing, self.localize)
            for probabilities in predictions
        ]
        scores: dict[str, float] = {}
        thresholds: dict[str, float] = {}
        chosen_by: list[str] = []
        for entry in self.classes:
            if entry.radius is None:
                score = self._dice(entry, predictions, references)
            else:
                reach = self.distance * entry.radius
                curve = precision_recall(
                    count_matches(
                        picks[entry.name].positions, picks[entry.name].scores, truth.picks[entry.name].positions, reach
                    )
                    for picks, truth in zip(located, references, strict=True)
                )
                threshold, score = best_threshold(curve, beta)
                thresholds[entry.name] = max(threshold, LOWEST_SCORE) if curve.references else 0.5
                score = score if curve.references else None
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
