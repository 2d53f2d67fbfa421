"""A tiny project with everything made from it, once for all tests that need it, through the real command line."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from tomoscout.cli import main
from tomoscout.data.inventory import RunRecord
from tomoscout.data.inventory_refresh import refresh
from tomoscout.data.project import Project
from tomoscout.options.config import Config, load_config

torch.set_num_threads(1)

SETTINGS: dict[str, Any] = {
    "tomograms": ["wbp@20.0"],
    "phantom": {
        "runs": 4,
        "shape": [24, 48, 48],
        "voxel_spacing": 20.0,
        "particles": 3,
        "membranes": 1,
        "signal_to_noise": 1.0,
    },
    "targets": {"picks": "phantom/0", "segmentations": ["membrane"]},
    "split": {"train": ["phantom-000", "phantom-001"], "validate": ["phantom-002"], "test": ["phantom-003"]},
    "train": {
        "network": {"channels": [4, 8], "strides": [2]},
        "patch": [16, 16, 16],
        "batch_size": 2,
        "steps": 80,
        "validate_every": 20,
        "checkpoint_seconds": 0,
        "device": "cpu",
        "seed": 3,
    },
    "tracking": {"enabled": False},
    "segment": {"tile": [24, 32, 32], "runs": ["phantom/phantom-002", "phantom/phantom-003"], "device": "cpu"},
}


@dataclass(frozen=True)
class Workspace:
    """A folder with a project, an inventory, targets and a model."""

    folder: Path

    @property
    def config_path(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def inventory_path(self) -> Path:
        return self.folder / "results/inventory.tsv"

    @property
    def model(self) -> Path:
        return self.folder / "results/models/unet"

    @property
    def segmented(self) -> Path:
        return self.folder / "results/segment"

    @property
    def localized(self) -> Path:
        return self.folder / "results/localize"

    def configure(self, **sections: Any) -> Config:
        """Write the configuration with the options of `sections` in place of those above; returns it."""
        values: dict[str, Any] = {"projects": {"phantom": str(self.folder / "phantom/copick.json")}, **SETTINGS}
        for name, options in sections.items():
            old = values.get(name)
            values[name] = {**old, **options} if isinstance(old, dict) else options
        self.config_path.write_text(yaml.safe_dump(values))
        return load_config(self.config_path)

    def records(self) -> list[RunRecord]:
        config = load_config(self.config_path)
        return refresh(self.inventory_path, config.projects, config.runs_per_job)

    def project(self) -> Project:
        """The project as another program would open it now."""
        return Project("phantom", self.folder / "phantom/copick.json")

    def command(self, *arguments: str | Path) -> None:
        """Run a command of tomoscout in this process."""
        main([str(argument) for argument in arguments], standalone_mode=False)

    def copy(self, folder: Path) -> Workspace:
        """The same elsewhere: copick's config names its folder."""
        shutil.copytree(self.folder, folder)
        config = folder / "phantom/copick.json"
        config.write_text(config.read_text().replace(str(self.folder), str(folder)))
        copied = Workspace(folder)
        copied.configure()
        copied.records()
        return copied


@functools.cache
def trained(base: Path) -> Workspace:
    """A project, its targets and a model trained without interruption, below `base`. Not to be changed: copy it."""
    made = Workspace(base.resolve() / "trained")
    made.folder.mkdir(parents=True)
    made.configure()
    options = ("--config", made.config_path, "--inventory", made.inventory_path)
    made.command("phantom", "--config", made.config_path, made.folder / "phantom")
    made.command("inventory", "--config", made.config_path, "--output", made.inventory_path)
    output = made.folder / "results/targets/targets/batch-0000.json"
    made.command("targets", *options, "--batch", "0", "--output", output)
    made.command("inventory", "--config", made.config_path, "--output", made.inventory_path)
    made.command("train", *options, "--model", made.model, "--threads", "1")
    return made
