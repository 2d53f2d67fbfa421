"""RELION 5: Å from the centre of the tomogram."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.formats.base import Frame, Grid
from tomoscout.data.formats.star import CENTRED, RelionTomography
from tomoscout.data.picks import Picks


class Relion5(RelionTomography):
    """`rlnCenteredCoordinateXAngst` is the position less half of the size in Å (`TomogramSet` in RELION's
    tomogram_set.cpp)."""

    centred = True
    coordinates = "Å from the centre, half of the size of the tomogram"

    def position_columns(self, picks: Picks, grid: Grid, frame: Frame) -> dict[str, NDArray[np.float64]]:
        """Centred coordinates."""
        return dict(zip(CENTRED, (picks.positions - grid.centre).T, strict=True))
