"""A copick project written byte by byte, without copick and zarr, so that every part of it can be wrong."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

RUNS = ("a", "b", "c")
SHAPE = (16, 24, 20)
SPACING = 10.0
OBJECTS: list[dict[str, Any]] = [
    {"name": "ribosome", "is_particle": True, "label": 7, "radius": 40.0, "color": [200, 100, 50, 255]},
    {"name": "ferritin", "is_particle": True, "label": 1, "radius": 30.0, "color": [50, 200, 100, 255]},
    {"name": "membrane", "is_particle": False, "label": 9, "color": [50, 100, 200, 255]},
]
PICKS = {"ribosome": [[60.0, 70.0, 50.0], [140.0, 180.0, 110.0]], "ferritin": [[50.0, 170.0, 120.0]]}
"""Positions x, y, z in Å."""

SETTINGS: dict[str, Any] = {
    "projects": {"demo": "copick.json"},
    "tomograms": ["wbp@10.0"],
    "targets": {"picks": ["ribosome:expert/0", "ferritin:expert/0"], "segmentations": ["membrane:expert/0"]},
    "split": {"train": ["a"], "validate": ["b"], "test": ["c"]},
}


class MadeProject:
    """The project in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.copick = folder / "copick.json"

    @classmethod
    def make(cls, folder: Path) -> MadeProject:
        """Write all of it."""
        made = cls(folder)
        folder.mkdir(parents=True)
        made.copick.write_text(json.dumps(made.copick_config()))
        (folder / "my.yaml").write_text(yaml.safe_dump(SETTINGS))
        for run in RUNS:
            write_zarr(made.tomogram(run), tomogram_of(run))
            write_zarr(made.membrane(run), membrane_mask())
            for name, positions in PICKS.items():
                path = made.picks(run, name)
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(picks_file(run, name, positions)))
        return made

    def copick_config(self) -> dict[str, Any]:
        """What copick's config file says."""
        return {
            "name": "demo",
            "description": "",
            "version": "1.0",
            "config_type": "filesystem",
            "user_id": "nobody",
            "overlay_root": f"local://{self.folder / 'overlay'}",
            "overlay_fs_args": {"auto_mkdir": True},
            "pickable_objects": json.loads(json.dumps(OBJECTS)),
        }

    def run(self, run: str) -> Path:
        """Folder of a run."""
        return self.folder / "overlay/ExperimentRuns" / run

    def tomogram(self, run: str) -> Path:
        """Its tomogram."""
        return self.run(run) / "VoxelSpacing10.000/wbp.zarr"

    def membrane(self, run: str) -> Path:
        """Its segmentation."""
        return self.run(run) / "Segmentations/10.000_expert_0_membrane.zarr"

    def picks(self, run: str, name: str) -> Path:
        """Its picks of an object."""
        return self.run(run) / "Picks" / f"expert_0_{name}.json"


def tomogram_of(run: str) -> NDArray[np.float32]:
    """Noise."""
    return np.random.default_rng(ord(run)).normal(size=SHAPE).astype(np.float32)


def membrane_mask() -> NDArray[np.uint8]:
    """A plane that no particle touches, of another thickness at each end, so that a turned one differs."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 2:, :5] = 1
    return mask


def picks_file(run: str, name: str, positions: list[list[float]]) -> dict[str, Any]:
    """What copick writes for picks."""
    points = [
        {
            "location": dict(zip("xyz", position, strict=True)),
            "transformation_": np.eye(4).tolist(),
            "instance_id": 0,
            "score": 1.0,
        }
        for position in positions
    ]
    facts = {"pickable_object_name": name, "user_id": "expert", "session_id": "0", "run_name": run}
    return {**facts, "unit": "angstrom", "points": points}


def write_zarr(
    folder: Path,
    volume: NDArray[Any],
    *,
    level: str = "0",
    separator: str = "/",
    axes: str = "zyx",
    scale: float = SPACING,
    unit: str = "angstrom",
) -> None:
    """Write a volume as OME-Zarr 0.4 without compression, in chunks of half its size."""
    array = folder / level
    array.mkdir(parents=True, exist_ok=True)
    chunks = [max(1, (size + 1) // 2) for size in volume.shape]
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    (folder / ".zattrs").write_text(json.dumps({"multiscales": [_multiscales(level, axes, scale, unit)]}))
    facts = {
        "zarr_format": 2,
        "shape": list(volume.shape),
        "chunks": chunks,
        "dtype": volume.dtype.str,
        "compressor": None,
        "fill_value": None if volume.dtype.kind == "U" else 0,
        "order": "C",
        "filters": None,
        "dimension_separator": separator,
    }
    (array / ".zarray").write_text(json.dumps(facts))
    for place in itertools.product(*(range(math.ceil(s / c)) for s, c in zip(volume.shape, chunks, strict=True))):
        _write_chunk(array, volume, chunks, place, separator)


def _write_chunk(array: Path, volume: NDArray[Any], chunks: list[int], place: tuple[int, ...], separator: str) -> None:
    part = volume[tuple(slice(p * c, (p + 1) * c) for p, c in zip(place, chunks, strict=True))]
    whole = np.zeros(chunks, volume.dtype)
    whole[tuple(slice(0, size) for size in part.shape)] = part
    path = array / separator.join(map(str, place))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole.tobytes())


def _multiscales(level: str, axes: str, scale: float, unit: str) -> dict[str, Any]:
    channel = [{"name": axis, "type": "channel"} for axis in axes if axis not in "xyz"]
    space = [{"name": axis, "type": "space", "unit": unit} for axis in axes if axis in "xyz"]
    scales = [1.0] * len(channel) + [scale] * len(space)
    datasets = [{"path": level, "coordinateTransformations": [{"type": "scale", "scale": scales}]}]
    return {"version": "0.4", "name": "/", "axes": channel + space, "datasets": datasets}
