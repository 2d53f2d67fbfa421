"""The search space: what is searched, what a user may change of it, and what a point in it means for a training."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from support.project import SmallProject, error_of, succeeded, tomoscout
from tomoscout.explore.options import Choice, Fixed, Number
from tomoscout.explore.points import known_values, train_options
from tomoscout.explore.space import (
    Entry,
    SearchSpace,
    label,
)
from tomoscout.explore.study import Study
from tomoscout.machine.errors import TomoscoutError
from tomoscout.networks import FAMILIES, build_network
from tomoscout.options.config import Config, parse_config
from tomoscout.options.reference import json_schema
from tomoscout.options.sections import NotSearched
from tomoscout.tasks.picking.options import Train

SHAPE = (64, 192, 192)
THIN = (20, 96, 130)


def configured(train: Mapping[str, Any] | None = None, **explore: Any) -> Config:
    values = {"projects": {"demo": "demo.json"}, "tomograms": ["wbp@10.0"], "explore": explore, "train": train or {}}
    return parse_config(values, "config.yaml")


def space_of(**explore: Any) -> SearchSpace:
    return SearchSpace.of(configured(**explore).explore, Train)


def entry_of(space: SearchSpace, name: str) -> Entry:
    [found] = [entry for entry in space.entries if entry.name == name]
    return found


def shared(shape: Sequence[int] = SHAPE, budget: str = "voxels") -> dict[str, Any]:
    """What of a study's settings counts for the options of its trials."""
    return {"shape": list(shape), "validations": 10, "budget": budget}


def checked(train: Mapping[str, Any] | None = None, **explore: Any) -> Study:
    """The study of a configuration, as far as its space is concerned."""
    config = configured(train, **explore)
    study = Study(
        {
            "name": "search",
            "window": 8,
            "space": SearchSpace.of(config.explore, Train).to_json(),
            "train": config.train.model_dump(mode="json"),
            **shared(),
            "validations": config.explore.validations,
        },
        Train,
    )
    study.check()
    return study


def holds(domain: Number | Choice | Fixed, value: Any) -> bool:
    """Whether a value can be drawn."""
    if isinstance(domain, Fixed):
        return bool(domain.value == value)
    if isinstance(domain, Choice):
        return value in domain.choices
    on_grid = domain.step is None or math.isclose((value - domain.low) / domain.step % 1, 0, abs_tol=1e-9)
    return domain.low <= value <= domain.high and on_grid and (isinstance(value, int) or not domain.is_whole)


def drawn(space: SearchSpace, seed: int, base: Train | None = None) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return space.values(lambda _, domain: domain.at(generator.random()), known_values(base or Train()))


# At least what octopi 1.7 searches


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("learning_rate", [1e-4, 1e-3]),
        ("weight_decay", [1e-4, 1e-2]),
        ("patch", [64, 80, 96, 112, 128, 144, 160]),
        ("batch_size", [4, 8, 16, 24, 32, 48]),
        ("loss.name", ["Focal", "WeightedFocalTversky", "FocalTversky"]),
        ("loss.gamma", [0.1, 2.0]),
        ("loss.alpha", [0.1, 0.5]),
        # octopi: 1 - alpha
        ("loss.beta", [0.5, 0.9]),
        # octopi: 0.1 to 0.9, and what is left of 1 for the focal loss, whose weight is fixed here
        ("loss.weight_tversky", [0.5 * 0.1 / 0.9, 0.5 * 0.9 / 0.1]),
    ],
)
def test_trainings_are_searched_as_widely_as_in_octopi(name: str, values: list[Any]) -> None:
    domain = entry_of(space_of(), name).domain
    assert all(holds(domain, value) for value in values)
    if name in ("learning_rate", "weight_decay"):
        assert isinstance(domain, Number)
        assert domain.log


def test_losses_have_the_parameters_that_octopi_gives_them() -> None:
    space = space_of()
    for loss, names in {
        "Focal": {"gamma"},
        "FocalTversky": {"alpha", "beta", "gamma"},
        "WeightedFocalTversky": {"alpha", "beta", "gamma", "weight_tversky"},
    }.items():
        values = next(v for v in (drawn(space, seed) for seed in range(200)) if v["loss.name"] == loss)
        assert {name.removeprefix("loss.") for name in values if name.startswith("loss.")} == {"name", *names}


def octopi_unets() -> list[dict[str, Any]]:
    found = []
    for levels, hidden, base, units, dropout in itertools.product((3, 4), (1, 2), (8, 16, 32), (1, 2), (0.0, 0.3)):
        channels = [base * 2**level for level in range(levels)]
        found.append(
            {
                "channels": [*channels, *[channels[-1]] * hidden],
                "strides": [2] * (levels - 1) + [1] * hidden,
                "residual_units": units,
                "dropout": dropout,
            }
        )
    return found


