"""What a fine-tuning starts from: the base's weights, channel by channel, and what of them is frozen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tomoscout.machine.errors import TomoscoutError
from tomoscout.models.base import Base, base_digest, base_files, frozen_parameters, read_base, starting_weights
from tomoscout.models.folder import save_weights
from tomoscout.networks import build_network, parse_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.names import Source
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking.model import PickingModel
from tomoscout.tasks.picking.options import Picking, Train

torch.set_num_threads(1)
Weights = dict[str, torch.Tensor]

SMALL = {"channels": [2, 3], "strides": [2]}
NETWORKS = {
    # Its last layer goes from classes to classes.
    "UNet": parse_network({"family": "UNet", **SMALL}),
    "UNet without residual units": parse_network({"family": "UNet", **SMALL, "residual_units": 0}),
    "AttentionUNet": parse_network({"family": "AttentionUNet", **SMALL}),
    # A head for every resolution that the loss sees.
    "ResidualEncoderUNet": parse_network(
        {"family": "ResidualEncoderUNet", "channels": [2, 3, 4], "strides": [2, 2], "blocks": [1, 1, 1]}
    ),
    "DynUNet": parse_network({"family": "DynUNet", "filters": [2, 3, 4], "strides": [1, 2, 2]}),
}
# Names in the order of their labels.
FOUND = ("ribosome", "ferritin", "membrane")


def random_weights(network: NetworkOptions, outputs: int, seed: int) -> Weights:
    """Weights of which no two numbers are equal."""
    random = torch.Generator().manual_seed(seed)
    weights = build_network(network, outputs).state_dict()
    return {
        name: torch.rand(value.shape, generator=random) if value.is_floating_point() else value + seed
        for name, value in weights.items()
    }


def base_of(network: NetworkOptions, labels: dict[str, int] | None = None, outputs: int | None = None) -> Base:
    labels = labels or {name: label for label, name in enumerate(FOUND, 1)}
    outputs = outputs or len(labels) + 1
    return Base("models/old", network, labels, outputs, random_weights(network, outputs, 1))


def expected_weights(base: Base, wanted: Sequence[str], fresh: Weights) -> Weights:
    """Number by number: along an axis whose length is that of the classes, a place stands for a class."""
    old_channels = {0: 0} | {label: base.labels[name] for label, name in enumerate(wanted, 1) if name in base.labels}
    outputs = len(wanted) + 1
    shapes = {
        count: {name: value.shape for name, value in build_network(base.network, count).state_dict().items()}
        for count in (11, 12)
    }
    found = {}
    for name, value in fresh.items():
        expected = value.clone()
        per_class = [small != large for small, large in zip(shapes[11][name], shapes[12][name], strict=True)]
        assert all(size == outputs for size, is_class in zip(value.shape, per_class, strict=True) if is_class)
        for place in np.ndindex(*value.shape):
            source = [
                old_channels.get(index) if is_class else index for index, is_class in zip(place, per_class, strict=True)
            ]
            if None not in source:
                expected[place] = base.weights[name][tuple(source)]
        found[name] = expected
    return found


def started(base: Base, wanted: Sequence[str]) -> tuple[Weights, Weights, str]:
    """The weights that a training starts from, those its network had before, and the message."""
    network = build_network(base.network, len(wanted) + 1)
    fresh = random_weights(base.network, len(wanted) + 1, 2)
    network.load_state_dict(fresh)
    message = starting_weights(base, wanted, network.state_dict())
    return network.state_dict(), fresh, message


CASES = {
    "the same": FOUND,
    "permuted": ("membrane", "ribosome", "ferritin"),
    "fewer": ("ferritin",),
    "some shared": ("proteasome", "membrane", "tubule", "ribosome"),
    "more": (*FOUND, "proteasome"),
    "none shared": ("proteasome", "tubule"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", NETWORKS)
def test_weights_are_put_together_channel_by_channel(family: str, case: str) -> None:
    base, wanted = base_of(NETWORKS[family]), [*CASES[case]]
    found, fresh, _ = started(base, wanted)
    expected = expected_weights(base, wanted, fresh)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    # There is a head at all.
    differing = {name for name, value in found.items() if value.shape != base.weights[name].shape}
    assert bool(differing) == (len(wanted) != 3)


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("names", [CASES["the same"], CASES["permuted"]])
def test_a_network_with_the_same_classes_answers_as_before(family: str, names: tuple[str, ...]) -> None:
    base = base_of(NETWORKS[family])
    # Of usual size, or all that differs is lost in rounding.
    base.weights.update(build_network(base.network, base.outputs).state_dict())
    wanted = [*names]
    weights, _, message = started(base, wanted)
    assert base.knows(wanted)
    assert message == "starting from models/old"
    networks = []
    for state in (base.weights, weights):
        network = build_network(base.network, 4)
        network.load_state_dict(state)
        networks.append(network.eval())
    inputs = torch.randn(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        old, new = (network(inputs) for network in networks)
    torch.testing.assert_close(new, old[:, [0, *(base.labels[name] for name in names)]])


def test_classes_that_are_kept_are_found_as_before() -> None:
    """Where a class has a channel to itself: others beside it change nothing."""
    base = base_of(NETWORKS["UNet without residual units"])
    names = CASES["some shared"]
    weights, _, _ = started(base, [*names])
    inputs = torch.randn(1, 1, 8, 16, 16, generator=torch.Generator().manual_seed(3))
    logits = []
    for state, outputs in ((base.weights, 4), (weights, 5)):
        network = build_network(base.network, outputs)
        network.load_state_dict(state)
        with torch.inference_mode():
            logits.append(network.eval()(inputs))
    old, new = logits
    torch.testing.assert_close(new[:, [0, 2, 4]], old[:, [0, 3, 1]])


def test_labels_of_the_base_may_have_gaps() -> None:
    base = base_of(NETWORKS["UNet"], {"ferritin": 4, "ribosome": 2}, outputs=6)
    wanted = ["ribosome", "tubule", "ferritin"]
    found, fresh, message = started(base, wanted)
    for name, value in expected_weights(base, wanted, fresh).items():
        assert torch.equal(found[name], value), name
    assert "kept: ribosome, ferritin; new: tubule; dropped: none" in message
    # Channels that no class has are outputs of the network all the same.
    assert not base.knows(["ribosome", "ferritin"])


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("fewer", "kept: ferritin; new: none; dropped: ribosome, membrane"),
        ("some shared", "kept: membrane, ribosome; new: proteasome, tubule; dropped: ferritin"),
        ("more", "kept: ribosome, ferritin, membrane; new: proteasome; dropped: none"),
        ("none shared", "kept: none; new: proteasome, tubule; dropped: ribosome, ferritin, membrane"),
    ],
)
def test_the_message_says_that_the_head_is_rebuilt(case: str, changes: str) -> None:
    base, wanted = base_of(NETWORKS["UNet"]), [*CASES[case]]
    assert not base.knows(wanted)
    _, _, message = started(base, wanted)
    assert message == f"starting from models/old with other classes: the head is rebuilt ({changes})"


def test_weights_of_another_network_are_refused() -> None:
    base = base_of(NETWORKS["UNet"])
    base.weights["extra.bias"] = torch.zeros(1)
    del base.weights["model.0.conv.unit0.conv.bias"]
    with pytest.raises(TomoscoutError) as caught:
        started(base, FOUND)
    assert str(caught.value) == (
        "train.base: models/old: weights do not fit the network UNet (extra.bias, model.0.conv.unit0.conv.bias)"
    )


# Frozen parameters.


def frozen(family: str = "UNet", **options: Any) -> tuple[Any, set[str]]:
    """The frozen parameters by step, and all."""
    network = NETWORKS[family]
    made = Train(base="models/old", network=network, **options)
    names = {name for name, _ in build_network(network, 4).named_parameters()}
    return frozen_parameters(made, 4, 1), names


def test_nothing_is_frozen_by_default() -> None:
    at, _ = frozen()
    assert at(0) == at(1000) == frozenset()


@pytest.mark.parametrize("family", NETWORKS)
def test_the_body_is_all_but_the_layers_that_make_the_classes(family: str) -> None:
    at, names = frozen(family, freeze="body")
    more = {name: value.shape for name, value in build_network(NETWORKS[family], 5).named_parameters()}
    for name, value in build_network(NETWORKS[family], 4).named_parameters():
        assert (name in at(0)) == (more[name] == value.shape), name
    assert set() < at(0) < names
    assert at(10**9) == at(0)


def test_parameters_are_frozen_by_pattern() -> None:
    at, names = frozen(freeze=["model.0.*", "*.bias"])
    assert at(0) == {name for name in names if name.startswith("model.0.") or name.endswith(".bias")}
    assert at(0) < names


def test_they_are_frozen_for_a_time() -> None:
    at, _ = frozen(freeze="body", freeze_steps=10)
    assert at(0) == at(9) != frozenset()
    assert at(10) == at(11) == frozenset()


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["model.0.*", "encoder.*"], "train.freeze: 'encoder.*' matches no parameter; there are model.0.conv"),
        (["*"], "train.freeze: ['*'] leaves nothing to train"),
        (["model.0.*", "model.[!0]*"], "train.freeze: ['model.0.*', 'model.[!0]*'] leaves nothing to train"),
    ],
)
@pytest.mark.parametrize("steps", [None, 5])
def test_patterns_that_make_no_sense(freeze: list[str], message: str, steps: int | None) -> None:
    with pytest.raises(TomoscoutError, match=re.escape(message)) as caught:
        frozen(freeze=freeze, freeze_steps=steps)
    assert "\n" not in str(caught.value)


def test_a_network_that_makes_no_class_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "network.py"
    path.write_text(
        "from tomoscout.networks.options import NetworkOptions\n\n"
        "class Options(NetworkOptions):\n    pass\n\n"
        "def build(options, inputs, outputs, dimensions):\n"
        "    from torch import nn\n"
        "    return nn.Sequential(nn.Conv3d(inputs, 3 * outputs, 1), nn.Conv3d(3 * outputs, outputs, 1))\n"
    )
    network = parse_network({"family": str(path)})
    message = "network.py': 0.weight grows from [12, 1, 1, 1, 1] to [15, 1, 1, 1, 1]"
    with pytest.raises(TomoscoutError, match=f"train.freeze: .*{re.escape(message)}"):
        frozen_parameters(Train(base="models/old", freeze="body", network=network), 4, 1)
    with pytest.raises(TomoscoutError, match=f"train.base: .*{re.escape(message)}"):
        started(base_of(network), FOUND)


# The files of a base.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder."""
    folder = tmp_path / "models/old"
    sources = (Source("ribosome", "me", "0"),)
    weights = random_weights(NETWORKS["UNet"], 4, 5)
    model = PickingModel(
        name="old",
        network=NETWORKS["UNet"],
        made_from={},
        weights_digest=save_weights(folder, weights),
        classes=tuple(TargetClass(name, label, 100.0, 80.0, sources) for label, name in enumerate(FOUND, 1)),
        thresholds=dict.fromkeys(FOUND, 0.5),
        voxel_spacings=(10.0,),
        patch=(16, 16, 16),
        picking=Picking(),
    )
    model.write(folder)
    return folder


