"""RELION 3.1 and programs that write like it: pixels of the tomogram from the corner."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.formats.base import Frame, Grid
from tomoscout.data.formats.star import PIXELS, StarFormat
from tomoscout.data.picks import Picks


class Relion3(StarFormat):
    """Tomograms are named by `rlnMicrographName`; an optics group states the pixel size."""

    coordinates = "pixels of the tomogram from the first voxel"
    in_pixels = True
    name_column = "rlnMicrographName"

    def optics(self, grid: Grid, frame: Frame) -> dict[str, Any] | None:
        """The pixel size of the coordinates."""
        return {"rlnImagePixelSize": self.pixel_size(grid, frame), "rlnImageDimensionality": 3}

    def position_columns(self, picks: Picks, grid: Grid, frame: Frame) -> dict[str, NDArray[np.float64]]:
        """Coordinates in pixels."""
        return dict(zip(PIXELS, self.to_pixels(picks, grid, frame).T, strict=True))
