"""Annotated images: which there are, and what is known of each without reading its voxels."""

from __future__ import annotations

import difflib
import statistics
from collections.abc import Iterable, Mapping, Sequence

from tomoscout.machine.errors import TomoscoutError
from tomoscout.tasks.instances.annotated_images import annotated_images
from tomoscout.tasks.instances.annotated_sample import annotated_sample
from tomoscout.tasks.instances.annotated_tomograms import annotated_tomograms
from tomoscout.tasks.instances.annotation import Annotation
from tomoscout.tasks.instances.annotation_options import Annotations

_BLACK = "none"


def find_annotations(options: Annotations, projects: Mapping[str, str] | None = None) -> list[Annotation]:
    """All annotated images, sorted by source and name.

    Args:
        options: where they are, and what the network is to see of them.
        projects: copick projects, name → config, of annotated tomograms.

    Raises:
        TomoscoutError: a folder or its images are missing, an image has no labels or labels of another size, a channel
            is unknown, there is no calibration, or only one image.
    """
    if not options.annotations:
        raise TomoscoutError("cells.annotations: no folder; give name: folder")
    found: list[Annotation] = []
    for name, source in sorted(options.annotations.items()):
        if source.sample is not None:
            found.append(annotated_sample(name, source, options))
        elif source.segmentation is not None:
            found += annotated_tomograms(name, source, options, projects or {})
        else:
            found += annotated_images(name, source, options)
    if len(found) == 1:
        raise TomoscoutError(f"{found[0].place}: the only annotated image; expected at least two, one to validate on")
    _check_channels(found, options.channels)
    return found


def network_calibration(options: Annotations, annotations: Iterable[Annotation]) -> float | None:
    """µm per voxel at which the network works: that of the options, else the median of the annotations; None where
    neither says one."""
    known = [entry.calibration for entry in annotations if entry.calibration is not None]
    return options.calibration or (statistics.median(known) if known else None)


def channel_numbers(annotation: Annotation, wanted: Sequence[str]) -> list[int | None]:
    """The channel of an image for each input of the network, None for black.

    Args:
        annotation: the image.
        wanted: names of channels, in capitals or not; none for the only channel.
    """
    there = {name.lower(): number for number, name in enumerate(annotation.channels)}
    return [there.get(name.lower()) for name in wanted] if wanted else [0]


def missing_channels(annotation: Annotation, wanted: Sequence[str]) -> list[str]:
    """The wanted channels that an image lacks, except those that are meant to be black."""
    numbers = channel_numbers(annotation, wanted)
    pairs = zip(wanted, numbers, strict=False)
    return [name for name, number in pairs if number is None and name.lower() != _BLACK]


def _check_channels(annotations: Sequence[Annotation], wanted: Sequence[str]) -> None:
    """Check that every wanted channel is in an image, or that all images have only one channel."""
    there = sorted({name for entry in annotations for name in entry.channels}, key=str.lower)
    several = next((entry for entry in annotations if len(entry.channels) > 1), None)
    if not wanted and several:
        raise TomoscoutError(
            f"cells.channels: {several.place} has {len(several.channels)} channels ({', '.join(several.channels)}); "
            "name those that the network is to see"
        )
    lower = {name.lower() for name in there}
    for name in wanted:
        if name.lower() not in lower | {_BLACK}:
            near = difflib.get_close_matches(name.lower(), lower, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise TomoscoutError(f"cells.channels: no image has a channel '{name}'; {hint}channels: {', '.join(there)}")
    if wanted and all(name.lower() == _BLACK for name in wanted):
        raise TomoscoutError(f"cells.channels: all are black; expected one of {', '.join(there)}")
