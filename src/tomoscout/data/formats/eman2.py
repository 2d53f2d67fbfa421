"""EMAN2: the boxes in `info/…_info.json`, a file for each run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tomoscout.data.formats.base import Format, Frame, Grid, PickSet
from tomoscout.data.formats.tables import sets_of
from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError, shown
from tomoscout.machine.files import read_json, write_text

BOX_RADII = 3
"""Size of the box of an object in its radii."""
DEFAULT_BOX = 32
"""The size of the boxes of `e2spt_boxer.py`, in pixels, for objects without a radius."""


class Eman2(Format):
    """`boxes_3d` are x, y, z in unbinned pixels of `apix_unbin` Å from the voxel in the middle of the tomogram
    (size // 2), the method, the score, and the class, whose name is in `class_list` (EMAN2's e2spt_boxer.py). There are
    no orientations in it."""

    suffix = "_info.json"
    one_run = True
    objects = True
    coordinates = "unbinned pixels from the voxel in the middle of the tomogram, size // 2"
    in_pixels = True
    score = "boxes_3d, fifth value"

    def pixel_size(self, grid: Grid, frame: Frame) -> float:
        """Å per unbinned pixel: that of the tilt series, else of the tomogram itself."""
        return grid.unbinned(frame.pixel_size) or grid.voxel_spacing

    def write(self, path: Path, sets: Sequence[PickSet], frame: Frame) -> None:
        """Write the file of a run."""
        [run] = {entry.run for entry in sets}
        grid = frame.grids([run])[run]
        pixel_size = self.pixel_size(grid, frame)
        boxes: list[list[Any]] = []
        classes = {}
        for number, entry in enumerate(sets):
            places = (entry.picks.positions - grid.middle) / pixel_size
            boxes += [
                [*place, "tomoscout", score, number]
                for place, score in zip(places.round(6).tolist(), entry.picks.scores.tolist(), strict=True)
            ]
            box = 2 * round(BOX_RADII * entry.radius / pixel_size / 2) if entry.radius else DEFAULT_BOX
            classes[str(number)] = {"name": entry.name, "boxsize": box}
        info = {"apix_unbin": pixel_size, "boxes_3d": boxes, "class_list": classes}
        write_text(path, json.dumps(info, indent=1, allow_nan=False) + "\n")

    def read(self, path: Path, frame: Frame) -> list[PickSet]:
        """Read the boxes of a file."""
        run = path.stem.removesuffix("_info")
        info = read_json(path)
        if not isinstance(info, dict) or not isinstance(info.get("boxes_3d"), list):
            raise TomoscoutError(f"{path}: not EMAN2's information on a tomogram with boxes (no list 'boxes_3d')")
        pixel_size = frame.pixel_size or info.get("apix_unbin")
        if not isinstance(pixel_size, int | float) or not pixel_size > 0:
            raise TomoscoutError(f"{path}: apix_unbin is {shown(pixel_size)}, expected Å per unbinned pixel")
        try:
            boxes = [[*box, "", 1.0, 0][:3] for box in info["boxes_3d"]]
            places = np.array(boxes, dtype=np.float64).reshape(-1, 3)
            scores = np.array([box[4] if len(box) > 4 else 1.0 for box in info["boxes_3d"]], dtype=np.float64)
            numbers = [str(int(box[5])) if len(box) > 5 else "0" for box in info["boxes_3d"]]
            names = {number: _name(entry) for number, entry in info.get("class_list", {}).items()}
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise TomoscoutError(f"{path}: a box or a class is malformed ({shown(error)})") from None
        grid = frame.grids([run])[run]
        picks = Picks.at(places * pixel_size + grid.middle, scores)
        return sets_of([run] * len(picks), [names.get(number, "") for number in numbers], picks)


def _name(entry: Any) -> str:
    return str(entry["name"] if isinstance(entry, dict) else entry)
