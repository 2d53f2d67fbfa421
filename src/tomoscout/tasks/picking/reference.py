"""Reference picks: the ground truth that predicted picks are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tomoscout.data.geometry import inside, to_voxels
from tomoscout.data.inventory import RunRecord
from tomoscout.data.picks import Picks, joined
from tomoscout.data.project import Project
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking.peaks import suppress

REPEATED = 0.1
"""In radii: nearer picks of an object count as one particle that was picked twice."""


def read_reference(project: Project, record: RunRecord, entry: TargetClass) -> Picks:
    """All picks of a class in a run, from every source of the class."""
    found = [project.read_picks(record.run, source) for source in entry.sources if source in record.picks]
    return joined(found)


class SoundReference(NamedTuple):
    """The usable reference picks, and how many were left out: outside of the tomogram, or repeated picks of a
    particle."""

    picks: Picks
    outside: int
    repeated: int


def sound_reference(picks: Picks, shape: Sequence[int], voxel_spacing: float, radius: float) -> SoundReference:
    """Leave out reference picks outside of a tomogram of `shape` (z, y, x) and repeated picks of a particle.
    `voxel_spacing` and `radius` are in Å."""
    z, y, x = shape
    within = picks[inside(to_voxels(picks.positions, voxel_spacing), (z, y, x))]
    kept = within[suppress(within.positions, REPEATED * radius)]
    return SoundReference(kept, len(picks) - len(within), len(within) - len(kept))
