"""The overview of a dataset for the page: tomograms, annotations, and a small picture of each run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from tomoscout.data.project import Project
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.names import TomogramUri
from tomoscout.plan.dataset import RunOverview
from tomoscout.report.pictures import SlicePicture, slice_image, to_png

THUMBNAILS = 200
"""Largest number of runs of which a thumbnail is shown."""

ROWS = 1000
"""Largest number of runs in the table of runs."""

_SIDE = 128
"""Largest side of a thumbnail in pixels. Its grey levels are 16, half the size of 64 and no worse to look at."""

PARTS = {"train": "training", "validate": "validation", "test": "test"}


@dataclass(frozen=True)
class Thumbnail(SlicePicture):
    """A small picture of a run; `tomogram`: its URI, `levels`: the values that are drawn black and white."""

    tomogram: str
    levels: tuple[float, float]


@dataclass(frozen=True)
class Dataset:
    """What the page shows of a dataset.

    `total`: the number of runs. `tomograms`: URI, voxel spacing in Å, number of runs, shapes (z × y × x) with the
    number of runs of each. `objects`: of each its name, the numbers of annotated runs and of picks (None where it has
    segmentations), and the median number of picks of the annotated runs. `runs`: of each run its name (`project/run`),
    its part, its tomograms and what is annotated, as text.
    """

    total: int
    tomograms: list[tuple[str, float, int, str]]
    objects: list[tuple[str, int, int | None, float | None]]
    runs: list[tuple[str, str, str, list[str]]]
    thumbnails: list[Thumbnail]


def describe_dataset(runs: Sequence[RunOverview], split: Mapping[str, Any], thumbnails: Sequence[Thumbnail]) -> Dataset:
    """The overview of a dataset. `split`: the content of the split file, with `fold`; may be empty."""
    fold = split["folds"][split.get("fold", 0)] if split.get("folds") else {}
    parts = {key: name for part, name in PARTS.items() for key in fold.get(part, ())}
    parts |= dict.fromkeys(split.get("excluded", ()), "left out")
    by_uri: dict[str, Counter[str]] = {}
    by_object: dict[str, list[int | bool]] = {}
    for run in runs:
        for uri, shape in run.tomograms.items():
            by_uri.setdefault(uri, Counter())[_shape(shape)] += 1
        for name, annotated in run.annotated.items():
            by_object.setdefault(name, []).extend([] if annotated is None else [annotated])
    return Dataset(
        len(runs),
        [(uri, _spacing(uri), shapes.total(), _counted(shapes)) for uri, shapes in by_uri.items()],
        [_object(name, counts) for name, counts in by_object.items()],
        [_row(run, parts.get(run.record.key, "–")) for run in runs[:ROWS]],
        list(thumbnails),
    )


def _spacing(uri: str) -> float:
    return TomogramUri.parse(uri).voxel_spacing


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _counted(shapes: Counter[str], most: int = 5) -> str:
    listed = shapes.most_common(most)
    text = ", ".join(shape if len(shapes) == 1 else f"{shape} ({runs:,})" for shape, runs in listed)
    return text + (f" and {len(shapes) - most:,} others" if len(shapes) > most else "")


def _object(name: str, annotated: Sequence[int | bool]) -> tuple[str, int, int | None, float | None]:
    counts = [count for count in annotated if count is not True]
    return name, len(annotated), sum(counts) if counts else None, median(counts) if counts else None


def _row(run: RunOverview, part: str) -> tuple[str, str, str, list[str]]:
    tomograms = ", ".join(f"{uri}: {_shape(shape)}" for uri, shape in run.tomograms.items()) or "none"
    return run.record.key, part, tomograms, [_annotated(value) for value in run.annotated.values()]


def _annotated(value: int | bool | None) -> str:
    return "–" if value is None else "yes" if value is True else f"{value:,}"


def thumbnails(runs: Sequence[RunOverview], projects: Mapping[str, str]) -> list[Thumbnail]:
    """Small pictures of the first runs, each of the middle of its first tomogram. A tomogram that cannot be read has
    none. `projects`: name → path of the copick config."""
    opened = {name: Project(name, Path(path)) for name, path in projects.items()}
    pictures = []
    for run in [run for run in runs if run.tomograms][:THUMBNAILS]:
        uri = next(iter(run.tomograms))
        try:
            slab = opened[run.record.project].read_middle(run.record.run, uri)
        except TomoscoutError:
            continue
        image = Image.fromarray(slice_image(slab))
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
        few = Image.fromarray(np.asarray(image) // 16 * 17)
        low, high = np.percentile(slab, [1, 99])
        pictures.append(Thumbnail(to_png(few), run.record.key, uri, (float(low), float(high))))
    return pictures
