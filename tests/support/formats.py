"""Picks to hand to other programs, in tomograms of odd and even sizes and of binnings that do not divide."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from tomoscout.data.formats.base import Frame, Grid, PickSet, TiltSeries
from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError

OPTICS = (("rlnOpticsGroupName", "one"), ("rlnVoltage", 300.0))
GRIDS = {
    # Even sizes that a binning of 4 divides.
    "TS_01": Grid((200, 512, 480), 10.0, TiltSeries((1920, 2048, 800), 2.5, OPTICS)),
    # Odd sizes, which no binning divides.
    "TS_2": Grid((93, 315, 232), 13.48, TiltSeries((928, 1259, 371), 3.37, OPTICS)),
    # A name that looks like a number, and a voxel spacing that is no multiple of the pixel size.
    "007": Grid((64, 101, 102), 7.84, TiltSeries((511, 507, 321), 1.5678, OPTICS)),
}
WITHOUT = {run: Grid(grid.shape, grid.voxel_spacing) for run, grid in GRIDS.items()}
"""The same without tomograms.star."""


def frame(grids: Mapping[str, Grid] = GRIDS, **facts: Any) -> Frame:
    """A frame of these runs, which knows no other."""

    def find(names: Collection[str]) -> Mapping[str, Grid]:
        if unknown := {*names} - grids.keys():
            raise TomoscoutError(f"no run {', '.join(sorted(unknown))}")
        return {name: grids[name] for name in names}

    return Frame(find, **facts)


def some_picks(count: int, grid: Grid, seed: int = 0) -> Picks:
    """Picks all over a tomogram, and some outside; the first two without orientation, the third upside down."""
    random = np.random.default_rng(seed)
    size = np.array(grid.shape[::-1]) * grid.voxel_spacing
    rotations = Rotation.random(count, rng=random).as_matrix()
    rotations[:2] = np.eye(3)
    rotations[2:3] = Rotation.from_euler("x", 180, degrees=True).as_matrix()
    return Picks.at(
        random.uniform(-0.1, 1.1, (count, 3)) * size,
        random.uniform(0, 1, count),
        rotations=rotations,
        instances=random.integers(0, 9, count),
    )


def some_sets(counts: tuple[int, int] = (9, 5), grids: Mapping[str, Grid] = GRIDS) -> list[PickSet]:
    """Two objects in every run."""
    return [
        PickSet(run, name, some_picks(count, grid, len(run) + count), radius)
        for run, grid in grids.items()
        for name, count, radius in zip(("ribosome", "beta-amylase"), counts, (150.0, None), strict=True)
    ]


def turned_by(rotations: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The angles in degrees between rotations."""
    between = Rotation.from_matrix(rotations).inv() * Rotation.from_matrix(others)
    return np.degrees(between.magnitude())
