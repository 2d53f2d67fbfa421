"""Dynamo: tables (.tbl), with a table number → tomogram beside them (.doc)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tomoscout.data.angles import DYNAMO
from tomoscout.data.formats.base import Format, Frame, PickSet
from tomoscout.data.formats.tables import (
    all_or_none,
    indices_beside,
    names_of,
    numbers,
    numbers_of_runs,
    sets_of,
    whole_numbers,
    write_indices,
)
from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.machine.files import write_text

PLACE, SHIFT, ANGLES = ["x", "y", "z"], ["dx", "dy", "dz"], ["tdrot", "tilt", "narot"]


class Dynamo(Format):
    """Columns as in Dynamo's wiki, "Table convention". MATLAB counts voxels from 1, as Dynamo does; some programs that
    write such tables count from 0 (`Frame.origin`)."""

    suffix = ".tbl"
    coordinates = "pixels of the tomogram; columns 24 to 26 plus the shifts in 4 to 6"
    in_pixels = True
    first = 1
    angles = DYNAMO
    score = "column 10 (cc)"

    def files(self, path: Path) -> list[Path]:
        """The table, and which number in it stands for which run."""
        return [path, indices_beside(path)]

    def write(self, path: Path, sets: Sequence[PickSet], frame: Frame) -> None:
        """Write the table, and beside it which number stands for which run."""
        import pandas as pd
        from dynamotable.utils import COLUMN_NAMES

        grids = frame.grids({entry.run for entry in sets})
        numbered = numbers_of_runs(sets, frame)
        tables = []
        for run, _, picks, _ in sets:
            own = dict(zip(PLACE, self.to_pixels(picks, grids[run], frame).T, strict=True))
            own |= dict(zip(ANGLES, DYNAMO.angles(picks.rotations).T, strict=True))
            own |= {"cc": picks.scores, "tomo": numbered[run], "apix": self.pixel_size(grids[run], frame)}
            tables.append(pd.DataFrame(own))
        table = pd.concat(tables, ignore_index=True)
        table = table.assign(tag=np.arange(1, len(table) + 1), aligned_value=1, averaged_value=1)
        text = table.reindex(columns=COLUMN_NAMES, fill_value=0).to_csv(
            sep=" ", header=False, index=False, float_format="%.6f", lineterminator="\n"
        )
        write_indices(path, numbered, grids)
        write_text(path, text)

    def read(self, path: Path, frame: Frame) -> list[PickSet]:
        """Read a table. The pixel size is the one that is given, else column 36, else that of the tomogram."""
        import dynamotable

        try:
            table = dynamotable.read(str(path))
        except FileNotFoundError:
            raise TomoscoutError(f"{path}: no such file") from None
        except ValueError as error:
            raise TomoscoutError(f"{path}: not a Dynamo table ({cut(str(error))})") from None
        numbered = whole_numbers(numbers(table, ["tomo"], path)[:, 0], "the number of a tomogram (column 20)", path)
        names = names_of(numbered, frame.indices, path)
        grids = frame.grids(set(names))
        sizes = np.array([frame.pixel_size or grids[name].voxel_spacing for name in names])
        stated = all_or_none(table, ["apix"], path)
        if frame.pixel_size is None and stated is not None:
            sizes = np.where(stated[:, 0] > 0, stated[:, 0], sizes)
        pixels = numbers(table, PLACE, path) + numbers(table, SHIFT, path) - self.origin(frame)
        rotations = DYNAMO.rotations(numbers(table, ANGLES, path))
        scores = numbers(table, ["cc"], path)[:, 0]
        return sets_of(names, [""] * len(names), Picks.at(pixels * sizes[:, None], scores, rotations=rotations))
