"""The check of annotated images before a training: a table, pictures, and a page to scroll through."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.machine.files import write_bytes, write_table, write_text
from tomoscout.machine.progress import Progress
from tomoscout.tasks.instances.annotation import Annotation
from tomoscout.tasks.instances.annotations import channel_numbers, missing_channels
from tomoscout.tasks.instances.brightness import has_structure, unlabelled_areas
from tomoscout.tasks.instances.check_pictures import OBJECTS, PROBLEM, UNLABELLED, picture

TINY = 9
"""An object with fewer voxels is tiny: exports leave such out."""

PARTLY = 0.1
"""An image looks partly annotated if it has this many bright areas without labels for each object."""

TABLE, PAGE, PICTURES = "annotations.tsv", "index.html", "pictures"
"""What is written into the folder of a check."""


@dataclass(frozen=True)
class Finding:
    """What was found in an image.

    `objects`: how many. `missing_channels`: inputs of the network that the image lacks. `gaps`: how many numbers below
    the largest no object has. `in_pieces`, `touching`, `tiny`: the numbers of objects of several pieces, of those that
    touch another one, and of those with fewer than 9 voxels. `unlabelled`: bright areas without labels. `looks`:
    annotated, partly annotated, un-annotated (it shows something, but has no object), or empty (it shows nothing, and
    is kept as a negative).
    """

    annotation: Annotation
    objects: int
    missing_channels: list[str]
    gaps: int
    in_pieces: list[int]
    touching: list[int]
    tiny: list[int]
    unlabelled: int
    looks: str

    @property
    def picture(self) -> str:
        """The path of its picture in the folder of the check."""
        return f"{PICTURES}/{self.annotation.source}/{self.annotation.name}.png"

    @property
    def suspicious(self) -> bool:
        """Whether somebody should look at the image."""
        return bool(
            self.in_pieces or self.tiny or self.missing_channels or self.looks in ("partly annotated", "un-annotated")
        )

    def to_row(self) -> dict[str, object]:
        """The row of the table."""
        entry = self.annotation
        return {
            "source": entry.source,
            "name": entry.name,
            "group": entry.group,
            "size": "x".join(map(str, entry.shape)),
            "calibration": entry.calibration if entry.calibration is not None else "–",
            "dtype": entry.label_type,
            "objects": self.objects,
            "looks": self.looks,
            "unlabelled": self.unlabelled,
            "missing_channels": ", ".join(self.missing_channels),
            "gaps": self.gaps,
            "in_pieces": _listed(self.in_pieces),
            "touching": len(self.touching),
            "tiny": _listed(self.tiny),
        }


class _Checked(NamedTuple):
    """A finding; the channel ((z,) y, x) that it was found in; and the bright areas without labels, numbered."""

    finding: Finding
    channel: NDArray[Any]
    unlabelled: NDArray[np.integer]


def check(annotation: Annotation, image: NDArray[Any], labels: NDArray[np.integer], channels: Sequence[str]) -> Finding:
    """What is to be said of an image.

    Args:
        annotation: the image.
        image: its intensities (channels, (z,) y, x).
        labels: its labels ((z,) y, x).
        channels: the inputs of the network, by name.
    """
    return _check(annotation, image, labels, channels).finding


def run_check(annotations: Sequence[Annotation], channels: Sequence[str], folder: Path) -> list[Finding]:
    """Check all images, and write a table, a picture of each and a page into a folder.

    Args:
        annotations: the images.
        channels: the inputs of the network, by name; the first that an image has is shown.
        folder: where to write.

    Raises:
        TomoscoutError: an image cannot be read, or none has an object.
    """
    findings = []
    progress = Progress(len(annotations))
    for done, entry in enumerate(annotations, 1):
        image, labels = entry.read_image(), entry.read_labels()
        finding, channel, unlabelled = _check(entry, image, labels, channels)
        problems = {*finding.in_pieces, *finding.tiny}
        write_bytes(folder / finding.picture, picture(channel, labels, problems, unlabelled))
        findings.append(finding)
        progress.show(done, f"{done} of {len(annotations)} images checked")
    rows = [finding.to_row() for finding in findings]
    write_table(folder / TABLE, list(rows[0]), rows)
    write_text(folder / PAGE, _page(findings))
    if not any(finding.objects for finding in findings):
        raise TomoscoutError(
            f"{folder / TABLE}: none of {len(findings)} images has an object; expected labels from 1 on"
        )
    return findings


def _check(
    annotation: Annotation, image: NDArray[Any], labels: NDArray[np.integer], channels: Sequence[str]
) -> _Checked:
    numbers = [number for number in channel_numbers(annotation, channels) if number is not None]
    channel = image[numbers[0] if numbers else 0]
    objects, sizes = np.unique(labels[labels > 0], return_counts=True)
    compact = np.where(labels > 0, np.searchsorted(objects, labels) + 1, 0)
    areas, unlabelled = unlabelled_areas(channel, compact) if len(objects) else (np.zeros_like(compact), 0)
    finding = Finding(
        annotation,
        len(objects),
        missing_channels(annotation, channels),
        int(objects.max(initial=0)) - len(objects),
        objects[_in_pieces(compact)].tolist(),
        objects[_touching(compact)].tolist(),
        objects[sizes < TINY].tolist(),
        unlabelled,
        _looks(channel, len(objects), unlabelled),
    )
    return _Checked(finding, channel, areas)


def _looks(channel: NDArray[Any], objects: int, unlabelled: int) -> str:
    if objects:
        return "partly annotated" if unlabelled >= max(1, PARTLY * objects) else "annotated"
    return "un-annotated" if has_structure(channel) else "empty"


def _in_pieces(labels: NDArray[np.integer]) -> list[int]:
    """Indices (label − 1) of the objects that are not connected, corners included."""
    from scipy.ndimage import find_objects, label

    corners = np.ones((3,) * labels.ndim)
    boxes = enumerate(find_objects(labels))
    return [index for index, box in boxes if label(labels[box] == index + 1, corners)[1] > 1]


def _touching(labels: NDArray[np.integer]) -> list[int]:
    """Indices (label − 1) of the objects that share a side of a voxel with another one."""
    found: set[int] = set()
    for axis in range(labels.ndim):
        along = labels.swapaxes(0, axis)
        one, other = along[1:], along[:-1]
        meet = (one != other) & (one > 0) & (other > 0)
        found.update(one[meet].tolist(), other[meet].tolist())
    return sorted(label - 1 for label in found)


def _listed(numbers: Collection[int]) -> str:
    return cut(" ".join(map(str, numbers)))


def _page(findings: Sequence[Finding]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tomoscout.tasks.instances", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colours = {"object": OBJECTS[0], "problem": PROBLEM, "unlabelled": UNLABELLED}
    return environment.get_template("checks.html.jinja").render(findings=findings, colours=colours)
