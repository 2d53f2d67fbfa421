"""Validation: the network predicts whole volumes, and the task scores the predictions. Also the interval of
validations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tomoscout.learning.options import Training
from tomoscout.learning.prediction import Inference, predict
from tomoscout.learning.progression import Validation
from tomoscout.learning.step_memory import Shape
from tomoscout.learning.task import Task
from tomoscout.learning.tiles import InputSizes
from tomoscout.models.base import Base
from tomoscout.networks import build_network
from tomoscout.networks.options import NetworkOptions

OVERLAP = 0.15
"""Overlap of neighbouring tiles. It is not that of `segment`, so that a change of that option does not repeat the
training."""

LEAST_INTERVAL = 500
VALIDATION_SHARE = 1 / 7
"""Largest fraction of the network's work that validation takes at the default interval; decoding takes additional
time."""


def default_interval(options: Training, task: Task) -> int:
    """Steps between validations such that they take no more than `VALIDATION_SHARE` of the network's work. Per voxel, a
    step costs about three times as much as a prediction: the backward pass costs two forward passes."""
    sizes = InputSizes.of([options.network], options.DIMENSIONS)
    predicted = 0
    for shape in task.validation_shapes:
        tiles = sizes.tiles(shape, task.tile, OVERLAP)
        predicted += math.prod(len(starts) * length for starts, length in tiles)
    trained = 3 * options.batch_size * math.prod(options.crop)
    least = predicted * (1 - VALIDATION_SHARE) / VALIDATION_SHARE / trained
    # Round numbers are easier to find in tables and logs.
    return max(LEAST_INTERVAL, math.ceil(least / 100) * 100)


class Validator:
    """Predicts the validation volumes and lets the task score the predictions."""

    def __init__(
        self,
        task: Task,
        network: NetworkOptions,
        dimensions: int,
        tile: Shape,
        device: torch.device,
        precision: torch.dtype = torch.float32,
    ) -> None:
        """Read the validation volumes. `tile`: voxels that are predicted at once. `precision`: of the network.

        Raises:
            TomoscoutError: the volumes cannot be used to select the best weights.
        """
        self.task = task
        sizes = InputSizes.of([network], dimensions)
        self.inference = Inference(sizes, tile, OVERLAP, device, readout=task.readout, precision=precision)
        self.volumes = task.validation_volumes()

    def __call__(self, network: nn.Module) -> Validation:
        """Score a network."""
        return self.task.measure(self.predict(network))

    def predict(self, network: nn.Module) -> Iterator[NDArray[Any]]:
        """The prediction of every volume (channels, *space), one after the other, as the task reads it out."""
        for volume in self.volumes:
            yield predict(network, volume, self.inference)


def score_base(base: Base, validator: Validator) -> Callable[[nn.Module], Validation]:
    """The validation of the weights that a fine-tuning starts from. If the base has the same classes, or none of them,
    the weights are validated as they are; else the base is validated with its own head, by the classes that both
    have."""
    names = validator.task.class_names
    if base.knows(names) or not base.shared(names):
        return validator

    def score(_: nn.Module) -> Validation:
        network = build_network(base.network, base.outputs, inputs=base.inputs, dimensions=base.dimensions)
        network.load_state_dict(base.weights)
        found = []
        for theirs in validator.predict(network.to(validator.inference.device).eval()):
            ours = np.zeros((len(names), *theirs.shape[1:]), dtype=np.uint8)
            for channel, base_channel in base.channels(names):
                ours[channel - 1] = theirs[base_channel - 1]
            found.append(ours)
        result = validator.task.measure(found)
        scores = base.shared_scores(result.scores, names)
        return replace(result, score=float(np.mean(list(scores.values()))) if scores else 0.0, scores=scores)

    return score
