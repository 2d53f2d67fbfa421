"""Pictures of picks and labels: slices of a tomogram, with marks that a reader can hide."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tomoscout.data.geometry import Shape
from tomoscout.data.open_tomogram import OpenTomogram
from tomoscout.report.colours import Colour, Mark
from tomoscout.report.marks import Spheres, marks_path

Grey = NDArray[np.uint8]
"""A grey picture (y, x)."""
Box = tuple[float, float, float, float]
"""Left, top, width and height in voxels of a slice."""

GREYS = 64
"""Number of grey levels in a picture: not visibly different from 256, and half the size of a PNG of noise."""

_SIDE = 1024
"""Largest side in pixels of the picture of a slice; larger ones are made smaller."""
_SIDE_OF_CUT_OUT = 160
_WIDTH_OF_CUT_OUT = 7
"""In radii."""
_SIGN, _SIGN_IN_CUT_OUT = 0.011, 0.028
"""Half the size of a sign, as a fraction of the picture's width."""


@dataclass(frozen=True)
class SlicePicture:
    """A PNG and its caption."""

    png: bytes
    caption: str


class Layer(NamedTuple):
    """What is drawn over a slice with a mark: a path in voxels, or the outlines of labels as a PNG that fits the
    slice."""

    mark: Mark
    path: str = ""
    outlines: bytes = b""


@dataclass(frozen=True)
class MarkedSlice(SlicePicture):
    """A slice and the layers over it. `box`: the part of the slice that is shown, which may reach beyond it; `place`:
    where its PNG lies."""

    box: Box
    place: Box
    layers: tuple[Layer, ...]


class Pictures(NamedTuple):
    """Pictures, and the meaning of their marks."""

    pictures: Sequence[SlicePicture]
    legend: Sequence[Mark]


class Marked(NamedTuple):
    """Particles that are drawn in the same way."""

    spheres: Spheres
    mark: Mark


