"""STAR files of RELION and of programs that write them like RELION: read by their columns, whatever wrote them."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.angles import RELION
from tomoscout.data.formats.base import Format, Frame, Grid, PickSet, TiltSeries
from tomoscout.data.formats.tables import all_or_none, numbers, sets_of, whole_numbers
from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError, cut, shown
from tomoscout.machine.files import read_text, write_text
from tomoscout.machine.messages import note, warn

if TYPE_CHECKING:
    from pandas import DataFrame

CENTRED = [f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]
PIXELS = [f"rlnCoordinate{axis}" for axis in "XYZ"]
ANGLES = [f"rlnAngle{angle}" for angle in ("Rot", "Tilt", "Psi")]
SUBTOMOGRAM = [f"rlnTomoSubtomogram{angle}" for angle in ("Rot", "Tilt", "Psi")]
SHIFTS = [f"rlnOrigin{axis}Angst" for axis in "XYZ"]
SHIFTS_IN_PIXELS = [f"rlnOrigin{axis}" for axis in "XYZ"]
TILT_PIXEL = "rlnTomoTiltSeriesPixelSize"
SIZE = [f"rlnTomoSize{axis}" for axis in "XYZ"]
OPTICS = ["rlnOpticsGroupName", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"]
SCORE = "rlnAutopickFigureOfMerit"
SCORES = [SCORE, "rlnLCCmax"]
"""Columns of scores, the first that is there counts; the second is that of pytom-match-pick."""
TUBE = "rlnHelicalTubeID"
NAMES = ["rlnTomoName", "rlnMicrographName", "rlnOpticsGroupName", "rlnTomoImportParticleFile"]
"""Columns of text, also where they look like numbers."""


def read_star(path: Path) -> dict[str, Any]:
    """The blocks of a STAR file: tables, and mappings for blocks without a loop.

    Raises:
        TomoscoutError: there is no such file, it is no STAR file, or something in it is there twice.
    """
    import starfile

    # Of blocks of one name starfile returns the last.
    _refuse_twins(re.findall(r"^\ufeff?(data_\S*)", read_text(path), re.MULTILINE), "blocks", path)
    try:
        blocks: dict[str, Any] = starfile.read(path, always_dict=True, parse_as_string=NAMES)
    except Exception as error:
        # starfile's parser has no errors of its own: whatever a malformed file leads to.
        raise TomoscoutError(f"{path}: not a STAR file ({cut(str(error) or repr(error))})") from None
    if not blocks:
        raise TomoscoutError(f"{path}: not a STAR file (no line begins with data_)")
    for block in blocks.values():
        _refuse_twins(list(block), "columns", path)
    return blocks


def _refuse_twins(names: Sequence[str], what: str, path: Path) -> None:
    if twins := [name for name in names if names.count(name) > 1]:
        raise TomoscoutError(f"{path}: two {what} are called {twins[0]}")


def read_tilt_series(path: Path) -> dict[str, TiltSeries]:
    """RELION's tomograms.star: name of a tomogram → its tilt series.

    Raises:
        TomoscoutError: the file lacks a column.
    """
    blocks = read_star(path)
    table = _table(blocks.get("global", next(iter(blocks.values()))), path)
    _need(table, "rlnTomoName", path)
    values = numbers(table, [*SIZE, TILT_PIXEL], path)
    optics = [column for column in OPTICS if column in table]
    return {
        name: TiltSeries((x, y, z), pixel_size, tuple((column, table[column].iloc[row]) for column in optics))
        for row, (name, (x, y, z, pixel_size)) in enumerate(zip(table["rlnTomoName"], values.tolist(), strict=True))
    }


def write_star(path: Path, blocks: Mapping[str, DataFrame]) -> None:
    """Write tables as the blocks of a STAR file. starfile's first line, the time, is left out: equal picks give equal
    files.

    Raises:
        TomoscoutError: a text holds what STAR cannot.
    """
    import starfile

    for table in blocks.values():
        for text in (text for column in table.select_dtypes(exclude="number") for text in table[column]):
            if re.search("[#'\"]", text):
                raise TomoscoutError(f"{path}: {shown(text)} cannot be written into a STAR file; no # and no quotes")
    _, _, text = starfile.to_string(dict(blocks)).partition("\n")
    write_text(path, text.lstrip())


def write_import_list(path: Path, files: Mapping[str, Path]) -> None:
    """Write the list of the files of runs that RELION's job "Import coordinates" asks for, with whole paths."""
    import pandas as pd

    table = pd.DataFrame(
        {"rlnTomoName": list(files), "rlnTomoImportParticleFile": [str(file.absolute()) for file in files.values()]}
    )
    write_star(path, {"coordinate_files": table})


