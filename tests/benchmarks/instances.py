"""Instances of cells: both heads beside the package stardist, trained for equal seconds on the same annotated images.

`python tests/benchmarks/instances.py /path/to/nuclei --stardist /path/to/environment/bin/python`, where the folder
holds `images` and `labels`, and the environment stardist and tensorflow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine

from tomoscout.data.label_images import read_labels
from tomoscout.learning.progression import Outcome
from tomoscout.options.config import Config, parse_config
from tomoscout.stages.evaluate_cells import summary
from tomoscout.stages.train_cells import run_train_cells
from tomoscout.tasks.instances.annotation import Annotation
from tomoscout.tasks.instances.annotations import find_annotations
from tomoscout.tasks.instances.applied import AppliedModel
from tomoscout.tasks.instances.division import write_division
from tomoscout.tasks.instances.scores import overlaps

WORKER = Path(__file__).with_name("stardist_worker.py")
THREADS = 2
VALIDATIONS = 4
# Long enough that the first step, which compiles kernels, hardly counts.
RATE_STEPS = 60


def main() -> None:
    """Train, score and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="annotated images: `images` and `labels`")
    parser.add_argument("--stardist", type=Path, help="Python that has stardist and tensorflow")
    parser.add_argument("--seconds", type=float, default=150.0, help="of a training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--heads", nargs="+", default=["star", "flow"])
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    print(machine())
    print("| | seed | steps | s | AP50 | AP75 | mean AP | PQ |\n|---|---|---|---|---|---|---|---|")
    for seed in range(options.seeds):
        for head in options.heads:
            row(head, seed, ours(options.folder, head, seed, options.seconds))
        if options.stardist:
            row("stardist", seed, theirs(options.folder, options.stardist, seed, options.seconds))


def row(what: str, seed: int, found: dict[str, Any]) -> None:
    """Print a row of the table."""
    scores = {entry["iou"]: entry for entry in found["scores"]}
    numbers = [scores[0.5]["ap"], scores[0.75]["ap"], found["mean_ap"], scores[0.5]["pq"]]
    text = " | ".join(f"{number:.3f}" for number in numbers)
    print(f"| {what} | {seed} | {found['steps']} | {found['seconds']:.0f} | {text} |", flush=True)


def divided(folder: Path) -> dict[str, list[str]]:
    """The names of the images that train, validate and test: of eighty 52, 8 and 20."""
    names = sorted(path.stem for path in (folder / "images").iterdir())
    first, second = round(0.65 * len(names)), round(0.75 * len(names))
    return {"train": names[:first], "validate": names[first:second], "test": names[second:]}


def configured(folder: Path, head: str, seed: int, steps: int) -> Config:
    """A configuration with the defaults of the product but for crops and batches, which are stardist's."""
    train = {"head": head, "seed": seed, "steps": steps, "device": "cpu", "batch_size": 4, "patch": [128, 128]}
    validate_every = max(1, steps // VALIDATIONS)
    cells = {
        "annotations": {"nuclei": {"folder": str(folder), "channels": ["grey"]}},
        "uncalibrated": True,
        "train": {**train, "validate_every": validate_every, "checkpoint_seconds": 1e6},
        "segment": {"device": "cpu"},
    }
    return parse_config({"cells": cells, "tracking": {"enabled": False}}, "benchmark")


def ours(folder: Path, head: str, seed: int, seconds: float) -> dict[str, Any]:
    """Scores of a training of about so many seconds, validation and all."""
    with tempfile.TemporaryDirectory() as place:
        outcome, _ = train(folder, Path(place) / "rate", head, seed, RATE_STEPS)
        speed = outcome.speed
        per_step, per_validation = speed.seconds / RATE_STEPS, speed.validation_seconds / VALIDATIONS
        steps = int((seconds - VALIDATIONS * per_validation) / per_step)
        started = time.perf_counter()
        _, annotations = train(folder, Path(place) / "model", head, seed, steps)
        taken = time.perf_counter() - started
        applied = AppliedModel(Path(place) / "model", torch.device("cpu"))
        test = set(divided(folder)["test"])
        images = []
        for entry in (entry for entry in annotations if entry.name in test):
            found = applied.labels(entry.read_image(), [0], None)
            images.append(overlaps(found, entry.read_labels()))
        return {"steps": steps, "seconds": taken, **summary(images)}


def train(folder: Path, place: Path, head: str, seed: int, steps: int) -> tuple[Outcome, list[Annotation]]:
    """Train a model into a folder."""
    config = configured(folder, head, seed, steps)
    annotations = find_annotations(config.cells)
    division = {part: [("nuclei", name) for name in names] for part, names in divided(folder).items()}
    place.mkdir()
    write_division(place / "division.json", division, annotations)
    return run_train_cells(config, place / "division.json", place, THREADS), annotations


def theirs(folder: Path, python: Path, seed: int, seconds: float) -> dict[str, Any]:
    """Scores of the package stardist after a training of so many seconds."""
    with tempfile.TemporaryDirectory() as place:
        asked = {"folder": str(folder), "place": place, "seed": seed, "seconds": seconds, **divided(folder)}
        command = [str(python), str(WORKER), json.dumps(asked)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        images = []
        for name in asked["test"]:
            labels = read_labels(next((folder / "labels").glob(f"{name}.*")), 2)
            images.append(overlaps(np.load(Path(place) / f"{name}.npy"), labels))
        return {**json.loads(said), **summary(images)}


if __name__ == "__main__":
    sys.exit(main())
