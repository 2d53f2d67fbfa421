"""Picks and their nearest others, and pairs of picks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nearest_others(positions: Array, others: Array | None) -> tuple[Array, NDArray[np.intp]]:
    """The distance (N,) from each position (N, 3) to the nearest of `others` (M, 3), and its index (N,); infinite and
    -1 where there is none. `others` None: among the positions, each without itself."""
    from scipy.spatial import KDTree

    among = positions if others is None else others
    own = others is None
    if not len(positions) or len(among) < 1 + own:
        return np.full(len(positions), np.inf), np.full(len(positions), -1)
    distances, indices = KDTree(among).query(positions, k=[1, 2] if own else [1])
    # Of two picks at one place either may come first.
    column = np.where(own & (indices[:, 0] == np.arange(len(positions))), 1, 0)
    rows = np.arange(len(positions))
    return distances[rows, column], indices[rows, column]


def nearest_pairs(positions: Array, others: Array | None, distance: float) -> NDArray[np.intp]:
    """Pairs (K, 2) of indices of a position and of one of `others` (None: of another position) that are each other's
    nearest and at most `distance` apart; each pair once."""
    distances, partners = nearest_others(positions, others)
    _, back = (distances, partners) if others is None else nearest_others(others, positions)
    first = np.flatnonzero(distances <= distance)
    mutual = first[back[partners[first]] == first]
    pairs = np.stack([mutual, partners[mutual]], axis=1)
    return pairs[pairs[:, 0] < pairs[:, 1]] if others is None else pairs


def all_pairs(positions: Array, others: Array | None, distance: float) -> NDArray[np.intp]:
    """Pairs (K, 2), as in `nearest_pairs`, of any two that are at most `distance` apart."""
    from scipy.spatial import KDTree

    if others is None:
        pairs = KDTree(positions).query_pairs(distance, output_type="ndarray") if len(positions) else np.zeros((0, 2))
        return np.asarray(sorted(map(tuple, pairs)), dtype=np.intp).reshape(-1, 2)
    if not len(positions) or not len(others):
        return np.zeros((0, 2), dtype=np.intp)
    near = KDTree(positions).query_ball_tree(KDTree(others), distance)
    found = [(first, second) for first, seconds in enumerate(near) for second in sorted(seconds)]
    return np.asarray(found, dtype=np.intp).reshape(-1, 2)
