"""The star head: each voxel of an object tells how far it is to the border of the object along rays, as in StarDist
(Schmidt et al., MICCAI 2018; Weigert et al., WACV 2020). For objects that are star-convex: nuclei, vesicles.

Targets and suppression are those of the package stardist. The network also tells whether a voxel lies in any object,
which gives the borders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from tomoscout.tasks.instances.heads import Decoder, Head, full_resolution, inside_loss
from tomoscout.tasks.instances.prepare import renumbered
from tomoscout.tasks.instances.stardist_package import stardist_module

SCALE = 8.0
"""Distances are learnt in units of this many voxels, so that a network need not grow large outputs first."""

REACH = 3
"""Voxels by which the border of an object is moved outwards at most."""


class _Candidates(NamedTuple):
    """Objects that there may be, the most probable first: their centres (objects, dimensions) in voxels, the distances
    to their borders (objects, rays) in voxels, and their probabilities (objects,)."""

    points: NDArray[np.int64]
    distances: NDArray[np.float32]
    scores: NDArray[np.float32]

    def taken(self, numbers: NDArray[np.integer]) -> _Candidates:
        """Those with these numbers."""
        return _Candidates(*(values[numbers] for values in self))


class StarHead(Head):
    """Probability of an object, highest in its middle; whether a voxel lies in an object; and the distance to the
    border of the object along each ray, in voxels."""

    every = 2
    """Neighbours differ by less than a voxel: one of so many along each axis is the centre of a candidate."""
    thresholds = {"probability": (0.5, 0.3, 0.4, 0.6, 0.7), "overlap": (0.4, 0.3, 0.5)}

    def __init__(self, rays: int, dimensions: int) -> None:
        self.rays = rays
        self.dimensions = dimensions
        self.names = ("inside", *(f"ray {number} of {rays}" for number in range(rays)))

    def targets(self, labels: torch.Tensor, ignore: int) -> tuple[torch.Tensor, ...]:
        """Probability and whether voxels lie in an object (batch, *space), both −1 where that is not known; and
        distances (batch, rays, *space / every)."""
        edt_prob = _stardist("utils").edt_prob
        images = labels.cpu().numpy()
        known = images != ignore
        images = np.where(known, images, 0)
        # Numbers of objects may be larger than what stardist takes.
        images = np.stack([renumbered(image).astype(np.uint16) for image in images])
        probability = np.stack([edt_prob(image) if image.any() else np.zeros(image.shape) for image in images])
        probability[~known] = -1
        inside = np.where(known, images > 0, -1)
        distances = np.stack([np.moveaxis(self._distances(image), -1, 0) for image in images])
        found = (probability.astype(np.float32), inside.astype(np.float32), np.ascontiguousarray(distances))
        return tuple(torch.from_numpy(values).to(labels.device) for values in found)

    def _distances(self, image: NDArray[np.uint16]) -> NDArray[np.float32]:
        geometry = _stardist("geometry")
        every = (self.every,) * self.dimensions
        if self.dimensions == 2:
            found: NDArray[np.float32] = geometry.star_dist(image, self.rays, grid=every)
        else:
            found = geometry.star_dist3D(image, self._rays(), grid=every)
        return found

    def _rays(self) -> Any:
        return _stardist("rays3d").Rays_GoldenSpiral(self.rays)

    def loss(self, shape_weight: float = 1.0, *, dice: bool = False) -> nn.Module:
        """Cross-entropy of the probability and of what lies inside, and mean distance error within objects."""
        return _StarLoss(self.dimensions, self.every, shape_weight, dice)

    @property
    def values(self) -> int:
        return 1 + int(self.every**self.dimensions) + self.rays

    def activated(self, logits: torch.Tensor) -> torch.Tensor:
        """Probability, whether a voxel lies inside, and distances in voxels."""
        return torch.cat([torch.sigmoid(logits[:2]), _distance(logits[2:])])

    def read_out(self, logits: torch.Tensor) -> torch.Tensor:
        """Probability; whether each of the voxels around lies inside, as so many values; and distances in voxels."""
        coarse = self.activated(logits[(slice(None), *(slice(None, None, self.every),) * self.dimensions)])
        inside = _folded(torch.sigmoid(logits[1]), self.every)
        return torch.cat([coarse[:1], inside, coarse[2:]])

    def decoder(self, prediction: NDArray[np.floating], shape: tuple[int, ...], least: float | None = None) -> Decoder:
        """Candidates above the threshold `probability`, without those that share more than `overlap` of the smaller one
        with a more probable one; their borders are then moved to those of what lies inside of objects.

        Candidates are voxels that none of their neighbours surpasses: the others would be suppressed, after a
        comparison with each of thousands.
        """
        lowest = min(self.thresholds["probability"]) if least is None else least
        probability = prediction[0].astype(np.float32)
        places = self.every**self.dimensions
        inside = _unfolded(prediction[1 : 1 + places], self.every)[tuple(slice(0, size) for size in shape)] > 0.5
        chosen = (probability > lowest) & (probability == ndimage.maximum_filter(probability, 3))
        scores = probability[chosen]
        order = np.argsort(-scores, kind="stable")
        found = _Candidates(
            (np.argwhere(chosen) * self.every)[order],
            np.ascontiguousarray(prediction[1 + places :, chosen].T[order], dtype=np.float32),
            scores[order],
        )
        # Whether a candidate survives depends on the more probable ones alone: a higher threshold leaves the others.
        surviving: dict[float, NDArray[np.integer]] = {}

        def decode(thresholds: Mapping[str, float]) -> NDArray[np.int32]:
            assert thresholds["probability"] >= lowest
            overlap = thresholds["overlap"]
            if overlap not in surviving:
                surviving[overlap] = self._survivors(found, overlap)
            kept = surviving[overlap]
            drawn = self._drawn(found.taken(kept[found.scores[kept] > thresholds["probability"]]), shape)
            return renumbered(_fitted(drawn, inside))

        return decode

    def _survivors(self, found: _Candidates, overlap: float) -> NDArray[np.integer]:
        """Numbers of the candidates that no more probable one suppresses."""
        if not len(found.scores):
            return np.zeros(0, np.int64)
        suppression, (points, distances, scores) = _stardist("nms"), found
        if self.dimensions == 2:
            kept = suppression.non_maximum_suppression_inds(distances, points, scores, overlap, verbose=0)
        else:
            kept = suppression.non_maximum_suppression_3d_inds(
                distances, points, self._rays(), scores, overlap, verbose=False
            )
        return np.flatnonzero(kept) if kept.dtype == bool else kept

    def _drawn(self, found: _Candidates, shape: tuple[int, ...]) -> NDArray[np.integer]:
        if not len(found.scores):
            return np.zeros(shape, np.int32)
        geometry, (points, distances, scores) = _stardist("geometry"), found
        if self.dimensions == 2:
            labels: NDArray[np.integer] = geometry.polygons_to_label(distances, points, shape, prob=scores)
        else:
            labels = geometry.polyhedron_to_label(distances, points, self._rays(), shape, prob=scores, verbose=False)
        return labels


def _fitted(labels: NDArray[np.integer], inside: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Objects with what lies inside alone, and with what lies inside beside them: a border is found more exactly voxel
    by voxel than by its distance."""
    if not labels.any():
        return labels
    away, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    return np.where(inside & (away <= REACH), labels[tuple(nearest)], 0)