def octopi_dynunets() -> list[dict[str, Any]]:
    found = []
    for strides in ([1, 2, 2], [1, 2, 2, 2], [1, 2, 2, 1]):
        # MONAI's deep_supr_num: heads besides the one of the full resolution.
        for heads, dropout in itertools.product(range(len(strides) - 1), (0.0, 0.3)):
            filters = [32 * 2**level for level in range(len(strides))]
            found.append(
                {"strides": strides, "deep_supervision": heads + 1, "dropout": dropout, "filters": filters}
                | {"norm": "instance", "residual_blocks": True}
            )
    return found


def octopi_segresnets() -> list[dict[str, Any]]:
    blocks = ([1, 2, 2, 4], [1, 2, 2, 2], [1, 1, 2, 2])
    return [
        {"init_filters": filters, "deep_supervision": depth, "blocks_down": down, "activation": "prelu"}
        | {"norm": "instance", "upsampling": "deconv", "resolution": None, "blocks_up": None}
        for filters, depth, down in itertools.product((16, 32), (1, 2, 3), blocks)
    ]


def octopi_swins() -> list[dict[str, Any]]:
    sizes = [(12, 3), (24, 3), (24, 6), (36, 3), (36, 6)]
    depths = ([2, 2, 2, 2], [2, 2, 4, 2], [2, 4, 2, 2], [2, 4, 4, 2], [2, 4, 4, 4])
    return [
        {"feature_size": size, "num_heads": [heads, 2 * heads, 4 * heads, 8 * heads], "depths": depth}
        | {"window_size": window, "dropout": rate, "attention_dropout": rate, "path_dropout": min(rate, 0.2)}
        for (size, heads), depth, window, rate in itertools.product(sizes, depths, (5, 7, 8), (0.0, 0.3))
    ]


def points_of(family: str) -> list[dict[str, Any]]:
    """Every point of a family's space, ranges of fractions by their ends."""
    space = space_of(networks=[family])
    own = [entry for entry in space.entries if entry.name.startswith(f"{family}.")]
    choices = []
    for entry in own:
        domain = entry.domain
        assert not isinstance(domain, Fixed)
        if isinstance(domain, Choice):
            choices.append(domain.choices)
        elif domain.is_whole:
            choices.append(list(range(int(domain.low), int(domain.high) + 1)))
        else:
            choices.append([domain.low, domain.high])
    names = [entry.name for entry in own]
    return [{"network": family, **dict(zip(names, point, strict=True))} for point in itertools.product(*choices)]


@pytest.mark.parametrize(
    ("family", "searched"),
    [
        ("UNet", octopi_unets()),
        ("DynUNet", octopi_dynunets()),
        ("SegResNet", octopi_segresnets()),
        ("SwinUNETR", octopi_swins()),
    ],
)
def test_networks_are_searched_as_widely_as_in_octopi(family: str, searched: list[dict[str, Any]]) -> None:
    from tomoscout.explore.points import _network
    from tomoscout.networks import parse_network

    def text(options: Mapping[str, Any]) -> str:
        return json.dumps({name: options[name] for name in searched[0]}, sort_keys=True)

    found = {text(parse_network(_network(point, Train())).model_dump()) for point in points_of(family)}
    assert not {text(options) for options in searched} - found


def test_families_beyond_octopis_are_searched_too() -> None:
    for family in FAMILIES:
        assert len(points_of(family)) > 10, family


def test_augmentation_is_searched() -> None:
    assert {name for name in Train.SPACE if name.startswith("augmentation.")}


# Changes by the user


def test_changes_are_made_entry_by_entry() -> None:
    space = space_of(
        networks={"UNet": {"dropout": 0.1, "width": {"choices": [4, 8]}}, "DynUNet": {"deep_supervision": None}},
        space={
            "learning_rate": {"low": "1e-5", "high": "1e-2", "log": True},
            "weight_decay": 0.5,
            "patch": None,
            "loss.gamma": {"low": 1, "high": 3},
            "loss.alpha": 0.4,
            "loss.beta": {"low": 0.2, "high": 0.3, "when": {"loss.name": ["Tversky"], "network": ["UNet"]}},
            "size_balance": {"low": 0.0, "high": 3.0, "step": 0.5},
        },
    )
    assert entry_of(space, "learning_rate").domain == Number(low=1e-5, high=1e-2, log=True)
    assert entry_of(space, "weight_decay") == Entry("weight_decay", Fixed(value=0.5), {})
    assert entry_of(space, "size_balance").domain == Number(low=0.0, high=3.0, step=0.5)
    assert entry_of(space, "UNet.dropout") == Entry("UNet.dropout", Fixed(value=0.1), {"network": ["UNet"]})
    assert entry_of(space, "UNet.width").domain == Choice(choices=[4, 8])
    default = space_of()
    # Neither a range nor a value takes away a condition.
    for name in ("loss.gamma", "loss.alpha"):
        assert entry_of(space, name).when == entry_of(default, name).when != {}
    assert entry_of(space, "loss.beta").when == {"loss.name": ["Tversky"], "network": ["UNet"]}
    names = {entry.name for entry in space.entries}
    assert not {"patch", "DynUNet.deep_supervision"} & names
    # What is not mentioned stays.
    same = {name for name in Train.SPACE if name not in configured().explore.space} - {
        *("learning_rate", "weight_decay", "patch", "loss.gamma", "loss.alpha", "loss.beta")
    }
    for name in same:
        assert entry_of(space, name) == entry_of(default, name)