def slice_image(slab: NDArray[np.floating]) -> Grey:
    """A slice (y, x) as a grey picture, clipped to the percentiles 1 and 99."""
    step = max(1, int((slab.size / 100_000) ** 0.5))
    low, high = np.percentile(slab[::step, ::step], [1, 99])
    if not high > low:
        return np.full(slab.shape, 128, dtype=np.uint8)
    level: Grey = np.clip((slab - low) * (GREYS / (high - low)), 0, GREYS - 1).astype(np.uint8)
    return level * np.uint8(255 // (GREYS - 1))


def marked_slice(
    tomogram: OpenTomogram, groups: Sequence[Marked], z: int, run: str, voxel_spacing: float
) -> MarkedSlice:
    """A slice with the particles that it cuts, the last group on top. The mean of several slices is shown, together as
    thick as half the smallest particle. `run`: named in the caption; `voxel_spacing`: in Å."""
    radii = np.concatenate([group.spheres.radii for group in groups] or [np.zeros(0)])
    slab = tomogram.read((_span(z, _half(radii), tomogram.shape[0]),))
    height, width = slab.shape[1:]
    box = (0, 0, width, height)
    cuts = [group.spheres.cut(z) for group in groups]
    counts = ", ".join(f"{len(cut.radii):,} {group.mark.word}" for cut, group in zip(cuts, groups, strict=True))
    thickness = f"mean of {len(slab)} slices, " if len(slab) > 1 else ""
    caption = f"{run}, slice z = {z} ({thickness}{len(slab) * voxel_spacing / 10:.3g} nm)"
    return MarkedSlice(
        _png(slab, _SIDE),
        f"{caption}: {counts}" if counts else caption,
        box,
        box,
        _layers(groups, cuts, _SIGN * width),
    )


def cut_out(
    tomogram: OpenTomogram, groups: Sequence[Marked], centre: NDArray[np.floating], radius: float, caption: str
) -> MarkedSlice:
    """The surroundings of a particle in the slice through its centre. `centre`: fractional indices z, y, x; `radius`:
    in voxels."""
    z, y, x = np.rint(centre).astype(int).tolist()
    reach = int(np.ceil(_WIDTH_OF_CUT_OUT * radius / 2))
    depth, height, width = tomogram.shape
    rows, columns = _span(y, reach, height), _span(x, reach, width)
    slab = tomogram.read((_span(z, _half(np.array([radius])), depth), rows, columns))
    box = (x - reach, y - reach, 2 * reach + 1, 2 * reach + 1)
    place = (columns.start, rows.start, *slab.shape[:0:-1])
    cuts = [group.spheres.cut(float(centre[0]), box) for group in groups]
    return MarkedSlice(
        _png(slab, _SIDE_OF_CUT_OUT), caption, box, place, _layers(groups, cuts, _SIGN_IN_CUT_OUT * box[2])
    )


def _half(radii: NDArray[np.floating]) -> int:
    """How many slices are averaged on either side of one."""
    return int(radii.min() / 2) if len(radii) else 2


def _span(centre: int, reach: int, size: int) -> slice:
    """The voxels within reach of one along an axis; one at the edge, where it lies outside."""
    start = min(max(0, centre - reach), size - 1)
    return slice(start, max(start + 1, min(size, centre + reach + 1)))


def _layers(groups: Sequence[Marked], cuts: Sequence[Spheres], size: float) -> tuple[Layer, ...]:
    return tuple(
        Layer(group.mark, marks_path(cut, group.mark.shape, size)) for group, cut in zip(groups, cuts, strict=True)
    )


def outlines(labels: NDArray[np.integer], label: int, colour: Colour, shape: Shape, ratio: float) -> bytes:
    """The outlines of a label as a transparent PNG that fits a slice.

    Args:
        labels: a slice (y, x) of a segmentation.
        label: the one to outline.
        colour: of the lines.
        shape: of the tomogram (z, y, x).
        ratio: voxel spacing of the tomogram over that of the segmentation.
    """
    fine = max(1, round(600 / shape[2]))
    rows, columns = (
        np.clip(np.rint(((np.arange(fine * size) + 0.5) / fine - 0.5) * ratio).astype(int), 0, there - 1)
        for size, there in zip(shape[1:], labels.shape, strict=True)
    )
    inside = labels[np.ix_(rows, columns)] == label
    padded = np.pad(inside, 1)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    image = Image.fromarray((inside & ~surrounded).astype(np.uint8))
    image.putpalette([0, 0, 0, *colour])
    return to_png(image, transparency=0)


def telling_slices(groups: Sequence[Marked], depth: int, count: int) -> list[int]:
    """Up to `count` slices that together cut most particles near their centres, chosen greedily: each one adds most to
    those before; fewer where fewer show every particle. The middle where there are none."""
    centres = np.concatenate([group.spheres.centres[:, 0] for group in groups] or [np.zeros(0)])
    if not len(centres):
        return [depth // 2]
    radii = np.concatenate([group.spheres.radii for group in groups])
    steps = (np.arange(depth)[:, None] - centres) / radii
    shown = np.clip(1 - steps**2, 0, None)
    best = np.zeros(len(radii))
    chosen: list[int] = []
    while len(chosen) < count:
        gains = np.maximum(shown - best, 0).sum(axis=1)
        z = int(np.argmax(gains))
        if gains[z] < 0.1 and chosen:
            break
        chosen.append(z)
        best = np.maximum(best, shown[z])
    return sorted(chosen)


def _png(slab: NDArray[np.floating], side: int) -> bytes:
    """The mean of a slab (z, y, x) along z as a grey PNG, no side of which is longer than `side` pixels."""
    image = Image.fromarray(slice_image(slab.mean(axis=0)))
    image.thumbnail((side, side), Image.Resampling.BOX)
    step = 255 // (GREYS - 1)
    return to_png(Image.fromarray(np.asarray(image) // step * np.uint8(step)))


def to_png(image: Image.Image, **options: int) -> bytes:
    """An image as the bytes of a PNG file. `options`: of Pillow's PNG writer."""
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()
