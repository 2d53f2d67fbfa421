"""Tomograms as files of other programs: MRC, TIFF and OME-Zarr, read part by part."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import Shape
from tomoscout.data.ome_zarr import VolumeError
from tomoscout.data.volume_formats import COMPRESSED, ENDINGS, VolumeFormat
from tomoscout.data.zarr_files import open_image
from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.machine.messages import times

ISOTROPY = 0.01
"""Relative difference allowed between the sizes of a voxel along the axes."""

_LENGTHS = {
    "angstrom": 1.0,
    "å": 1.0,
    "nanometer": 10.0,
    "nm": 10.0,
    "micrometer": 1e4,
    "micron": 1e4,
    "µm": 1e4,
    "um": 1e4,
}
"""Units of TIFF files in Å."""

# The header of an MRC file, as IMOD has extended it: https://bio3d.colorado.edu/imod/doc/mrc_format.txt
_IMOD_STAMP, _SIGNED_BYTES = 1146047817, 1


@dataclass(frozen=True)
class VolumeFile:
    """A tomogram in a file.

    `voxel_spacing`: in Å, as the file says; None if it does not. `fault`: why what it says cannot be taken. `read`:
    reads a region (z, y, x), as stored.
    """

    shape: Shape
    voxel_spacing: float | None
    fault: str | None
    read: Callable[[tuple[slice, ...]], NDArray[Any]]


def open_volume_file(path: Path, form: VolumeFormat | None = None) -> VolumeFile:
    """Open a file. `form`: its format; by default that of its ending.

    Raises:
        TomoscoutError: it is missing, damaged, of an unknown format, or holds no volume of real numbers.
    """
    if not path.exists():
        raise TomoscoutError(f"{path}: no such file")
    known = form or _format_of(path)
    try:
        return {"mrc": _open_mrc, "tiff": _open_tiff, "ome-zarr": _open_zarr}[known](path)
    except (VolumeError, OSError, ValueError, KeyError, IndexError, EOFError) as error:
        raise TomoscoutError(f"{path}: not a tomogram ({cut(str(error) or repr(error))})") from None


def _format_of(path: Path) -> VolumeFormat:
    name = path.name.lower()
    for ending in sorted(ENDINGS, key=len, reverse=True):
        if name.endswith(ending):
            return ENDINGS[ending]
    raise TomoscoutError(f"{path}: unknown ending; expected {', '.join(ENDINGS)}, or give `format`")


def _isotropic(sizes: NDArray[np.float64]) -> tuple[float | None, str | None]:
    """The voxel spacing from sizes along the axes, or why there is none."""
    if not np.isfinite(sizes).all() or (sizes <= 0).any():
        return None, None
    if np.ptp(sizes) > ISOTROPY * sizes.mean():
        return None, f"its voxels are of {' × '.join(f'{size:g}' for size in sizes)} Å, not cubes"
    return round(float(sizes.mean()), 4), None


def _open_mrc(path: Path) -> VolumeFile:
    import mrcfile

    with warnings.catch_warnings():
        # What is wrong with a header beyond what is needed here is no reason to refuse a tomogram.
        warnings.simplefilter("ignore")
        if path.suffix.lower() in COMPRESSED:
            file = mrcfile.open(path, permissive=True)
        else:
            file = mrcfile.mmap(path, mode="r", permissive=True)
        sizes = np.array([float(file.voxel_size[axis]) for axis in "zyx"])
    data, header = file.data, file.header
    if data is None:
        voxels = times(int(header[axis]) for axis in ("nz", "ny", "nx"))
        raise VolumeError(
            f"truncated, or its header is damaged: {voxels} voxels of mode {int(header.mode)} in "
            f"{path.stat().st_size:,} bytes"
        )
    if data.ndim != 3 or not data.size:
        raise VolumeError(f"its shape is {data.shape}, expected three axes: z, y, x")
    if data.dtype.kind not in "iuf":
        raise VolumeError(f"its values are {data.dtype} (mode {int(header.mode)}), expected real numbers")
    order = [int(header.maps), int(header.mapr), int(header.mapc)]
    if order == [0, 0, 0]:
        # Old programs leave these zero.
        order = [3, 2, 1]
    if sorted(order) != [1, 2, 3]:
        raise VolumeError(
            f"its axes (MAPC, MAPR, MAPS) are {', '.join(map(str, order[::-1]))}, expected 1, 2, 3 in any order"
        )
    volume = data.transpose([order.index(axis) for axis in (3, 2, 1)])
    if data.dtype == np.int8 and _has_unsigned_bytes(header):
        volume = volume.view(np.uint8)
    if int(header.mz) == 1 and data.shape[0] > 1:
        # A stack of images: the size of the cell along z is that of one of them.
        sizes[0] = sizes[1]
    spacing, fault = _isotropic(sizes)
    z, y, x = volume.shape
    return VolumeFile((z, y, x), spacing, fault, lambda region: np.array(volume[region]))


def _has_unsigned_bytes(header: Any) -> bool:
    """Whether IMOD wrote bytes from 0 to 255, which MRC files of mode 0 are not."""
    stamp, flags = np.frombuffer(header.tobytes()[152:160], dtype=header.mode.dtype)
    return bool(stamp == _IMOD_STAMP and not flags & _SIGNED_BYTES)


def _open_tiff(path: Path) -> VolumeFile:
    import tifffile

    with _complaints_of_tifffile() as complaints:
        try:
            with tifffile.TiffFile(path) as file:
                series = file.series[0]
                axes = [axis for axis, size in zip(series.axes, series.shape, strict=True) if size > 1 or axis in "ZYX"]
                data = series.asarray().reshape([size for size in series.shape if size > 1] or series.shape)
                sizes = _tiff_sizes(file)
        except Exception as error:
            # Every codec has its own exceptions.
            raise VolumeError(str(error) or repr(error)) from None
    if cut_off := [text for text in complaints if "invalid page offset" in text]:
        # tifffile reads the pages before as if they were all.
        raise VolumeError(f"truncated: {cut_off[0]}")
    if data.ndim != 3 or axes[-1] == "S" or "C" in axes:
        raise VolumeError(f"its axes are {''.join(axes)} of {data.shape}, expected z, y, x")
    if data.dtype.kind not in "iuf":
        raise VolumeError(f"its values are {data.dtype}, expected real numbers")
    spacing, fault = _isotropic(sizes) if sizes is not None else (None, None)
    z, y, x = data.shape
    return VolumeFile((z, y, x), spacing, fault, lambda region: np.array(data[region]))


@contextmanager
def _complaints_of_tifffile() -> Iterator[list[str]]:
    """A context in which what tifffile logs is not printed: the list that it is put into."""
    import tifffile

    told: list[str] = []
    log = tifffile.logger()

    def keep(record: logging.LogRecord) -> bool:
        told.append(record.getMessage())
        return False

    log.addFilter(keep)
    try:
        yield told
    finally:
        log.removeFilter(keep)


def _tiff_sizes(file: Any) -> NDArray[np.float64] | None:
    """Sizes of a voxel along z, y, x in Å, from the metadata of OME-TIFF or ImageJ; None where they have none."""
    import tifffile

    if file.is_ome:
        pixels: Any = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        pixels = (pixels[0] if isinstance(pixels, list) else pixels)["Pixels"]
        sizes = [
            float(pixels[f"PhysicalSize{axis}"]) * _LENGTHS[str(pixels.get(f"PhysicalSize{axis}Unit", "µm")).lower()]
            for axis in "ZYX"
            if f"PhysicalSize{axis}" in pixels
        ]
        return np.array(sizes) if len(sizes) == 3 else None
    facts = file.imagej_metadata or {}
    unit = _LENGTHS.get(str(facts.get("unit", "")).replace("\\u00B5", "µ").replace("\\u00C5", "å").lower())
    tags = file.pages[0].tags
    if unit is None or "spacing" not in facts or "XResolution" not in tags or "YResolution" not in tags:
        return None
    across = [tags[name].value[1] / tags[name].value[0] for name in ("YResolution", "XResolution")]
    return np.array([float(facts["spacing"]), *across]) * unit


def _open_zarr(path: Path) -> VolumeFile:
    import fsspec

    volume, sizes = open_image(fsspec.filesystem("file"), str(path.absolute()))
    volume.check_chunks()
    spacing, fault = _isotropic(sizes) if sizes is not None else (None, None)
    z, y, x = volume.shape
    return VolumeFile((z, y, x), spacing, fault, lambda region: volume.read(region, allow_missing_chunks=True))