class StarFormat(Format):
    """A kind of STAR file. All are read alike, by their columns."""

    suffix = ".star"
    angles = RELION
    score = SCORE
    block = "particles"
    name_column = "rlnTomoName"
    particle_column = ""

    @abstractmethod
    def position_columns(self, picks: Picks, grid: Grid, frame: Frame) -> dict[str, NDArray[np.float64]]:
        """The columns with the positions of the picks of a run."""

    def optics(self, grid: Grid, frame: Frame) -> dict[str, Any] | None:
        """The columns of the optics group of a run; None if the file has no table of them."""
        return None

    def run_name(self, run: str) -> str:
        """What a run is called in the file."""
        return run

    def write(self, path: Path, sets: Sequence[PickSet], frame: Frame) -> None:
        """Write a table of particles and, where all groups are known, of optics groups."""
        import pandas as pd

        grids = frame.grids({entry.run for entry in sets})
        optics = {run: self.optics(grid, frame) for run, grid in grids.items()}
        known = [tuple(group.items()) for group in optics.values() if group is not None]
        groups = [dict(items) for items in dict.fromkeys(known)] if len(known) == len(optics) else []
        tables = []
        for entry in sets:
            picks = entry.picks
            columns: dict[str, Any] = {self.name_column: [self.run_name(entry.run)] * len(picks)}
            columns |= self.position_columns(picks, grids[entry.run], frame)
            columns |= dict(zip(ANGLES, RELION.angles(picks.rotations).T, strict=True))
            if self.particle_column:
                columns[self.particle_column] = [f"{entry.run}/{number}" for number in range(1, len(picks) + 1)]
            if groups:
                columns["rlnOpticsGroup"] = 1 + groups.index(optics[entry.run] or {})
            columns[SCORE] = picks.scores
            tables.append(pd.DataFrame(columns))
        blocks = {self.block: pd.concat(tables, ignore_index=True)}
        if groups:
            numbered = [{"rlnOpticsGroup": number, **_named(group, number)} for number, group in enumerate(groups, 1)]
            blocks = {"optics": pd.DataFrame(numbered), **blocks}
        write_star(path, blocks)

    def read(self, path: Path, frame: Frame) -> list[PickSet]:
        """Read particles. Their position is the coordinate less the shift, which the angles of the subtomogram turn;
        their rotation is that of the particle, then that of the subtomogram (`ParticleSet::getPosition` and
        `getMatrix3x3` in RELION's particle_set.cpp). Columns of angles or shifts that are not there are 0."""
        blocks = read_star(path)
        table = _particles(blocks, path)
        column = next((name for name in NAMES[:2] if name in table), None)
        names = [path.stem] * len(table) if column is None else table[column].astype(str).tolist()
        grids = frame.grids(set(names))
        subtomograms, own = _rotations(table, SUBTOMOGRAM, path), _rotations(table, ANGLES, path)
        positions, shifts = _places(table, blocks.get("optics"), [grids[name] for name in names], frame, path)
        positions -= np.einsum("nij,nj->ni", subtomograms, shifts)
        scores = next((numbers(table, [name], path)[:, 0] for name in SCORES if name in table), None)
        tubes = whole_numbers(numbers(table, [TUBE], path)[:, 0], TUBE, path) if TUBE in table else None
        picks = Picks.at(positions, scores, rotations=subtomograms @ own, instances=tubes)
        return sets_of(names, [""] * len(names), picks)


class RelionTomography(StarFormat):
    """Files of RELION's own tomography."""

    lists_files = True
    particle_column = "rlnTomoParticleName"

    def optics(self, grid: Grid, frame: Frame) -> dict[str, Any] | None:
        """The pixel size of the tilt series, and what tomograms.star says of its optics."""
        pixel_size = grid.unbinned(frame.pixel_size)
        named = {} if grid.tilt_series is None else dict(grid.tilt_series.optics)
        return None if pixel_size is None else {TILT_PIXEL: pixel_size, **named}


def _named(group: dict[str, Any], number: int) -> dict[str, Any]:
    return {"rlnOpticsGroupName": f"opticsGroup{number}", **group}


def _table(block: Any, path: Path) -> DataFrame:
    """A block as a table: one without a loop is a table of one row."""
    import pandas as pd

    return block if isinstance(block, pd.DataFrame) else pd.DataFrame([block])


def _need(table: DataFrame, column: str, path: Path) -> None:
    if column not in table:
        raise TomoscoutError(f"{path}: no column {column}; found {cut(', '.join(table.columns), 400)}")


