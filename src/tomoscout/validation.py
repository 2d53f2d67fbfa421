"""Validation on whole tomograms while a training runs: how often, on what, and what it says of the weights."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tomoscout.classes import TargetClass
from tomoscout.errors import TomoscoutError
from tomoscout.finetune import Base
from tomoscout.heads import DEFAULT_THRESHOLD, PickingHead
from tomoscout.inference import InputSizes, predict, tile_starts
from tomoscout.networks import build_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.trainer import Validation
from tomoscout.training_data import Shape, TrainingData
from tomoscout.training_options import Train

# Not those of `segment`: trying another tile there must not train again.
VALIDATION_TILE = (160, 160, 160)
VALIDATION_OVERLAP = 0.25

LEAST_INTERVAL = 500
VALIDATION_SHARE = 1 / 7
"""Largest share of the network's work that validation takes at the default interval; picking comes on top."""


def default_interval(options: Train, shapes: Sequence[Shape]) -> int:
    """Steps between validations such that they take no more than `VALIDATION_SHARE` of the network's work: a step
    costs about three times as much for a voxel as a prediction, forward once and backward twice."""
    step, smallest = options.network.size_step(), options.network.smallest_size()
    predicted = 0
    for shape in shapes:
        tiles = [
            tile_starts(max(n, least), max(tile, least), VALIDATION_OVERLAP, multiple)
            for n, tile, multiple, least in zip(shape, VALIDATION_TILE, step, smallest, strict=True)
        ]
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
        classes, options, references = self.head.classes, self.head.options, self.references
        on_particles = options.best_metric_on == "particles"

        def is_there(entry: TargetClass) -> bool:
            if entry.is_particle and on_particles:
                return any(len(reference.picks[entry.name]) for reference in references)
            return any(np.any(reference.labels == entry.label) for reference in references)

        absent = [entry for entry in classes if not is_there(entry)]
        if options.best_class is not None:
            choosing = [entry for entry in classes if entry.label == options.best_class]
        else:
            choosing = [entry for entry in classes if entry.is_particle and on_particles] or list(classes)
        where = f"the validation runs ({', '.join(runs)})"
        if all(entry in absent for entry in choosing):
            names = ", ".join(entry.name for entry in choosing)
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
        shared = {entry.name for entry in base.shared(classes)}
        scores = {name: value for name, value in result.scores.items() if name in shared}
        return Validation(float(np.mean(list(scores.values()))) if scores else 0.0, scores, result.details)

    return score
