"""The star head: each voxel of an object tells how far it is to the border of the object along rays, as in StarDist
(Schmidt et al., MICCAI 2018; Weigert et al., WACV 2020). For objects that are star-convex: nuclei, vesicles.

Targets and suppression are those of the package stardist.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tomoscout.machine.errors import TomoscoutError
from tomoscout.tasks.instances.heads import Decoder, Head, full_resolution
from tomoscout.tasks.instances.prepare import renumbered

SCALE = 8.0
"""Distances are learnt in units of this many voxels, so that a network need not grow large outputs first."""

EVERY = 2
"""Of so many voxels along each axis, one is the centre of a candidate, as neighbours differ by less than a voxel."""


class StarHead(Head):
    """Probability of an object, highest in its middle, and the distance to its border along each ray, in voxels."""

    thresholds = {"probability": (0.5, 0.3, 0.4, 0.6, 0.7), "overlap": (0.4, 0.3, 0.5)}

    def __init__(self, rays: int, dimensions: int) -> None:
        self.rays = rays
        self.dimensions = dimensions
        self.names = tuple(f"ray {number} of {rays}" for number in range(rays))

    def targets(self, labels: torch.Tensor, ignore: int) -> tuple[torch.Tensor, ...]:
        """Probability (batch, *space), and distances (batch, rays, *space) at every `EVERY`th voxel along each axis.
        The probability of voxels that are ignored is −1."""
        edt_prob = _stardist("utils").edt_prob
        images = labels.cpu().numpy()
        known = images != ignore
        images = np.where(known, images, 0)
        # Numbers of objects may be larger than what stardist takes.
        images = np.stack([renumbered(image).astype(np.uint16) for image in images])
        probability = np.stack([edt_prob(image) if image.any() else np.zeros(image.shape) for image in images])
        probability[~known] = -1
        distances = np.stack([np.moveaxis(self._distances(image), -1, 0) for image in images])
        return (
            torch.from_numpy(probability.astype(np.float32)).to(labels.device),
            torch.from_numpy(np.ascontiguousarray(distances)).to(labels.device),
        )

    def _distances(self, image: NDArray[np.uint16]) -> NDArray[np.float32]:
        geometry = _stardist("geometry")
        every = (EVERY,) * self.dimensions
        if self.dimensions == 2:
            found: NDArray[np.float32] = geometry.star_dist(image, self.rays, grid=every)
        else:
            found = geometry.star_dist3D(image, self._rays(), grid=every)
        return found

    def _rays(self) -> Any:
        return _stardist("rays3d").Rays_GoldenSpiral(self.rays)

    def loss(self) -> nn.Module:
        """Cross-entropy of the probability and mean distance error within objects."""
        return _StarLoss(self.dimensions)

    def read_out(self, logits: torch.Tensor) -> torch.Tensor:
        """Probability and distances in voxels."""
        return torch.cat([torch.sigmoid(logits[:1]), _distance(logits[1:])])

    def decoder(self, prediction: NDArray[np.floating]) -> Decoder:
        """Candidates above the threshold `probability`, without those that share more than `overlap` of the smaller one
        with a more probable one."""
        coarse = prediction[(slice(None), *(slice(None, None, EVERY),) * self.dimensions)]
        probability = coarse[0].astype(np.float32)

        def decode(thresholds: Mapping[str, float]) -> NDArray[np.int32]:
            chosen = probability > thresholds["probability"]
            if not chosen.any():
                return np.zeros(prediction.shape[1:], np.int32)
            order = np.argsort(-probability[chosen], kind="stable")
            points = (np.argwhere(chosen) * EVERY)[order]
            distances = np.ascontiguousarray(coarse[1:, chosen].T[order], dtype=np.float32)
            scores = probability[chosen][order]
            return self._suppressed(points, distances, scores, prediction.shape[1:], thresholds["overlap"])

        return decode

    def _suppressed(
        self,
        points: NDArray[np.int64],
        distances: NDArray[np.float32],
        scores: NDArray[np.float32],
        shape: tuple[int, ...],
        overlap: float,
    ) -> NDArray[np.int32]:
        geometry, suppression = _stardist("geometry"), _stardist("nms")
        if self.dimensions == 2:
            kept = suppression.non_maximum_suppression_inds(distances, points, scores, overlap, verbose=0)
            labels = geometry.polygons_to_label(distances[kept], points[kept], shape, prob=scores[kept])
        else:
            rays = self._rays()
            kept = suppression.non_maximum_suppression_3d_inds(distances, points, rays, scores, overlap, verbose=False)
            labels = geometry.polyhedron_to_label(
                distances[kept], points[kept], rays, shape, prob=scores[kept], verbose=False
            )
        return renumbered(labels)


def _stardist(module: str) -> Any:
    """A module of the package stardist.

    Raises:
        TomoscoutError: it is not installed.
    """
    try:
        return import_module(f"stardist.{module}")
    except ImportError as error:
        raise TomoscoutError(
            f"the star head needs the package stardist ({error}): `make .venv/cells`, or install tomoscout[cells]; the "
            "flow head (cells.train.head) needs nothing more"
        ) from None


def _distance(logits: torch.Tensor) -> torch.Tensor:
    """Distances are never negative; the gradient is never 0."""
    return SCALE * nn.functional.softplus(logits)


class _StarLoss(nn.Module):
    """Binary cross-entropy of the probability, and the mean absolute error of distances, weighted by the target
    probability: a voxel near the border is a poor centre. Background distances are drawn towards 0 (Schmidt et al.)."""

    DISTANCE = 0.2
    BACKGROUND = 1e-4

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions

    def forward(
        self, outputs: torch.Tensor | list[torch.Tensor], probability: torch.Tensor, distances: torch.Tensor
    ) -> torch.Tensor:
        logits = full_resolution(outputs).float()
        known = (probability >= 0).float()
        errors = nn.functional.binary_cross_entropy_with_logits(
            logits[:, 0], probability.clamp_min(0), reduction="none"
        )
        of_probability = (errors * known).sum() / known.sum().clamp_min(1)
        every = (slice(None), *(slice(None, None, EVERY),) * self.dimensions)
        coarse = _distance(logits[(slice(None), slice(1, None), *every[1:])])
        weights = (probability[every] * known[every]).clamp_min(0)
        of_distances = ((coarse - distances).abs().mean(1) * weights).sum() / weights.sum().clamp_min(1e-3)
        outside = (probability[every] == 0).float()
        drawn = (coarse.mean(1) * outside).sum() / outside.sum().clamp_min(1)
        return of_probability + self.DISTANCE * of_distances + self.BACKGROUND * drawn
