"""Made-up annotated images of cells, whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.label_images import write_image, write_labels
from tomoscout.machine.files import write_json
from tomoscout.tasks.instances.annotation_files import EXPORTED

CHANNELS = ["nuclei", "cytoplasm"]
"""The channels of made-up images, in order."""

CALIBRATION = 0.65
"""µm per voxel of made-up images."""

_EXPERIMENT = "demo"
_FRAMES = 3
"""Images of one position of a well: frames, of which every second is a region of interest."""
_BACKGROUND = 300.0
_FLATTEST = 0.7
_OVERLAP = 0.8
"""Two cells are no nearer than this fraction of the sum of their radii, so that some of them touch."""


class MadeUp(NamedTuple):
    """An image (channels, (z,) y, x), uint16, and its labels ((z,) y, x)."""

    image: NDArray[np.uint16]
    labels: NDArray[np.int32]


class _Cell(NamedTuple):
    """`centre` and `radii`, in voxels, along `axes` (a rotation, rows)."""

    centre: NDArray[np.float64]
    radii: NDArray[np.float64]
    axes: NDArray[np.float64]


def make_annotations(
    folder: Path,
    images: int,
    shape: tuple[int, ...],
    seed: int,
    *,
    cells: int = 20,
    radius: float = 9.0,
    empty: int = 0,
) -> None:
    """Write annotated images of cells: images as an export writes them, several frames and regions of interest for each
    well, with sidecars; volumes into the folders `images` and `labels`, without.

    Args:
        folder: where to write.
        images: how many.
        shape: voxels (z,) y, x.
        seed: of everything random; equal seeds give equal files.
        cells: largest number of cells in an image, as far as they fit.
        radius: of the mean cell, in voxels.
        empty: how many of the images, the last ones, show no cell.
    """
    for number in range(images):
        random = np.random.default_rng([seed, number])
        made = make_image(shape, random, cells=0 if number >= images - empty else cells, radius=radius)
        write = _write_exported if len(shape) == 2 else _write_plain
        write(folder, number, made)


def make_images(folder: Path, images: int, shape: tuple[int, ...], seed: int) -> None:
    """Write images of cells as `make_annotations` makes them, others than it makes, without their labels."""
    for number in range(images):
        made = make_image(shape, np.random.default_rng([seed, number, 1]), cells=20, radius=9.0)
        write_image(folder / f"image_{number}.tif", made.image, CALIBRATION)


def make_image(shape: tuple[int, ...], random: np.random.Generator, *, cells: int, radius: float) -> MadeUp:
    """An image of cells that partly touch, of varying brightness: nuclei in the first channel, in the second what is
    around them.

    Args:
        shape: voxels (z,) y, x.
        random: where everything random is drawn from.
        cells: largest number of cells.
        radius: of the mean cell, in voxels.
    """
    labels, distance = _draw(shape, _place(shape, random, cells, radius))
    brightness = np.concatenate([[0.0], random.uniform(400, 1600, labels.max(initial=0))])[labels]
    # A nucleus is brighter in its middle; the cytoplasm leaves it out, and reaches beyond it.
    nuclei = brightness * (1 - 0.4 * np.minimum(distance, 1) ** 2)
    cytoplasm = 700 * np.exp(-0.5 * ((distance - 1.1) / 0.25) ** 2)
    image = [_expose(signal, random) for signal in (nuclei, cytoplasm)]
    return MadeUp(np.stack(image), labels)


def _place(shape: tuple[int, ...], random: np.random.Generator, cells: int, radius: float) -> list[_Cell]:
    """Cells at random places, as many as fit."""
    placed: list[_Cell] = []
    for _ in range(20 * cells):
        if len(placed) == cells:
            break
        radii = radius * random.uniform(0.8, 1.2) * random.uniform(_FLATTEST, 1, len(shape))
        axes = np.linalg.qr(random.normal(size=(len(shape), len(shape))))[0]
        cell = _Cell(random.uniform(0, shape), radii, axes)
        if all(
            np.linalg.norm(cell.centre - other.centre) > _OVERLAP * (cell.radii.max() + other.radii.max())
            for other in placed
        ):
            placed.append(cell)
    return placed


def _draw(shape: tuple[int, ...], cells: list[_Cell]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Labels, each voxel that of the nearest cell, and the distance from its centre in radii."""
    labels = np.zeros(shape, dtype=np.int32)
    nearest = np.full(shape, np.inf)
    for cell in cells:
        box = tuple(
            slice(max(0, int(middle - 2 * cell.radii.max())), int(middle + 2 * cell.radii.max()) + 2)
            for middle in cell.centre
        )
        ranges = [np.arange(size)[part] for size, part in zip(shape, box, strict=True)]
        places = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1)
        distance = np.linalg.norm((places - cell.centre) @ cell.axes.T / cell.radii, axis=-1)
        closer = distance < nearest[box]
        nearest[box][closer] = distance[closer]
        inside = closer & (distance < 1)
        labels[box][closer] = 0
        labels[box][inside] = labels.max() + 1
    return _one_piece_each(labels), nearest


def _one_piece_each(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """The largest piece of each object, numbered from 1 on; objects that others cover are left out."""
    from scipy.ndimage import label

    result = np.zeros_like(labels)
    count = 0
    for number in range(1, labels.max(initial=0) + 1):
        pieces, _ = label(labels == number)
        sizes = np.bincount(pieces.ravel())[1:]
        if sizes.max(initial=0) >= 9:
            count += 1
            result[pieces == sizes.argmax() + 1] = count
    return result


def _expose(signal: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.uint16]:
    """A signal as a camera sees it: blurred, on an uneven background, with the noise of photons and of the camera."""
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(signal, 1.0)
    slopes = random.uniform(-0.3, 0.3, signal.ndim)
    ramps = np.meshgrid(*(np.linspace(-1, 1, size) for size in signal.shape), indexing="ij")
    background = _BACKGROUND * (1 + sum(slope * ramp for slope, ramp in zip(slopes, ramps, strict=True)))
    exposed = random.poisson(blurred + background) + random.normal(0, 15, signal.shape)
    counts: NDArray[np.uint16] = np.clip(exposed, 1, 2**16 - 1).astype(np.uint16)
    return counts


def _write_exported(folder: Path, number: int, made: MadeUp) -> None:
    well, frame = f"W{number // _FRAMES + 1}", number % _FRAMES
    height, width = made.labels.shape
    region = f"_roi_{width}_{2 * width}_{height}_{2 * height}" if frame % 2 else ""
    name = f"{_EXPERIMENT}_{well}_{frame:04d}{region}"
    write_image(folder / f"{name}.tif", made.image, CALIBRATION)
    write_labels(folder / f"{name}{EXPORTED}.tif", made.labels, CALIBRATION)
    sidecar = {"channels": CHANNELS, "spatial_calibration": CALIBRATION, "frame": frame, "well": well}
    write_json(folder / f"{name}.json", sidecar)


def _write_plain(folder: Path, number: int, made: MadeUp) -> None:
    write_image(folder / "images" / f"{number:03d}.tif", made.image[:1], CALIBRATION)
    write_labels(folder / "labels" / f"{number:03d}.tif", made.labels, CALIBRATION)
