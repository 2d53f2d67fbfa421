"""Annotated images in folders: those of an export, or any images with labels of the same names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.image_names import ending_of
from tomoscout.data.label_images import ImageFile, check_labels, describe, read_image, read_labels
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, digest_file, digest_folder
from tomoscout.options.forms import read_form
from tomoscout.tasks.instances.annotation import Annotation
from tomoscout.tasks.instances.annotation_files import EXPORTED, LABEL_MARKS
from tomoscout.tasks.instances.annotation_options import Annotations, Micrometres, Source

_LABEL_FOLDERS = ("labels", "masks")
_EXPORTED_NAME = re.compile(r"(?P<group>.+)_\d{4}(_roi(_\d+){4})?")
"""`<experiment>_<well>_<frame>`, and the corners of a region of interest."""
_COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class AnnotatedImage(Annotation):
    """An image file and a file of its labels."""

    image: Path
    labels: Path

    @property
    def place(self) -> str:
        return str(self.image)

    @cached_property
    def inputs(self) -> str:
        files = [digest_folder(path) if path.is_dir() else digest_file(path) for path in (self.image, self.labels)]
        return digest([*files, self.channels, self.calibration])

    def read_image(self) -> NDArray[Any]:
        return read_image(self.image, len(self.shape))

    def read_labels(self) -> NDArray[np.int32]:
        return read_labels(self.labels, len(self.shape))


class _Pair(NamedTuple):
    name: str
    image: Path
    labels: Path


@dataclass(frozen=True)
class _Sidecar:
    """What is used of the file that lies beside an exported image."""

    channels: list[str] | None = None
    spatial_calibration: Micrometres | None = None


def annotated_images(name: str, source: Source, options: Annotations) -> list[Annotation]:
    """The annotated images of a folder, sorted by name.

    Raises:
        TomoscoutError: the folder or its images are missing, an image has no labels or labels of another size, or there
            is no calibration.
    """
    assert source.folder is not None
    return [_annotation(name, source, pair, options) for pair in _pairs(name, Path(source.folder))]


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
    known = (channels, calibration, group, image.shape, str(labels.dtype))
    return AnnotatedImage(name, pair.name, *known, pair.image, pair.labels)


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
