"""Peaks of probability volumes, found on a GPU.

They are those of `peaks.find_peaks`, which searches for large objects on a binned grid. Here the whole grid is
searched, which also tells apart shallow peaks between overlapping objects or in noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tomoscout.machine.device import is_out_of_memory
from tomoscout.tasks.picking import peaks

SLAB = 2**25
"""Voxels of the planes along z that are on the device at once. Each takes up to 18 bytes: 0.6 GB, about as much as it
takes to predict a whole tomogram with the default network."""

ROUNDING = 1e-6
"""What single precision may add to a smoothed value, or take from it."""


def find_peaks(
    probability: NDArray[np.uint8],
    radius: float,
    *,
    smoothing: float,
    separation: float,
    threshold: float,
    device: torch.device,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Peaks of a smoothed probability volume; see `peaks.find_peaks`. If the device runs out of memory, they are found
    on the CPU."""
    try:
        positions, scores = _peaks(torch.from_numpy(probability), smoothing * radius, threshold, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return peaks.find_peaks(probability, radius, smoothing=smoothing, separation=separation, threshold=threshold)
    scores = peaks.without_rounding_errors(scores)
    found = scores >= threshold
    return peaks.best_apart(positions[found], scores[found], separation)


@torch.inference_mode()
def _peaks(
    probability: torch.Tensor, width: float, threshold: float, device: torch.device
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (N, 3), refined to fractions of a voxel, and scores (N,) of all local maxima, slab by slab."""
    kernel = peaks.gaussian(width).tolist() if width > 0 else [1.0]
    reach, depth = len(kernel) // 2, probability.shape[0]
    planes = max(1, SLAB // probability[0].numel() - 2 * (reach + 1))
    found = []
    for start in range(0, depth, planes):
        end = min(start + planes, depth)
        # One plane more on either side, for the neighbours.
        first, last = max(start - 1, 0), min(end + 1, depth)
        low = max(first - reach, 0)
        smoothed = _along(probability[low : last + reach].to(device), 0, kernel, first - low, last - low)
        for axis in (1, 2):
            smoothed = _along(smoothed, axis, kernel, 0, smoothed.shape[axis])
        beyond = (1, 1, 1, 1, int(first == start), int(last == end))
        padded = functional.pad(smoothed.div_(255), beyond, value=-1)
        del smoothed
        positions, scores = _local_maxima(padded, threshold)
        found.append((positions + np.array([start, 0, 0]), scores))
    return np.concatenate([positions for positions, _ in found]), np.concatenate([scores for _, scores in found])


def _along(volume: torch.Tensor, axis: int, kernel: Sequence[float], first: int, last: int) -> torch.Tensor:
    """Sums by the weights of a symmetric kernel along an axis, around its places from `first` to before `last`. Beyond
    the border edge values are repeated. Each sum is made in the same order, so that equal surroundings give equal
    values; a convolution of cuDNN may also compute in TF32, with three digits."""
    reach, count = len(kernel) // 2, last - first
    places = torch.arange(first - reach, last + reach, device=volume.device).clamp_(0, volume.shape[axis] - 1)
    lines = volume.index_select(axis, places).float()
    total = lines.narrow(axis, reach, count) * kernel[reach]
    for n in range(1, reach + 1):
        pair = lines.narrow(axis, reach - n, count) + lines.narrow(axis, reach + n, count)
        total.add_(pair, alpha=kernel[reach + n])
    return total


def _local_maxima(padded: torch.Tensor, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (N, 3) and values (N,) of the local maxima of a volume that has one voxel more on all sides, with −1
    outside of the tomogram; of equal neighbours the first in memory order is taken."""
    inner = padded[1:-1, 1:-1, 1:-1]
    highest = inner >= max(threshold - ROUNDING, ROUNDING)
    for offset in np.ndindex(3, 3, 3):
        window = tuple(slice(at, at + size) for at, size in zip(offset, inner.shape, strict=True))
        highest &= inner > padded[window] if offset < (1, 1, 1) else inner >= padded[window]
    places = highest.nonzero()
    steps = torch.eye(3, dtype=places.dtype, device=places.device)
    around = [places + 1 + sign * step for step in steps for sign in (-1, 1)]
    values = torch.stack([padded[tuple(at.T)] for at in (places + 1, *around)]).cpu().double().numpy()
    offsets = [
        np.where((low < 0) | (high < 0), 0.0, peaks.vertex(low, values[0], high))
        for low, high in zip(values[1::2], values[2::2], strict=True)
    ]
    return places.cpu().numpy() + np.stack(offsets, axis=1), values[0]
