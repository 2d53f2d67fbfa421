"""Label volumes where there are no reference picks: how many voxels each class has, and their outlines."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation
from tomoscout.data.zarr_files import LARGEST_CHUNK


@dataclass(frozen=True)
class RunLabels:
    """The labels of a run: their segmentation, and `voxels` (z, label), how many voxels of each label every slice has.
    Label 0 is the background, the last stands for all from there upward. `names`: of the labels that are known and have
    voxels."""

    segmentation: Segmentation
    voxels: NDArray[np.int64]
    names: Mapping[int, str]

    @property
    def of_classes(self) -> dict[str, int]:
        """How many voxels each class has."""
        return {name: int(self.voxels[:, label].sum()) for label, name in self.names.items()}

    def telling_slices(self, count: int) -> list[int]:
        """For each label the slice that has most of it, `count` of them at most; the middle without labels."""
        best = dict.fromkeys(int(self.voxels[:, label].argmax()) for label in self.names)
        return sorted(list(best)[:count]) or [len(self.voxels) // 2]


def count_labels(
    project: Project, run: str, segmentation: Segmentation, names: Mapping[int, str], *, allow_missing_chunks: bool
) -> RunLabels:
    """Count the voxels of each label of a segmentation that has a name in `names`, some slices at a time.

    Raises:
        TomoscoutError: it cannot be read.
    """
    beyond = max(names, default=0) + 1
    counted: list[NDArray[np.int64]] = []
    while True:
        span = slice(len(counted), len(counted) + LARGEST_CHUNK)
        slab = project.read_segmentation(run, segmentation, (span,), allow_missing_chunks=allow_missing_chunks)
        for plane in slab:
            labels = np.clip(plane.astype(np.int64), 0, beyond)
            counted.append(np.bincount(labels.ravel(), minlength=beyond + 1))
        if len(slab) < LARGEST_CHUNK:
            break
    voxels = np.array(counted)
    return RunLabels(segmentation, voxels, {label: name for label, name in names.items() if voxels[:, label].any()})


def volumes(runs: Collection[RunLabels]) -> list[dict[str, Any]]:
    """For every class its name (`class`), the number of `runs` that have any, `voxels`, `volume` (nm³), and the `share`
    of all voxels, over all runs."""
    total = sum(int(entry.voxels.sum()) for entry in runs)
    found: dict[str, dict[str, Any]] = {}
    for entry in runs:
        for name, count in entry.of_classes.items():
            row = found.setdefault(name, {"class": name, "runs": 0, "voxels": 0, "volume": 0.0})
            row["runs"] += 1
            row["voxels"] += count
            row["volume"] += count * (entry.segmentation.voxel_spacing / 10) ** 3
    return [{**row, "share": row["voxels"] / total} for row in found.values()]
