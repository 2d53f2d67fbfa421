"""Motive lists of the TOM toolbox, AV3, Artiatomi and ArtiaX: an EM file with a column of 20 numbers per particle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.angles import MOTIVELIST
from tomoscout.data.formats.base import Format, Frame, PickSet
from tomoscout.data.formats.tables import (
    indices_beside,
    names_of,
    numbers_of_runs,
    sets_of,
    whole_numbers,
    write_indices,
)
from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.machine.files import atomic_path
from tomoscout.machine.messages import times

ROWS = 20
SCORE, PARTICLE, TOMOGRAM, CLASS = 0, [3, 5], 4, 19
PLACE, SHIFT = slice(7, 10), slice(10, 13)
ANGLES = [16, 18, 17]
"""Rows of phi, theta, psi; the file has phi, psi, theta."""


class MotiveList(Format):
    """Rows, from 1: 1 score, 4 and 6 number of the particle, 5 of the tomogram, 8 to 10 position, 11 to 13 shift, 17 to
    19 phi psi theta, 20 class (Artiatomi's wiki, "Motivelist"; in novaSTA row 6 is an object that the particle belongs
    to, which is why it is not read). Numbers are of single precision."""

    suffix = ".em"
    coordinates = "pixels of the tomogram; rows 8 to 10 plus the shifts in 11 to 13"
    in_pixels = True
    first = 1
    angles = MOTIVELIST
    score = "row 1"

    def files(self, path: Path) -> list[Path]:
        """The table, and which number in it stands for which run."""
        return [path, indices_beside(path)]

    def write(self, path: Path, sets: Sequence[PickSet], frame: Frame) -> None:
        """Write the list, and beside it which number stands for which run."""
        import emfile

        grids = frame.grids({entry.run for entry in sets})
        numbered = numbers_of_runs(sets, frame)
        parts = []
        for run, _, picks, _ in sets:
            part = np.zeros((len(picks), ROWS), np.float32)
            part[:, SCORE], part[:, TOMOGRAM] = picks.scores, numbered[run]
            part[:, PLACE] = self.to_pixels(picks, grids[run], frame)
            part[:, ANGLES] = MOTIVELIST.angles(picks.rotations)
            part[:, CLASS] = 1
            parts.append(part)
        rows = np.concatenate(parts)
        rows[:, PARTICLE] = np.arange(1, len(rows) + 1)[:, None]
        write_indices(path, numbered, grids)
        with atomic_path(path) as temporary:
            emfile.write(temporary, rows[None], {"machine": 6}, overwrite=True)

    def read(self, path: Path, frame: Frame) -> list[PickSet]:
        """Read a list. Where all scores are 0, the file has none, and they are 1."""
        rows = _read(path)
        numbered = whole_numbers(rows[:, TOMOGRAM], "the number of a tomogram (row 5)", path)
        names = names_of(numbered, frame.indices, path)
        grids = frame.grids(set(names))
        sizes = np.array([frame.pixel_size or grids[name].voxel_spacing for name in names])
        positions = (rows[:, PLACE] + rows[:, SHIFT] - self.origin(frame)) * sizes[:, None]
        scores = rows[:, SCORE] if rows[:, SCORE].any() else None
        rotations = MOTIVELIST.rotations(rows[:, ANGLES])
        return sets_of(names, [""] * len(names), Picks.at(positions, scores, rotations=rotations))


def _read(path: Path) -> NDArray[np.float64]:
    """The particles (N, 20)."""
    import emfile

    try:
        data: Any = np.squeeze(emfile.read(path)[1], axis=0)
    except FileNotFoundError:
        raise TomoscoutError(f"{path}: no such file") from None
    except Exception as error:
        # emfile reads past the end of a truncated file, and takes whatever the header says.
        raise TomoscoutError(f"{path}: not an EM file, or a truncated one ({cut(str(error) or repr(error))})") from None
    if data.ndim != 2 or data.shape[1] != ROWS:
        raise TomoscoutError(f"{path}: not a motive list: {times(data.shape)} numbers, expected particles × {ROWS}")
    if not np.isfinite(data).all():
        particle, row = np.argwhere(~np.isfinite(data))[0]
        raise TomoscoutError(f"{path}: particle {particle + 1}: row {row + 1} is {data[particle, row]}")
    particles: NDArray[np.float64] = data.astype(np.float64)
    return particles