def test_no_base() -> None:
    assert base_files(Train()) == []
    assert base_digest(Train()) is None


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({"base": "models/old"}, ["models/old/model.yaml", "models/old/weights.safetensors"]),
        ({"base": "models/old/model.yaml"}, ["models/old/model.yaml", "models/old/weights.safetensors"]),
        ({"base": "octopi/model_config.yaml"}, ["octopi/model_config.yaml", "octopi/best_model.pth"]),
        ({"base": "octopi/renamed.yml"}, ["octopi/renamed.yml", "octopi/best_model.pth"]),
        ({"base": "octopi/model_config.yaml", "base_weights": "x.pth"}, ["octopi/model_config.yaml", "x.pth"]),
    ],
)
def test_files_of_a_base(options: dict[str, str], files: list[str]) -> None:
    assert base_files(Train(**options)) == [Path(name) for name in files]


def test_a_base_is_read(folder: Path) -> None:
    for path in (folder, folder / "model.yaml"):
        base = read_base(Train(base=str(path)), PickingModel)
        assert (base.origin, base.outputs) == (str(folder), 4)
        assert base.network == NETWORKS["UNet"]
        assert base.labels == {"ribosome": 1, "ferritin": 2, "membrane": 3}
        for name, value in random_weights(NETWORKS["UNet"], 4, 5).items():
            assert torch.equal(base.weights[name], value)
        assert base.shared(["tubule", "membrane"]) == ["membrane"]