def test_numbers_are_whole_where_the_option_is() -> None:
    space = space_of(
        networks={"UNet": {"width": {"low": 4, "high": 8}, "dropout": {"low": 0, "high": 0.5}}},
        space={
            "augmentation.rotate": {"low": 0, "high": 30},
            "loss.alpha": {"low": 0, "high": 1},
            "class_weights.ribosome": {"low": 1, "high": 4},
            "foreground_weight": {"low": 1, "high": 100, "log": True},
            "augmentation.tilt": {"low": 0, "high": 15, "step": 2.5},
            "batch_size": {"low": 2.0, "high": 4.0},
        },
    )
    values = space.values(lambda _, domain: domain.at(0.77), {"loss.name": "Tversky"}) | {"loss.name": "Tversky"}
    assert {name for name, value in values.items() if isinstance(value, int)} >= {"UNet.width", "batch_size"}
    assert values["augmentation.rotate"] == pytest.approx(23.1)
    assert values["class_weights.ribosome"] == pytest.approx(3.31)
    assert entry_of(space, "foreground_weight").domain.at(0.77) == pytest.approx(100**0.77)
    assert values["augmentation.tilt"] == 12.5
    assert entry_of(space, "loss.alpha").domain.at(0.77) == pytest.approx(0.77)
    assert entry_of(space, "UNet.dropout").domain.at(0.5) == pytest.approx(0.25)


def test_what_is_not_searched_is_as_train_says() -> None:
    train = {
        "learning_rate": 3e-3,
        "patch": [32, 64, 64],
        "loss": {"name": "Focal", "gamma": 1.5, "weight": 2.0},
        "network": {"family": "UNet", "channels": [8, 16, 32], "strides": [2, 2], "dropout": 0.25},
        "augmentation": {"noise": 0.05, "blur": 0.5},
    }
    unsearched = dict.fromkeys(("learning_rate", "patch", "loss.name", "augmentation.noise"))
    levels = dict.fromkeys(("width", "levels", "bottleneck_levels", "dropout"))
    study = checked(train, networks={"UNet": levels}, space=unsearched)
    values = drawn(study.space, 1, study.base)
    # The loss is known, so what depends on it is searched all the same.
    assert {name for name in values if name.startswith("loss.")} == {"loss.gamma"}
    options = study.options_of(values)
    assert options.learning_rate == 3e-3
    assert options.patch == [32, 64, 64]
    assert options.loss[0].model_dump() == {"name": "Focal", "weight": 2.0, "gamma": values["loss.gamma"]}
    assert options.augmentation.noise == 0.05
    assert options.augmentation.blur == 0.5
    network = options.network.model_dump()
    assert network["channels"] == [8, 16, 32]
    assert network["dropout"] == 0.25
    assert network["residual_units"] == values["UNet.residual_units"]


def test_what_is_not_searched_of_a_loss_is_as_train_says_where_it_is_the_same() -> None:
    train = {"loss": {"name": "Tversky", "alpha": 0.15, "beta": 0.65}}
    space = {"loss.name": {"choices": ["Tversky", "FocalTversky"]}, "loss.alpha": None, "loss.beta": None}
    study = checked(train, space=space)
    found = {}
    for seed in range(20):
        loss = study.options_of(drawn(study.space, seed, study.base)).loss[0].model_dump()
        found[loss["name"]] = (loss["alpha"], loss["beta"])
    assert found == {"Tversky": (0.15, 0.65), "FocalTversky": (0.3, 0.7)}


def test_what_train_says_of_a_family_counts_for_what_is_made_from_the_search() -> None:
    """Levels that are not searched decide on the width and supervision that are."""
    train = {"network": {"family": "DynUNet", "strides": [1, 2, 2], "filters": [8, 16, 32]}}
    study = checked(train, networks={"DynUNet": {"strides": None}})
    for seed in range(20):
        network = study.options_of(drawn(study.space, seed)).network.model_dump()
        assert len(network["filters"]) == 3
        assert network["deep_supervision"] <= 2


def test_a_sum_of_losses_is_not_searched() -> None:
    train = {"loss": ["Focal", "Dice"]}
    with pytest.raises(TomoscoutError, match=r"^explore: train\.loss is a sum of 2, .*; set loss\.name, .* to null"):
        checked(train)
    names = [entry.name for entry in space_of().entries if entry.name.startswith("loss.")]
    study = checked(train, space=dict.fromkeys(names))
    options = study.options_of(drawn(study.space, 1, study.base))
    assert [loss.name for loss in options.loss] == ["Focal", "Dice"]


