"""Peak detection in probability volumes: Gaussian smoothing, local maxima, refinement to fractions of a voxel, and
non-maximum suppression."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LOWEST_SCORE = 0.05
"""Smallest score of a peak. Lower ones are noise at any useful threshold."""

WIDEST_PEAK = 8
"""Diameter in voxels that an object has at least after binning. Larger objects are located on a binned grid and
refined: this is much faster and does not shift peaks."""

REACH = 2.5
"""Standard deviations at which the smoothing Gaussian is truncated."""


def find_peaks(
    probability: NDArray[np.uint8], radius: float, *, smoothing: float, separation: float, threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Peaks of a smoothed probability volume.

    Args:
        probability: one class, quantised (z, y, x), 255 = 1.
        radius: target radius in voxels.
        smoothing: standard deviation of the Gaussian, in radii.
        separation: smallest distance of two peaks in voxels; of nearer ones the higher is kept.
        threshold: smallest score.

    Returns:
        Positions (N, 3) as fractional indices z, y, x, in descending order of score, and scores (N,): the smoothed
        probability at the peak, 0…1.
    """
    bin_size = max(1, int(radius // (WIDEST_PEAK / 2)))
    # Wide enough that smoothing does not reach from a peak to the end of the window: its score must not depend on the
    # threshold.
    margin = int(np.ceil(2 * REACH * smoothing * radius)) + 3 * bin_size
    window = _active_window(probability, threshold, margin, bin_size)
    if window is None:
        return np.zeros((0, 3)), np.zeros(0)
    smoothed = _smooth(_bin(probability[window], bin_size), smoothing * radius / bin_size)
    peaks = _local_maxima(smoothed, threshold)
    scores = smoothed[tuple(peaks.T)].astype(np.float64)
    # A bin is centred on the voxels that it averages.
    positions = (peaks + _refinement(smoothed, peaks)) * bin_size + (bin_size - 1) / 2
    positions += [part.start for part in window]
    # The last bin can extend beyond the volume.
    positions = np.clip(positions, 0, np.array(probability.shape) - 1)
    order = np.lexsort((*positions.T, -scores))
    kept = suppress(positions[order], separation)
    return positions[order][kept], scores[order][kept]


def _active_window(
    probability: NDArray[np.uint8], threshold: float, margin: int, bin_size: int
) -> tuple[slice, ...] | None:
    """The bounding box of all voxels that can contribute to a peak, widened by `margin`; None if there are none. A
    smoothed value never exceeds the largest value around it. The box starts at a multiple of `bin_size`."""
    active = probability >= max(1, np.floor(threshold * 255))
    parts = []
    for axis in range(3):
        along = np.flatnonzero(active.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(along):
            return None
        start = max(0, int(along[0]) - margin) // bin_size * bin_size
        parts.append(slice(start, min(probability.shape[axis], int(along[-1]) + 1 + margin)))
    return tuple(parts)


def _bin(volume: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Mean over cubes of `size` voxels, as fractions of 255; the far ends are padded with the edge values."""
    if size == 1:
        return volume.astype(np.float32) / np.float32(255)
    padded = np.pad(volume, [(0, -n % size) for n in volume.shape], mode="edge")
    for axis in range(3):
        shape = (*padded.shape[:axis], padded.shape[axis] // size, size, *padded.shape[axis + 1 :])
        padded = padded.reshape(shape).sum(axis=axis + 1, dtype=np.uint32 if padded.dtype != np.uint8 else np.uint16)
    return padded.astype(np.float32) / np.float32(255 * size**3)


def _smooth(volume: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    if width <= 0:
        return volume
    from scipy.ndimage import gaussian_filter

    # Edge values are repeated beyond the border, so that a particle cut by it keeps its score.
    smoothed: NDArray[np.float32] = gaussian_filter(volume, width, mode="nearest", truncate=REACH)
    return smoothed


def _local_maxima(volume: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Indices (N, 3) of voxels at or above the threshold that none of the 26 neighbours exceeds; of equal neighbours
    the first in memory order is taken."""
    candidates = np.argwhere(volume >= max(threshold, 1e-6))
    if not len(candidates):
        return candidates
    padded = np.pad(volume, 1, constant_values=-1)
    values = volume[tuple(candidates.T)]
    keep = np.ones(len(candidates), dtype=bool)
    strides = np.array(padded.strides) // padded.itemsize
    flat = padded.ravel()
    places = (candidates + 1) @ strides
    for offset in np.ndindex(3, 3, 3):
        shift = int((np.array(offset) - 1) @ strides)
        if shift:
            neighbour = flat[places[keep] + shift]
            keep[keep] = values[keep] > neighbour if shift < 0 else values[keep] >= neighbour
    return candidates[keep]


def _refinement(volume: NDArray[np.float32], peaks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Offset (N, 3) in voxels of the vertex of a parabola through each peak and its two neighbours along each axis."""
    offsets = np.zeros(peaks.shape)
    for axis in range(3):
        step = np.eye(3, dtype=int)[axis]
        inner = (peaks[:, axis] > 0) & (peaks[:, axis] < volume.shape[axis] - 1)
        here = peaks[inner]
        low, mid, high = (volume[tuple((here + n * step).T)].astype(np.float64) for n in (-1, 0, 1))
        bend = low - 2 * mid + high
        offsets[inner, axis] = np.where(bend < 0, 0.5 * (low - high) / np.where(bend < 0, bend, -1.0), 0.0)
    return np.clip(offsets, -0.5, 0.5)


def suppress(positions: NDArray[np.float64], separation: float) -> NDArray[np.int64]:
    """Non-maximum suppression. `positions` (N, 3) are in order, best first; a position is dropped if it lies nearer
    than `separation` to an earlier one that is kept. Returns the indices of the positions kept."""
    if len(positions) < 2:
        return np.arange(len(positions))
    from scipy.spatial import cKDTree

    pairs = cKDTree(positions).query_pairs(np.nextafter(separation, 0), output_type="ndarray")
    followers: dict[int, list[int]] = {}
    for first, second in np.sort(pairs, axis=1).tolist():
        followers.setdefault(first, []).append(second)
    kept = np.ones(len(positions), dtype=bool)
    for index in range(len(positions)):
        if kept[index]:
            kept[followers.get(index, [])] = False
    return np.flatnonzero(kept)
