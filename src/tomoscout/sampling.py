"""Which crop: decided by (seed, step) alone, so a resumed training draws what it would have drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.geometry import centred_window
from tomoscout.volumes import LabelledVolume


@dataclass(frozen=True)
class Centres:
    """Where crops of one class may be centred: volume number and voxel index z, y, x for each (N, 4); crops are
    moved off the centre by up to `jitter` voxels along each axis."""

    places: NDArray[np.int64]
    jitter: NDArray[np.int64]


@dataclass(frozen=True)
class Crop:
    """A window of the patch size: volume number and start z, y, x."""

    volume: int
    start: tuple[int, ...]


def largest_jitter(patch: Sequence[int], reach: float) -> NDArray[np.int64]:
    """How far (z, y, x) a crop may be moved off a voxel and still hold everything within `reach` voxels of it."""
    return np.maximum((np.array(patch, dtype=np.int64) - 1) // 2 - math.ceil(reach), 0)


class CropSampler:
    """Draws the crops of a step: every class as often, from all volumes alike."""

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        classes: Sequence[Centres],
        patch: Sequence[int],
        *,
        batch_size: int,
        background_fraction: float,
        seed: int,
    ) -> None:
        """`shapes`: voxels z, y, x of each volume. Classes without any place are passed over."""
        self.shapes = [tuple(shape) for shape in shapes]
        self.classes = [entry for entry in classes if len(entry.places)]
        self.patch = tuple(patch)
        self.batch_size = batch_size
        self.background_fraction = background_fraction if self.classes else 1.0
        self.seed = seed
        sizes = np.array([float(np.prod(shape)) for shape in self.shapes])
        self._by_size = sizes / sizes.sum()

    def crops(self, step: int) -> list[Crop]:
        """The crops of a step, the same however often and wherever asked."""
        random = np.random.default_rng([self.seed, step])
        return [self._draw(random) for _ in range(self.batch_size)]

    def _draw(self, random: np.random.Generator) -> Crop:
        if random.random() < self.background_fraction:
            volume = int(random.choice(len(self.shapes), p=self._by_size))
            centre = tuple(int(random.integers(size)) for size in self.shapes[volume])
        else:
            entry = self.classes[random.integers(len(self.classes))]
            volume, *place = entry.places[random.integers(len(entry.places))].tolist()
            moved = np.array(place) + random.integers(-entry.jitter, entry.jitter + 1)
            centre = tuple(moved.tolist())
        return Crop(volume, centred_window(centre, self.patch, self.shapes[volume]))


def cut(
    volumes: Sequence[LabelledVolume], crops: Sequence[Crop], patch: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut crops out of volumes: intensities float32 (batch, 1, z, y, x) and labels int64 (batch, z, y, x)."""
    windows = [tuple(slice(a, a + size) for a, size in zip(crop.start, patch, strict=True)) for crop in crops]
    pairs = list(zip(crops, windows, strict=True))
    intensities = torch.stack([volumes[crop.volume].intensities[window] for crop, window in pairs])
    labels = torch.stack([volumes[crop.volume].labels[window] for crop, window in pairs])
    return intensities.to(device, torch.float32)[:, None], labels.to(device, torch.int64)
