"""Warp: pixels of the tomogram, 0 in the centre of its first voxel (WarpTools, "Tomogram Particle File Reference")."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.formats.base import Frame, Grid
from tomoscout.data.formats.relion3 import Relion3
from tomoscout.data.picks import Picks


class Warp(Relion3):
    """One table without a name; tomograms are called by their `.tomostar`. `WarpTools ts_export_particles` asks for the
    pixel size (`--coords_angpix`), which each row states, too."""

    block = ""

    def run_name(self, run: str) -> str:
        """The run's .tomostar."""
        return f"{run}.tomostar"

    def optics(self, grid: Grid, frame: Frame) -> dict[str, Any] | None:
        """No table of optics groups."""
        return None

    def position_columns(self, picks: Picks, grid: Grid, frame: Frame) -> dict[str, NDArray[np.float64]]:
        """Coordinates in pixels, and their size."""
        stated = {"rlnMagnification": 1e4, "rlnDetectorPixelSize": self.pixel_size(grid, frame)}
        sizes = {column: np.full(len(picks), value) for column, value in stated.items()}
        return super().position_columns(picks, grid, frame) | sizes
