"""Back ends: what is written for them, and what is said where their package is missing. The packages themselves are at
work in tests/stages/test_train_backend.py."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.celldetective import check_settings
from support.instances import ellipses
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import parse_config
from tomoscout.tasks.instances.annotation_options import Normalisation
from tomoscout.tasks.instances.backends.applied import read_cell_model
from tomoscout.tasks.instances.backends.celldetective import celldetective_config, typical_diameter
from tomoscout.tasks.instances.backends.model import Backend, BackendModel
from tomoscout.tasks.instances.backends.processes import Predictor, python_of, train
from tomoscout.tasks.instances.backends.worker import State, _augmented, _padded

DATASET = {"train": ["a.tif"], "validation": ["b.tif"]}
NORMALISATIONS = (Normalisation(percentile=[0.1, 99.9]), Normalisation(values=[0.0, 4000.0], clip=True))


def model(backend: Backend, channels: int = 2) -> BackendModel:
    names = ("DAPI", "GFP", "phase")[:channels]
    made_with = {"stardist": "0.9.2", "cellpose": "3.1.1.3"}
    return BackendModel(
        "mine", backend, names, (*NORMALISATIONS, *NORMALISATIONS)[:channels], 0.65, 0.05, "", {"step": 3}, made_with
    )


def options(**train: Any) -> Any:
    return parse_config({"cells": {"annotations": {"a": "a"}, "train": train}}, "config", []).cells.train


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("backend", ["stardist", "cellpose"])
def test_celldetective_finds_its_keys(backend: Backend, channels: int) -> None:
    written = json.loads(json.dumps(celldetective_config(model(backend, channels), DATASET, 12.5, 19.0)))
    check_settings(written)
    assert written["channels"][:channels] == ["DAPI", "GFP", "phase"][:channels]
    assert written["spatial_calibration"] == 0.65 and written["cell_size_um"] == 12.5


def test_percentiles_and_values_are_told_apart() -> None:
    written = celldetective_config(model("stardist"), DATASET, 12.5)
    assert written["normalization_percentile"] == [True, False]
    assert written["normalization_values"] == [[0.1, 99.9], [0.0, 4000.0]]
    assert written["normalization_clip"] == [False, True]


def test_a_second_input_of_cellpose_is_black() -> None:
    written = celldetective_config(model("cellpose", 1), DATASET, 12.5, 19.0)
    assert written["channels"] == ["DAPI", "None"]
    assert written["diameter"] == 19.0


def test_the_diameter_of_discs() -> None:
    labels = ellipses((64, 64), ((16, 16), (10, 10)), ((44, 44), (10, 10)))
    assert typical_diameter([labels, np.zeros((8, 8), np.int32)]) == pytest.approx(20, abs=0.5)
    assert typical_diameter([np.zeros((8, 8), np.int32)]) is None


def test_a_missing_python_is_one_line() -> None:
    with pytest.raises(
        TomoscoutError, match=r"stardist: /no/python: no such Python; make it with `make .venv/stardist`"
    ):
        python_of("stardist", "/no/python")
    assert python_of("stardist", sys.executable) == sys.executable


@pytest.mark.parametrize("backend", ["stardist", "cellpose"])
def test_a_python_without_the_package_is_one_line(backend: str, tmp_path: Path) -> None:
    remedy = rf"has no {backend}; make it with `make .venv/{backend}`"
    with pytest.raises(TomoscoutError, match=remedy):
        train(sys.executable, backend, tmp_path, lambda rows: None)
    predictor = Predictor(sys.executable, backend, tmp_path, "cpu")
    with pytest.raises(TomoscoutError, match=remedy):
        predictor.labels(np.zeros((1, 8, 8), np.float32))
    predictor.close()


def test_the_learning_rate_is_the_default_of_the_package() -> None:
    assert [options(backend=name).learning_rate for name in ("stardist", "cellpose")] == [3e-4, 5e-3]
    assert options().learning_rate == options(backend="tomoscout").learning_rate
    assert options(backend="stardist", learning_rate=0.01).learning_rate == 0.01


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backend": "stardist", "base": "results/models/a"}, "base is for backend: tomoscout"),
        ({"backend": "cellpose", "patch": "auto"}, "patch: auto is for backend: tomoscout"),
        ({"backend": "stardist", "patch": [72, 72]}, "multiples of 16 for stardist"),
        ({"backend": "cellpose", "patch": [64, 96], "augmentation": {"rotate90": False}}, "as wide as it is high"),
    ],
)
def test_what_a_back_end_cannot_do_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(TomoscoutError, match=message):
        options(**given)


def test_a_model_is_read_as_written_and_refused_when_changed(tmp_path: Path) -> None:
    for name in BackendModel.files("stardist", "mine"):
        (tmp_path / name).write_text(name)
    digest = BackendModel.digest_of(tmp_path, BackendModel.files("stardist", "mine"))
    written = dataclasses.replace(model("stardist"), weights_digest=digest)
    written.write(tmp_path)
    found = read_cell_model(tmp_path)
    assert found == dataclasses.replace(written, made_with=found.made_with)  # type: ignore[union-attr]
    assert found.kind == "StarDist 0.9.2"
    (tmp_path / "thresholds.json").write_text("changed")
    with pytest.raises(TomoscoutError, match=r"not the files that .* describes"):
        read_cell_model(tmp_path)
    (tmp_path / "weights_best.h5").unlink()
    with pytest.raises(TomoscoutError, match=r"weights_best.h5: no such file"):
        read_cell_model(tmp_path)


def test_what_lies_outside_of_a_small_image_is_left_out_of_the_loss() -> None:
    image, labels = _padded(np.ones((2, 20, 40), np.float32), np.ones((20, 40), np.int32), [32, 32])
    assert image.shape == (32, 40, 2) and labels.shape == (32, 40)
    assert (labels[20:] == -1).all() and (labels[:20] == 1).all()


def test_labels_follow_the_augmented_image() -> None:
    np.random.seed(0)
    labels = np.arange(36, dtype=np.int32).reshape(6, 6)
    changes = {"flip": True, "rotate90": True, "probability": 0, "intensity_scale": 0, "intensity_shift": 0, "noise": 0}
    seen = set()
    for _ in range(50):
        image, moved = _augmented(labels.astype(np.float32), labels, changes)
        np.testing.assert_array_equal(image, moved)
        seen.add(moved.tobytes())
    assert len(seen) == 8


def test_the_state_of_a_training_is_read_as_written(tmp_path: Path) -> None:
    State(tmp_path / "state.json").write(epoch=3, best=float("inf"))
    assert State(tmp_path / "state.json").values == {"epoch": 3, "best": float("inf"), "rows": []}