def test_a_family_alone_is_not_searched() -> None:
    assert entry_of(space_of(networks="UNet"), "network").domain == Fixed(value="UNet")
    assert entry_of(space_of(networks=["UNet"]), "network").domain == Fixed(value="UNet")
    several = space_of(networks=["UNet", "MedNeXt"])
    assert set(entry_of(several, "network").domain.choices) == {"UNet", "MedNeXt"}  # type: ignore[union-attr]
    # As YAML reads a family without changes.
    assert space_of(networks={"UNet": None, "MedNeXt": None}) == several


def test_the_order_in_the_configuration_does_not_matter() -> None:
    changes = {"steps": {"low": 10, "high": 20}, "accumulation": 2, "warmup": 0.1}
    backwards = dict(reversed(changes.items()))
    one = space_of(networks={"UNet": {}, "DynUNet": {}}, space=changes)
    assert one.to_json() == space_of(networks={"DynUNet": {}, "UNet": {}}, space=backwards).to_json()


# Conditions


@given(st.integers(0, 10**9))
def test_an_entry_counts_where_its_conditions_hold(seed: int) -> None:
    space = space_of(
        networks=["UNet", "SegResNet"],
        space={
            "steps": {"low": 10, "high": 20, "when": {"batch_size": [4, 8], "schedule": ["plateau"]}},
            "schedule": {"choices": ["plateau", "cosine"], "when": {"network": ["UNet"]}},
        },
    )
    values = drawn(space, seed)
    for name, domain, when in space.entries:
        counts = all(condition in values and values[condition] in allowed for condition, allowed in when.items())
        assert (name in values) == counts
        assert name not in values or holds(domain, values[name])
    assert {name.split(".")[0] for name in values} & {"UNet", "SegResNet"} == {values["network"]}


def test_entries_follow_those_they_depend_on() -> None:
    space = space_of(
        space={
            "batch_size": {"choices": [4], "when": {"steps": [10]}},
            "steps": {"choices": [10, 20], "when": {"warmup": [0.1, 0.2]}},
            "warmup": {"choices": [0.1, 0.3]},
        }
    )
    names = [entry.name for entry in space.entries]
    assert names.index("warmup") < names.index("steps") < names.index("batch_size")


# A family of the user's own

