"""The submission file of the CZII challenge: Å from the corner, without orientations and scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tomoscout.data.formats.base import Format, Frame, PickSet
from tomoscout.data.formats.copick_csv import PLACE, CopickCsv, write_csv


class Czii(Format):
    """The columns id, experiment, particle_type, x, y, z."""

    suffix = ".csv"
    objects = True
    coordinates = "Å from the first voxel"

    def write(self, path: Path, sets: Sequence[PickSet], frame: Frame) -> None:
        """Write the table, with ids from 0."""
        import pandas as pd

        tables = []
        for run, name, picks, _ in sets:
            table = pd.DataFrame(picks.positions, columns=PLACE)
            table.insert(0, "experiment", run)
            table.insert(1, "particle_type", name)
            tables.append(table)
        whole = pd.concat(tables, ignore_index=True)
        whole.insert(0, "id", np.arange(len(whole)))
        write_csv(path, whole)

    def read(self, path: Path, frame: Frame) -> list[PickSet]:
        """Read a submission, or any table of picks."""
        return CopickCsv().read(path, frame)
