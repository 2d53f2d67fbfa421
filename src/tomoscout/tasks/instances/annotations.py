"""Annotated images: which there are, and what is known of each without reading its voxels."""

from __future__ import annotations

import difflib
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tomoscout.data.image_names import ending_of
from tomoscout.data.label_images import ImageFile, check_labels, describe
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, digest_file, digest_folder
from tomoscout.options.forms import read_form
from tomoscout.tasks.instances.annotation_files import EXPORTED, LABEL_MARKS
from tomoscout.tasks.instances.annotation_options import Annotations, Micrometres, Source

_LABEL_FOLDERS = ("labels", "masks")
_EXPORTED_NAME = re.compile(r"(?P<group>.+)_\d{4}(_roi(_\d+){4})?")
"""`<experiment>_<well>_<frame>`, and the corners of a region of interest."""
_COLOURS = ("red", "green", "blue")
_BLACK = "none"


@dataclass(frozen=True)
class Annotation:
    """An image and its labels.

    `source`: the name of its folder in the configuration. `channels`: their names. `calibration`: µm per voxel.
    `group`: images of one source and group must not be divided. `shape`: (z,) y, x. `label_type`: of the stored
    labels.
    """

    source: str
    name: str
    image: Path
    labels: Path
    channels: tuple[str, ...]
    calibration: float | None
    group: str
    shape: tuple[int, ...]
    label_type: str

    @property
    def key(self) -> str:
        """Source and name, which tell it from all others."""
        return f"{self.source}/{self.name}"

    @cached_property
    def inputs(self) -> str:
        """A digest of the content of both files and of what is known of the channels; it reads the files."""
        files = [digest_folder(path) if path.is_dir() else digest_file(path) for path in (self.image, self.labels)]
        return digest([*files, self.channels, self.calibration])


class _Pair(NamedTuple):
    name: str
    image: Path
    labels: Path


@dataclass(frozen=True)
class _Sidecar:
    """What is used of the file that lies beside an exported image."""

    channels: list[str] | None = None
    spatial_calibration: Micrometres | None = None


def find_annotations(options: Annotations) -> list[Annotation]:
    """All annotated images, sorted by source and name.

    Raises:
        TomoscoutError: a folder or its images are missing, an image has no labels or labels of another size, a channel
            is unknown, there is no calibration, or only one image.
    """
    if not options.annotations:
        raise TomoscoutError("cells.annotations: no folder; give name: folder")
    found = [
        _annotation(name, source, pair, options)
        for name, source in sorted(options.annotations.items())
        for pair in _pairs(name, Path(source.folder))
    ]
    if len(found) == 1:
        raise TomoscoutError(f"{found[0].image}: the only annotated image; expected at least two, one to validate on")
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


def _pairs(source: str, folder: Path) -> list[_Pair]:
    """The images of a folder and their labels, sorted by name."""
    if not folder.is_dir():
        raise TomoscoutError(f"{folder}: no such folder (cells.annotations.{source}.folder)")
    images = _images_in(folder / "images" if (folder / "images").is_dir() else folder)
    label_folder = next((folder / name for name in _LABEL_FOLDERS if (folder / name).is_dir()), None)
    labels = _images_in(label_folder) if label_folder else {}
    for mark in LABEL_MARKS:
        marked = [name for name in images if name.endswith(mark)]
        labels |= {name.removesuffix(mark): images.pop(name) for name in marked}
    if not images:
        raise TomoscoutError(
            f"{folder}: no images; expected TIFF, PNG or OME-Zarr, with labels in X{EXPORTED}.tif or labels/"
        )
    _check_partners(folder, "labels", images, labels)
    _check_partners(folder, "an image", labels, images)
    return [_Pair(name, images[name], labels[name]) for name in sorted(images)]


def _images_in(folder: Path) -> dict[str, Path]:
    """Name without its ending → file."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = ending_of(path)
        if ending is None or path.name.startswith("."):
            continue
        name = path.name[: -len(ending)]
        if name in found:
            raise TomoscoutError(f"{path}: {found[name].name} has the same name; expected one file for each image")
        found[name] = path
    return found


def _check_partners(folder: Path, what: str, names: Iterable[str], partners: Mapping[str, Path]) -> None:
    alone = sorted(name for name in names if name not in partners)
    if alone:
        more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
        raise TomoscoutError(f"{folder}: {what} missing for {', '.join(alone[:3])}{more}")


def _annotation(name: str, source: Source, pair: _Pair, options: Annotations) -> Annotation:
    image, labels = describe(pair.image, options.dimensions), describe(pair.labels, options.dimensions)
    check_labels(pair.labels, labels)
    if image.shape != labels.shape:
        raise TomoscoutError(f"{pair.labels}: {_size(labels.shape)} voxels, but its image has {_size(image.shape)}")
    option = f"cells.annotations.{name}"
    path = pair.image.with_name(f"{pair.name}.json")
    sidecar = read_form(_Sidecar, path, "the sidecar of an exported image") if path.exists() else _Sidecar()
    calibration = sidecar.spatial_calibration or source.calibration
    if calibration is None and not options.uncalibrated:
        raise TomoscoutError(
            f"{pair.image}: no calibration; expected spatial_calibration (µm per voxel) in {path.name}, or "
            f"{option}.calibration, or cells.uncalibrated: true"
        )
    where = path if sidecar.channels else f"{option}.channels"
    channels = _channel_names(sidecar.channels or source.channels, where, pair, image)
    group = _group(name, source, pair)
    return Annotation(name, *pair, channels, calibration, group, image.shape, str(labels.dtype))


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _channel_names(names: Sequence[str] | None, where: object, pair: _Pair, image: ImageFile) -> tuple[str, ...]:
    """The given names of the channels of an image, or such as can be told from the image."""
    if names is None:
        return _COLOURS if image.colours else tuple(str(number + 1) for number in range(image.channels))
    if len(names) != image.channels:
        raise TomoscoutError(
            f"{where}: {len(names)} channels ({', '.join(names)}), but {pair.image} has {image.channels}"
        )
    return tuple(names)


def _group(name: str, source: Source, pair: _Pair) -> str:
    """What the images have in common that must not be divided with this one."""
    if source.group is not None:
        match = re.search(source.group, pair.name)
        if not match:
            raise TomoscoutError(
                f"cells.annotations.{name}.group: '{source.group}' does not match the image {pair.name}"
            )
        return match[1 if match.re.groups else 0]
    # In other folders, numbers at the end of names count images that have nothing else in common.
    exported = EXPORTED in pair.labels.name and _EXPORTED_NAME.fullmatch(pair.name)
    return exported["group"] if exported else pair.name


def _check_channels(annotations: Sequence[Annotation], wanted: Sequence[str]) -> None:
    """Check that every wanted channel is in an image, or that all images have only one channel."""
    there = sorted({name for entry in annotations for name in entry.channels}, key=str.lower)
    several = next((entry for entry in annotations if len(entry.channels) > 1), None)
    if not wanted and several:
        raise TomoscoutError(
            f"cells.channels: {several.image} has {len(several.channels)} channels ({', '.join(several.channels)}); "
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