OWN = """
from typing import Any
from pydantic import Field
from tomoscout.networks.options import NetworkOptions

class Options(NetworkOptions):
    channels: list[int] = Field(default=[4, 4], min_length=1)
    kind: str = "plain"
    extra: int = 0

    @classmethod
    def from_search(cls, values: dict[str, Any]) -> dict[str, Any]:
        rest = dict(values)
        channels = [rest.pop("width")] * rest.pop("depth")
        return {**rest, "channels": channels}

SPACE = {
    "width": {"choices": [4, 8]},
    "depth": {"low": 1, "high": 3},
    "extra": {"low": 1, "high": 5, "when": {"kind": ["rich"]}},
    "kind": {"choices": ["plain", "rich"]},
}

def build(options, inputs, outputs, dimensions):
    raise NotImplementedError
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "my_network.py"
    path.write_text(OWN)
    return str(path)


def test_a_file_of_the_user_is_searched_by_its_own_rules(own: str) -> None:
    study = checked(networks={own: {"depth": 2}, "UNet": {}})
    seen = set()
    for seed in range(100):
        values = drawn(study.space, seed)
        network = study.options_of(values).network.model_dump()
        if network["family"] == own:
            assert network["channels"] == [values[f"{own}.width"]] * 2
            # Conditions in the file are on its own entries.
            assert (f"{own}.extra" in values) == (network["kind"] == "rich")
            assert network["extra"] == values.get(f"{own}.extra", 0)
            seen.add((network["channels"][0], network["kind"]))
    assert seen == set(itertools.product((4, 8), ("plain", "rich")))


def test_a_file_without_a_space_is_searched_by_the_training_alone(own: str) -> None:
    Path(own).write_text(OWN.split("    @classmethod")[0] + OWN[OWN.index("\ndef build") :])
    study = checked(networks={own: {"extra": {"low": 0, "high": 9}}})
    assert {entry.name for entry in study.space.entries} == {"network", f"{own}.extra", *Train.SPACE}
    values = drawn(study.space, 1)
    assert study.options_of(values).network.model_dump()["extra"] == values[f"{own}.extra"]


def test_a_file_whose_rules_lack_an_entry_is_refused_in_one_line(own: str) -> None:
    with pytest.raises(TomoscoutError, match=r"with network .*my_network\.py: depth is missing beside width, kind;"):
        checked(networks={own: {"depth": None}})


# What is refused


@pytest.mark.parametrize(
    ("explore", "message"),
    [
        ({"space": {"learning_rate": {"low": 1}}}, r"explore\.space\.learning_rate\.high: Field required"),
        (
            {"space": {"learning_rate": {"low": 1, "hihg": 2}}},
            r"learning_rate: unknown key 'hihg'; did you mean 'high'",
        ),
        ({"space": {"learning_rate": {"low": 3, "high": 2}}}, r"learning_rate: low 3 and high 2 are no range"),
        ({"space": {"learning_rate": {"low": 1, "high": math.inf}}}, r"learning_rate.high: expected a finite number"),
        ({"space": {"learning_rate": {"high_": 2}}}, r"space\.learning_rate: expected low and high, or choices, found"),
        ({"space": {"learning_rate": {}}}, r"space\.learning_rate: expected low and high, or choices, found nothing"),
        ({"space": {"learning_rate": {"low": 0, "high": 1, "log": True}}}, r"learning_rate: log needs a low above 0"),
        ({"space": {"steps": {"low": 1, "high": 9, "step": 0}}}, r"steps: step 0, expected more than 0"),
        ({"space": {"batch_size": {"choices": []}}}, r"explore\.space\.batch_size\.choices: "),
        ({"space": {"steps": {"choices": [1], "when": {"patch": None}}}}, r"space\.steps\.when\.patch: .* found None"),
        ({"networks": ["UNett"]}, r"explore\.networks: unknown family 'UNett'; did you mean 'UNet'\?"),
        ({"networks": ["no/such.py"]}, r"explore\.networks: family 'no/such\.py': no such file"),
        ({"networks": [{"UNet": {}}]}, r"explore\.networks: Input should be a valid dictionary"),
        ({"networks": []}, r"explore\.networks: "),
        ({"sampler": "tpee"}, r"explore\.sampler: "),
    ],
)
def test_a_configuration_that_is_no_space_is_refused(explore: dict[str, Any], message: str) -> None:
    with pytest.raises(TomoscoutError, match=rf"^config\.yaml: .*{message}") as caught:
        configured(**explore)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("explore", "message"),
    [
        ({"space": {"learning_rat": 1}}, r"explore\.space\.learning_rat: no option of train; did you mean 'learning_r"),
        ({"space": {"learning_rate.x": 1}}, r"explore\.space\.learning_rate\.x: no option of train"),
        (
            {"space": {"augmentation.rotat": 1}},
            r"explore\.space\.augmentation\.rotat: .*did you mean 'augmentation\.rot",
        ),
        (
            {"space": {"augmentation": 1}},
            r"explore\.space\.augmentation: no option of train",
        ),
        ({"space": {"loss": "Dice"}}, r"explore\.space\.loss: no option of train; did you mean 'loss\.name'\?"),
        ({"space": {"loss.names": "Dice"}}, r"explore\.space\.loss\.names: .*did you mean 'loss\.name'\?"),
        ({"space": {"UNet.dropout": 0.1}}, r"explore\.space\.UNet\.dropout: no option of train"),
        ({"networks": {"UNet": {"dropot": 0.1}, "DynUNet": {}}}, r"explore\.networks\.UNet\.dropot: .*mean 'dropout'"),
        ({"networks": {"UNet": {"family": "UNet"}}}, r"explore\.networks\.UNet\.family: no option of UNet"),
        (
            {"space": {"steps": {"choices": [1], "when": {"wamup": [0]}}}},
            r"condition of steps names wamup, which is no",
        ),
        ({"space": {"steps": {"choices": [1], "when": {"steps": [1]}}}}, r"explore\.space: steps depends on itself"),
        ({"networks": {"UNet": {"width": 8, "levels": None}}}, r"with network UNet: levels is missing beside "),
        ({"networks": {"UNet": {"width": None}}}, r"with network UNet: width is missing beside "),
        ({"networks": {"MedNeXt": {"blocks": None}, "UNet": {}}}, r"with network MedNeXt: blocks is missing beside "),
        (
            {"networks": {"UNet": {"channels": [4, 8], "strides": [2]}}},
            r"with network UNet: channels is made from what",
        ),
        ({"networks": {"UNet": {"dropout": 1.5}, "DynUNet": {}}}, r"with network UNet: dropout: .*less than 1"),
        (
            {"space": {"loss.name": {"choices": ["Dise", "Dice"]}}},
            r"explore: no training .* with loss\.name Dise: loss",
        ),
        ({"space": {"background_fraction": {"low": 0.0, "high": 3.0}}}, r"with background_fraction 3\.0: background_f"),
        ({"space": {"patch": {"choices": [48, [40, 41, 40]]}}}, r"with patch \[40, 41, 40\]: patch \[40, 41, 40\]"),
        ({"space": {"patch": 0.5}}, r"patch"),
    ],
)
def test_a_space_in_which_a_value_cannot_be_trained_is_refused(explore: dict[str, Any], message: str) -> None:
    with pytest.raises(TomoscoutError, match=message) as caught:
        checked(**explore)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("explore", "message"),
    [
        ({"space": {"steps": {"low": 1, "high": 9, "step": 0.5}}}, r"explore\.space\.steps: step 0\.5, "),
        ({"space": {"batch_size": {"low": 2.5, "high": 4}}}, r"explore\.space\.batch_size: low 2\.5, "),
        (
            {"networks": {"UNet": {"levels": {"low": 2, "high": 4, "step": 0.5}}}},
            r"explore\.networks\.UNet\.levels: step 0\.5, ",
        ),
    ],
)
def test_fractions_of_what_is_whole_are_refused(explore: dict[str, Any], message: str) -> None:
    with pytest.raises(TomoscoutError, match=rf"^{message}expected a whole number$"):
        space_of(**explore)


@pytest.mark.parametrize("name", [*Train.marked(NotSearched), "network.channels"])
def test_what_is_not_to_be_searched_says_why(name: str) -> None:
    reason = Train.marked(NotSearched)[name.split(".")[0]].why
    with pytest.raises(TomoscoutError, match=rf"^explore\.space\.{name}: not to be searched: {reason}$"):
        space_of(space={name: 1})


def test_every_option_of_train_is_searched_or_refused() -> None:
    fields = [
        f"{name}"
        for name in Train.model_fields
        if name not in (*Train.marked(NotSearched), "loss", "augmentation", "picking")
    ]
    for name in [
        *fields,
        "picking.smoothing",
        "augmentation.mixup",
        "class_weights.virus.like",
        "loss.weight",
    ]:
        assert entry_of(space_of(space={name: {"choices": [1]}}), name)
    with pytest.raises(TomoscoutError, match="no option of train"):
        space_of(space={"gpus": 1})


def test_the_command_line_says_it_in_one_line(small: SmallProject) -> None:
    for run in ("a", "b"):
        small.add_run(run)
        small.add_picks(run, "ribosome:expert/0", [(100, 100, 100)])
    small.configure(split={"train": ["a"], "validate": ["b"]}, explore={"networks": {"UNet": {"dropout": 2.0}}})
    succeeded(small.list_runs())
    message = error_of(small_explore(small, "start", "--study", small.folder / "results/explore/x"))
    assert message.startswith("explore: no training is possible with network UNet: dropout: ")
    small.configure(explore={"space": {"stepss": 1}})
    assert error_of(tomoscout("explore", "space", "--config", small.settings)) == (
        "explore.space.stepss: no option of train; did you mean 'steps'?"
    )


def small_explore(small: SmallProject, command: str, *arguments: str | Path) -> Any:
    options = ("--config", small.settings, "--inventory", small.inventory)
    return tomoscout("explore", command, *options, *arguments)


# Positions between 0 and 1, against Optuna's own distributions


@st.composite
def numbers(draw: st.DrawFn) -> Number:
    if draw(st.booleans()):
        low, high = sorted((draw(st.integers(-50, 300)), draw(st.integers(-50, 300))))
        if low > 0 and draw(st.booleans()):
            return Number(low=low, high=high, log=True)
        return Number(low=low, high=high, step=draw(st.none() | st.integers(1, 60)))
    tenths = st.integers(-40, 400).map(lambda tenths: tenths / 10)
    low, high = sorted((draw(tenths), draw(tenths)))
    if low > 0 and draw(st.booleans()):
        return Number(low=low, high=high, log=True)
    return Number(low=low, high=high, step=draw(st.none() | st.integers(1, 50).map(lambda tenths: tenths / 10)))


def distribution_of(domain: Number) -> IntDistribution | FloatDistribution:
    """As Optuna's own `suggest` would have it, with its range cut to whole steps."""
    if domain.is_whole:
        return IntDistribution(int(domain.low), int(domain.high), domain.log, int(domain.step or 1))
    return FloatDistribution(domain.low, domain.high, domain.log, domain.step)


