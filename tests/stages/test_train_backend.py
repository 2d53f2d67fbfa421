"""The real packages of back ends: trained, killed, scored and applied."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from support.celldetective import check_folder
from tomoscout.data.label_images import read_labels
from tomoscout.machine.files import read_json, read_table
from tomoscout.options.config import load_config
from tomoscout.stages.divide_cells import run_divide_cells
from tomoscout.stages.evaluate_cells import run_evaluate_cells
from tomoscout.stages.segment_cells import run_segment_cells
from tomoscout.stages.train_backend import run_train_backend
from tomoscout.tasks.instances.made_up import CHANNELS, make_annotations, make_images

pytestmark = pytest.mark.backend

# Enough to find some objects.
TRAIN: dict[str, dict[str, Any]] = {
    "stardist": {"steps": 150, "validate_every": 50, "learning_rate": 1e-3},
    "cellpose": {"steps": 120, "learning_rate": 5e-3},
}


@pytest.fixture(scope="module", params=["stardist", "cellpose"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def python(backend: str) -> str:
    """The Python of a back end: of the environment that `make .venv/{backend}` makes, or of another."""
    named = os.environ.get(f"TOMOSCOUT_{backend.upper()}_PYTHON", str(Path(sys.prefix) / backend / "bin/python"))
    if not shutil.which(named):
        pytest.skip(f"no environment of {backend} (make .venv/{backend})")
    return named


@pytest.fixture(scope="module")
def place(backend: str, python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Annotations, images, a division, and the model `mine`, also in the library; not to be changed."""
    folder = tmp_path_factory.mktemp(backend)
    make_annotations(folder / "annotations", 16, (96, 96), 0, cells=8, radius=9)
    make_images(folder / "images", 1, (96, 96), 0)
    own = {"name": "mine", "backend": backend, "python": python, "patch": [64, 64], "batch_size": 4, "device": "cpu"}
    cells = {
        "annotations": {"made-up": str(folder / "annotations")},
        "channels": ["nuclei"],
        "train": {**own, **TRAIN[backend]},
        "segment": {
            "images": [str(folder / "images")], "channels": CHANNELS, "calibration": 0.65, "device": "cpu"
        },
        "library": str(folder / "library"),
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump({"cells": cells, "tracking": {"enabled": False}}))
    config = load_config(folder / "config.yaml")
    run_divide_cells(config.cells, folder / "division.json")
    run_train_backend(config, folder / "division.json", folder / "mine", 1)
    return folder


def test_celldetective_reads_the_model_and_its_copy_in_the_library(backend: str, place: Path) -> None:
    for folder in (place / "mine", place / "library" / "mine"):
        settings = check_folder(folder)
        assert settings["model_type"] == backend
        division = read_json(place / "division.json")
        assert settings["dataset"]["train"] == [f"{entry['name']}.tif" for entry in division["train"]]
        assert not (folder / "checkpoint").exists()


def test_each_epoch_has_a_loss_and_the_best_was_validated(backend: str, place: Path) -> None:
    rows = read_table(place / "mine" / "metrics.csv")
    assert int(rows[-1]["step"]) == TRAIN[backend]["steps"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    validated = {int(row["step"]): float(row["val_loss"]) for row in rows if row["val_loss"]}
    assert read_json(place / "mine" / "results.json")["best_step"] == min(validated, key=lambda step: validated[step])


def test_the_model_is_scored_and_segments_like_any_other(place: Path, tmp_path: Path) -> None:
    config = load_config(place / "config.yaml")
    scores = run_evaluate_cells(config, place / "division.json", place / "mine", tmp_path / "scores.json", 1)
    assert scores["part"] == "test" and scores["scores"][0]["annotated"] > 5
    assert scores["training"]["scores"][0]["matched"] > 0
    segment = config.cells.segment
    run_segment_cells(segment, place / "library" / "mine", tmp_path / "mine.json", 1, config.cells.train.python)
    [entry] = read_json(tmp_path / "mine.json")["images"]
    labels = read_labels(Path(entry["labels"]), 2)
    assert labels.shape == (96, 96)
    np.testing.assert_array_equal(np.unique(labels[labels > 0]), np.arange(1, entry["objects"] + 1))


def test_killed_it_goes_on_from_its_last_epoch(backend: str, place: Path, tmp_path: Path) -> None:
    """With StarDist to the same weights; Cellpose begins a new schedule."""
    folder = tmp_path / "mine"
    files = ["--config", str(place / "config.yaml"), "--division", str(place / "division.json")]
    command = [sys.executable, "-m", "tomoscout", "train-cells", *files, "--model", str(folder), "--threads", "1"]
    state = folder / "checkpoint" / "state.json"
    running = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not state.exists():
        assert running.poll() is None
        time.sleep(0.05)
    running.kill()
    running.communicate()
    # The package's process ends with the one that started it.
    time.sleep(1)
    before = json.loads(state.read_text())
    assert before["epoch"] >= 1
    finished = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True)
    epochs = [line for line in finished.stderr.splitlines() if line.startswith("epoch ")]
    assert epochs[0].startswith(f"epoch {before['epoch']} of ")
    rows = read_table(folder / "metrics.csv")
    assert [int(row["step"]) for row in rows[: len(before["rows"])]] == [row["step"] for row in before["rows"]]
    check_folder(folder)
    if backend == "stardist":
        for name in ("weights_best.h5", "weights_last.h5", "thresholds.json", "metrics.csv"):
            assert (folder / name).read_bytes() == (place / "mine" / name).read_bytes(), name
    else:
        assert int(rows[-1]["step"]) == TRAIN[backend]["steps"]


def test_the_same_again_gives_the_same_weights(backend: str, place: Path, tmp_path: Path) -> None:
    config = load_config(place / "config.yaml")
    config = config.model_copy(update={"cells": config.cells.model_copy(update={"library": None})})
    run_train_backend(config, place / "division.json", tmp_path / "mine", 1)
    assert (tmp_path / "mine/model.yaml").read_bytes() == (place / "mine/model.yaml").read_bytes()
