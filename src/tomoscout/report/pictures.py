"""Pictures: picks as circles on tomogram slices, training targets as outlines, the course of a training."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tomoscout.machine.files import write_bytes

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]
"""(y, x, 3)"""

# Apart in hue and in brightness, so that they stay apart in every common kind of colour blindness and on grey.
FOUND: Colour = (0, 205, 150)
MISSED: Colour = (255, 190, 30)
FALSE: Colour = (235, 75, 190)

# Okabe and Ito (2008), brightest first: for objects whose own colours cannot be told apart or from grey.
_PALETTE: list[Colour] = [
    (240, 228, 66),
    (86, 180, 233),
    (230, 159, 0),
    (0, 190, 140),
    (225, 130, 180),
    (225, 95, 20),
    (60, 120, 230),
]

_GREYS = 64
"""Grey levels in a picture: enough for the eye, and half the bytes of 256 in noise."""


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
    """A PNG and what it shows."""

    png: bytes
    caption: str


def slice_image(slab: NDArray[np.floating]) -> Picture:
    """A slice (y, x) as a grey picture (y, x, 3); the darkest and brightest hundredth are cut off."""
    step = max(1, int((slab.size / 100_000) ** 0.5))
    low, high = np.percentile(slab[::step, ::step], [1, 99])
    if high <= low:
        return np.full((*slab.shape, 3), 128, dtype=np.uint8)
    level = np.clip((slab - low) * (_GREYS / (high - low)), 0, _GREYS - 1).astype(np.uint8)
    return np.repeat((level * (255 // (_GREYS - 1)))[..., None], 3, axis=2)


def draw_picks(picture: Picture, circles: Iterable[Circle], width: float = 2.5) -> Picture:
    """A copy of a picture with circles drawn on it, lines `width` pixels wide with smooth edges."""
    drawn = picture.astype(np.float32)
    for circle in circles:
        reach = circle.radius + width
        top, left = (max(0, int(np.floor(centre - reach))) for centre in (circle.y, circle.x))
        bottom, right = (int(np.ceil(centre + reach)) + 1 for centre in (circle.y, circle.x))
        box = drawn[top : max(bottom, 0), left : max(right, 0)]
        y, x = np.ogrid[top : top + box.shape[0], left : left + box.shape[1]]
        y, x = y - circle.y, x - circle.x
        # How much of a pixel the line covers, from the distance between the two.
        covered = np.clip((width + 1) / 2 - np.abs(np.hypot(y, x) - circle.radius), 0, 1)
        if circle.dashed:
            covered *= np.arctan2(y, x) % (np.pi / 6) < np.pi / 9
        box += covered[..., None] * (np.array(circle.colour, dtype=np.float32) - box)
    return (drawn + 0.5).astype(np.uint8)


def circles_at(spheres: Spheres, z: int, colour: Colour, scale: int = 1, *, dashed: bool = False) -> list[Circle]:
    """Where spheres cut slice `z` of a tomogram, on a picture of that slice enlarged `scale` times."""
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
    # The rare ones last: a missed or false pick must not vanish under a found one.
    groups = [Marked(found, FOUND, "found"), Marked(missed, MISSED, "missed", True), Marked(false, FALSE, "false")]
    return marked_slices(tomogram, groups, count, run, voxel_spacing)


class Marked(NamedTuple):
    """Particles that are drawn alike: in a colour, perhaps dashed; counted in captions under `word`."""

    spheres: Spheres
    colour: Colour
    word: str
    dashed: bool = False


def marked_slices(
    tomogram: NDArray[np.floating], groups: Sequence[Marked], count: int, run: str, voxel_spacing: float
) -> list[SlicePicture]:
    """As `picks_slices`, with groups of particles of any kind, the last drawn on top."""
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
            circles_at(some, z, group.colour, scale, dashed=group.dashed)
            for some, group in zip(spheres, groups, strict=True)
        ]
        picture = draw_picks(picture, [circle for circles in shown for circle in circles])
        counts = ", ".join(f"{len(c)} {group.word}" for c, group in zip(shown, groups, strict=True))
        thickness = f"mean of {len(slab)} slices, " if len(slab) > 1 else ""
        caption = f"{run}, slice z = {z} ({thickness}{len(slab) * voxel_spacing / 10:.0f} nm): {counts}"
        pictures.append(SlicePicture(_png(picture), caption))
    return pictures


def _telling_slices(spheres: Spheres, depth: int, count: int) -> list[int]:
    """The slices that cut most particles near their middles, each new one for what the others do not show yet."""
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
    stream = io.BytesIO()
    few = Image.fromarray(picture).quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(stream, "PNG")
    return stream.getvalue()


# Targets


def best_slice(labels: NDArray[np.integer], axis: int = 0) -> int:
    """The index along `axis` of the slice of a label volume that holds most labelled voxels."""
    counts = [np.count_nonzero(labels[(slice(None),) * axis + (index,)]) for index in range(labels.shape[axis])]
    return int(np.argmax(counts))


def target_overlay(
    tomogram: NDArray[np.floating],
    labels: NDArray[np.integer],
    colours: Sequence[Sequence[int]],
    names: Sequence[str],
    path: Path,
    title: str,
    *,
    side: tuple[NDArray[np.floating], NDArray[np.integer]] | None = None,
) -> None:
    """Write a PNG of a tomogram slice with the outlines of its target labels and a legend.

    Args:
        tomogram: a slice (y, x).
        labels: its labels (y, x); 0 is background.
        colours: red, green, blue (0…255) of label 1, 2, …; replaced where they are greyish or alike.
        names: of label 1, 2, ….
        path: where to write.
        title: shown above.
        side: a side view, tomogram and labels (z, x), shown below.
    """
    views = [(tomogram, labels)] + ([side] if side is not None else [])
    scale = min(6, max(1, round(1200 / tomogram.shape[1])))
    blocks = [_outlined(slab, own, scale) for slab, own in views]
    width = max(block.shape[1] for block in blocks)
    blocks = [_text_block(title, width), *blocks, _legend_block(names, width)]
    canvas = np.full((sum(len(block) for block in blocks), width), _BACKGROUND, dtype=np.uint8)
    top = 0
    for block in blocks:
        canvas[top : top + len(block), : block.shape[1]] = block
        top += len(block)
    grey = [level * 255 // (_GREYS - 1) for level in range(_GREYS) for _ in range(3)]
    image = Image.fromarray(canvas)
    image.putpalette(grey + [value for colour in readable_colours(colours) for value in colour])
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=2)
    write_bytes(path, stream.getvalue())


# The pixels of an overlay are palette indices: grey levels first, then the colours of the labels.
_BACKGROUND = 5
_TEXT = _GREYS - 1
_LINE = 30


def _outlined(slab: NDArray[np.floating], labels: NDArray[np.integer], scale: int) -> NDArray[np.uint8]:
    """A slice enlarged, the two outermost pixels of every label in its colour, and a gap below."""
    pixels = _repeat(slice_image(slab)[..., 0] // (255 // (_GREYS - 1)), scale)
    fine = _repeat(labels.astype(np.int32), scale)
    border = np.zeros(fine.shape, dtype=bool)
    for step in (1, 2):
        for one, other in ((fine[step:], fine[:-step]), (fine[:, step:], fine[:, :-step])):
            differ = one != other
            rows, columns = differ.shape
            border[-rows:, -columns:] |= differ
            border[:rows, :columns] |= differ
    border &= fine > 0
    pixels[border] = _colour_index(fine[border])
    return np.pad(pixels, ((0, 4), (0, 0)), constant_values=_BACKGROUND)


def _colour_index(label: Any) -> Any:
    return _GREYS + (label - 1) % (256 - _GREYS)


def _repeat(values: NDArray[Any], scale: int) -> NDArray[Any]:
    return values.repeat(scale, axis=0).repeat(scale, axis=1)


def _text_block(text: str, width: int) -> NDArray[np.uint8]:
    image = Image.new("L", (width, _LINE), _BACKGROUND)
    ImageDraw.Draw(image).text((10, _LINE / 2), text, fill=_TEXT, font=ImageFont.load_default(17), anchor="lm")
    return np.array(image)


def _legend_block(names: Sequence[str], width: int) -> NDArray[np.uint8]:
    """A swatch and a name per label, in as many lines as it takes."""
    font = ImageFont.load_default(16)
    places = []
    x, y = 10, 4
    for name in names:
        length = 26 + int(font.getlength(name)) + 24
        if x + length > width and x > 10:
            x, y = 10, y + _LINE
        places.append((x, y))
        x += length
    image = Image.new("L", (width, y + _LINE), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    for label, (name, (x, y)) in enumerate(zip(names, places, strict=True), start=1):
        draw.rectangle((x, y + 4, x + 16, y + 20), fill=_colour_index(label))
        draw.text((x + 26, y + 12), name, fill=_TEXT, font=font, anchor="lm")
    return np.array(image)


def readable_colours(colours: Sequence[Sequence[int]]) -> list[Colour]:
    """The colours given, with those that would be lost on grey or that repeat an earlier one replaced."""
    chosen: dict[int, Colour] = {}
    for place, (red, green, blue, *_) in enumerate(colours):
        colour = (red, green, blue)
        if max(colour) - min(colour) > 60 and max(colour) > 110 and _apart(colour, chosen.values(), 60):
            chosen[place] = colour
    for place in range(len(colours)):
        if place not in chosen:
            # With more objects than colours some must repeat.
            fresh = [colour for colour in _PALETTE if _apart(colour, chosen.values(), 110)]
            chosen[place] = fresh[0] if fresh else _PALETTE[place % len(_PALETTE)]
    return [chosen[place] for place in range(len(colours))]


def _apart(colour: Colour, others: Iterable[Colour], distance: int) -> bool:
    return all(sum(abs(a - b) for a, b in zip(colour, other, strict=True)) > distance for other in others)


# Training
