"""The model folder: complete, unchanged, or refused."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tomoscout.classes import TargetClass
from tomoscout.config import Network, Picking, Source
from tomoscout.errors import TomoscoutError
from tomoscout.model import Model, load_network, read_model, save_model, save_weights
from tomoscout.networks import build_network, size_step

torch.set_num_threads(1)
CPU = torch.device("cpu")
NETWORK = Network(channels=[2, 4, 4], strides=[2, 1], residual_units=1, dropout=0.1)
CLASSES = (
    TargetClass("ribosome", 1, 150.0, 120.0, (Source("ribosome", "data-portal", "0"), Source("ribosome", "me", "1"))),
    TargetClass("µ-tubule", 2, 125.5, 100.4, (Source("µ-tubule", "data-portal", "0"),)),
    TargetClass("membrane", 3, None, None, (Source("membrane", "membrain", "1"),)),
)


def random_network() -> torch.nn.Module:
    torch.manual_seed(3)
    return build_network(NETWORK, len(CLASSES) + 1).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models/unet"
    weights = save_weights(folder, random_network().state_dict())
    save_model(
        folder,
        Model(
            "unet",
            NETWORK,
            CLASSES,
            {"ribosome": 0.3125, "µ-tubule": 0.5},
            10.0,
            (32, 64, 64),
            Picking(smoothing=0.3, separation=1.5, distance=0.7),
            {"fingerprint": "abc", "train": ["demo/run-1"], "step": 500},
            weights,
        ),
    )
    return folder


def test_round_trip(folder: Path) -> None:
    model = read_model(folder)
    assert model.classes == CLASSES
    assert model.network == NETWORK
    assert model.thresholds == {"ribosome": 0.3125, "µ-tubule": 0.5}
    assert (model.voxel_spacing, model.patch) == (10.0, (32, 64, 64))
    assert model.picking == Picking(smoothing=0.3, separation=1.5, distance=0.7)
    assert model.made_from["train"] == ["demo/run-1"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    save_model(folder, model)
    save_weights(folder, load_network(folder, model, CPU).state_dict())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_network_answers_as_before(folder: Path) -> None:
    inputs = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    network = load_network(folder, read_model(folder), CPU)
    assert not network.training
    with torch.inference_mode():
        assert torch.equal(network(inputs), random_network()(inputs))


def test_weights_can_be_read_by_whoever_can_read_the_rest(folder: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 1


def test_the_description_says_what_made_it(folder: Path) -> None:
    values = yaml.safe_load((folder / "model.yaml").read_text())
    assert values["made_with"].keys() == {"tomoscout", "torch", "monai", "copick", "zarr"}
    assert [entry["label"] for entry in values["classes"]] == [1, 2, 3]
    assert "threshold" not in values["classes"][2]


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_changed_weights_are_refused(folder: Path, place: float) -> None:
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(TomoscoutError, match=r"weights\.safetensors: not the weights that .*model\.yaml describes"):
        load_network(folder, read_model(folder), CPU)


def test_missing_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    with pytest.raises(TomoscoutError, match=r"weights\.safetensors: no such file; the model folder is incomplete"):
        load_network(folder, read_model(folder), CPU)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    model = replace(read_model(folder), network=Network(channels=[2, 8, 4], strides=[2, 1]))
    with pytest.raises(TomoscoutError, match=r"weights\.safetensors: weights do not fit the network"):
        load_network(folder, model, CPU)


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(TomoscoutError, match=r"unet/model\.yaml: no model there; train it first"):
        read_model(tmp_path / "unet")


@pytest.mark.parametrize(
    "text", ["", "- a\n- list\n", "format: [unclosed", "just words", "format: 1\nhead: picking\n", "\x00"]
)
def test_another_file_is_no_model(folder: Path, text: str) -> None:
    (folder / "model.yaml").write_text(text)
    with pytest.raises(TomoscoutError, match=r"model\.yaml: ") as caught:
        read_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "format 2, expected 1"),
        ("head", "instances", "expected 1 with the head 'picking'"),
        ("normalisation", "minmax", "expected 1 with the head"),
        ("network", {"family": "Perceptron"}, "not a model description .*family"),
        ("network", {"chanels": [4, 8]}, "did you mean 'channels'"),
        ("picking", {"smoothing": -1}, "not a model description .*smoothing"),
        ("classes", [{"name": "ribosome"}], "not a model description .*sources"),
        ("patch", None, "not a model description"),
    ],
)
def test_a_description_of_another_form_is_refused(folder: Path, key: str, value: object, message: str) -> None:
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))
    with pytest.raises(TomoscoutError, match=message):
        read_model(folder)


@pytest.mark.parametrize("key", ["classes", "weights", "voxel_spacing", "made_from"])
def test_a_description_that_lacks_something_is_refused(folder: Path, key: str) -> None:
    path = folder / "model.yaml"
    values = yaml.safe_load(path.read_text())
    del values[key]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(TomoscoutError, match=f"not a model description .*{key}"):
        read_model(folder)


@pytest.mark.parametrize(("strides", "step"), [([2], 2), ([2, 2, 2], 8), ([1, 2, 3], 6)])
def test_input_sizes_go_by_the_strides(strides: list[int], step: int) -> None:
    options = Network(channels=[2] * (len(strides) + 1), strides=strides)
    assert size_step(options) == step
    inputs = torch.zeros(1, 1, 2 * step, step, 3 * step)
    with torch.inference_mode():
        assert build_network(options, 5).eval()(inputs).shape == (1, 5, 2 * step, step, 3 * step)


def test_networks_of_two_dimensions() -> None:
    network = build_network(Network(channels=[2, 4], strides=[2]), 3, inputs=2, dimensions=2)
    with torch.inference_mode():
        assert network(torch.zeros(1, 2, 8, 6)).shape == (1, 3, 8, 6)
