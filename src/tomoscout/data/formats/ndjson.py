"""Annotations of the CryoET data portal: a file of oriented points for each run and object, one in each line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tomoscout.data.formats.base import Format, Frame, PickSet
from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError, cut, shown
from tomoscout.machine.files import read_text, write_text


class Ndjson(Format):
    """`location` is in voxels of the annotation's voxel spacing, which the file does not state; `xyz_rotation_matrix`
    is object → tomogram. The portal has no scores."""

    suffix = ".ndjson"
    one_run = True
    coordinates = "voxels of the tomogram from the first voxel"
    in_pixels = True
    angles = "rotation matrix, object → tomogram (xyz_rotation_matrix)"
    instance = "instance_id, where it is not 0"

    def write(self, path: Path, sets: Sequence[PickSet], frame: Frame) -> None:
        """Write the points of an object in a run."""
        [entry] = sets
        picks = entry.picks
        places = self.to_pixels(picks, frame.grids([entry.run])[entry.run], frame).round(6).tolist()
        lines = []
        for place, rotation, instance in zip(places, picks.rotations.tolist(), picks.instances.tolist(), strict=True):
            point: dict[str, Any] = {
                "type": "orientedPoint",
                "location": dict(zip("xyz", place, strict=True)),
                "xyz_rotation_matrix": rotation,
            }
            lines.append(json.dumps(point | ({"instance_id": instance} if instance else {}), allow_nan=False) + "\n")
        write_text(path, "".join(lines))

    def read(self, path: Path, frame: Frame) -> list[PickSet]:
        """Read points, oriented or not."""
        points = [
            _point(line, number, path) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()
        ]
        places, rotations, instances = zip(*points, strict=True) if points else ((), (), ())
        grid = frame.grids([path.stem])[path.stem]
        positions = np.array(places, dtype=np.float64).reshape(-1, 3) * (frame.pixel_size or grid.voxel_spacing)
        turned = np.array(rotations, dtype=np.float64).reshape(-1, 3, 3)
        return [PickSet(path.stem, "", Picks.at(positions, rotations=turned, instances=np.array(instances, np.int64)))]


def _point(line: str, number: int, path: Path) -> tuple[list[float], list[list[float]], int]:
    """Position in voxels, rotation and instance of a point."""
    try:
        values = json.loads(line)
        place = [float(values["location"][axis]) for axis in "xyz"]
        rotation = np.array(values.get("xyz_rotation_matrix") or np.eye(3), dtype=np.float64).reshape(3, 3)
        instance = int(values.get("instance_id") or 0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TomoscoutError(f"{path}: line {number}: not a point ({cut(str(error))}): {shown(line)}") from None
    if not (np.isfinite(place).all() and np.isfinite(rotation).all()):
        raise TomoscoutError(f"{path}: line {number}: a value is NaN or infinite")
    return place, rotation.tolist(), instance
