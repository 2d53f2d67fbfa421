"""Sampling of training crops. A draw depends on (seed, step) and the scores given alone, so a resumed training draws
the same crops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.learning.volumes import LabelledVolume
from tomoscout.machine.errors import TomoscoutError


@dataclass(frozen=True)
class Centres:
    """Where crops of one class may be centred.

    `places` (N, 1 + dimensions): the number of the volume and the voxel index of each place. `jitter` (dimensions,):
    crops are shifted by up to this many voxels along each axis.
    """

    places: NDArray[np.int64]
    jitter: NDArray[np.int64]


@dataclass(frozen=True)
class Crop:
    """A window of the patch size: volume number and start (voxels per axis)."""

    volume: int
    start: tuple[int, ...]


def largest_jitter(patch: Sequence[int], reach: float) -> NDArray[np.int64]:
    """The largest shift of a crop along each axis, in voxels, with which it still contains everything within `reach`
    voxels of the voxel that it is centred on."""
    return np.maximum((np.array(patch, dtype=np.int64) - 1) // 2 - math.ceil(reach), 0)


class CropSampler:
    """Draws the crops of a step.

    A fraction of the crops, the background, is centred on voxels drawn uniformly from all voxels of all volumes: a
    larger volume is drawn more often, and a volume without particles as often as any other of its size. The other crops
    are centred near a place of a class. The class is drawn by the shares, then its place uniformly from those of all
    volumes: every pick of an object is drawn equally often, as it also counts equally in the score. (If the tomogram
    were drawn first, each of the five picks of one would be drawn a hundred times as often as each of the 500 of
    another.) Crops are shifted to lie within their volume.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        classes: Sequence[Centres],
        patch: Sequence[int],
        *,
        shares: Sequence[float],
        batch_size: int,
        background_fraction: float,
        seed: int,
        harder_classes: float = 0.0,
    ) -> None:
        """Take volumes of `shapes` (voxels per axis, at least the patch) and, for each class, places and a share.

        A class without any place is skipped. If no class has a place, all crops are background.

        Raises:
            TomoscoutError: there is no volume, or the shares leave no class to draw.
        """
        if not shapes:
            raise TomoscoutError("training: no tomogram to draw crops from")
        counts = np.array([len(entry.places) for entry in classes], dtype=np.int64)
        self._shares = np.array([share * (count > 0) for share, count in zip(shares, counts, strict=True)], dtype=float)
        if counts.any() and background_fraction < 1 and not self._shares.any():
            raise TomoscoutError(
                "train.class_sampling: 0 for every class that the training runs hold; give one of them more than 0"
            )
        self.batch_size = batch_size
        self.background_fraction = background_fraction if counts.any() else 1.0
        self.harder_classes = harder_classes
        self.seed = seed
        self._patch = np.array(patch, dtype=np.int64)
        self._shapes = np.array(shapes, dtype=np.int64)
        self._by_size = _cumulative(self._shapes.prod(axis=1, dtype=np.float64))
        nowhere = np.empty((0, 1 + len(self._patch)), dtype=np.int64)
        self._places = np.concatenate([nowhere, *(entry.places for entry in classes)])
        self._jitter = np.array([entry.jitter for entry in classes], dtype=np.int64)
        self._counts = counts
        self._first = np.cumsum(counts) - counts

    def crops(self, step: int, scores: Sequence[float | None] | None = None) -> list[Crop]:
        """The crops of a step. Equal arguments give equal crops.

        `scores`: how well each class was found (0…1; None: not known), for `harder_classes`.
        """
        dimensions = len(self._patch)
        numbers = np.random.default_rng([self.seed, step]).random((3 + dimensions, self.batch_size))
        background = numbers[0] < self.background_fraction
        volumes = np.searchsorted(self._by_size, numbers[1], side="right")
        centres = (numbers[3:].T * self._shapes[volumes]).astype(np.int64)
        if not background.all():
            near = ~background
            volumes[near], centres[near] = self._near_places(numbers[:, near], self._weights(scores))
        starts = np.clip(centres - self._patch // 2, 0, np.maximum(self._shapes[volumes] - self._patch, 0))
        return [Crop(volume, tuple(start)) for volume, start in zip(volumes.tolist(), starts.tolist(), strict=True)]

    def _weights(self, scores: Sequence[float | None] | None) -> NDArray[np.float64]:
        """Sampling weight of each class: share × (1 − harder_classes × score), or the share if all weights would be
        0."""
        if scores is None:
            return self._shares
        pairs = zip(self._shares, scores, strict=True)
        weights = np.array([share * (1 - self.harder_classes * (score or 0.0)) for share, score in pairs])
        return weights if weights.any() else self._shares

    def _near_places(
        self, numbers: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Volumes (N,) and centres (N, dimensions) near places of classes that are drawn by `weights`."""
        classes = np.searchsorted(_cumulative(weights), numbers[1], side="right")
        chosen = self._places[self._first[classes] + (numbers[2] * self._counts[classes]).astype(np.int64)]
        jitter = self._jitter[classes]
        moved = (numbers[3:].T * (2 * jitter + 1)).astype(np.int64) - jitter
        return chosen[:, 0], chosen[:, 1:] + moved


def _cumulative(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cumulative sum of weights, normalised to end at 1."""
    ends: NDArray[np.float64] = np.cumsum(weights)
    ends /= ends[-1]
    return ends


def cut(
    volumes: Sequence[LabelledVolume], crops: Sequence[Crop], patch: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut crops out of volumes: intensities float32 (batch, channels, *space) and labels int64 (batch, *space).

    The volumes may be on the device, in main memory or in memory-mapped files, also mixed.
    """
    windows = [tuple(slice(a, a + size) for a, size in zip(crop.start, patch, strict=True)) for crop in crops]
    channels = volumes[0].intensities.shape[0]
    intensities = _room((len(crops), channels, *patch), "float32", device)
    labels = _room((len(crops), *patch), "int64", device)
    for row, (crop, window) in enumerate(zip(crops, windows, strict=True)):
        volume = volumes[crop.volume]
        _copy(volume.intensities[(slice(None), *window)], intensities[row])
        _copy(volume.labels[window], labels[row])
    return intensities, labels


def _room(shape: tuple[int, ...], kind: Literal["float32", "int64"], device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        # NumPy requests huge pages, torch does not: for a large batch, page faults of small pages take half the time.
        return torch.from_numpy(np.empty(shape, dtype=kind))
    return torch.empty(shape, dtype=getattr(torch, kind), device=device)


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    if source.device != target.device:
        # The transfer is in the stored dtype, which is smaller, and from pinned memory, so that the processor does not
        # wait for what the GPU has to do before.
        locked = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        source = locked.copy_(source).to(target.device, non_blocking=True)
    target.copy_(source)