def _folded(values: torch.Tensor, every: int) -> torch.Tensor:
    """Values (*space) as (every^dimensions, *space / every)."""
    dimensions = values.ndim
    blocks = values.reshape([part for size in values.shape for part in (size // every, every)])
    order = [*range(1, 2 * dimensions, 2), *range(0, 2 * dimensions, 2)]
    return blocks.permute(order).reshape(-1, *(size // every for size in values.shape))


def _unfolded(values: NDArray[np.floating], every: int) -> NDArray[np.floating]:
    """The reverse of `_folded`."""
    dimensions = values.ndim - 1
    blocks = values.reshape((every,) * dimensions + values.shape[1:])
    order = [axis for pair in range(dimensions) for axis in (dimensions + pair, pair)]
    return blocks.transpose(order).reshape([size * every for size in values.shape[1:]])


def _stardist(module: str) -> Any:
    return stardist_module(module, "the star head (the flow head, cells.train.head, needs nothing more)")


def _distance(logits: torch.Tensor) -> torch.Tensor:
    """Distances are never negative; the gradient is never 0."""
    return SCALE * nn.functional.softplus(logits)


class _StarLoss(nn.Module):
    """Binary cross-entropy of the probability and of what lies inside, and the mean absolute error of distances,
    weighted by the target probability: a voxel near the border is a poor centre. Background distances are drawn towards
    0 (Schmidt et al.)."""

    DISTANCE = 0.2
    BACKGROUND = 1e-4

    def __init__(self, dimensions: int, every: int, distance_weight: float, dice: bool) -> None:
        super().__init__()
        self.distance_weight = distance_weight * self.DISTANCE
        self.dice = dice
        self.places = (slice(None), *(slice(None, None, every),) * dimensions)

    def forward(
        self,
        outputs: torch.Tensor | list[torch.Tensor],
        probability: torch.Tensor,
        inside: torch.Tensor,
        distances: torch.Tensor,
    ) -> torch.Tensor:
        logits = full_resolution(outputs).float()
        of_probability = inside_loss(logits[:, 0], probability, dice=False)
        of_inside = inside_loss(logits[:, 1], inside, dice=self.dice)
        coarse = _distance(logits[:, 2:][(slice(None), *self.places)])
        middle = probability[self.places]
        weights = middle.clamp_min(0)
        of_distances = ((coarse - distances).abs().mean(1) * weights).sum() / weights.sum().clamp_min(1e-3)
        outside = (middle == 0).float()
        drawn = (coarse.mean(1) * outside).sum() / outside.sum().clamp_min(1)
        return of_probability + of_inside + self.distance_weight * of_distances + self.BACKGROUND * drawn
