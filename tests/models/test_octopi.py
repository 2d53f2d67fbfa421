"""Models in octopi's files: the same logits, or a refusal that names the file and the key."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from support.octopi import ATTENTION, DYNUNET, LABELS, MEDNEXT, SEGRESNET, SWIN, UNET, as_octopi_builds, write_model
from tomoscout.machine.errors import TomoscoutError
from tomoscout.models.octopi import read_octopi_model
from tomoscout.networks import build_network

torch.set_num_threads(1)
Values = dict[str, Any]
DEEP = {"deep_supervision": True, "deep_supr_num": 1}
LEFT_OUT = ("dropout", "norm_name", "act_name", "deep_supervision", "deep_supr_num", "res_block")
CASES: dict[str, Values] = {
    "Unet": UNET,
    "Unet without residual units": UNET | {"num_res_units": 0},
    "DynUNet": DYNUNET,
    "DynUNet of octopi's defaults": {key: value for key, value in DYNUNET.items() if key not in LEFT_OUT},
    "DynUNet, plain, by the batch": DYNUNET | {"res_block": False, "norm_name": ["batch", {"affine": True}]},
    "DynUNet, deep supervision": DYNUNET | DEEP | {"dropout": 0.0, "filters": [4, 6, 8]},
    "SegResNet": SEGRESNET,
    "SegResNet of octopi's defaults": {"architecture": "SegResNet", "num_classes": 4, "init_filters": 8},
    "SegResNet, deep supervision": SEGRESNET | {"dsdepth": 2, "act": ["RELU", {"inplace": False}]},
    "SegResNet, anisotropic": SEGRESNET | {"resolution": (20.0, 10.0, 10.0), "norm": "BATCH"},
    "SwinUNETR": SWIN,
    "AttentionUnet": ATTENTION,
    "MedNeXt": MEDNEXT,
}


@pytest.mark.parametrize("model", CASES.values(), ids=CASES)
def test_the_same_logits(tmp_path: Path, model: Values) -> None:
    path = write_model(tmp_path, model)
    read = read_octopi_model(path, None)
    network = build_network(read.network, read.outputs)
    network.load_state_dict(read.weights)
    assert read.weights.keys() == network.state_dict().keys()
    tomogram = torch.randn(1, 1, *((32, 64, 64) if model["architecture"] == "SwinUNETR" else (16, 16, 16)))
    with torch.inference_mode():
        expected = as_octopi_builds(model)(tomogram)
        ours = network.eval()(tomogram)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_what_is_read(tmp_path: Path) -> None:
    read = read_octopi_model(write_model(tmp_path, UNET), None)
    assert list(read.labels.items()) == list(LABELS.items())
    assert (read.outputs, read.patch) == (4, (32, 32, 32))
    assert read.network.model_dump() == {
        "family": "UNet",
        "channels": [4, 8, 8],
        "strides": [2, 1],
        "residual_units": 1,
        "dropout": 0.1,
    }
    without_patch = {key: value for key, value in UNET.items() if key != "dim_in"}
    assert read_octopi_model(write_model(tmp_path, without_patch), None).patch is None
    assert read_octopi_model(write_model(tmp_path, UNET | {"dim_in": None}), None).patch is None


def test_dropout_and_deep_supervision_are_kept(tmp_path: Path) -> None:
    swin = read_octopi_model(write_model(tmp_path, SWIN), None).network.model_dump()
    assert [swin[name] for name in ("dropout", "attention_dropout", "path_dropout", "checkpointing")] == [
        0.1,
        0.2,
        0.3,
        True,
    ]
    for model, levels in ((DYNUNET | DEEP, 2), (DYNUNET, 1), (SEGRESNET | {"dsdepth": 2}, 2)):
        network = read_octopi_model(write_model(tmp_path, model), None).network
        assert network.model_dump()["deep_supervision"] == levels


def test_classes_may_leave_channels_out(tmp_path: Path) -> None:
    labels = {"ribosome": 3, "membrane": 1}
    assert read_octopi_model(write_model(tmp_path, UNET, labels=labels), None).labels == labels


@pytest.mark.parametrize("model", [DYNUNET, SEGRESNET], ids=lambda model: model["architecture"])
def test_tuples(tmp_path: Path, model: Values) -> None:
    plain = read_octopi_model(write_model(tmp_path, model), None).network
    path = write_model(tmp_path, model, dumper=yaml.Dumper)
    assert "!!python/tuple" in path.read_text()
    assert read_octopi_model(path, None).network == plain


def test_weights_elsewhere_and_in_half_precision(tmp_path: Path) -> None:
    path = write_model(tmp_path, UNET)
    expected = torch.load(tmp_path / "best_model.pth", weights_only=True)
    torch.save({name: weight.half() for name, weight in expected.items()}, tmp_path / "other.pth")
    (tmp_path / "best_model.pth").unlink()
    for name, weight in read_octopi_model(path, tmp_path / "other.pth").weights.items():
        assert weight.dtype == expected[name].dtype == torch.float32
        torch.testing.assert_close(weight, expected[name], atol=1e-3, rtol=1e-3)
    with pytest.raises(TomoscoutError, match=r"best_model\.pth: no such file"):
        read_octopi_model(path, None)


def without(model: Values, key: str) -> Values:
    return {name: value for name, value in model.items() if name != key}


BAD_MODELS = [
    (without(UNET, "num_classes"), r"model\.num_classes is missing"),
    (UNET | {"num_classes": 1}, r"model\.num_classes is 1, expected a whole number from 2"),
    (UNET | {"num_classes": "4"}, r"model\.num_classes is '4'"),
    (UNET | {"dim_in": 0}, r"model\.dim_in is 0"),
    (without(UNET, "architecture"), r"model\.architecture is missing, expected one of Unet, DynUNet"),
    (UNET | {"architecture": "VNet"}, r"model\.architecture is 'VNet', expected one of"),
    (UNET | {"architecture": ["Unet"]}, r"model\.architecture is \['Unet'\]"),
    (without(UNET, "num_res_units"), r"model\.num_res_units is missing, expected the option of octopi's Unet"),
    (UNET | {"kernel_size": 5}, r"model\.kernel_size: unknown option of octopi's Unet; known: channels"),
    (UNET | {"strides": [2, 2, 2]}, r"model, read as options of Unet: .*need 2 strides, found 3"),
    (UNET | {"dropout": 2}, r"model, read as options of Unet: dropout: .*, found 2"),
    (DYNUNET | {"upsample_kernel_size": [2, 3]}, r"model\.upsample_kernel_size is \[2, 3\], expected \[2, 2\]"),
    (DYNUNET | {"norm_name": "instance"}, r"model\.norm_name is 'instance', expected one with"),
    (DYNUNET | {"norm_name": ["instance"]}, r"model\.norm_name is \['instance'\], expected a name, or"),
    (DYNUNET | {"act_name": "relu"}, r"model\.act_name is 'relu', expected leakyrelu"),
    (DYNUNET | {"strides": 2}, r"model\.strides is 2, expected a list"),
    (DYNUNET | DEEP | {"deep_supr_num": None}, r"model\.deep_supr_num is None"),
    (SEGRESNET | {"act": ["prelu", {"init": 0.5}]}, r"model\.act is \['prelu', {'init': 0\.5}\]"),
    (SEGRESNET | {"norm": ["group", {"num_groups": 2}]}, r"model\.norm is "),
    (SEGRESNET | {"act": "selu"}, r"model, read as options of SegResNet: activation: .*, found 'selu'"),
    (SWIN | {"num_heads": [5, 6, 12, 24]}, r"model, read as options of SwinUNETR: .*num_heads"),
    (MEDNEXT | {"global_resp_norm": True}, r"model\.global_resp_norm is True, expected False: the only one supported"),
]


@pytest.mark.parametrize(("model", "message"), BAD_MODELS, ids=[message for _, message in BAD_MODELS])
def test_bad_networks(tmp_path: Path, model: Values, message: str) -> None:
    path = write_model(tmp_path, model, weights={})
    with pytest.raises(TomoscoutError, match=rf"^{path}: {message}") as refusal:
        read_octopi_model(path, None)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, r"labels is {}, expected a mapping"),
        (["ribosome"], r"labels is \['ribosome'\], expected a mapping"),
        ({"ribosome": 0}, r"labels\.ribosome is 0, expected a whole number from 1 to 3"),
        ({"ribosome": 4}, r"labels\.ribosome is 4, expected a whole number from 1 to 3 \(model\.num_classes is 4\)"),
        ({"ribosome": "1"}, r"labels\.ribosome is '1'"),
        ({"ribosome": 1, "membrane": 1}, r"labels .* give two classes the same label"),
    ],
)
def test_bad_labels(tmp_path: Path, labels: Any, message: str) -> None:
    path = write_model(tmp_path, UNET, labels=labels)
    with pytest.raises(TomoscoutError, match=rf"^{path}: {message}"):
        read_octopi_model(path, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory; expected octopi's model_config.yaml"),
        ("model: [", "not plain YAML"),
        ("\xff", "not plain YAML"),
        ("- 1", "holds list, expected octopi's"),
        ("optimizer: {}", "model is missing"),
        ("model: Unet", "model is 'Unet'"),
        ("model: {num_classes: 2, architecture: Unet, channels: [2, 2], strides: [2], num_res_units: 1, dropout: 0}",
         "labels is missing"),
    ],
)  # fmt: skip
def test_bad_configurations(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "model_config.yaml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TomoscoutError, match=f"^{path}: {message}") as refusal:
        read_octopi_model(path, None)
    assert "\n" not in str(refusal.value)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_the_configuration_is_not_run(tmp_path: Path) -> None:
    path = write_model(tmp_path, UNET)
    mark = tmp_path / "ran"
    path.write_text(f"{path.read_text()}extra: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(TomoscoutError, match=f"^{path}: not plain YAML .*python/object/apply"):
        read_octopi_model(path, None)
    assert not mark.exists()


def test_code_in_the_weights_is_not_run(tmp_path: Path) -> None:
    path, mark = write_model(tmp_path, UNET), tmp_path / "ran"
    bombs = [
        lambda file: torch.save({"model.0": Bomb(mark)}, file),
        lambda file: file.write_bytes(pickle.dumps(Bomb(mark), 2)),
    ]
    for save in bombs:
        save(tmp_path / "best_model.pth")
        with pytest.raises(TomoscoutError, match=r"best_model\.pth: holds more than tensors"):
            read_octopi_model(path, None)
        assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    good = as_octopi_builds(UNET).state_dict()
    first, name = list(good)[:2]
    path = write_model(tmp_path, UNET)
    cases: list[tuple[Any, str]] = [
        (without(good, first), f"{first} is missing, expected the weights of the UNet of {path}"),
        (good | {first: good[first][:1]}, rf"{first} has the shape \(1, .*expected \(4, .*UNet of {path}"),
        (good | {"module.x": good[first]}, f"module.x is not one of the weights of the UNet of {path}"),
        (good | {name: good[name] * torch.nan}, f"{name} holds numbers that are not finite"),
        ({"state_dict": good}, "holds no state dict"),
        (list(good.values()), "holds no state dict"),
        (as_octopi_builds(ATTENTION).state_dict(), "is missing"),
    ]
    for weights, message in cases:
        write_model(tmp_path, UNET, weights)
        with pytest.raises(TomoscoutError, match=rf"^{tmp_path}/best_model\.pth: .*{message}"):
            read_octopi_model(path, None)


@pytest.mark.parametrize("length", [0, 1, 100, 0.5])
def test_broken_weights(tmp_path: Path, length: float) -> None:
    path, weights = write_model(tmp_path, UNET), tmp_path / "best_model.pth"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(length * len(content)) if isinstance(length, float) else length])
    with pytest.raises(TomoscoutError, match=f"^{weights}: ") as refusal:
        read_octopi_model(path, None)
    assert "\n" not in str(refusal.value)