positions = st.floats(0, 1, exclude_max=True)


@pytest.mark.filterwarnings("ignore:The distribution is specified by")
@given(numbers(), positions, positions)
def test_positions_are_values_that_optuna_takes(domain: Number, one: float, other: float) -> None:
    distribution = distribution_of(domain)
    values = [domain.at(position) for position in (0.0, *sorted((one, other)), 1.0)]
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in values)
    assert all(isinstance(value, int if domain.is_whole else float) for value in values)
    assert values == sorted(values)
    assert values[0] == pytest.approx(distribution.low)
    assert values[-1] == pytest.approx(distribution.high)


@pytest.mark.filterwarnings("ignore:The distribution is specified by")
@given(numbers(), positions)
def test_a_value_has_the_position_it_came_from(domain: Number, position: float) -> None:
    value = domain.at(position)
    there = domain.position(value)
    assert 0 <= there <= 1
    assert domain.at(there) == (value if domain.is_whole else pytest.approx(value))
    if not domain.is_whole and domain.step is None and domain.high > domain.low:
        assert there == pytest.approx(position, abs=1e-9)


@pytest.mark.filterwarnings("ignore:The distribution is specified by")
@given(numbers())
def test_values_in_steps_have_equal_shares(domain: Number) -> None:
    assume(not domain.log and (domain.is_whole or domain.step is not None))
    distribution = distribution_of(domain)
    assert distribution.step is not None
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    middles = [domain.at((k + 0.5) / count) for k in range(count)]
    assert middles == pytest.approx([distribution.low + k * distribution.step for k in range(count)])
    assert [domain.position(value) for value in middles] == pytest.approx([(k + 0.5) / count for k in range(count)])


