"""Peak detection in probability volumes: Gaussian smoothing, local maxima, refinement to fractions of a voxel, and
non-maximum suppression."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LOWEST_SCORE = 0.03
"""Smallest score of a peak. Lower ones are noise at any useful threshold."""

NARROWEST = 0.85
"""Standard deviation in bins that the smoothing has at least. With a wider one, peaks are searched for on a binned
grid, which is many times faster."""

BINS_APART = 3
"""Two peaks that are kept lie at least this many bins apart, so that the binned grid tells them apart."""

ON_THE_GRID = 0.5
"""A peak has at least this fraction of its height on the binned grid: a Gaussian as narrow as the smoothing whose
middle lies where eight bins meet has 0.51 of it."""

REACH = 2.5
"""Standard deviations at which the smoothing Gaussian is truncated."""


PATCH_VOXELS = 2**20
"""Voxels of the patches around places that are worked through at once."""


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
    width = smoothing * radius
    bin_size = max(1, int(min(width / NARROWEST, separation / BINS_APART)))
    # Wide enough that smoothing does not reach from a peak to the end of the window: its score must not depend on the
    # threshold.
    margin = int(np.ceil(2 * REACH * width)) + 3 * bin_size
    window = _active_window(probability, threshold, margin, bin_size)
    if window is None:
        return np.zeros((0, 3)), np.zeros(0)
    start = np.array([part.start for part in window])
    smoothed = _smooth(_bin(probability[window], bin_size), width / bin_size)
    if bin_size == 1:
        peaks = _local_maxima(smoothed, threshold)
        scores = smoothed[tuple(peaks.T)].astype(np.float64)
        positions = start + peaks + _refinement(smoothed, peaks)
    else:
        peaks = _local_maxima(smoothed, ON_THE_GRID * threshold)
        positions, scores = _climb(probability, start + peaks * bin_size + (bin_size - 1) // 2, bin_size, width)
        found = scores >= threshold
        positions, scores = positions[found], scores[found]
    return best_apart(positions, scores, separation)


def best_apart(
    positions: NDArray[np.float64], scores: NDArray[np.float64], separation: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (N, 3) and scores (N,) in descending order of score, without those nearer than `separation` to a better
    one."""
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
    total = np.pad(volume, [(0, -n % size) for n in volume.shape], mode="edge")
    for axis in range(3):
        # Sums over two axes fit into 16 bits up to bins of 16 voxels.
        kind = np.uint16 if size**3 <= 257 or (axis < 2 and size <= 16) else np.uint32
        parts = [total[(slice(None),) * axis + (slice(start, None, size),)] for start in range(size)]
        total = np.add(parts[0], parts[1], dtype=kind)
        for part in parts[2:]:
            total += part
    return total.astype(np.float32) / np.float32(255 * size**3)


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
        offsets[inner, axis] = vertex(*(volume[tuple((here + n * step).T)].astype(np.float64) for n in (-1, 0, 1)))
    return offsets


def vertex(low: NDArray[np.float64], mid: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the parabola through values at −1, 0 and 1 is highest, −0.5…0.5; 0 where it does not bend downwards."""
    bend = low - 2 * mid + high
    offsets: NDArray[np.float64] = np.where(bend < 0, 0.5 * (low - high) / np.where(bend < 0, bend, -1.0), 0.0)
    return np.clip(offsets, -0.5, 0.5)


def _climb(
    probability: NDArray[np.uint8], places: NDArray[np.int64], reach: int, width: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The highest smoothed value within `reach` voxels of each place (N, 3) along every axis: positions (N, 3), refined
    to fractions of a voxel, and values (N,). They are those of the whole volume smoothed with a Gaussian of `width`
    voxels, which is computed around the places alone."""
    kernel = gaussian(width)
    # One more voxel on either side, for the parabolas.
    side = 2 * reach + 3
    rows = np.zeros((side, side + len(kernel) - 1), dtype=np.float32)
    for row in range(side):
        rows[row, row : row + len(kernel)] = kernel
    places = np.minimum(places, np.array(probability.shape) - 1)
    positions, values = np.zeros((len(places), 3)), np.zeros(len(places))
    at_once = max(1, PATCH_VOXELS // rows.shape[1] ** 3)
    for start in range(0, len(places), at_once):
        some = slice(start, start + at_once)
        positions[some], values[some] = _highest(probability, places[some], rows)
    return positions, without_rounding_errors(values)


def _highest(
    probability: NDArray[np.uint8], places: NDArray[np.int64], rows: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The highest value around each place (N, 3), and its position. `rows` (side, patch): what smooths a patch around a
    place to the `side` voxels in its middle; the first and the last of them are for parabolas alone."""
    side, patch = rows.shape
    shape = np.array(probability.shape)
    offsets = np.arange(patch) - patch // 2
    # Indices beyond the volume become those of its edge.
    z, y, x = (np.clip(places[:, axis, None] + offsets, 0, shape[axis] - 1) for axis in range(3))
    patches = probability[z[:, :, None, None], y[:, None, :, None], x[:, None, None, :]].astype(np.float32)
    smoothed = _along_axes(rows, patches) / np.float32(255)
    inner = places[:, :, None] + np.arange(side) - side // 2
    within = (inner >= 0) & (inner < shape[:, None])
    within[:, :, [0, -1]] = False
    z, y, x = within.swapaxes(0, 1)
    allowed = z[:, :, None, None] & y[:, None, :, None] & x[:, None, None, :]
    numbers = np.arange(len(places))
    peaks = np.where(allowed, smoothed, -1).reshape(len(places), -1).argmax(axis=1)
    at = np.column_stack(np.unravel_index(peaks, (side,) * 3))
    steps = np.eye(3, dtype=int)
    around = [[smoothed[(numbers, *(at + sign * step).T)].astype(np.float64) for sign in (-1, 0, 1)] for step in steps]
    positions = places + at - side // 2
    offset = np.column_stack([vertex(*values) for values in around])
    return positions + np.where((positions > 0) & (positions < shape - 1), offset, 0.0), around[0][1]


def without_rounding_errors(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores without the rounding errors of sums in single precision, which a threshold of 1 would meet."""
    return np.round(scores, 6)


def gaussian(width: float) -> NDArray[np.float64]:
    """The weights of SciPy's gaussian_filter with `truncate=REACH`."""
    reach = int(REACH * width + 0.5)
    weights: NDArray[np.float64] = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    weights /= weights.sum()
    return weights


def _along_axes(rows: NDArray[np.float32], patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """The product with `rows` (N, M) along each axis of cubes (…, M, M, M): (…, N, N, N)."""
    for _ in range(3):
        # The last axis becomes the first of the three, so that after three turns they are in order again.
        patches = np.moveaxis(patches @ rows.T, -1, -3)
    return patches


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
