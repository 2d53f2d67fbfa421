"""The segment stage on tomograms of several sizes: time, and memory beside what was announced."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from measure import LOG, TOMOSCOUT, first_cores, run, table

from tomoscout.data.copick_project import CopickProject
from tomoscout.data.zarr_files import new_volume
from tomoscout.machine.files import write_json

CORES = len(first_cores(2))
URI, SPACING = "wbp@10.0", 10.0
SHAPES = {"usual": (184, 630, 630), "wide": (128, 1024, 1536), "large": (512, 2048, 2048)}


def large(folder: Path, names: list[str]) -> str:
    """Segment tomograms made on the fly with a small network."""
    config = _set_up(folder)
    rows = []
    for batch, name in enumerate(names, start=1):
        # A new run is in a batch of its own.
        _make_tomogram(folder, name)
        write_json(config, {**_settings(folder), "segment": {"runs": [name], "device": "cpu"}})
        given = [*TOMOSCOUT, "segment", "--config", config, "--inventory", _inventory(folder, config)]
        given += ["--model", folder / "results/models/unet", "--batch", str(batch), "--threads", str(CORES)]
        cost = run([*given, "--output", folder / f"results/segment/{name}.json"], folder=folder, cores=CORES)
        said = re.search(r"at most ([\d.]+) GiB", (folder / LOG).read_text())
        assert said
        voxels = np.prod(SHAPES[name]) / 1e6 / cost.wall
        rows.append([_sizes(name), f"{cost.wall:.0f}", f"{voxels:.1f}", f"{cost.memory / 1024:.2f}", said[1]])
    columns = ["tomogram", "s", "million voxels/s", "GiB at most", "GiB announced"]
    return table(f"The segment stage, five classes, {CORES} cores", columns, rows)


def _settings(folder: Path) -> dict[str, object]:
    return {
        "projects": {"phantom": str(folder / "phantom/copick.json")},
        "tomograms": [URI],
        "targets": {"picks": "phantom/0"},
        "phantom": {"runs": 3, "shape": [48, 96, 96]},
        "split": {"train": ["phantom-000", "phantom-001"], "validate": ["phantom-002"]},
        "train": {"steps": 2, "patch": [32, 32, 32], "network": {"channels": [16, 32, 64], "strides": [2, 2]}},
        "tracking": {"enabled": False},
    }


def _set_up(folder: Path) -> Path:
    """A model that was trained for two steps: a network with other weights is as fast."""
    config = folder / "config.yaml"
    write_json(config, _settings(folder))
    run([*TOMOSCOUT, "phantom", folder / "phantom", "--config", config], folder=folder)
    given = ["--config", config, "--inventory", _inventory(folder, config)]
    run([*TOMOSCOUT, "targets", *given, "--batch", "0", "--output", folder / "results/targets.json"], folder=folder)
    run([*TOMOSCOUT, "train", *given, "--model", folder / "results/models/unet"], folder=folder)
    return config


def _inventory(folder: Path, config: Path) -> Path:
    output = folder / "inventory.tsv"
    run([*TOMOSCOUT, "inventory", "--config", config, "--output", output], folder=folder)
    return output


def _make_tomogram(folder: Path, name: str) -> None:
    """Noise, written layer by layer: a tomogram need not fit into memory."""
    random = np.random.default_rng(0)
    shape = SHAPES[name]
    path = CopickProject("phantom", folder / "phantom/copick.json").new_tomogram(name, URI)
    with new_volume(path, shape, np.float32, SPACING) as array:
        for start in range(0, shape[0], array.chunks[0]):
            rows = slice(start, min(start + array.chunks[0], shape[0]))
            array[rows] = random.standard_normal((rows.stop - start, *shape[1:]), dtype=np.float32)


def _sizes(name: str) -> str:
    return "×".join(map(str, SHAPES[name]))