def test_whole_orders_of_magnitude_have_their_share() -> None:
    """As Optuna draws them: a half beyond either end, rounded."""
    domain = Number(low=1, high=100, log=True)
    drawn_values = [domain.at((k + 0.5) / 10_000) for k in range(10_000)]
    share = drawn_values.count(1) / 10_000
    assert share == pytest.approx(math.log(1.5 / 0.5) / math.log(100.5 / 0.5), abs=1e-3)


@given(st.integers(1, 9), positions)
def test_choices_have_equal_shares(count: int, position: float) -> None:
    domain = Choice(choices=[[n] for n in range(count)])
    assert domain.at(position) == [int(position * count)]
    assert domain.at(1.0) == [count - 1]
    labels = [label(value) for value in domain.choices]
    CategoricalDistribution(labels)
    assert [json.loads(text) for text in labels] == domain.choices


def test_plain_values_are_their_own_labels() -> None:
    for value in (None, True, 3, 0.5, "relu"):
        assert label(value) is value


# From a point to a training


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25)
@given(seed=st.integers(0, 10**9), shape=st.sampled_from([SHAPE, THIN, (8, 40, 40), (200, 1000, 1000)]))
def test_every_point_is_a_training(family: str, seed: int, shape: tuple[int, int, int]) -> None:
    space = space_of(networks=[family])
    values = drawn(space, seed)
    options = train_options(values, Train(), shared(shape))
    assert options.network.family == family
    assert options.learning_rate == values["learning_rate"]
    assert options.augmentation.tilt == values["augmentation.tilt"]
    assert options.loss[0].model_dump()["name"] == values["loss.name"]
    assert len(options.loss) == 1
    assert math.ceil(options.steps / options.validate_every) == 10  # type: ignore[operator]
    steps, smallest = options.network.size_step(), options.network.smallest_size()
    for size, step, least, length in zip(options.crop, steps, smallest, shape, strict=True):
        assert size % step == 0
        assert least <= size <= max(least, min(values["patch"], length))
        # As large as it may be.
        assert size + step > min(values["patch"], length)
    # A study's file gives the same.
    assert Train.model_validate_json(options.model_dump_json()) == options


@pytest.mark.parametrize("family", FAMILIES)
def test_every_point_is_a_network_that_takes_its_patch(family: str) -> None:
    space = space_of(networks=[family])
    for seed in range(4):
        options = train_options(drawn(space, seed), Train(), shared((16, 70, 70)))
        with torch.device("meta"):
            network = build_network(options.network, 3).to("meta").train()
            outputs = network(torch.zeros(2, 1, *options.crop))
        full = outputs[0] if isinstance(outputs, list) else outputs
        assert full.shape == (2, 3, *options.crop)


@pytest.mark.parametrize(
    ("size", "shape", "patch"),
    [
        (96, (64, 192, 192), [64, 96, 96]),
        (100, (200, 200, 200), [96, 96, 96]),
        (96, (20, 192, 50), [16, 96, 48]),
        (64, (5, 192, 192), [8, 64, 64]),
        (48, (64, 9, 192), [48, 16, 48]),
        (4, (64, 64, 64), [8, 16, 16]),
    ],
)
def test_a_patch_is_a_cube_cut_to_the_tomogram(size: int, shape: Sequence[int], patch: list[int]) -> None:
    """Three halvings: multiples of 8, in the plane at least 16."""
    values = {"network": "UNet", "UNet.width": 8, "UNet.levels": 4, "UNet.bottleneck_levels": 1, "patch": size}
    assert train_options(values, Train(), shared(shape)).patch == patch


def test_a_patch_of_three_numbers_is_taken_as_it_is() -> None:
    values = {"network": "UNet", "patch": [16, 32, 64]}
    assert train_options(values, Train(), shared()).patch == [16, 32, 64]
    with pytest.raises(ValueError, match=r"^patch \[15, 32, 64\] \(z, y, x\) must be multiples"):
        train_options({**values, "patch": [15, 32, 64]}, Train(), shared())


@pytest.mark.parametrize(("every", "steps", "expected"), [(None, 100, 10), (None, 101, 11), (30, 100, 30)])
def test_trials_are_validated_as_often_as_they_should(every: int | None, steps: int, expected: int) -> None:
    base = Train(steps=steps, validate_every=every)
    assert train_options({"network": "UNet"}, base, shared()).validate_every == expected


def test_trials_see_as_many_voxels_as_the_training_that_is_configured() -> None:
    base = Train(steps=1000, batch_size=8, patch=[64, 64, 64])

    def steps(budget: str = "voxels", base: Train = base, **values: Any) -> tuple[int, int | None]:
        found = train_options({"network": "UNet", **values}, base, shared((300, 300, 300), budget))
        return found.steps, found.validate_every

    assert steps() == (1000, 100)
    assert steps(batch_size=16) == (500, 50)
    assert steps(batch_size=4, patch=128) == (250, 25)
    assert steps(patch=[32, 64, 64]) == (2000, 200)
    # As many in all validations; and never fewer than there are validations.
    assert steps(batch_size=48) == (170, 17)
    assert steps(batch_size=48, patch=160) == (10, 1)
    assert steps(batch_size=4096, patch=160) == (10, 1)
    assert steps("steps", batch_size=16) == (1000, 100)
    assert steps(batch_size=16, steps=300) == (300, 30)
    # Where an interval is given, those of other lengths are validated as often.
    often = base.model_copy(update={"validate_every": 70})
    assert steps(base=often) == (1000, 70)
    assert steps(base=often, batch_size=16) == (500, 50)
    # What `auto` means is what the network plans.
    planned = Train(steps=1000, batch_size=8, patch="auto")
    assert steps(base=planned, patch=96) == (1000, 100)
    assert steps(base=planned, batch_size=4) == (2000, 200)


