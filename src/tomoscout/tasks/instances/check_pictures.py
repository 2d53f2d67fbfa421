"""Pictures of annotated images: the outlines of their objects on the image."""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tomoscout.tasks.instances.annotation_options import Normalisation
from tomoscout.tasks.instances.prepare import normalise, rescaled_shape, resize_labels

LONGEST_SIDE = 512
"""Pixels along the longer side of a picture."""

OBJECTS = [(0, 200, 255), (90, 220, 90), (250, 220, 60), (120, 140, 255), (220, 130, 255), (80, 230, 200)]
"""Colours of outlines, taken in turn."""
PROBLEM = (255, 60, 60)
"""Colour of objects that should be looked at."""
UNLABELLED = (255, 150, 0)
"""Colour of bright areas without labels."""

# The pixels are indices of a palette: grey levels first, then the colours.
_GREYS = 64
_PALETTE = [*((level * 255 // (_GREYS - 1),) * 3 for level in range(_GREYS)), *OBJECTS, PROBLEM, UNLABELLED]
_INDEX = {colour: index for index, colour in enumerate(_PALETTE[_GREYS:], _GREYS)}


def picture(
    channel: NDArray[Any], labels: NDArray[np.integer], problems: Collection[int], unlabelled: NDArray[np.integer]
) -> bytes:
    """A PNG of an image, or of the slice of a volume that holds most objects, with the outlines of its objects.

    Args:
        channel: intensities ((z,) y, x).
        labels: of the same shape.
        problems: numbers of objects that are drawn in the colour of problems.
        unlabelled: bright areas without labels, numbered, of the same shape.
    """
    if labels.ndim == 3:
        z = int(np.argmax(((labels > 0) | (unlabelled > 0)).sum(axis=(1, 2))))
        channel, labels, unlabelled = channel[z], labels[z], unlabelled[z]
    height, width = rescaled_shape(labels.shape, LONGEST_SIDE / max(labels.shape))
    grey = normalise(channel, Normalisation(clip=True))
    resized = Image.fromarray(grey).resize((width, height), Image.Resampling.BOX)
    pixels = (np.asarray(resized) * (_GREYS - 1)).astype(np.uint8)
    labels, unlabelled = (resize_labels(numbers, (height, width)) for numbers in (labels, unlabelled))
    edge = outline(labels)
    pixels[edge] = _GREYS + labels[edge] % len(OBJECTS)
    pixels[edge & np.isin(labels, list(problems))] = _INDEX[PROBLEM]
    pixels[outline(unlabelled)] = _INDEX[UNLABELLED]
    drawn = Image.fromarray(pixels)
    drawn.putpalette([value for colour in _PALETTE for value in colour])
    stream = io.BytesIO()
    drawn.save(stream, "PNG")
    return stream.getvalue()


def outline(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """The outermost pixels of every object."""
    edge = np.zeros(labels.shape, dtype=bool)
    for one, other, border in ((labels[1:], labels[:-1], edge), (labels.T[1:], labels.T[:-1], edge.T)):
        differ = one != other
        border[1:] |= differ
        border[:-1] |= differ
    return edge & (labels > 0)
