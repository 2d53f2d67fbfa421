"""Volumes in zarr format 2: read in every layout that programs write, and written in one step.

All that calls the interface of the zarr library (2.x) is in this module.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tomoscout.data.ome_zarr import (
    VolumeError,
    check_axes,
    check_scale,
    finest_level,
    first_image,
    multiscales,
    voxel_sizes,
)
from tomoscout.machine.errors import cut, shown

LARGEST_CHUNK = 256
"""Largest side of a chunk in voxels, as copick writes it; smaller where this divides a volume evenly."""


LARGEST_SIDE = 100_000
"""Largest number of voxels along a side of a volume that can be read."""

SAMPLE = 2**14
"""Number of bytes that a digest samples at one position of a file."""


@dataclass(frozen=True)
class Volume:
    """The finest level of an OME-Zarr image. `shape`: without the leading axes of length 1 that are passed over.
    `place`: its file system, the folder of its chunks and the separator of the numbers in their names."""

    array: Any
    shape: tuple[int, ...]
    place: tuple[Any, str, str]

    def read(self, region: tuple[slice, ...] = (), *, allow_missing_chunks: bool = False) -> NDArray[Any]:
        """The volume, or a region of it, as stored.

        Raises:
            VolumeError: chunks are missing, or one cannot be decoded.
        """
        if not allow_missing_chunks:
            self.check_chunks()
        return self._decoded(self.array, region)

    def read_at(self, places: Sequence[NDArray[np.intp]]) -> NDArray[Any]:
        """The voxels at these places along each axis, as stored; those of missing chunks are 0. One chunk after the
        other is in memory.

        Raises:
            VolumeError: a chunk cannot be decoded.
        """
        return self._decoded(self.array.oindex, places)

    def _decoded(self, array: Any, places: Sequence[Any]) -> NDArray[Any]:
        leading = (0,) * (len(self.array.shape) - len(self.shape))
        try:
            return np.asarray(array[(*leading, *places) or ...])
        except Exception as error:
            # Every codec has its own exceptions.
            raise VolumeError(f"a chunk cannot be decoded ({cut(str(error) or repr(error))})") from None

    def middle(self) -> tuple[slice, ...]:
        """The region, one voxel thick, in the middle of the first of three axes; along the others the chunks around the
        centre that together are about as long as one of full size."""
        chunks = self.array.chunks[-len(self.shape) :]
        region = [slice(self.shape[0] // 2, self.shape[0] // 2 + 1)]
        for size, chunk in zip(self.shape[1:], chunks[1:], strict=True):
            count = max(1, LARGEST_CHUNK // chunk)
            first = max(0, size // 2 // chunk - (count - 1) // 2)
            region.append(slice(first * chunk, min((first + count) * chunk, size)))
        return tuple(region)

    def check_chunks(self) -> None:
        """Check that no chunk is missing.

        Raises:
            VolumeError: one is.
        """
        fs, folder, separator = self.place
        # Other files may lie among the chunks.
        there = {path.removeprefix(folder).strip("/") for path in fs.find(folder)}
        form = re.compile(re.escape(separator).join([r"\d+"] * self.array.ndim))
        grid = self.array.cdata_shape
        found = sum(
            all(int(number) < size for number, size in zip(name.split(separator), grid, strict=True))
            for name in there
            if form.fullmatch(name)
        )
        if found < math.prod(grid):
            raise VolumeError(
                f"truncated: {found} of {math.prod(grid)} chunks are there, the others would be read as background"
            )


def open_volume(fs: Any, path: str, voxel_spacing: float, channels: int = 0) -> Volume:
    """Open an image.

    Chunks may be separated by dots or slashes, the finest level may have any name, and there may be further axes of
    length 1 in front.

    Args:
        fs: the fsspec file system it lies on.
        voxel_spacing: in Å, what the name of its folder says.
        channels: axes before z, y, x.

    Raises:
        VolumeError: it is no image of zarr 2, has other axes than (channels,) z, y, x, or a scale that contradicts the
            voxel spacing.
    """
    volume, image = _open(fs, path, channels)
    check_scale(image, voxel_spacing)
    return volume


def open_image(fs: Any, path: str) -> tuple[Volume, NDArray[np.float64] | None]:
    """Open an image whose voxel spacing is not known: the image, and the sizes of its voxels along z, y, x in Å as far
    as it says them.

    Raises:
        VolumeError: as for `open_volume`.
    """
    volume, image = _open(fs, path, 0)
    return volume, voxel_sizes(image)


def _open(fs: Any, path: str, channels: int) -> tuple[Volume, Mapping[str, Any]]:
    """An image and its OME-Zarr metadata."""
    image = first_image(_read_json(fs, f"{path}/.zattrs", {}))
    level = finest_level(image)
    facts = _read_json(fs, f"{path}/{level}/.zarray", None)
    if facts is None:
        if fs.exists(f"{path}/zarr.json"):
            raise VolumeError("written in zarr format 3, expected format 2 (OME-Zarr 0.4)")
        raise VolumeError(f"no readable zarr array: no file {level}/.zarray")
    array, separator = _open_array(fs, path, level, facts)
    shape = _shape(array.shape, channels)
    check_axes(image)
    return Volume(array, shape, (fs, f"{path}/{level}", separator)), image


def open_array(path: Path) -> Any:
    """An array that lies by itself, to be read."""
    import zarr

    from tomoscout.data.whole_blosc import refuse_cut_chunks

    refuse_cut_chunks()
    return zarr.open_array(str(path), mode="r")


def _open_array(fs: Any, path: str, level: str, facts: Mapping[str, Any]) -> tuple[Any, str]:
    """The array of a level, whose `.zarray` holds `facts`, and the separator in the names of its chunks."""
    import zarr

    from tomoscout.data.whole_blosc import refuse_cut_chunks

    for key in ("shape", "chunks"):
        sizes = facts.get(key)
        least = 1 if key == "chunks" else 0
        if not isinstance(sizes, list) or not all(isinstance(size, int) and size >= least for size in sizes):
            raise VolumeError(f"no readable zarr array: .zarray: {key} is {shown(sizes)}, expected whole numbers")
    try:
        separator = facts.get("dimension_separator") or _separator(fs, f"{path}/{level}", len(facts["shape"]))
        store = zarr.storage.FSStore(path, fs=fs, mode="r", dimension_separator=separator)
        refuse_cut_chunks()
        array = zarr.open_array(store, path=level, mode="r")
    except Exception as error:
        # Zarr's readers of metadata raise exceptions of many kinds.
        raise VolumeError(f"no readable zarr array: {level}: {cut(str(error) or repr(error))}") from None
    if array.dtype.kind not in "biuf":
        raise VolumeError(f"its values are {array.dtype}, expected numbers")
    return array, separator


def _shape(stored: Sequence[int], channels: int) -> tuple[int, ...]:
    """The last axes of an array, (channels,) z, y, x; those before must be of length 1."""
    leading, shape = stored[: len(stored) - 3 - channels], tuple(stored[-3 - channels :])
    if max(shape, default=0) > LARGEST_SIDE:
        raise VolumeError(f"its shape is {cut(str(shape))}, expected {LARGEST_SIDE:,} voxels at most along a side")
    if len(shape) < 3 + channels or set(leading) - {1} or 0 in shape:
        wanted = "four axes: classes, z, y, x" if channels else "three axes: z, y, x"
        raise VolumeError(f"its shape is {tuple(stored)}, expected {wanted}")
    return shape


def _read_json(fs: Any, path: str, missing: Any) -> Any:
    name = path.rpartition("/")[2]
    try:
        values = json.loads(fs.cat_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return missing
    except (ValueError, OSError) as error:
        raise VolumeError(f"no readable zarr array: {name}: {cut(str(error) or repr(error))}") from None
    if not isinstance(values, dict):
        raise VolumeError(f"no readable zarr array: {name} holds no mapping")
    return values


def _separator(fs: Any, array: str, dimensions: int) -> str:
    """The separator of the numbers in the names of chunks, where the metadata lacks it. Empty chunks may be missing."""
    names = [path.rstrip("/").rpartition("/")[2] for path in fs.ls(array, detail=False)]
    return "/" if dimensions > 1 and any(name.isdigit() for name in names) else "."


def write_volume(
    path: Path, volume: NDArray[Any], voxel_spacing: float, attributes: Mapping[str, Any] | None = None
) -> None:
    """Write an image; see `new_volume`."""
    with new_volume(path, volume.shape, volume.dtype, voxel_spacing, attributes) as array:
        array[...] = volume


@contextmanager
def new_volume(
    path: Path,
    shape: Sequence[int],
    kind: DTypeLike,
    voxel_spacing: float,
    attributes: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """A context in which one OME-NGFF 0.4 image with one resolution level is written: an array of `shape` and dtype
    `kind` to assign to. It lies in a temporary folder, which replaces the one at `path` at the end, unless there was an
    exception. `attributes` are kept beside the image under "tomoscout", with a digest of its content."""
    import zarr
    from numcodecs import blosc

    # Several compressing threads are slower, and their bytes are not reproducible.
    blosc.use_threads = False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _aside(path)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    channels = len(shape) - 3
    try:
        group = zarr.open_group(str(temporary), mode="w")
        yield group.create_dataset(
            "0",
            shape=tuple(shape),
            dtype=kind,
            chunks=(1,) * channels + tuple(_chunk(size) for size in shape[channels:]),
            dimension_separator="/",
            write_empty_chunks=True,
        )
        made = {**attributes, "content": digest_samples(temporary / "0")} if attributes else {}
        group.attrs.update({"multiscales": [multiscales(voxel_spacing, channels)], "tomoscout": made})
        if not path.exists():
            temporary.rename(path)
        elif not _exchange(temporary, path):
            path.rename(old)
            temporary.rename(path)
    except OSError as error:
        # Errors while writing, such as a full disk, name no file.
        error.filename = error.filename or str(path)
        raise
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def remove_volume(path: Path) -> None:
    """Remove an image if it exists, in one step for its readers."""
    temporary, old = _aside(path)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _aside(path: Path) -> tuple[Path, Path]:
    """The folders of a new image before it replaces an earlier one, and of the earlier one afterwards. Their names are
    fixed, so that leftovers of a killed process are removed."""
    return path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")


def _exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two folders atomically, so that a reader always finds one of them. False where the file
    system cannot (NFS)."""
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    current_folder, rename_exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2(2).
    return swap is not None and not swap(
        current_folder, os.fsencode(first), current_folder, os.fsencode(second), rename_exchange
    )


def _chunk(size: int) -> int:
    return math.ceil(size / math.ceil(size / LARGEST_CHUNK))


def digest_samples(image: Path) -> str:
    """A digest of an image, a file or the files in a folder: their names, their sizes, and of each the bytes at start,
    middle and end, all of a small one. It does not depend on times, which change where a project is copied. Other
    values written to the whole image change it; a change of a few voxels of a large tomogram may not."""
    values = hashlib.blake2b(digest_size=12)
    start = len(str(image))
    inside = sorted(f"{place}/{name}" for place, _, names in os.walk(image) for name in names)
    for path in [str(image)] if image.is_file() else inside:
        with Path(path).open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            values.update(f"{path[start:]}\0{size}\0".encode())
            places = [0] if size <= 3 * SAMPLE else [0, (size - SAMPLE) // 2, size - SAMPLE]
            for place in places:
                handle.seek(place)
                values.update(handle.read(3 * SAMPLE if len(places) == 1 else SAMPLE))
    return values.hexdigest()
