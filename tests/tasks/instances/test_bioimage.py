"""Packages of bioimage.io. Its own library tests them, where it is installed (make .venv/bioimageio)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tomoscout.machine.errors import TomoscoutError
from tomoscout.models.folder import load_network, save_weights
from tomoscout.networks import build_network, parse_network
from tomoscout.tasks.instances.annotation_options import Normalisation
from tomoscout.tasks.instances.bioimage import _preprocessing, write_package
from tomoscout.tasks.instances.head_of import head_of
from tomoscout.tasks.instances.model import CellModel

CPU = torch.device("cpu")
torch.set_num_threads(1)


def model_in(folder: Path, head: Any, channels: int) -> CellModel:
    """A model with random weights."""
    torch.manual_seed(0)
    network = parse_network({"channels": [8, 16, 16], "strides": [2, 2]})
    rays = 8 if head == "star" else None
    kind, names = head_of(head, rays, 2), ("DAPI", "GFP (2)")[:channels]
    weights = build_network(network, 1 + len(kind.names), inputs=channels, dimensions=2).state_dict()
    facts = {
        "name": "mine",
        "network": network,
        "made_from": {"step": 3},
        "weights_digest": save_weights(folder, weights),
    }
    thresholds = {name: values[0] for name, values in kind.thresholds.items()}
    return CellModel(
        **facts,
        told_apart_by=head,
        rays=rays,
        inputs=names,
        normalisations=(Normalisation(percentile=[2, 99]),) * channels,
        calibration=0.65,
        rescale_tolerance=0.05,
        thresholds=thresholds,
        patch=(64, 64),
    )


@pytest.mark.parametrize(("head", "channels"), [("flow", 1), ("star", 2)])
def test_its_own_library_runs_the_package_and_gets_the_prediction(head: str, channels: int, tmp_path: Path) -> None:
    core = pytest.importorskip("bioimageio.core", reason="no bioimageio.core (make .venv/bioimageio)")
    model = model_in(tmp_path, head, channels)
    write_package(tmp_path / "mine.zip", model, load_network(tmp_path, model, CPU), ["A. Nonymous"], "CC-BY-4.0")
    summary = core.test_model(tmp_path / "mine.zip", weight_format="torchscript")
    assert summary.status == "passed", summary.display()
    with zipfile.ZipFile(tmp_path / "mine.zip") as package:
        package.extractall(tmp_path / "package")
    traced = torch.jit.load(tmp_path / "package/weights.pt")
    # Another size and number of images than those that were traced.
    with torch.inference_mode():
        found = traced(torch.rand(2, channels, 96, 80))
    assert found.shape == (2, model.outputs, 96, 80)
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize(
    ("normalisations", "message"),
    [
        ([{"percentile": [1, 99]}, {"percentile": [2, 99]}], "normalised in different ways"),
        ([{"percentile": [1, 99]}, {"values": [0, 9]}], "normalised in different ways"),
        ([{"clip": True}, {"clip": False}], "normalised in different ways"),
    ],
)
def test_what_cannot_be_described_is_refused(normalisations: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(TomoscoutError, match=message):
        _preprocessing([Normalisation(**entry) for entry in normalisations])


def test_fixed_intensities_are_a_linear_scaling() -> None:
    [scaling, clip] = _preprocessing([Normalisation(values=[100.0, 300.0], clip=True)] * 2)
    gains, offsets = (np.array(scaling["kwargs"][name]) for name in ("gain", "offset"))
    np.testing.assert_allclose(np.array([100.0, 300.0])[:, None] * gains + offsets, [[0, 0], [1, 1]])
    assert clip["id"] == "clip"
