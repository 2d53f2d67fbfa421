"""Tables in files of other programs: columns of finite numbers, groups of rows, the names of numbered tomograms."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.formats.base import Frame, PickSet
from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError, cut, shown
from tomoscout.machine.files import read_text, write_text

if TYPE_CHECKING:
    from pandas import DataFrame


def numbers(table: DataFrame, columns: Sequence[str], path: Path) -> NDArray[np.float64]:
    """Columns of a table as numbers (rows, columns).

    Raises:
        TomoscoutError: a column is missing, or a value is not a finite number.
    """
    import pandas as pd

    if missing := [column for column in columns if column not in table]:
        raise TomoscoutError(
            f"{path}: no column {', '.join(missing)}; found {cut(', '.join(map(str, table.columns)), 400)}"
        )
    values = np.column_stack([pd.to_numeric(table[column], errors="coerce") for column in columns]).astype(float)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        found = table[columns[column]].iloc[row]
        what = shown(found) if isinstance(found, str) else found
        raise TomoscoutError(f"{path}: row {row + 1}: {columns[column]} is {what}, expected a finite number")
    return values


def all_or_none(table: DataFrame, columns: Sequence[str], path: Path) -> NDArray[np.float64] | None:
    """Columns that belong together as numbers (rows, columns); None where the table has none of them.

    Raises:
        TomoscoutError: it has some of them alone, or a value is not a finite number.
    """
    return numbers(table, columns, path) if any(column in table for column in columns) else None


def whole_numbers(values: NDArray[np.float64], what: str, path: Path) -> NDArray[np.int64]:
    """Numbers as integers.

    Raises:
        TomoscoutError: one of `what` is not whole, or too large to tell it from the next.
    """
    if len(wrong := values[(values != np.round(values)) | (np.abs(values) > 2**53)]):
        raise TomoscoutError(f"{path}: {what} is {wrong[0]:g}, expected a whole number")
    return values.astype(np.int64)


def sets_of(runs: Sequence[str], names: Sequence[str], picks: Picks) -> list[PickSet]:
    """Picks grouped by the names of their runs and objects, in the order in which these come."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(runs, names, strict=True)):
        rows.setdefault(key, []).append(row)
    return [PickSet(run, name, picks[np.array(chosen)]) for (run, name), chosen in rows.items()]


def read_pairs(path: Path) -> dict[str, str]:
    """A table of two columns, separated by a tab, a comma or spaces: first → second.

    Raises:
        TomoscoutError: a line has one value alone, or a name stands twice in the first column.
    """
    pairs: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        mark = next((mark for mark in "\t," if mark in line), None)
        cells = [cell.strip() for cell in line.split(mark, 1)]
        if not line.strip() or line.startswith("#"):
            continue
        if len(cells) < 2 or not all(cells):
            raise TomoscoutError(f"{path}: line {number} is {shown(line)}, expected two values")
        if cells[0] in pairs:
            raise TomoscoutError(f"{path}: line {number}: '{cells[0]}' is there twice")
        pairs[cells[0]] = cells[1]
    return pairs


def read_indices(path: Path) -> dict[int, str]:
    """A table number → name of a tomogram, such as Dynamo's `.doc`.

    Raises:
        TomoscoutError: as for `read_pairs`, or a number is none.
    """
    try:
        return {int(number): name for number, name in read_pairs(path).items()}
    except ValueError:
        raise TomoscoutError(f"{path}: expected the number of a tomogram and its name in each line") from None


def indices_beside(path: Path) -> Path:
    """The file beside a table that names the numbered tomograms; Dynamo's ending for it."""
    return path.with_suffix(".doc")


def write_indices(path: Path, numbered: Mapping[str, int], runs: Collection[str]) -> None:
    """Write which number stands for which of the runs beside a table."""
    lines = [f"{numbered[run]} {run}\n" for run in sorted(runs, key=numbered.__getitem__)]
    write_text(indices_beside(path), "".join(lines))


def numbers_of_runs(sets: Sequence[PickSet], frame: Frame) -> Mapping[str, int]:
    """The numbers that stand for runs: those of the frame, else from 1 in their order."""
    if frame.indices is not None:
        return {run: number for number, run in frame.indices.items()}
    return {run: number for number, run in enumerate(dict.fromkeys(entry.run for entry in sets), 1)}


def names_of(numbered: NDArray[np.int64], given: Mapping[int, str] | None, path: Path) -> list[str]:
    """The names of numbered tomograms: by a table, the one beside the file if none is given, else the name of the file
    if all are of one tomogram.

    Raises:
        TomoscoutError: a number is not in the table, or there is none.
    """
    beside = indices_beside(path)
    if given is None and beside.exists():
        given = read_indices(beside)
    if given is None:
        if len(set(numbered.tolist())) > 1:
            raise TomoscoutError(
                f"{path}: particles of tomograms {cut(', '.join(map(str, sorted(set(numbered.tolist())))))} and no "
                f"{beside.name} beside it; give a table number → run as `indices`"
            )
        return [path.stem] * len(numbered)
    if unknown := sorted(set(numbered.tolist()) - given.keys()):
        raise TomoscoutError(
            f"{path}: particles of tomograms {cut(', '.join(map(str, unknown)))}, which the table of tomograms does "
            f"not name; it has {cut(', '.join(map(str, sorted(given))))}"
        )
    return [given[number] for number in numbered.tolist()]
