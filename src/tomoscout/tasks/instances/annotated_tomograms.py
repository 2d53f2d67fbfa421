"""Annotated tomograms: those of the copick projects that have a segmentation in which every object has a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest
from tomoscout.options import names as copick
from tomoscout.tasks.instances.annotation import Annotation
from tomoscout.tasks.instances.annotation_options import Annotations, Source

CHANNEL = "tomogram"
"""The name of the only channel of a tomogram."""
ANGSTROM_PER_MICROMETRE = 1e4


@dataclass(frozen=True)
class AnnotatedTomogram(Annotation):
    """A tomogram of a run and a segmentation with its instances. `content`: digest of the voxels of the tomogram."""

    project: Project
    run: str
    tomogram: str
    segmentation: Segmentation
    content: str

    @property
    def place(self) -> str:
        return f"{self.project.name}/{self.run}: tomogram {self.tomogram}"

    @cached_property
    def inputs(self) -> str:
        return digest([self.content, self.project.digest_segmentation(self.run, self.segmentation), self.calibration])

    def read_image(self) -> NDArray[Any]:
        return self.project.read_tomogram(self.run, self.tomogram)[None]

    def read_labels(self) -> NDArray[np.int32]:
        labels = self.project.read_segmentation(self.run, self.segmentation)
        what = f"{self.project.name}/{self.run}: segmentation {self.segmentation}"
        if labels.shape != self.shape:
            raise TomoscoutError(f"{what}: its shape is {labels.shape}, but the tomogram has {self.shape}")
        low, high = int(labels.min()), int(labels.max())
        if labels.dtype.kind not in "biu" or low < 0 or high > np.iinfo(np.int32).max:
            raise TomoscoutError(f"{what}: {labels.dtype} from {low} to {high}, expected whole numbers from 0 on")
        converted: NDArray[np.int32] = labels.astype(np.int32)
        return converted


def annotated_tomograms(
    name: str, source: Source, options: Annotations, projects: Mapping[str, str]
) -> list[Annotation]:
    """The annotated tomograms of all projects, sorted by project and run.

    Args:
        name: the name of the source in the configuration.
        source: what the source is.
        options: those of all annotations.
        projects: project → its copick config.

    Raises:
        TomoscoutError: there are none, a run has several such segmentations, or a tomogram cannot be read.
    """
    assert source.segmentation is not None and source.tomogram is not None
    if options.dimensions != 3:
        raise TomoscoutError(f"cells.annotations.{name}: tomograms are volumes; set cells.dimensions: 3")
    uri, wanted = copick.TomogramUri.parse(source.tomogram), copick.Source.parse(source.segmentation)
    found: list[Annotation] = []
    for project in (Project(key, Path(path)) for key, path in sorted(projects.items())):
        for run in project.run_names():
            tomogram = project.tomograms(run).get(str(uri))
            chosen = [entry for entry in project.segmentations(run) if _is_wanted(entry, wanted, uri.voxel_spacing)]
            if tomogram is None or not chosen:
                continue
            place = f"{project.name}/{run}"
            if len(chosen) > 1:
                raise TomoscoutError(
                    f"{place}: several segmentations {wanted}: {', '.join(map(str, chosen))}; name one "
                    f"(cells.annotations.{name}.segmentation: name:user/session)"
                )
            if tomogram.shape is None:
                raise TomoscoutError(f"{place}: tomogram {uri}: {tomogram.problem}")
            first = project.read_segmentation(run, chosen[0], (slice(0, 1),) * 3)
            calibration = uri.voxel_spacing / ANGSTROM_PER_MICROMETRE
            known = ((CHANNEL,), calibration, place, tomogram.shape, str(first.dtype))
            found.append(AnnotatedTomogram(name, place, *known, project, run, str(uri), chosen[0], tomogram.digest))
    if not found:
        raise TomoscoutError(
            f"cells.annotations.{name}: no run has both tomogram {uri} and a segmentation {wanted} of its voxel spacing"
        )
    return found


def _is_wanted(entry: Segmentation, wanted: copick.Source, voxel_spacing: float) -> bool:
    return (
        entry.name == wanted.name
        and wanted.user in (None, entry.user)
        and wanted.session in (None, entry.session)
        and abs(entry.voxel_spacing - voxel_spacing) < 1e-3
    )
