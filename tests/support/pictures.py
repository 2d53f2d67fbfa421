"""Pictures as the report draws them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tomoscout.report.pictures import Layer, MarkedSlice, slice_image, to_png


def noise(side: int = 32) -> bytes:
    """A PNG of noise."""
    return to_png(Image.fromarray(slice_image(np.random.default_rng(0).normal(size=(side, side)))))


def marked(caption: str, *layers: Layer, side: int = 32) -> MarkedSlice:
    """A slice of noise with layers over it."""
    return MarkedSlice(noise(side), caption, (0, 0, side, side), (0, 0, side, side), layers)
