"""Peaks of probabilities: positions with scores, after smoothing, refined between voxels, without those too near a
better one (non-maximum suppression)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LOWEST_SCORE = 0.05
"""Peaks below this are noise at any threshold worth choosing."""

WIDEST_PEAK = 8
"""Voxels: larger objects are located on a coarser grid and refined, which costs a fraction and moves no peak."""

REACH = 2.5
"""Standard deviations at which the smoothing Gaussian ends."""


def find_peaks(
    probability: NDArray[np.uint8], radius: float, *, smoothing: float, separation: float, threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Peaks of a smoothed probability volume.

    Args:
        probability: one class, quantised (z, y, x), 255 = 1.
        radius: target radius in voxels.
        smoothing: standard deviation of the Gaussian, in radii.
        separation: smallest distance of two peaks in voxels; the higher one stays.
        threshold: smallest score.

    Returns:
        Positions (N, 3) as fractional indices z, y, x, by falling score, and scores (N,): the smoothed probability
        at the peak, 0…1.
    """
    bin_size = max(1, int(radius // (WIDEST_PEAK / 2)))
    # Wide enough that no peak sees the end of the window: its score must not depend on the threshold.
    margin = int(np.ceil(2 * REACH * smoothing * radius)) + 3 * bin_size
    window = _active_window(probability, threshold, margin, bin_size)
    if window is None:
        return np.zeros((0, 3)), np.zeros(0)
    smoothed = _smooth(_bin(probability[window], bin_size), smoothing * radius / bin_size)
    peaks = _local_maxima(smoothed, threshold)
    scores = smoothed[tuple(peaks.T)].astype(np.float64)
    # A binned voxel stands at the middle of the voxels it is made of.
    positions = (peaks + _refinement(smoothed, peaks)) * bin_size + (bin_size - 1) / 2
    positions += [part.start for part in window]
    # The last bin can stand half outside.
    positions = np.clip(positions, 0, np.array(probability.shape) - 1)
    order = np.lexsort((*positions.T, -scores))
    kept = suppress(positions[order], separation)
    return positions[order][kept], scores[order][kept]


def _active_window(
    probability: NDArray[np.uint8], threshold: float, margin: int, bin_size: int
) -> tuple[slice, ...] | None:
    """The box around all voxels that could carry a peak: smoothing never exceeds the largest value around. It starts
    at a multiple of `bin_size`."""
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
    """Mean over cubes of `size` voxels, as fractions of 255; a rest at the far ends is padded with its edge."""
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

    # Beyond the edge the nearest value: a particle cut by the border keeps its score.
    smoothed: NDArray[np.float32] = gaussian_filter(volume, width, mode="nearest", truncate=REACH)
    return smoothed


def _local_maxima(volume: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Indices (N, 3) of voxels at or above the threshold that none of the 26 neighbours exceeds; of equal
    neighbours the first in memory counts."""
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
    """Offset (N, 3) of the top of a parabola through each peak and its two neighbours along each axis."""
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
    """Non-maximum suppression: indices of the positions (N, 3), best first, that no kept earlier one lies nearer than
    `separation` to."""
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
