"""The model folder: complete, unchanged, or refused."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from support.model import CLASSES, CPU, MODEL, NETWORK, random_network
from tomoscout.machine.errors import TomoscoutError
from tomoscout.models.folder import (
    load_network,
    load_weights,
    save_weights,
)
from tomoscout.networks import build_network, parse_network
from tomoscout.tasks.picking.model import PickingModel, read_ensemble
from tomoscout.tasks.picking.options import Picking

torch.set_num_threads(1)


def write(folder: Path, **changes: Any) -> Path:
    """A model folder with random weights."""
    model = replace(MODEL, **changes)
    torch.manual_seed(len(model.name))
    network = build_network(model.network, len(model.classes) + 1)
    replace(model, weights_digest=save_weights(folder, network.state_dict())).write(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "models/unet"
    replace(MODEL, weights_digest=save_weights(folder, random_network().state_dict())).write(folder)
    return folder


def test_round_trip(folder: Path) -> None:
    model = PickingModel.read(folder)
    assert model.classes == CLASSES
    assert model.network == NETWORK
    assert model.thresholds == {"ribosome": 0.3125, "µ-tubule": 0.5}
    assert (model.voxel_spacings, model.patch) == ((10.0, 13.48), (32, 64, 64))
    assert model.picking == Picking(smoothing=0.3, separation=1.5, distance=0.7)
    assert model.made_from["train"] == ["demo/run-1"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model.write(folder)
    save_weights(folder, load_network(folder, model, CPU).state_dict())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_network_answers_as_before(folder: Path) -> None:
    inputs = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    network = load_network(folder, PickingModel.read(folder), CPU)
    assert not network.training
    with torch.inference_mode():
        assert torch.equal(network(inputs), random_network()(inputs))


def test_weights_can_be_read_by_whoever_can_read_the_rest(folder: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 1


def test_the_description_says_what_made_it(folder: Path) -> None:
    values = yaml.safe_load((folder / "model.yaml").read_text())
    assert values["format"] == 2
    assert values["voxel_spacings"] == [10.0, 13.48]
    assert values["network"] == {"family": "UNet", **NETWORK.model_dump(mode="json")}
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
        load_network(folder, PickingModel.read(folder), CPU)


def test_missing_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    with pytest.raises(TomoscoutError, match=r"weights\.safetensors: no such file; the model folder is incomplete"):
        load_network(folder, PickingModel.read(folder), CPU)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    model = replace(PickingModel.read(folder), network=parse_network({"channels": [2, 8, 4], "strides": [2, 1]}))
    with pytest.raises(TomoscoutError, match=r"weights\.safetensors: weights do not fit the network"):
        load_network(folder, model, CPU)


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(TomoscoutError, match=r"unet/model\.yaml: no model there; train it first"):
        PickingModel.read(tmp_path / "unet")


@pytest.mark.parametrize(
    "text", ["", "- a\n- list\n", "format: [unclosed", "just words", "format: 1\nhead: picking\n", "\x00"]
)
def test_another_file_is_no_model(folder: Path, text: str) -> None:
    (folder / "model.yaml").write_text(text)
    with pytest.raises(TomoscoutError, match=r"model\.yaml: ") as caught:
        PickingModel.read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 1, "format 1, expected 2"),
        ("format", 3, "format 3, expected 2"),
        ("head", "instances", "expected .*'head': 'picking'"),
        ("normalisation", "minmax", "expected .*'normalisation': 'standardise'"),
        ("network", {"family": "Perceptron"}, "not a model description .*family"),
        ("network", {"family": "UNet", "chanels": [4, 8]}, "did you mean 'channels'"),
        ("network", {"channels": [4, 8]}, "not a model description .*family"),
        ("network", {"family": "nowhere/network.py"}, r"nowhere/network\.py: no such file"),
        ("network_code", "0" * 24, "UNet is not the file that this model was trained with"),
        ("voxel_spacings", 10.0, "not a model description"),
        ("picking", {"smoothing": -1}, "not a model description .*smoothing"),
        ("classes", [{"name": "ribosome"}], "not a model description .*sources"),
        ("patch", None, "not a model description"),
    ],
)
def test_a_description_of_another_form_is_refused(folder: Path, key: str, value: object, message: str) -> None:
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))
    with pytest.raises(TomoscoutError, match=message):
        PickingModel.read(folder)


@pytest.mark.parametrize("key", ["classes", "weights", "voxel_spacings", "network", "network_code", "made_from"])
def test_a_description_that_lacks_something_is_refused(folder: Path, key: str) -> None:
    path = folder / "model.yaml"
    values = yaml.safe_load(path.read_text())
    del values[key]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(TomoscoutError, match=f"not a model description .*{key}"):
        PickingModel.read(folder)


# A network in a file of the user's.

CODE = """
from tomoscout.networks.options import NetworkOptions

