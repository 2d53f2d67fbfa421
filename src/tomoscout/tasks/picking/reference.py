"""Reference picks: what the picks of a model are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tomoscout.data.geometry import inside, to_voxels
from tomoscout.data.inventory import RunRecord
from tomoscout.data.picks import Picks
from tomoscout.data.project import Project
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking.peaks import suppress

REPEATED = 0.1
"""Two picks of an object nearer than this many radii are one particle, picked twice."""


def read_reference(project: Project, record: RunRecord, entry: TargetClass) -> Picks:
    """All picks of a class in a run, from every source of the class."""
    found = [project.read_picks(record.run, source) for source in entry.sources if source in record.picks]
    return Picks.at(np.concatenate([np.zeros((0, 3)), *(picks.positions for picks in found)]))


class SoundReference(NamedTuple):
    """Reference picks that can be found, and how many others there were: outside of the tomogram, or of a particle that
    was picked before."""

    picks: Picks
    outside: int
    repeated: int


def sound_reference(picks: Picks, shape: Sequence[int], voxel_spacing: float, radius: float) -> SoundReference:
    """Leave out reference picks that nothing could find in a tomogram of `shape` (z, y, x). `voxel_spacing` and
    `radius` are in Å."""
    z, y, x = shape
    within = picks.positions[inside(to_voxels(picks.positions, voxel_spacing), (z, y, x))]
    kept = within[suppress(within, REPEATED * radius)]
    return SoundReference(Picks.at(kept), len(picks) - len(within), len(within) - len(kept))