def _particles(blocks: Mapping[str, Any], path: Path) -> DataFrame:
    """The table of particles: `data_particles`, else the first that has coordinates."""
    tables = [_table(block, path) for name, block in blocks.items() if name != "optics"]
    if "particles" in blocks:
        tables = [_table(blocks["particles"], path)]
    found = next((table for table in tables if CENTRED[0] in table or PIXELS[0] in table), None)
    if found is None:
        have = cut(", ".join(column for table in tables for column in table.columns) or "no column", 400)
        raise TomoscoutError(
            f"{path}: no coordinates: found {have}; expected {CENTRED[0]}, … or {PIXELS[0]}, … in its particles"
        )
    return found


def _rotations(table: DataFrame, columns: Sequence[str], path: Path) -> NDArray[np.float64]:
    angles = all_or_none(table, columns, path)
    return RELION.rotations(np.zeros((len(table), 3)) if angles is None else angles)


def _places(
    table: DataFrame, optics: Any, grids: Sequence[Grid], frame: Frame, path: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates and shifts (N, 3) in Å, the coordinates from the first voxel. RELION takes the centred ones where it
    finds both."""
    centred, shifts = all_or_none(table, CENTRED, path), all_or_none(table, SHIFTS, path)
    in_pixels = None if shifts is not None else all_or_none(table, SHIFTS_IN_PIXELS, path)
    if centred is None or in_pixels is not None:
        sizes = _pixel_sizes(table, optics, grids, frame, path)[:, None]
        shifts = shifts if in_pixels is None else in_pixels * sizes
    if centred is None:
        positions = numbers(table, PIXELS, path) * sizes
    else:
        positions = centred + np.array([grid.centre for grid in grids]).reshape(-1, 3)
        if binned := next((grid for grid in grids if grid.tilt_series is None), None):
            warn(
                f"{path}: counts from RELION's centre, for which half of the size of the tomogram at "
                f"{binned.voxel_spacing:g} Å is taken: give tomograms.star as `tomograms_star`, as RELION's is another "
                "where the binning does not divide the unbinned size"
            )
    return positions, np.zeros_like(positions) if shifts is None else shifts


def _pixel_sizes(table: DataFrame, optics: Any, grids: Sequence[Grid], frame: Frame, path: Path) -> NDArray[np.float64]:
    """Å per pixel of the coordinates of each row: what is given; else, where the tomogram is named by rlnTomoName, that
    of the tilt series; else that of the tomogram, by the file or by the project."""
    rows = len(table)
    if frame.pixel_size is not None:
        return np.full(rows, frame.pixel_size)
    if "rlnTomoName" in table:
        stated = _stated(table, optics, [TILT_PIXEL], path)
        if stated is None and any(grid.tilt_series is None for grid in grids):
            raise TomoscoutError(
                f"{path}: {PIXELS[0]}, … are in pixels of the tilt series, whose size is neither in the file "
                f"({TILT_PIXEL}) nor given; give it as `pixel_size`, or tomograms.star as `tomograms_star`"
            )
        return np.array([g.tilt_series.pixel_size for g in grids if g.tilt_series]) if stated is None else stated
    detector = "rlnDetectorPixelSize"
    if detector in table:
        # Micrometres at a magnification, which is 10,000 where programs mean Å.
        magnification = numbers(table, ["rlnMagnification"], path)[:, 0] if "rlnMagnification" in table else 1e4
        sizes, source = numbers(table, [detector], path)[:, 0] * 1e4 / magnification, detector
    elif (found := _stated(table, optics, ["rlnPixelSize", "rlnImagePixelSize"], path)) is not None:
        sizes, source = found, "the file"
    else:
        sizes, source = np.array([grid.voxel_spacing for grid in grids]), "the tomograms, as the file states none"
    note(f"{path}: pixels of {' and '.join(f'{size:g}' for size in sorted(set(sizes.tolist())))} Å, by {source}")
    return sizes


def _stated(table: DataFrame, optics: Any, columns: Sequence[str], path: Path) -> NDArray[np.float64] | None:
    """The first of the columns that the particles or their optics groups have, for each row."""
    for column in columns:
        if column in table:
            return numbers(table, [column], path)[:, 0]
    groups = None if optics is None else _table(optics, path)
    column = "" if groups is None else next((column for column in columns if column in groups), "")
    if groups is None or not column:
        return None
    values = numbers(groups, [column], path)[:, 0]
    if len(groups) == 1:
        return np.full(len(table), values[0])
    by_group = dict(zip(numbers(groups, ["rlnOpticsGroup"], path)[:, 0], values, strict=True))
    wanted = numbers(table, ["rlnOpticsGroup"], path)[:, 0]
    if unknown := set(wanted) - by_group.keys():
        raise TomoscoutError(f"{path}: no optics group {min(unknown):g}, which particles have")
    return np.array([by_group[group] for group in wanted])
