"""Rotation, tilt and zoom."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from tomoscout.learning.augmentations.base import Change, Draws, on_device, rows_of
from tomoscout.machine.errors import TomoscoutError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

# Planes of rotation: about the beam axis, and the tilts about y and about x.
BEAM, TILT_Y, TILT_X = (-2, -1), (-3, -1), (-3, -2)


class Turn(Change):
    """Rotate, tilt and zoom, with one interpolation for all of them."""

    SPACE = {"rotate": {"low": 0.0, "high": 30.0}, "tilt": {"low": 0.0, "high": 15.0}}

    rotate: float = Field(default=10.0, ge=0, le=180)
    """Turn about the beam axis by up to ± this many degrees. The missing wedge turns along."""
    tilt: float = Field(default=5.0, ge=0, le=90)
    """Tilt about y and x by up to ± this many degrees. The missing wedge tilts along."""
    zoom: float = Field(default=0.0, ge=0, lt=1)
    """Magnify by a factor from 1 ± this."""

    def apply(self, intensities: torch.Tensor, labels: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate (with tilt) and zoom. Both are drawn independently; crops with neither are left as they are."""
        import numpy as np

        dimensions = labels.ndim - 1
        if self.tilt and dimensions < 3:
            raise TomoscoutError(f"augmentation.tilt needs crops of three dimensions, found {tuple(labels.shape[1:])}")
        turned, zoomed = draws.chosen(), draws.chosen()
        angles = [draws.between(-limit, limit) * turned for limit in (self.rotate, self.tilt, self.tilt)]
        factors = np.where(zoomed, draws.between(1 - self.zoom, 1 + self.zoom), 1.0)
        changed = (turned & (self.rotate + self.tilt > 0)) | (zoomed & (self.zoom > 0))
        if not changed.any():
            return intensities, labels
        matrices = np.eye(dimensions) / factors[:, None, None]
        for plane, degrees in zip((BEAM, TILT_Y, TILT_X)[: 3 if dimensions == 3 else 1], angles, strict=False):
            matrices = matrices @ _rotations(np.deg2rad(degrees), plane, dimensions)
        rows = rows_of(labels, changed)
        sampled = resample(intensities[rows], labels[rows], matrices[changed])
        return intensities.index_copy(0, rows, sampled[0]), labels.index_copy(0, rows, sampled[1])


def _rotations(angles: NDArray[np.float64], plane: tuple[int, int], dimensions: int) -> NDArray[np.float64]:
    """Rotation matrices (batch, dimensions, dimensions) by angles in radians in the plane of two axes."""
    import numpy as np

    first, second = plane
    matrices = np.tile(np.eye(dimensions), (len(angles), 1, 1))
    matrices[:, first, first] = matrices[:, second, second] = np.cos(angles)
    matrices[:, first, second], matrices[:, second, first] = -np.sin(angles), np.sin(angles)
    return matrices


def resample(
    intensities: torch.Tensor, labels: torch.Tensor, matrices: NDArray[np.float64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Resample crops: voxel i takes the value at centre + matrix · (i − centre), in voxels, in the order of the axes.

    Intensities (batch, channels, *space) are interpolated linearly; labels (batch, *space) are those of the nearest
    voxel. Outside of the crop, both continue as their mirror image. Matrices are (batch, dimensions, dimensions).
    """
    import numpy as np
    import torch

    space = labels.shape[1:]
    dimensions = len(space)
    rows = on_device(intensities, matrices)
    kind, device = rows.dtype, rows.device
    # Indices of the voxels of a crop are exact in this dtype, which is faster than an integer dtype.
    exact = kind if labels[0].numel() < 2**24 else torch.float64
    nearest = torch.zeros(labels.shape, dtype=exact, device=device)
    grid = torch.empty([*labels.shape, dimensions], dtype=kind, device=device)
    half = (np.array(space) - 1) / 2
    reach = abs(matrices).max(axis=0) @ half
    for number, size in enumerate(space):
        span = size - 1
        place = torch.full([1], span / 2, dtype=kind, device=device)
        for axis, other in enumerate(space):
            offsets = torch.arange(other, dtype=kind, device=device) - (other - 1) / 2
            entries = rows[:, number, axis].view(-1, *[1] * dimensions)
            place = place + entries * offsets.view(-1, *[1] * (dimensions - 1 - axis))
        _reflect(place, span, float(reach[number]))
        nearest.mul_(size).add_(place.round())
        torch.mul(place, 2 / max(span, 1), out=grid[..., dimensions - 1 - number]).sub_(1)
    images = torch.nn.functional.grid_sample(
        intensities, grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return images, labels.flatten(1).gather(1, nearest.flatten(1).long()).view_as(labels)


def _reflect(places: torch.Tensor, span: int, reach: float) -> None:
    """Reflect places, which are up to `reach` from the middle of 0…span, at both ends into this range, in place."""
    if span and reach > span / 2:
        # Each round folds two spans off either end.
        for _ in range(math.ceil((reach + span / 2) / (2 * span))):
            places.abs_().neg_().add_(span).abs_().neg_().add_(span)
    places.clamp_(0, span)
