"""Tables of picks as text: copick's columns, or those of the CZII challenge. Å from the corner."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tomoscout.data.formats.base import Format, Frame, PickSet
from tomoscout.data.formats.tables import all_or_none, numbers, sets_of, whole_numbers
from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.machine.files import write_text

if TYPE_CHECKING:
    from pandas import DataFrame

PLACE = ["x", "y", "z"]
MATRIX = [f"transform_{row}{column}" for row in range(4) for column in range(4)]
RUN = ["run_name", "experiment", "run"]
OBJECT = ["object", "particle_type"]
"""Names of the columns with the run and the object; the first that is there counts."""


class CopickCsv(Format):
    """The columns of copick's own CSV, and the object: run_name, object, x, y, z, the matrix of the transform by rows,
    score, instance_id."""

    suffix = ".csv"
    objects = True
    coordinates = "Å from the first voxel"
    angles = "rotation matrix, object → tomogram (transform_00 to transform_33)"
    score = "score"
    instance = "instance_id"

    def write(self, path: Path, sets: Sequence[PickSet], frame: Frame) -> None:
        """Write the table."""
        import pandas as pd

        tables = []
        for run, name, picks, _ in sets:
            table = pd.DataFrame(picks.positions, columns=PLACE)
            table.insert(0, "run_name", run)
            table.insert(1, "object", name)
            table[MATRIX] = picks.transforms.reshape(len(picks), 16)
            tables.append(table.assign(score=picks.scores, instance_id=picks.instances))
        write_csv(path, pd.concat(tables, ignore_index=True))

    def read(self, path: Path, frame: Frame) -> list[PickSet]:
        """Read a table with the columns x, y, z at least, separated by commas or, in a .tsv, by tabs. With a pixel size
        they are in pixels from 0. The shift of a transform is added to the position, as copick does."""
        table = _read(path)
        transforms = all_or_none(table, MATRIX, path)
        matrices = np.tile(np.eye(4), (len(table), 1, 1)) if transforms is None else transforms.reshape(-1, 4, 4)
        positions = numbers(table, PLACE, path) * (frame.pixel_size or 1) + matrices[:, :3, 3]
        scores = numbers(table, ["score"], path)[:, 0] if "score" in table else None
        instances = (
            whole_numbers(numbers(table, ["instance_id"], path)[:, 0], "instance_id", path)
            if "instance_id" in table
            else None
        )
        picks = Picks.at(positions, scores, rotations=matrices[:, :3, :3], instances=instances)
        return sets_of(_texts(table, RUN, path.stem), _texts(table, OBJECT, ""), picks)


def write_csv(path: Path, table: DataFrame) -> None:
    """Write a table, separated by commas."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _read(path: Path) -> DataFrame:
    import pandas as pd

    try:
        with warnings.catch_warnings():
            # A row with more values than there are columns is nothing to guess about.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                sep="\t" if path.suffix.lower() == ".tsv" else ",",
                dtype=dict.fromkeys([*RUN, *OBJECT], str),
                index_col=False,
                keep_default_na=False,
                skipinitialspace=True,
            )
    except FileNotFoundError:
        raise TomoscoutError(f"{path}: no such file") from None
    except pd.errors.ParserWarning:
        raise TomoscoutError(f"{path}: a row has more values than there are columns") from None
    except ValueError as error:
        raise TomoscoutError(f"{path}: not a table ({cut(str(error))})") from None


def _texts(table: DataFrame, columns: Sequence[str], otherwise: str) -> list[str]:
    column = next((column for column in columns if column in table), None)
    return [otherwise] * len(table) if column is None else table[column].tolist()