def test_another_base_trains_again(folder: Path) -> None:
    options = Train(base=str(folder))
    before = base_digest(options)
    assert before == base_digest(Train(base=str(folder / "model.yaml")))
    for name in ("model.yaml", "weights.safetensors"):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert base_digest(options) != before
        path.write_bytes(content)
    assert base_digest(options) == before


@pytest.mark.parametrize("name", ["model.yaml", "weights.safetensors"])
def test_a_base_that_lacks_a_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    options = Train(base=str(folder))
    message = f"train.base: {folder / name}: no such file; expected a model folder, or octopi's model_config.yaml"
    with pytest.raises(TomoscoutError, match=re.escape(message)):
        base_digest(options)
    with pytest.raises(TomoscoutError, match=re.escape(str(folder / name))):
        read_base(options, PickingModel)


def test_a_base_with_changed_weights(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TomoscoutError, match="not the weights that"):
        read_base(Train(base=str(folder)), PickingModel)


def test_a_base_of_octopis(tmp_path: Path) -> None:
    network = NETWORKS["UNet"]
    values = {
        "model": {
            "architecture": "Unet",
            "num_classes": 5,
            "channels": [2, 3],
            "strides": [2],
            "num_res_units": 1,
            "dropout": 0.0,
            "dim_in": 32,
        },
        "labels": {"ferritin": 4, "ribosome": 1},
    }
    config = tmp_path / "model_config.yaml"
    config.write_text(yaml.safe_dump(values))
    weights = random_weights(network, 5, 6)
    torch.save(weights, tmp_path / "renamed.pth")
    options = Train(base=str(config), base_weights=str(tmp_path / "renamed.pth"))
    assert base_digest(options) is not None
    base = read_base(options, PickingModel)
    assert (base.origin, base.network, base.outputs) == (str(config), network, 5)
    assert base.labels == {"ferritin": 4, "ribosome": 1}
    wanted = ["ribosome", "ferritin"]
    found, fresh, message = started(base, wanted)
    for name, value in expected_weights(base, wanted, fresh).items():
        assert torch.equal(found[name], value), name
    assert "kept: ribosome, ferritin" in message
    with pytest.raises(TomoscoutError, match=r"train\.base: .*best_model\.pth: no such file"):
        base_digest(Train(base=str(config)))