def test_options_that_do_not_go_together_are_named_in_one_line() -> None:
    values = {"network": "UNet", "patch": 64, "augmentation.rotate90": True}
    with pytest.raises(ValueError, match=r"^augmentation\.rotate90 needs a patch as wide as it is high") as caught:
        train_options(values, Train(), shared((64, 32, 64)))
    assert "\n" not in str(caught.value)


# Files and terminal


@pytest.mark.parametrize(
    "explore",
    [
        {},
        {"networks": list(FAMILIES)},
        {"networks": {"UNet": {"dropout": None, "width": 8}, "SegResNet": {"resolution": {"value": None}}}},
        {"space": {"patch": None, "loss.name": "Dice", "steps": {"low": 10, "high": 20}}},
        {"space": {"patch": {"low": 48, "high": 96, "step": 16, "when": {"network": ["UNet"]}}}},
        {"space": {"learning_rate": {"low": "1e-6", "high": "1e-5"}, "class_weights": {"value": {"ribosome": 2.0}}}},
        {"space": {"loss.beta": {"value": 0.5, "when": {"loss.name": ["Tversky"]}}, "class_weights.ribosome": 3}},
    ],
)
def test_what_is_printed_is_the_same_space_as_a_configuration(explore: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    values = {"projects": {"demo": "demo.json"}, "tomograms": ["wbp@10.0"], "explore": explore}
    config.write_text(yaml.safe_dump(values))
    printed = succeeded(tomoscout("explore", "space", "--config", config)).stdout
    again = parse_config({**values, **yaml.safe_load(printed)}, "printed")
    assert SearchSpace.of(again.explore, Train) == space_of(**explore)
    config.write_text(yaml.safe_dump({**values, **yaml.safe_load(printed)}, sort_keys=False))
    assert succeeded(tomoscout("explore", "space", "--config", config)).stdout == printed


def test_the_space_of_a_file_of_the_user_is_printed_alike(own: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    values = {"projects": {"demo": "demo.json"}, "tomograms": ["wbp@10.0"], "explore": {"networks": [own]}}
    config.write_text(yaml.safe_dump(values))
    printed = yaml.safe_load(succeeded(tomoscout("explore", "space", "--config", config)).stdout)
    assert SearchSpace.of(parse_config({**values, **printed}, "printed").explore, Train) == space_of(networks=[own])


def test_without_a_configuration_the_defaults_are_printed() -> None:
    printed = yaml.safe_load(succeeded(tomoscout("explore", "space")).stdout)["explore"]
    assert set(printed["space"]) == set(Train.SPACE)
    assert set(printed["networks"]) == set(configured().explore.networks)


def test_a_space_survives_the_file_of_its_study() -> None:
    space = space_of(networks=list(FAMILIES), space={"patch": [32, 32, 32], "steps": {"choices": [10, 20]}})
    assert SearchSpace.parse(json.loads(json.dumps(space.to_json()))) == space


@pytest.mark.parametrize(
    ("explore", "valid"),
    [
        ({"networks": "UNet"}, True),
        ({"networks": ["UNet", "SegResNet"]}, True),
        ({"networks": {"UNet": None, "SegResNet": {"init_filters": 8, "blocks_down": {"choices": [[1, 2]]}}}}, True),
        ({"space": {"patch": None, "batch_size": 4, "loss.name": "Dice", "warmup": {"low": 0.0, "high": 0.1}}}, True),
        ({"space": {"loss.beta": {"value": 0.5, "when": {"loss.name": ["Tversky"]}}}}, True),
        ({"space": {"warmup": {"low": 0.0, "hihg": 0.1}}}, False),
        ({"space": {"warmup": {"low": 0.0}}}, False),
        ({"space": {"loss.beta": {"value": 0.5, "when": "Tversky"}}}, False),
        ({"networks": 3}, False),
    ],
)
def test_editors_know_what_an_entry_may_be(explore: dict[str, Any], valid: bool) -> None:
    from jsonschema import Draft202012Validator

    values = {"projects": {"demo": "demo.json"}, "tomograms": ["wbp@10.0"], "explore": explore}
    assert Draft202012Validator(json.loads(json_schema())).is_valid(values) == valid
    if valid:
        parse_config(values, "config.yaml")
    else:
        with pytest.raises(TomoscoutError):
            parse_config(values, "config.yaml")
