"""RELION 4: pixels of the tilt series from the corner."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.formats.base import Frame, Grid
from tomoscout.data.formats.star import PIXELS, TILT_PIXEL, RelionTomography
from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError


class Relion4(RelionTomography):
    """`rlnCoordinateX` is the position over the pixel size of the tilt series, which an optics group states."""

    coordinates = "unbinned pixels of the tilt series from the first voxel"
    in_pixels = True

    def pixel_size(self, grid: Grid, frame: Frame) -> float:
        """Å per pixel of the tilt series."""
        size = grid.unbinned(frame.pixel_size)
        if not size:
            raise TomoscoutError(
                f"relion4: the pixel size of the tilt series ({TILT_PIXEL}) is not known; give export.tomograms_star, "
                "or export.pixel_size in Å"
            )
        return size

    def position_columns(self, picks: Picks, grid: Grid, frame: Frame) -> dict[str, NDArray[np.float64]]:
        """Coordinates in pixels, and a name for each particle."""
        return dict(zip(PIXELS, self.to_pixels(picks, grid, frame).T, strict=True))
