"""What an extraction makes of picks: which are kept, how they are turned, and what is measured of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import inside, to_voxels
from tomoscout.data.picks import Picks, joined
from tomoscout.options.names import Source
from tomoscout.tasks.picking.extraction.options import Extraction
from tomoscout.tasks.picking.extraction.orientation import turned
from tomoscout.tasks.picking.extraction.pairs import all_pairs, nearest_others, nearest_pairs
from tomoscout.tasks.picking.extraction.sheets import middle
from tomoscout.tasks.picking.extraction.surfaces import Array, Mask, boundary

Column = NDArray[Any]


@dataclass(frozen=True)
class Pool:
    """Picks of several sources together: of each of the N picks its `source`, an index into `sources`, and its `number`
    there, from 0."""

    sources: Sequence[Source]
    picks: Picks
    source: NDArray[np.int64]
    number: NDArray[np.int64]

    @classmethod
    def of(cls, found: Mapping[Source, Picks]) -> Pool:
        """The picks of all sources."""
        counts = [len(part) for part in found.values()]
        number = np.concatenate([np.zeros(0, np.int64), *(np.arange(count) for count in counts)])
        return cls([*found], joined(found.values()), np.repeat(np.arange(len(counts)), counts), number)

    def names(self, chosen: Iterable[int]) -> list[str]:
        """The source of each of the chosen picks; nothing for -1."""
        return [str(self.sources[self.source[index]]) if index >= 0 else "" for index in chosen]

    def objects(self) -> list[str]:
        """The object of each pick."""
        return [self.sources[index].name for index in self.source]


@dataclass(frozen=True)
class Chosen:
    """The picks that an extraction looked at, turned where it turns them: which are `kept` (N,), the `objects` as which
    they are written, and further columns (N,) of the table."""

    picks: Picks
    kept: NDArray[np.bool_]
    objects: Sequence[str]
    columns: dict[str, Column | list[Any]]


def by_surface(pool: Pool, mask: Mask, voxel_spacing: float, options: Extraction) -> Chosen:
    """Picks by their signed distance to the surface of a mask (z, y, x); `voxel_spacing` in Å. The columns have the
    distance, and the nearest point and the outward normal there as x, y, z."""
    find = boundary if options.surface == "boundary" else middle
    found = find(mask, voxel_spacing, options.smoothing).nearest(pool.picks.positions)
    kept = _within(np.abs(found.distances), options)
    if options.kind == "inside":
        kept &= found.distances < 0
    elif options.kind == "outside":
        kept &= found.distances > 0
    picks = _turned(pool.picks, found.normals) if options.orient else pool.picks
    columns = _columns(pool) | {"distance": found.distances}
    columns |= {f"nearest_{axis}": found.points[:, number] for number, axis in enumerate("xyz")}
    columns |= {f"normal_{axis}": found.normals[:, number] for number, axis in enumerate("xyz")}
    return Chosen(picks, kept, pool.objects(), columns)


def by_mask(pool: Pool, mask: Mask, voxel_spacing: float) -> Chosen:
    """Picks whose nearest voxel is in a mask (z, y, x); `voxel_spacing` in Å."""
    indices = to_voxels(pool.picks.positions, voxel_spacing)
    z, y, x = mask.shape
    kept = inside(indices, (z, y, x))
    kept[kept] = mask[tuple(np.floor(indices[kept] + 0.5).astype(int).T)]
    return Chosen(pool.picks, kept, pool.objects(), _columns(pool))


def by_neighbours(pool: Pool, partners: Pool | None, options: Extraction) -> Chosen:
    """Picks that have one of `partners` within a distance; None: another of the same picks."""
    others = None if partners is None else partners.picks.positions
    distances, nearest = nearest_others(pool.picks.positions, others)
    among = partners or pool
    kept = _within(distances, options)
    columns = _columns(pool) | {"distance": distances, **_columns(among, nearest, "partner_")}
    return Chosen(pool.picks, kept, pool.objects(), columns)


def midpoints(pool: Pool, partners: Pool | None, name: str, options: Extraction) -> Chosen:
    """The middles of pairs of picks, as object `name`, with z from the first to the second and the lower of their
    scores. A middle has the orientation of the first, turned."""
    others = None if partners is None else partners.picks.positions
    find = nearest_pairs if options.pairs == "nearest" else all_pairs
    pairs = find(pool.picks.positions, others, options.limits[1])
    among = partners or pool
    ways = among.picks.positions[pairs[:, 1]] - pool.picks.positions[pairs[:, 0]]
    far_enough = _within(np.linalg.norm(ways, axis=1), options)
    first, second = pairs[far_enough].T
    start, end, ways = pool.picks[first], among.picks[second], ways[far_enough]
    lengths = np.linalg.norm(ways, axis=1)
    directions = np.divide(ways, lengths[:, None], out=np.full_like(ways, np.nan), where=lengths[:, None] > 0)
    middles = replace(
        start,
        positions=(start.positions + end.positions) / 2,
        scores=np.minimum(start.scores, end.scores),
        instances=np.zeros(len(first), np.int64),
    )
    columns = _columns(pool, first) | {"distance": lengths, **_columns(among, second, "partner_")}
    return Chosen(_turned(middles, directions), np.ones(len(first), dtype=bool), [name] * len(first), columns)


def _within(distances: Array, options: Extraction) -> NDArray[np.bool_]:
    low, high = options.limits
    return (distances >= low) & (distances <= high)


def _turned(picks: Picks, directions: Array) -> Picks:
    transforms = picks.transforms.copy()
    transforms[:, :3, :3] = turned(picks.rotations, directions)
    return replace(picks, transforms=transforms)


def _columns(pool: Pool, chosen: NDArray[np.intp] | None = None, prefix: str = "") -> dict[str, Column | list[Any]]:
    """Where picks come from: their source, and their number in it; nothing for -1."""
    indices = np.arange(len(pool.picks)) if chosen is None else chosen
    numbers = [int(pool.number[index]) if index >= 0 else "" for index in indices]
    return {f"{prefix}source": pool.names(indices), f"{prefix}number": numbers}


def table_rows(chosen: Chosen) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of the table: every pick that was looked at, with its number among the picks that are written,
    from 0, or none if it was left out. Values that are not finite are empty."""
    counts: dict[str, int] = {}
    rows = []
    for index, (name, is_kept) in enumerate(zip(chosen.objects, chosen.kept.tolist(), strict=True)):
        row: dict[str, Any] = {"object": name, "written": counts.get(name, 0) if is_kept else ""}
        counts[name] = counts.get(name, 0) + is_kept
        row |= {axis: _rounded(value) for axis, value in zip("xyz", chosen.picks.positions[index], strict=True)}
        row["score"] = float(chosen.picks.scores[index])
        row |= {key: _rounded(values[index]) for key, values in chosen.columns.items()}
        rows.append(row)
    return ["object", "written", "x", "y", "z", "score", *chosen.columns], rows


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(float(value), 4) if np.isfinite(value) else ""
