"""A small copick project whose every file a test writes itself, and the command line as a user meets it."""

from __future__ import annotations

import contextlib
import json
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zarr
from click.testing import CliRunner, Result

from tomoscout.cli import main
from tomoscout.data.inventory import RunRecord, read_inventory
from tomoscout.data.inventory_refresh import refresh
from tomoscout.data.project import Project
from tomoscout.machine.files import read_json
from tomoscout.options.config import Config, load_config
from tomoscout.options.names import Source, TomogramUri

SHAPE = (24, 32, 40)


RADII = {"ribosome": 60.0, "ferritin": 40.0, "proteasome": 50.0}


class SmallProject:
    """A copick project in a folder, with a configuration and results beside it. Nothing in it is written by
    tomoscout but the results and the overlay's targets."""

    # Labels with gaps, as real projects have them.
    objects: tuple[dict[str, Any], ...] = (
        {"name": "ribosome", "is_particle": True, "label": 7, "radius": RADII["ribosome"]},
        {"name": "ferritin", "is_particle": True, "label": 1, "radius": RADII["ferritin"]},
        {"name": "proteasome", "is_particle": True, "label": 3, "radius": RADII["proteasome"]},
        {"name": "membrane", "is_particle": False, "label": 9},
    )

    def __init__(self, folder: Path, name: str = "demo", *, static: bool = False) -> None:
        self.folder = folder
        self.name = name
        self.copick = folder / f"{name}.json"
        self.overlay = folder / f"{name}-overlay"
        self.static = folder / f"{name}-static" if static else self.overlay
        self.settings = folder / "config.yaml"
        self.inventory = folder / "results" / "inventory.tsv"
        self.targets = folder / "results" / "targets" / "targets"
        self.write_copick_config()
        self.configure()

    def write_copick_config(self, **changes: Any) -> None:
        values: dict[str, Any] = {
            "name": self.name,
            "description": "",
            "version": "1.0",
            "config_type": "filesystem",
            "user_id": "nobody",
            "overlay_root": f"local://{self.overlay}",
            "overlay_fs_args": {"auto_mkdir": True},
            "pickable_objects": [{"color": [200, 100, 50, 255], **entry} for entry in self.objects],
        }
        if self.static != self.overlay:
            values["static_root"] = f"local://{self.static}"
        self.copick.write_text(json.dumps(values | changes))

    def configure(self, **sections: Any) -> Config:
        """Write the configuration: one tomogram, ribosomes by an expert, and what is given."""
        values = {
            "projects": {self.name: str(self.copick)},
            "tomograms": ["wbp@10.0"],
            "targets": {"picks": ["ribosome:expert/0"]},
        }
        self.settings.write_text(yaml.safe_dump(values | sections))
        return load_config(self.settings)

    # What is in the project

    def add_run(self, run: str, *, shape: Sequence[int] = SHAPE, uri: str = "wbp@10.0") -> Path:
        """A tomogram of noise; returns its zarr."""
        noise = np.random.default_rng(len(run)).normal(size=shape).astype(np.float32)
        return self.write_tomogram(run, noise, uri)

    def write_tomogram(self, run: str, volume: np.ndarray, uri: str = "wbp@10.0") -> Path:
        kind = TomogramUri.parse(uri)
        folder = self._run(run) / f"VoxelSpacing{kind.voxel_spacing:.3f}" / f"{kind.algorithm}.zarr"
        return _write_zarr(folder, volume)

    def add_picks(
        self, run: str, source: str, positions: Sequence[Sequence[float]], shifts: Sequence[Sequence[float]] = ()
    ) -> Path:
        """Picks at x, y, z in Å, each with the shift of its transform; returns the file."""
        name, user, session = Source.parse(source)
        points = []
        for number, (x, y, z) in enumerate(positions):
            transform = np.eye(4)
            transform[:3, 3] = shifts[number] if shifts else 0
            points.append(
                {
                    "location": {"x": x, "y": y, "z": z},
                    "transformation_": transform.tolist(),
                    "instance_id": 0,
                    "score": 1.0,
                }
            )
        path = self._run(run) / "Picks" / f"{user}_{session}_{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"pickable_object_name": name, "user_id": user, "session_id": session, "run_name": run}
        path.write_text(json.dumps({**facts, "unit": "angstrom", "points": points}))
        return path

    def add_segmentation(self, run: str, source: str, mask: np.ndarray, spacing: float = 10.0) -> Path:
        name, user, session = Source.parse(source)
        folder = self._run(run) / "Segmentations" / f"{spacing:.3f}_{user}_{session}_{name}.zarr"
        return _write_zarr(folder, mask.astype(np.uint8))

    def _run(self, run: str) -> Path:
        return self.static / "ExperimentRuns" / run

    # What tomoscout makes of it

    @property
    def config(self) -> Config:
        return load_config(self.settings)

    def project(self) -> Project:
        return Project(self.name, self.copick)

    def refresh(self) -> list[RunRecord]:
        config = self.config
        return refresh(self.inventory, config.projects, config.runs_per_job)

    def command(self, name: str, *arguments: str | Path) -> Result:
        """A stage as the workflow starts it."""
        options = ["--config", self.settings, *(["--inventory", self.inventory] if name != "inventory" else [])]
        return tomoscout(name, *options, *arguments)

    def list_runs(self) -> Result:
        return self.command("inventory", "--output", self.inventory)

    def make_targets(self) -> Result:
        """The targets of all batches; returns the first failure or else the last result."""
        result = self.list_runs()
        for batch in sorted({record.batch for record in read_inventory(self.inventory)}):
            output = self.targets / f"batch-{batch:04d}.json"
            result = self.command("targets", "--batch", str(batch), "--output", output)
            if result.exit_code:
                break
        return result

    def manifest(self, run: str) -> dict[str, Any]:
        return read_json(self.targets / self.name / f"{run}.json")

    def target(self, run: str, spacing: float = 10.0) -> dict[str, Any]:
        """What the manifest of a run says of its target at a voxel spacing."""
        name = f"targets:tomoscout/1@{spacing}?multilabel=true"
        [found] = [target for target in self.manifest(run)["targets"] if target["segmentation"] == name]
        return found

    def target_folder(self, run: str, spacing: float = 10.0) -> Path:
        name = f"{spacing:.3f}_tomoscout_1_targets-multilabel.zarr"
        return self.overlay / "ExperimentRuns" / run / "Segmentations" / name


def _write_zarr(folder: Path, volume: np.ndarray) -> Path:
    # Several chunks, so that a test can lose one.
    chunks = tuple((size + 1) // 2 for size in volume.shape)
    group = zarr.open_group(str(folder), mode="w")
    group.create_dataset("0", data=volume, chunks=chunks, dimension_separator="/", write_empty_chunks=True)
    return folder


def tomoscout(*arguments: str | Path) -> Result:
    """The command line, in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def error_of(result: Result) -> str:
    """The one line in which a command that failed must end."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], result.stderr
    return lines[-1].removeprefix("error: ")


def succeeded(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let files grow beyond `size` bytes, as a full disk would."""
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, earlier[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)
