"""Picks in memory, and as the points of a copick picks file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscout.machine.errors import TomoscoutError, shown

Points = Sequence[dict[str, Any]]
"""The list `points` of a copick picks file."""


@dataclass(frozen=True)
class Picks:
    """Points of one object: positions (N, 3) as x, y, z in Å with the transform's shift added; scores (N,);
    transforms (N, 4, 4) object → tomogram whose shift is zero; instances (N,), numbers of the points, or of what they
    belong to, such as filaments, 0 for none."""

    positions: NDArray[np.float64]
    scores: NDArray[np.float64]
    transforms: NDArray[np.float64]
    instances: NDArray[np.int64]

    @classmethod
    def at(
        cls,
        positions: NDArray[np.floating],
        scores: NDArray[np.floating] | None = None,
        *,
        rotations: NDArray[np.floating] | None = None,
        instances: NDArray[np.integer] | None = None,
    ) -> Picks:
        """Picks at `positions` with scores of 1 unless given; `rotations` (N, 3, 3), none unless given."""
        count = len(positions)
        transforms = np.tile(np.eye(4), (count, 1, 1))
        if rotations is not None:
            transforms[:, :3, :3] = rotations
        return cls(
            np.asarray(positions, dtype=np.float64).reshape(count, 3),
            np.ones(count) if scores is None else np.asarray(scores, dtype=np.float64),
            transforms,
            np.zeros(count, np.int64) if instances is None else np.asarray(instances, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, chosen: NDArray[np.bool_] | NDArray[np.integer]) -> Picks:
        """The picks that a mask (N,) or indices choose."""
        return Picks(self.positions[chosen], self.scores[chosen], self.transforms[chosen], self.instances[chosen])

    @property
    def rotations(self) -> NDArray[np.float64]:
        """The rotations (N, 3, 3) of the transforms."""
        return self.transforms[:, :3, :3]


def joined(parts: Iterable[Picks]) -> Picks:
    """The picks of several sets, one after the other."""
    sets = [Picks.at(np.zeros((0, 3))), *parts]
    return Picks(
        np.concatenate([part.positions for part in sets]),
        np.concatenate([part.scores for part in sets]),
        np.concatenate([part.transforms for part in sets]),
        np.concatenate([part.instances for part in sets]),
    )


class PicksFound(NamedTuple):
    """The content of a picks file: number of points, digest of the points, positions (N, 3) as x, y, z in Å."""

    total: int
    digest: str
    positions: NDArray[np.float64]


def points_of(values: dict[str, Any], what: str, file: str) -> Points:
    """The points in the content of a picks file. `what`, `file`: the picks and their file, for messages.

    Raises:
        TomoscoutError: the unit is not Å, or there is no list of points.
    """
    unit = values.get("unit") or "angstrom"
    if unit != "angstrom":
        raise TomoscoutError(
            f"{what}: its unit is {shown(unit)}, expected 'angstrom': copick's programs take every position as Å"
        )
    points = values.get("points", "")
    if not isinstance(points, list | None):
        raise TomoscoutError(f"{file}: not a copick picks file (no list 'points')")
    return points or []


def picks_of(points: Points, what: str) -> Picks:
    """Picks from points. A point without a score has the score 1.

    Raises:
        TomoscoutError: a point of `what` is malformed, or one of its numbers is not finite.
    """
    if not points:
        return Picks.at(np.zeros((0, 3)))
    positions, transforms = places_of(points, what)
    try:
        scores = np.array([1.0 if p.get("score") is None else p["score"] for p in points], dtype=np.float64)
        instances = np.array([p.get("instance_id") or 0 for p in points], dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TomoscoutError(f"{what}: a point is malformed ({shown(error)})") from None
    if not np.isfinite(scores).all():
        raise TomoscoutError(f"{what}: a score is NaN or infinite")
    return Picks(positions, scores, transforms, instances)


def places_of(points: Points, what: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (N, 3) as x, y, z in Å, and transforms (N, 4, 4) without their shifts. In copick the centre of a
    particle is its location plus the shift of its transform.

    Raises:
        TomoscoutError: a point of `what` is malformed, or a position is not finite.
    """
    try:
        positions = np.array([[p["location"][axis] for axis in "xyz"] for p in points], dtype=np.float64)
        transforms = np.array([p.get("transformation_") or np.eye(4) for p in points], dtype=np.float64)
        positions = positions.reshape(len(points), 3)
        transforms = transforms.reshape(len(points), 4, 4)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TomoscoutError(f"{what}: a point is malformed ({shown(error)})") from None
    positions = positions + transforms[:, :3, 3]
    transforms[:, :3, 3] = 0
    if not np.isfinite(positions).all():
        raise TomoscoutError(f"{what}: a position is NaN or infinite")
    return positions, transforms


def to_points(picks: Picks) -> Points:
    """Picks as points."""
    columns = picks.positions, picks.transforms, picks.scores, picks.instances
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [
        {
            "location": dict(zip("xyz", position, strict=True)),
            "transformation_": transform,
            "instance_id": instance,
            "score": score,
        }
        for position, transform, score, instance in rows
    ]
