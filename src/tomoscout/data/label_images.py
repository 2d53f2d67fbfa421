"""Images and their labels as files: TIFF, PNG and OME-Zarr. Nothing else reads or writes them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.image_names import ENDINGS, ending_of
from tomoscout.data.ome_zarr import finest_level, first_image
from tomoscout.data.zarr_files import open_array, write_volume
from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.machine.files import atomic_path, read_json

_SPACE = {2: "YX", 3: "ZYX"}
_UNNAMED = "IQS"
"""Letters of tifffile for axes whose meaning no metadata gives."""
_LARGEST_LABEL = np.iinfo(np.int32).max


@dataclass(frozen=True)
class ImageFile:
    """What an image file holds. `shape`: that of space, (z,) y, x. `channels`: their number. `colours`: whether these
    are red, green and blue."""

    shape: tuple[int, ...]
    channels: int
    dtype: np.dtype[Any]
    colours: bool


@dataclass(frozen=True)
class _Stored:
    """An array as a file stores it. `axes`: a letter for each, as tifffile gives them. `read`: reads the voxels."""

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]]

    def colours(self) -> bool:
        """Whether the values of a voxel lie side by side, as those of a colour picture do."""
        return self.axes.endswith("XS")


@dataclass(frozen=True)
class _Axes:
    """The numbers of the stored axes that are channels (None: there is one channel) and space."""

    channels: int | None
    space: tuple[int, ...]


def describe(path: Path, dimensions: int) -> ImageFile:
    """What an image file holds, without reading its voxels.

    Args:
        path: the file, or the folder of an OME-Zarr.
        dimensions: 2 for images, 3 for volumes.

    Raises:
        TomoscoutError: it is missing, cannot be read, or has other axes.
    """
    with _open(path) as stored:
        axes = _axes_of(stored, dimensions, path)
        channels = 1 if axes.channels is None else stored.shape[axes.channels]
        if stored.colours():
            # The last of two or four is the transparency.
            channels -= channels % 2 == 0
        shape = tuple(stored.shape[axis] for axis in axes.space)
        return ImageFile(shape, channels, stored.dtype, stored.colours() and channels == 3)


def read_image(path: Path, dimensions: int) -> NDArray[Any]:
    """The intensities (channels, (z,) y, x) as stored; a colour image without its transparency.

    Raises:
        TomoscoutError: as for `describe`, or the file is cut, or holds NaN or infinite values.
    """
    found = describe(path, dimensions)
    image = _read(path, dimensions)[: found.channels]
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise TomoscoutError(f"{path}: holds NaN or infinite values")
    return image


def read_labels(path: Path, dimensions: int) -> NDArray[np.int32]:
    """The labels ((z,) y, x); 0 is background.

    Raises:
        TomoscoutError: as for `read_image`, or the labels are not whole numbers from 0 on, or have channels.
    """
    check_labels(path, describe(path, dimensions))
    labels = _read(path, dimensions)[0]
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or high > _LARGEST_LABEL:
        raise TomoscoutError(f"{path}: its labels go from {low} to {high}, expected 0 (background) to {_LARGEST_LABEL}")
    converted: NDArray[np.int32] = labels.astype(np.int32)
    return converted


def check_labels(path: Path, found: ImageFile) -> None:
    """Check that a file can hold labels, without reading them.

    Raises:
        TomoscoutError: its values are not whole numbers, or it has channels.
    """
    if found.dtype.kind not in "biu":
        raise TomoscoutError(f"{path}: its labels are {found.dtype}, expected whole numbers (0 is background)")
    if found.channels != 1:
        raise TomoscoutError(f"{path}: labels with {found.channels} channels, expected one")


def write_labels(path: Path, labels: NDArray[np.integer], calibration: float | None) -> None:
    """Write labels ((z,) y, x) as TIFF or OME-Zarr, by the ending of the name; equal labels give equal bytes.

    An image in OME-Zarr is a volume of one slice.

    Args:
        path: replaced in one step.
        labels: from 0 (background) on.
        calibration: µm per voxel; an OME-Zarr, which has to say one, says 1 where it is None.
    """
    kind: Any = np.uint16 if labels.max(initial=0) < 2**16 else np.uint32
    if path.suffix == ".zarr":
        volume = labels[None] if labels.ndim == 2 else labels
        write_volume(path, volume.astype(kind), 1e4 * (calibration or 1.0))
    else:
        _write_tiff(path, labels.astype(kind), "ZYX"[-labels.ndim :], calibration)


def write_image(path: Path, image: NDArray[Any], calibration: float | None) -> None:
    """Write intensities (channels, (z,) y, x) as a TIFF that ImageJ opens as a stack; equal values give equal bytes.

    Args:
        path: replaced in one step.
        image: uint8, uint16 or float32.
        calibration: µm per voxel.
    """
    if image.ndim == 4:
        _write_tiff(path, image.swapaxes(0, 1), "ZCYX", calibration)
    else:
        _write_tiff(path, image, "CYX", calibration)


def _write_tiff(path: Path, values: NDArray[Any], axes: str, calibration: float | None) -> None:
    import tifffile

    in_micrometres: dict[str, Any] = {"unit": "um", "spacing": calibration} if calibration else {}
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        tifffile.imwrite(
            handle,
            values,
            # ImageJ knows no larger whole numbers.
            imagej=values.dtype != np.uint32,
            photometric="minisblack",
            compression="zlib",
            resolution=(1 / calibration, 1 / calibration) if calibration else None,
            metadata={"axes": axes, **in_micrometres},
        )


def _read(path: Path, dimensions: int) -> NDArray[Any]:
    """The voxels of a file (channels, (z,) y, x)."""
    with _open(path) as stored:
        axes = _axes_of(stored, dimensions, path)
        values = stored.read()
        if values.dtype.kind not in "biuf":
            raise TomoscoutError(f"{path}: its values are {values.dtype}, expected numbers")
        first = () if axes.channels is None else (axes.channels,)
        order = [*first, *axes.space]
        rest = [axis for axis in range(values.ndim) if axis not in order]
        ordered: NDArray[Any] = values.transpose([*rest, *order])[(0,) * len(rest)]
        return ordered if first else ordered[None]


def _axes_of(stored: _Stored, dimensions: int, path: Path) -> _Axes:
    """Which axes are channels and space. Others must be of length 1.

    An axis without a meaning, before y and x, is z in a volume and channels in an image.
    """
    space = _SPACE[dimensions]
    long = [
        axis
        for axis, (name, size) in enumerate(zip(stored.axes, stored.shape, strict=True))
        if name in space or size != 1
    ]
    places = {name: axis for axis in long if (name := stored.axes[axis]) in space}
    others = [axis for axis in long if stored.axes[axis] not in space]
    if "Z" in space and "Z" not in places:
        unnamed = [axis for axis in others if stored.axes[axis] in _UNNAMED and axis < places.get("Y", 0)]
        if unnamed:
            places["Z"] = unnamed[-1]
            others.remove(unnamed[-1])
    if len(places) < dimensions or len(others) > 1 or any(stored.axes[axis] not in "C" + _UNNAMED for axis in others):
        raise TomoscoutError(
            f"{path}: its axes are {', '.join(stored.axes.lower())} with {' × '.join(map(str, stored.shape))} voxels, "
            f"expected {', '.join(space.lower())}, and channels or none (dimensions: {dimensions})"
        )
    return _Axes(others[0] if others else None, tuple(places[name] for name in space))


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_Stored]:
    """Open a file; its voxels can be read as long as it is open.

    Raises:
        TomoscoutError: it is missing, or cannot be read.
    """
    ending = ending_of(path)
    if not path.exists():
        raise TomoscoutError(f"{path}: no such file")
    if ending is None:
        raise TomoscoutError(f"{path}: expected a name that ends in {', '.join(ENDINGS)}")
    opened = _open_zarr if "zarr" in ending else _open_png if ending == ".png" else _open_tiff
    try:
        with opened(path) as stored:
            yield stored
    except TomoscoutError:
        raise
    except Exception as error:
        # Every library, and every codec of each, has exceptions of its own.
        raise TomoscoutError(f"{path}: cannot be read ({cut(str(error) or repr(error))})") from None


@contextlib.contextmanager
def _open_tiff(path: Path) -> Iterator[_Stored]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        yield _Stored(series.axes, series.shape, np.dtype(series.dtype), series.asarray)


@contextlib.contextmanager
def _open_png(path: Path) -> Iterator[_Stored]:
    from PIL import Image, ImageMode

    with Image.open(path) as picture:
        width, height = picture.size
        bands = len(picture.getbands())
        shape = (height, width) if bands == 1 else (height, width, bands)
        # Of a picture with a palette, these are its numbers: some programs write labels so.
        dtype = np.dtype(ImageMode.getmode(picture.mode).typestr)
        yield _Stored("YXS"[: len(shape)], shape, dtype, lambda: np.asarray(picture))


@contextlib.contextmanager
def _open_zarr(path: Path) -> Iterator[_Stored]:
    attributes = path / ".zattrs"
    image = first_image(read_json(attributes)) if attributes.exists() else {}
    array = open_array(path / finest_level(image))
    names = [str(axis.get("name") if isinstance(axis, dict) else axis).upper() for axis in image.get("axes") or []]
    axes = "".join(names) if len(names) == array.ndim else "QQQYX"[-array.ndim :]
    yield _Stored(axes, array.shape, array.dtype, lambda: np.asarray(array[...]))
