"""IMOD models (.mod): a model for each run, an object of scattered points in it for each object."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.formats.base import Format, Frame, PickSet
from tomoscout.data.formats.tables import sets_of
from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.machine.files import write_bytes

HALF = np.array([0.5, 0.5, 0.0])
"""Model point of the centre of the first voxel: in x and y in the middle of a pixel, in z on the slice."""
VALUE, RANGE = 10, 11
"""Types of stored items: the value of a point, and the least and largest value of an object (`GEN_STORE_VALUE1` and
`GEN_STORE_MINMAX1` in IMOD's istore.h). Below, their flags: a number of single precision at the index of one point, and
two such numbers."""
OF_A_POINT, TWO_NUMBERS = 1 << 2 | 1 << 7, 1 << 2 | 1
ANGSTROM, PER_UNIT = -10, 10
"""IMOD's units are powers of ten in metres: Å is -10."""


class Imod(Format):
    """IMOD's "Binary file format" 1.2. Scores are the values of points. There are no orientations: IMOD keeps them in
    other files."""

    suffix = ".mod"
    one_run = True
    objects = True
    coordinates = "pixels of the tomogram; the first voxel is the model point (0.5, 0.5, 0)"
    in_pixels = True
    score = "values of the points"

    def write(self, path: Path, sets: Sequence[PickSet], frame: Frame) -> None:
        """Write the model of a run."""
        from imodmodel.models import Contour, ImodModel, Object
        from imodmodel.writers import write_model

        [run] = {entry.run for entry in sets}
        grid = frame.grids([run])[run]
        pixel_size = self.pixel_size(grid, frame)
        assert pixel_size is not None
        model = ImodModel()
        model.header.name = run[:127]
        model.header.xmax, model.header.ymax, model.header.zmax = grid.shape[::-1]
        model.header.pixelsize, model.header.units = pixel_size, ANGSTROM
        for entry in sets:
            points = self.to_pixels(entry.picks, grid, frame) + HALF
            shown = Object(contours=[Contour(points=points)])
            shown.header.name = entry.name[:63]
            shown.header.flags.scattered = shown.header.flags.open = True
            shown.header.pdrawsize = round((entry.radius or 0) / pixel_size)
            model.objects.append(shown)
        text = io.BytesIO()
        write_model(text, model)
        write_bytes(path, _with_values(text.getvalue(), [entry.picks.scores for entry in sets]))

    def read(self, path: Path, frame: Frame) -> list[PickSet]:
        """Read the points of all objects and contours. The pixel size is the one that is given, else that of the model
        where it has a unit, else that of the tomogram."""
        model = _read(path)
        pixel_size, units = model.header.pixelsize, model.header.units
        stated = pixel_size * 10.0 ** (units + PER_UNIT) if units and pixel_size > 0 else None
        grid = frame.grids([path.stem])[path.stem]
        size = frame.pixel_size or stated or grid.voxel_spacing
        found, names, scores = [np.zeros((0, 3))], [], [np.zeros(0)]
        for entry in model.objects:
            for contour in entry.contours:
                found.append(contour.points)
                names += [entry.header.name] * len(contour.points)
                scores.append(_values(contour))
        points = np.concatenate(found)
        if not np.isfinite(points).all():
            raise TomoscoutError(f"{path}: a point is NaN or infinite")
        picks = Picks.at((points - HALF) * size, np.concatenate(scores))
        return sets_of([path.stem] * len(names), names, picks)


class _Whole(io.BytesIO):
    """A file in memory that is not read past its end. imodmodel waits for the word at the end of a model for ever."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As many bytes as asked for."""
        found = super().read(size)
        if size is not None and len(found) < size:
            raise EOFError("it ends too early")
        return found


def _read(path: Path) -> Any:
    from imodmodel.parsers import parse_model

    try:
        model = parse_model(_Whole(path.read_bytes()))
    except FileNotFoundError:
        raise TomoscoutError(f"{path}: no such file") from None
    except Exception as error:
        # The parser has no errors of its own: struct and pydantic raise theirs where a file is cut or of another kind.
        raise TomoscoutError(f"{path}: not an IMOD model, or a truncated one ({cut(str(error))})") from None
    if model.id.IMOD_file_id != "IMOD":
        raise TomoscoutError(f"{path}: not an IMOD model (it begins with {model.id.IMOD_file_id!r})")
    return model


def _values(contour: Any) -> NDArray[np.float64]:
    """The values of the points of a contour; 1 where there are none."""
    values = np.ones(len(contour.points))
    for item in contour.extra:
        if item.type == VALUE and isinstance(item.index, int) and 0 <= item.index < len(values):
            values[item.index] = item.value
    return values


def _with_values(model: bytes, scores: Sequence[NDArray[np.float64]]) -> bytes:
    """The bytes of a model whose objects have a contour each, with the values of its points after each contour:
    imodmodel, which reads them, does not write the word that introduces them."""
    from imodmodel.binary_specification import ModFileSpecification

    def size(header: dict[str, str]) -> int:
        return struct.calcsize(">" + "".join(header.values()))

    start = size(ModFileSpecification.ID) + size(ModFileSpecification.MODEL_HEADER)
    parts = [model[:start]]
    for values in scores:
        end = start + 4 + size(ModFileSpecification.OBJECT_HEADER)
        end += 4 + size(ModFileSpecification.CONTOUR_HEADER) + 12 * len(values)
        items = [struct.pack(">hhif", VALUE, OF_A_POINT, number, value) for number, value in enumerate(values)]
        parts += [model[start:end], b"COST", struct.pack(">i", 12 * len(values)), *items]
        parts += [b"OBST", struct.pack(">ihhff", 12, RANGE, TWO_NUMBERS, values.min(), values.max())]
        start = end
    return b"".join([*parts, model[start:]])
