"""Pictures of training targets: the outlines of their labels on a slice of the tomogram."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tomoscout.machine.files import write_bytes
from tomoscout.report.colours import readable_colours
from tomoscout.report.pictures import GREYS, slice_image

# The pixels of an overlay are palette indices: grey levels first, then the colours of the labels.
_BACKGROUND = 5
_TEXT = GREYS - 1
_LINE = 30
_OUTLINE = 3
"""Width of outlines in pixels: they must be seen where the picture is shown at a third of its size."""
_GAP = 4


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
    end: tuple[NDArray[np.floating], NDArray[np.integer]] | None = None,
) -> None:
    """Write a PNG of a tomogram slice with the outlines of its target labels and a legend.

    Args:
        tomogram: a slice (y, x).
        labels: its labels (y, x); 0 is background.
        colours: red, green, blue (0…255) of label 1, 2, …; replaced where they are greyish or alike.
        names: of label 1, 2, ….
        path: where to write.
        title: shown above.
        side: a view along y, tomogram and labels (z, x), shown below.
        end: a view along x, tomogram and labels (y, z), shown on the right.
    """
    scale = min(6, max(1, round(1200 / tomogram.shape[1])))
    blocks = [_outlined(slab, own, scale) for slab, own in ((tomogram, labels), *([side] if side else ()))]
    if end is not None:
        blocks[0] = np.hstack(
            [np.pad(blocks[0], ((0, 0), (0, _GAP)), constant_values=_BACKGROUND), _outlined(*end, scale)]
        )
    width = max(block.shape[1] for block in blocks)
    blocks = [_text_block(title, width), *blocks, _legend_block(names, width)]
    canvas = np.full((sum(len(block) for block in blocks), width), _BACKGROUND, dtype=np.uint8)
    top = 0
    for block in blocks:
        canvas[top : top + len(block), : block.shape[1]] = block
        top += len(block)
    grey = [level * 255 // (GREYS - 1) for level in range(GREYS) for _ in range(3)]
    image = Image.fromarray(canvas)
    image.putpalette(grey + [value for colour in readable_colours(colours) for value in colour])
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=2)
    write_bytes(path, stream.getvalue())


def _outlined(slab: NDArray[np.floating], labels: NDArray[np.integer], scale: int) -> NDArray[np.uint8]:
    """An enlarged slice: grey, with the outermost pixels of every label in its colour, and a gap below."""
    pixels = _repeat(slice_image(slab) // (255 // (GREYS - 1)), scale)
    fine = _repeat(labels.astype(np.int32), scale)
    border = np.zeros(fine.shape, dtype=bool)
    for step in range(1, _OUTLINE + 1):
        for one, other in ((fine[step:], fine[:-step]), (fine[:, step:], fine[:, :-step])):
            differ = one != other
            rows, columns = differ.shape
            border[-rows:, -columns:] |= differ
            border[:rows, :columns] |= differ
    border &= fine > 0
    pixels[border] = _colour_index(fine[border])
    return np.pad(pixels, ((0, _GAP), (0, 0)), constant_values=_BACKGROUND)


def _colour_index(label: Any) -> Any:
    return GREYS + (label - 1) % (256 - GREYS)


def _repeat(values: NDArray[Any], scale: int) -> NDArray[Any]:
    return values.repeat(scale, axis=0).repeat(scale, axis=1)


def _text_block(text: str, width: int) -> NDArray[np.uint8]:
    image = Image.new("L", (width, _LINE), _BACKGROUND)
    ImageDraw.Draw(image).text((10, _LINE / 2), text, fill=_TEXT, font=ImageFont.load_default(17), anchor="lm")
    return np.array(image)


def _legend_block(names: Sequence[str], width: int) -> NDArray[np.uint8]:
    """The legend: a swatch and a name per label, wrapped to the width."""
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
