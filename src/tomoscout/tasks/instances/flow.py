"""The flow head: each voxel of an object tells where the middle of its object lies; voxels that end in one place when
they follow this field are one object. As in Cellpose (Stringer et al., Nature Methods 2021), with the direction of the
shortest path in place of that of heat. For objects of any shape."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from tomoscout.tasks.instances.flow_field import flow_field
from tomoscout.tasks.instances.heads import Decoder, Head, full_resolution, inside_loss

SCALE = 5.0
"""The network learns the field times this, so that it weighs as much as the probability (as in Cellpose)."""


class FlowHead(Head):
    """Probability that a voxel belongs to an object, and the unit vector towards the middle of the object."""

    thresholds = {"probability": (0.5, 0.3, 0.4, 0.6, 0.7), "agreement": (0.0, 0.5, 0.7, 0.8)}

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.names = tuple(f"flow {axis}" for axis in "zyx"[-dimensions:])

    def targets(self, labels: torch.Tensor, ignore: int) -> tuple[torch.Tensor, ...]:
        """Whether there is an object (batch, *space), −1 where that is not known, and the field (batch, dimensions,
        *space)."""
        known = labels != ignore
        objects = torch.where(known, labels, 0)
        inside = torch.where(known, (objects > 0).float(), -1.0)
        return inside, flow_field(objects)

    def loss(self, shape_weight: float = 1.0, *, dice: bool = False) -> nn.Module:
        """Cross-entropy of the probability and squared error of the field."""
        return _FlowLoss(shape_weight, dice)

    def activated(self, logits: torch.Tensor) -> torch.Tensor:
        """Probability, and the field."""
        return torch.cat([torch.sigmoid(logits[:1]), logits[1:] / SCALE])

    def decoder(self, prediction: NDArray[np.floating], shape: tuple[int, ...], least: float | None = None) -> Decoder:
        """Voxels above the threshold `probability`, joined where they flow to. Objects in which the predicted field
        agrees less than `agreement` (cosine) with the field of their own shape are left out."""
        lowest = min(self.thresholds["probability"]) if least is None else least
        inside = prediction[0] > lowest
        probability = prediction[0][inside]
        ends = follow(prediction[1:], inside, self.device)

        @cache
        def joined(least: float) -> NDArray[np.int32]:
            chosen = probability > least
            found = np.zeros(len(ends), np.int32)
            found[chosen] = _gathered(ends[chosen], inside.shape)
            labels = np.zeros(inside.shape, np.int32)
            labels[inside] = found
            return labels

        @cache
        def agreements(least: float) -> NDArray[np.floating]:
            return _agreements(joined(least), prediction[1:], self.device)

        def decode(thresholds: Mapping[str, float]) -> NDArray[np.int32]:
            assert thresholds["probability"] >= lowest
            labels = joined(thresholds["probability"])
            if thresholds["agreement"]:
                agree = agreements(thresholds["probability"]) >= thresholds["agreement"]
                labels = np.where(agree, np.arange(len(agree), dtype=np.int32), 0)[labels]
            return _whole(labels)

        return decode


@torch.inference_mode()
def follow(
    field: NDArray[np.floating], inside: NDArray[np.bool_], device: torch.device, steps: int = 400
) -> NDArray[np.float32]:
    """Where the voxels `inside` end (voxels, dimensions) that follow a field (dimensions, *space), a step of the
    field's own length at a time, until hardly any of them gets on."""
    vectors = torch.from_numpy(field.astype(np.float32) * inside)[None].to(device)
    places = torch.from_numpy(np.argwhere(inside).astype(np.float32)).to(device)
    far = torch.tensor([size - 1 for size in inside.shape], dtype=torch.float32, device=device)
    form = (1, *[1] * (inside.ndim - 1), -1, inside.ndim)
    before = places
    for step in range(1, steps + 1):
        # grid_sample takes x first.
        grid = (places / far.clamp_min(1) * 2 - 1).flip(1).view(form)
        moves = nn.functional.grid_sample(vectors, grid, align_corners=True).view(inside.ndim, -1).T
        places = torch.minimum((places + moves).clamp_min(0), far)
        if step % 10 == 0:
            if ((places - before).norm(dim=1) > 1).float().mean() < 0.001:
                break
            before = places
    return places.cpu().numpy()


def _gathered(ends: NDArray[np.float32], space: tuple[int, ...], reach: int = 2) -> NDArray[np.int32]:
    """Number of the object of each end (voxels,), 0 for none: ends nearest to one peak of their density."""
    cells = np.rint(ends).astype(np.int64)
    density = np.zeros(space, np.float32)
    np.add.at(density, tuple(cells.T), 1)
    smooth = ndimage.gaussian_filter(density, 1.0)
    highest = ndimage.maximum_filter(smooth, 2 * reach + 1)
    peaks = (smooth == highest) & (smooth > 0.5)
    numbers, count = ndimage.label(peaks, np.ones((3,) * len(space)))
    if not count:
        return np.zeros(len(ends), np.int32)
    distance, nearest = ndimage.distance_transform_edt(numbers == 0, return_indices=True)
    found: NDArray[np.int32] = numbers[tuple(nearest)].astype(np.int32)
    return np.where(distance[tuple(cells.T)] <= 3 * reach, found[tuple(cells.T)], 0)


def _agreements(labels: NDArray[np.int32], field: NDArray[np.floating], device: torch.device) -> NDArray[np.floating]:
    """Mean cosine between a field (dimensions, *space) and the field of the shape of each object 0…N; 0 for those that
    do not exist."""
    own = flow_field(torch.from_numpy(labels)[None].to(device).long())[0].cpu().numpy()
    length = np.linalg.norm(field.astype(np.float32), axis=0)
    cosines = (own * field).sum(0) / np.maximum(length, 1e-3)
    means: NDArray[np.floating] = np.nan_to_num(ndimage.mean(cosines, labels, np.arange(labels.max() + 1)))
    return means


def _whole(labels: NDArray[np.int32], least: int = 9) -> NDArray[np.int32]:
    """Objects with their holes filled, renumbered without gaps; smaller ones than `least` voxels are left out. What
    lies in a hole of another object stays."""
    large = np.bincount(labels.ravel()) >= least
    labels = np.where(large, np.arange(len(large), dtype=np.int32), 0)[labels]
    result = np.zeros_like(labels)
    count = 0
    for number, window in enumerate(ndimage.find_objects(labels), 1):
        if window is None:
            continue
        own = labels[window] == number
        count += 1
        result[window][own | (ndimage.binary_fill_holes(own) & (labels[window] == 0) & (result[window] == 0))] = count
    return result


class _FlowLoss(nn.Module):
    def __init__(self, field_weight: float, dice: bool) -> None:
        super().__init__()
        self.field_weight = field_weight
        self.dice = dice

    def forward(
        self, outputs: torch.Tensor | list[torch.Tensor], inside: torch.Tensor, field: torch.Tensor
    ) -> torch.Tensor:
        logits = full_resolution(outputs).float()
        known = (inside >= 0).float()
        squares = (logits[:, 1:] - SCALE * field).square().mean(1)
        of_field = (squares * known).sum() / known.sum().clamp_min(1)
        return inside_loss(logits[:, 0], inside, dice=self.dice) + 0.5 * self.field_weight * of_field