class Options(NetworkOptions):
    channels: int = 3

def build(options, inputs, outputs, dimensions):
    from torch import nn
    return nn.Sequential(nn.Conv3d(inputs, options.channels, 3, padding=1), nn.Conv3d(options.channels, outputs, 1))
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A model whose network is the file `network.py`."""
    path = tmp_path / "network.py"
    path.write_text(CODE)
    return write(tmp_path / "own", network=parse_network({"family": str(path), "channels": 4}))


def test_a_network_of_the_users(own: Path) -> None:
    model = PickingModel.read(own)
    assert model.network.model_dump() == {"family": str(own.parent / "network.py"), "channels": 4}
    with torch.inference_mode():
        assert load_network(own, model, CPU)(torch.zeros(1, 1, 4, 4, 4)).shape == (1, 4, 4, 4, 4)


@pytest.mark.parametrize(
    "code",
    [
        CODE + "# a comment\n",
        CODE.replace("channels", "features"),
        "from pathlib import Path\nPath(__file__).with_name('executed').touch()\n",
    ],
)
def test_a_network_of_the_users_that_has_changed_is_refused_unread(own: Path, code: str) -> None:
    path = own.parent / "network.py"
    path.write_text(code)
    with pytest.raises(TomoscoutError) as caught:
        PickingModel.read(own)
    assert str(caught.value) == f"{own / 'model.yaml'}: {path} is not the file that this model was trained with"
    assert not path.with_name("executed").exists()
    path.write_text(CODE)
    PickingModel.read(own)


def test_a_network_of_the_users_that_is_gone(own: Path) -> None:
    (own.parent / "network.py").unlink()
    with pytest.raises(TomoscoutError, match=r"own/model\.yaml: .*network\.py: no such file; the model needs the code"):
        PickingModel.read(own)


# Several models applied together.


def test_one_model_is_no_ensemble(folder: Path) -> None:
    together, members = read_ensemble([folder])
    assert together == members[0] == PickingModel.read(folder)


def test_an_ensemble_is_the_mean_of_its_models(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / "a", name="a", thresholds={"ribosome": 0.3, "µ-tubule": 0.5}, voxel_spacings=(13.48, 10.0)),
        write(tmp_path / "b", name="bb", thresholds={"ribosome": 0.4, "µ-tubule": 0.2}, voxel_spacings=(10.0, 7.84)),
        write(
            tmp_path / "c",
            name="ccc",
            thresholds={"ribosome": 0.45, "µ-tubule": 0.2},
            voxel_spacings=(10.0,),
            network=parse_network({"channels": [2, 4], "strides": [2]}),
        ),
    ]
    together, members = read_ensemble(folders)
    assert members == [PickingModel.read(path) for path in folders]
    assert together.name == "a + bb + ccc"
    assert together.thresholds == {"ribosome": 0.383, "µ-tubule": 0.3}
    assert together.voxel_spacings == (10.0,)
    assert together.classes == CLASSES
    # What is made with it is made again where a model changes, or their order.
    digests = {together.weights_digest, *(member.weights_digest for member in members)}
    digests |= {read_ensemble(part)[0].weights_digest for part in (folders[:2], folders[::-1])}
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": CLASSES[:2]},
            "b: finds ribosome, µ-tubule, but .*a ribosome, µ-tubule, membrane; an ensemble needs the same classes",
        ),
        (
            {"classes": (replace(CLASSES[1], label=1), replace(CLASSES[0], label=2), CLASSES[2])},
            "b: finds µ-tubule, ribosome, membrane, but .* in one order",
        ),
    ],
)
def test_models_that_do_not_go_together(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folders = [write(tmp_path / "a"), write(tmp_path / "b", **changes)]
    with pytest.raises(TomoscoutError, match=message):
        read_ensemble(folders)


def test_weights_are_read_as_they_were_saved(folder: Path) -> None:
    found, expected = load_weights(folder, PickingModel.read(folder)), random_network().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
