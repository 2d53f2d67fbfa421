"""Both heads learn to tell cells in volumes apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tomoscout.options.config import parse_config
from tomoscout.stages.divide_cells import run_divide_cells
from tomoscout.stages.evaluate_cells import run_evaluate_cells
from tomoscout.stages.train_cells import run_train_cells
from tomoscout.tasks.instances.made_up import make_annotations

pytestmark = pytest.mark.long
torch.set_num_threads(1)


@pytest.mark.parametrize("head", ["star", "flow"])
def test_they_find_four_of_five_cells_in_volumes_that_they_have_not_seen(tmp_path: Path, head: str) -> None:
    make_annotations(tmp_path / "volumes", 10, (24, 64, 64), 0, cells=14, radius=7)
    train = {
        "head": head,
        "network": {"channels": [8, 16, 32], "strides": [2, 2]},
        "patch": [16, 48, 48],
        "steps": 160,
        "validate_every": 80,
        "learning_rate": 0.01,
        "device": "cpu",
    }
    source = {"folder": str(tmp_path / "volumes"), "calibration": 0.65}
    cells = {"dimensions": 3, "annotations": {"cells": source}, "train": train, "segment": {"device": "cpu"}}
    config = parse_config({"cells": {**cells, "division": {"test": 0.3}}, "tracking": {"enabled": False}}, "test")
    division, model = tmp_path / "division.json", tmp_path / "models/cells"
    run_divide_cells(config, division)
    run_train_cells(config, division, model)
    scores = run_evaluate_cells(config, division, model, tmp_path / "scores/scores.json")
    assert scores["scores"][0]["annotated"] > 20
    assert scores["scores"][0]["ap"] >= 0.8
