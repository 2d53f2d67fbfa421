"""Validation on whole tomograms while a training runs: how often, on what, and what it says of the weights."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tomoscout.learning.progression import Validation
from tomoscout.learning.tiles import InputSizes, predict
from tomoscout.machine.errors import TomoscoutError
from tomoscout.models.base import Base
from tomoscout.networks import build_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking.data import Shape, TrainingData
from tomoscout.tasks.picking.head import DEFAULT_THRESHOLD, PickingHead
from tomoscout.tasks.picking.options import Train

# Not those of `segment`: trying another tile there must not train again.
VALIDATION_TILE = (160, 160, 160)
VALIDATION_OVERLAP = 0.25

LEAST_INTERVAL = 500
VALIDATION_SHARE = 1 / 7
"""Largest share of the network's work that validation takes at the default interval; picking comes on top."""


def default_interval(options: Train, shapes: Sequence[Shape]) -> int:
    """Steps between validations such that they take no more than `VALIDATION_SHARE` of the network's work: a step
    costs about three times as much for a voxel as a prediction, forward once and backward twice."""
    sizes = InputSizes.of([options.network])
    predicted = 0
    for shape in shapes:
        tiles = sizes.tiles(shape, VALIDATION_TILE, VALIDATION_OVERLAP)
        predicted += math.prod(len(starts) * length for starts, length in tiles)
    trained = 3 * options.batch_size * math.prod(options.crop)
    least = predicted * (1 - VALIDATION_SHARE) / VALIDATION_SHARE / trained
    # Round numbers are easier to find in tables and logs.
    return max(LEAST_INTERVAL, math.ceil(least / 100) * 100)


class Validator:
    """Predicts the validation tomograms and scores what is found."""

    def __init__(
        self,
        head: PickingHead,
        data: TrainingData,
        network: NetworkOptions,
        tile: Sequence[int],
        device: torch.device,
    ) -> None:
        self.head = head
        self.sizes = InputSizes.of([network])
        self.tile = tile
        self.device = device
        pairs = data.validation_volumes(head.needs_labels)
        self.volumes = [volume for volume, _ in pairs]
        self.references = [reference for _, reference in pairs]

    def __call__(self, network: nn.Module) -> Validation:
        """Score a network."""
        return self.head.measure(self.predict(network, self.head.outputs), self.references)

    def predict(self, network: nn.Module, outputs: int) -> list[NDArray[np.uint8]]:
        """Probabilities of every tomogram (class, z, y, x)."""
        return [
            predict(
                network,
                volume,
                outputs=outputs,
                sizes=self.sizes,
                tile=self.tile,
                overlap=VALIDATION_OVERLAP,
                flips=1,
                device=self.device,
            )
            for volume in self.volumes
        ]

    def check_references(self, runs: Sequence[str]) -> None:
        """Say before hours are spent that the validation runs (keys) cannot tell how well a class is found.

        Raises:
            TomoscoutError: they hold nothing of what chooses the best weights.
        """
        classes, references = self.head.classes, self.references

        def is_there(entry: TargetClass) -> bool:
            counted = [reference for reference in references if entry.name not in reference.ignored]
            if self.head.counts_picks(entry):
                return any(len(reference.picks[entry.name]) for reference in counted)
            return any(np.any(reference.labels == entry.label) for reference in counted)

        absent = [entry for entry in classes if not is_there(entry)]
        deciding = self.head.deciding
        where = f"the validation runs ({', '.join(runs)})"
        if all(entry in absent for entry in deciding):
            names = ", ".join(entry.name for entry in deciding)
            raise TomoscoutError(f"split: {where} hold no {names}; choose others under split.validate")
        if absent:
            default = f", threshold {DEFAULT_THRESHOLD}" if any(entry.is_particle for entry in absent) else ""
            names = ", ".join(entry.name for entry in absent)
            print(f"warning: {where} hold no {names}: no part in choosing the model{default}", file=sys.stderr)


def score_base(base: Base, validator: Validator, device: torch.device) -> Callable[[nn.Module], Validation]:
    """How the weights that a fine-tuning starts from are scored: as they are if their classes are the same, else the
    base with its own head by the classes that both find."""
    classes = validator.head.classes
    if base.knows(classes) or not base.shared(classes):
        return validator

    def score(_: nn.Module) -> Validation:
        network = build_network(base.network, base.outputs)
        network.load_state_dict(base.weights)
        found = []
        for theirs in validator.predict(network.to(device).eval(), base.outputs):
            ours = np.zeros((len(classes), *theirs.shape[1:]), dtype=np.uint8)
            for entry in base.shared(classes):
                ours[entry.label - 1] = theirs[base.labels[entry.name] - 1]
            found.append(ours)
        result = validator.head.measure(found, validator.references)
        scores = base.shared_scores(result.scores, classes)
        return Validation(float(np.mean(list(scores.values()))) if scores else 0.0, scores, result.details)

    return score
