"""Made-up copick projects, written straight to disk: picks, and tomograms that have a shape but no voxels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.copick_config import PickableObject, create_project
from tomoscout.options.names import TomogramUri

RADII = {
    "apo-ferritin": 60.0,
    "beta-amylase": 65.0,
    "beta-galactosidase": 90.0,
    "ribosome": 150.0,
    "thyroglobulin": 130.0,
    "virus-like-particle": 135.0,
}
"""The objects of the CZII challenge and their radii in Å."""

SHAPE = (184, 630, 630)
URI = TomogramUri("wbp", 10.0)
USER, SESSION = "data-portal", "0"
SCALE = 0.8


def positions(run: int, picks: int) -> dict[str, NDArray[np.float64]]:
    """Where the objects of a run are, as x, y, z in Å: at random, so some overlap."""
    random = np.random.default_rng(run)
    extent = np.array(SHAPE[::-1]) * URI.voxel_spacing
    return {
        name: random.uniform(0, extent - URI.voxel_spacing, (len(range(number, picks, len(RADII))), 3)).round(2)
        for number, name in enumerate(RADII)
    }


def make_project(folder: Path, runs: int, picks: int) -> Path:
    """Write a project of `runs` runs with `picks` picks each; returns its copick config."""
    grey = (90, 90, 90, 255)
    objects = [PickableObject(name, True, label, RADII[name], grey) for label, name in enumerate(RADII, 1)]
    for number in range(runs):
        run = folder / "ExperimentRuns" / f"TS-{number:05d}"
        _write_tomogram(run / f"VoxelSpacing{URI.voxel_spacing:.3f}" / f"{URI.algorithm}.zarr")
        (run / "Picks").mkdir()
        for name, places in positions(number, picks).items():
            _write_picks(run / "Picks" / f"{USER}_{SESSION}_{name}.json", run.name, name, places)
    return create_project(folder, objects, "bench")


def _write_tomogram(path: Path) -> None:
    (path / "0").mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    scale = {"type": "scale", "scale": [URI.voxel_spacing] * 3}
    space = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    image = {"version": "0.4", "axes": space, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
    (path / ".zattrs").write_text(json.dumps({"multiscales": [image]}))
    array = {
        "zarr_format": 2,
        "shape": SHAPE,
        "chunks": [min(256, size) for size in SHAPE],
        "dtype": "<f4",
        "compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
        "fill_value": 0.0,
        "order": "C",
        "filters": None,
        "dimension_separator": "/",
    }
    (path / "0" / ".zarray").write_text(json.dumps(array))


def _write_picks(path: Path, run: str, name: str, places: NDArray[np.float64]) -> None:
    points = [
        {
            "location": dict(zip("xyz", place, strict=True)),
            "transformation_": np.eye(4).tolist(),
            "instance_id": 0,
            "score": 1.0,
        }
        for place in places.tolist()
    ]
    facts = {"pickable_object_name": name, "user_id": USER, "session_id": SESSION, "run_name": run}
    path.write_text(json.dumps({**facts, "voxel_spacing": None, "unit": "angstrom", "points": points}))


def write_config(path: Path, project: Path, runs_per_job: int, **sections: Any) -> Path:
    """A tomoscout configuration over a made-up project, with further sections."""
    values = {
        "projects": {"bench": str(project)},
        "tomograms": [str(URI)],
        "targets": {"picks": f"{USER}/{SESSION}", "radius_scale": SCALE},
        "runs_per_job": runs_per_job,
        **sections,
    }
    path.write_text(json.dumps(values))
    return path
