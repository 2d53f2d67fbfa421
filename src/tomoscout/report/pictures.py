"""Pictures of picks: circles on slices of a tomogram."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tomoscout.report.colours import FALSE, FOUND, MISSED, Colour, Mark

Picture = NDArray[np.uint8]
"""An RGB picture (y, x, 3)."""

GREYS = 64
"""Number of grey levels in a picture: not visibly different from 256, and half the size of a PNG of noise."""


class Spheres(NamedTuple):
    """Particles: centres (N, 3) as fractional indices z, y, x; radii (N,) in voxels."""

    centres: NDArray[np.floating]
    radii: NDArray[np.floating]


class Circle(NamedTuple):
    """A circle on a picture, in pixels; whole coordinates are the centres of pixels."""

    x: float
    y: float
    radius: float
    colour: Colour
    dashed: bool = False


@dataclass(frozen=True)
class SlicePicture:
    """A PNG and its caption."""

    png: bytes
    caption: str


def slice_image(slab: NDArray[np.floating]) -> Picture:
    """A slice (y, x) as a grey picture (y, x, 3), clipped to the percentiles 1 and 99."""
    step = max(1, int((slab.size / 100_000) ** 0.5))
    low, high = np.percentile(slab[::step, ::step], [1, 99])
    if high <= low:
        return np.full((*slab.shape, 3), 128, dtype=np.uint8)
    level = np.clip((slab - low) * (GREYS / (high - low)), 0, GREYS - 1).astype(np.uint8)
    return np.repeat((level * (255 // (GREYS - 1)))[..., None], 3, axis=2)


def draw_picks(picture: Picture, circles: Iterable[Circle], width: float = 2.5) -> Picture:
    """A copy of a picture with circles drawn on it; lines are `width` pixels wide and anti-aliased."""
    drawn = picture.astype(np.float32)
    for circle in circles:
        reach = circle.radius + width
        top, left = (max(0, int(np.floor(centre - reach))) for centre in (circle.y, circle.x))
        bottom, right = (int(np.ceil(centre + reach)) + 1 for centre in (circle.y, circle.x))
        box = drawn[top : max(bottom, 0), left : max(right, 0)]
        y, x = np.ogrid[top : top + box.shape[0], left : left + box.shape[1]]
        y, x = y - circle.y, x - circle.x
        # Anti-aliasing: the fraction of a pixel that the line covers, from the distance of its centre to the circle.
        covered = np.clip((width + 1) / 2 - np.abs(np.hypot(y, x) - circle.radius), 0, 1)
        if circle.dashed:
            covered *= np.arctan2(y, x) % (np.pi / 6) < np.pi / 9
        box += covered[..., None] * (np.array(circle.colour, dtype=np.float32) - box)
    return (drawn + 0.5).astype(np.uint8)


def circles_at(spheres: Spheres, z: int, colour: Colour, scale: int = 1, *, dashed: bool = False) -> list[Circle]:
    """The intersections of spheres with slice `z` of a tomogram, on a picture of that slice enlarged `scale` times."""
    centres = np.asarray(spheres.centres, dtype=np.float64).reshape(-1, 3)
    squared = np.asarray(spheres.radii, dtype=np.float64) ** 2 - (centres[:, 0] - z) ** 2
    cut = squared > 0
    ys, xs = (centres[cut, 1:].T + 0.5) * scale - 0.5
    radii = np.sqrt(squared[cut]) * scale
    return [Circle(float(x), float(y), float(r), colour, dashed) for x, y, r in zip(xs, ys, radii, strict=True)]


def picks_slices(
    tomogram: NDArray[np.floating],
    found: Spheres,
    missed: Spheres,
    false: Spheres,
    count: int,
    run: str,
    voxel_spacing: float,
) -> list[SlicePicture]:
    """Up to `count` slices that together show the particles best, from top to bottom.

    Args:
        tomogram: (z, y, x).
        found: references that were found.
        missed: references that were not.
        false: predictions that match no reference.
        count: largest number of slices; fewer where fewer show every particle.
        run: named in the captions.
        voxel_spacing: in Å.
    """
    # Missed and false picks are rarer and are drawn on top.
    groups = [Marked(found, FOUND), Marked(missed, MISSED), Marked(false, FALSE)]
    return marked_slices(tomogram, groups, count, run, voxel_spacing)


class Marked(NamedTuple):
    """Particles that are drawn in the same way, and counted in captions under the name of their mark."""

    spheres: Spheres
    mark: Mark


def marked_slices(
    tomogram: NDArray[np.floating], groups: Sequence[Marked], count: int, run: str, voxel_spacing: float
) -> list[SlicePicture]:
    """As `picks_slices`, for groups of particles of any kind; the last group is drawn on top."""
    depth = len(tomogram)
    spheres = [Spheres(np.reshape(g.spheres.centres, (-1, 3)), np.reshape(g.spheres.radii, -1)) for g in groups]
    everything = Spheres(*(np.concatenate(parts) for parts in zip(*spheres, strict=True)))
    half = int(everything.radii.min() / 2) if len(everything.radii) else 2
    scale = max(1, round(600 / tomogram.shape[2]))
    pictures = []
    for z in _telling_slices(everything, depth, count):
        slab = tomogram[max(0, z - half) : z + half + 1]
        picture = _enlarge(slice_image(slab.mean(axis=0)), scale)
        shown = [
            circles_at(some, z, mark.colour, scale, dashed=mark.dashed)
            for some, (_, mark) in zip(spheres, groups, strict=True)
        ]
        picture = draw_picks(picture, [circle for circles in shown for circle in circles])
        counts = ", ".join(f"{len(c)} {mark.word}" for c, (_, mark) in zip(shown, groups, strict=True))
        thickness = f"mean of {len(slab)} slices, " if len(slab) > 1 else ""
        caption = f"{run}, slice z = {z} ({thickness}{len(slab) * voxel_spacing / 10:.0f} nm): {counts}"
        pictures.append(SlicePicture(_png(picture), caption))
    return pictures


def _telling_slices(spheres: Spheres, depth: int, count: int) -> list[int]:
    """The slices that cut most particles near their centres, chosen greedily: each one adds most to those before."""
    if not len(spheres.radii):
        return [depth // 2]
    steps = (np.arange(depth)[:, None] - spheres.centres[None, :, 0]) / spheres.radii
    shown = np.clip(1 - steps**2, 0, None)
    best = np.zeros(len(spheres.radii))
    chosen: list[int] = []
    while len(chosen) < count:
        gains = np.maximum(shown - best, 0).sum(axis=1)
        z = int(np.argmax(gains))
        if gains[z] < 0.1 and chosen:
            break
        chosen.append(z)
        best = np.maximum(best, shown[z])
    return sorted(chosen)


def _enlarge(picture: Picture, scale: int) -> Picture:
    if scale == 1:
        return picture
    size = picture.shape[1] * scale, picture.shape[0] * scale
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _png(picture: Picture) -> bytes:
    return to_png(Image.fromarray(picture).quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE))


def to_png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
