"""The configuration: what is accepted, what is refused and how, and the files written from its definition."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import succeeded, tomoscout
from tomoscout.config import Config, Source, TomogramUri, load_config, parse_config
from tomoscout.errors import TomoscoutError
from tomoscout.networks import FAMILIES, parse_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.reference import json_schema
from tomoscout.sections import Section
from tomoscout.training_options import LOSSES, CrossEntropy, Dice, Focal, Train

ROOT = Path(__file__).parent.parent
LEAST: dict[str, Any] = {
    "projects": {"mydata": "copick.json"},
    "tomograms": ["wbp@10.0"],
    "targets": {"picks": "data-portal/0"},
}


def parse(**sections: Any) -> Config:
    return parse_config(LEAST | sections, "my.yaml")


def refusal(**sections: Any) -> str:
    with pytest.raises(TomoscoutError) as caught:
        parse(**sections)
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert "\n" not in message
    return message


# What is accepted


def test_the_least_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("projects:\n  mydata: copick.json\ntomograms: [wbp@10]\ntargets:\n  picks: data-portal/0\n")
    config = load_config(path)
    assert config.tomograms == ["wbp@10.0"]
    assert config.voxel_spacing == 10.0
    assert config.segment_tomogram == "wbp@10.0"
    assert config.session == config.train.name


def test_the_lists_of_split_go_by_the_names_users_know() -> None:
    split = parse(split={"train": ["a"], "validate": ["b"], "test": ["c"]}).split
    assert (split.train, split.validate_, split.test) == (["a"], ["b"], ["c"])
    assert parse(split={"validate": ["b"]}).model_dump(by_alias=True)["split"]["validate"] == ["b"]


def test_a_configuration_comes_back_from_what_is_written_of_it() -> None:
    config = parse(split={"validate": ["b"], "exclude": ["c"]}, tomograms=["wbp@10", "denoised@10.0"])
    assert parse_config(config.model_dump(mode="json", by_alias=True), "written") == config


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0.8, [0.8]),
        (1, [1.0]),
        ("0.8", [0.8]),
        ("0.7,0.1", [0.7, 0.1]),
        ("0.7, 0.2", [0.7, 0.2]),
        ([0.7, 0.3], [0.7, 0.3]),
    ],
    ids=str,
)
def test_ratios(given: object, expected: list[float]) -> None:
    assert parse(split={"ratios": given}).split.ratios == expected


@pytest.mark.parametrize("ratios", [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]], ids=str)
def test_ratios_that_add_up_to_one_but_for_rounding(ratios: list[float]) -> None:
    assert parse(split={"ratios": ratios}).split.ratios == ratios


def test_excluded_runs_with_and_without_reasons() -> None:
    assert parse(split={"exclude": {"a": "too thick"}}).split.exclude == {"a": "too thick"}
    assert parse(split={"exclude": ["a", "b"]}).split.exclude == dict.fromkeys("ab", "excluded in the config")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("ribosome", Source("ribosome", None, None)),
        ("ribosome:data-portal/0", Source("ribosome", "data-portal", "0")),
        ("ribosome,data-portal,0", Source("ribosome", "data-portal", "0")),
        (" ribosome ", Source("ribosome", None, None)),
    ],
)
def test_sources(text: str, source: Source) -> None:
    assert Source.parse(text) == source
    assert Source.parse(str(source)) == source


@pytest.mark.parametrize("text", ["", "a:b", "a:b/c/d", "a,b", "a,b,c,d", "a:b,c", "a b", "a/b", ":b/c"])
def test_what_is_no_source(text: str) -> None:
    with pytest.raises(ValueError, match="is not a source; expected name, name:user/session or name,user,session"):
        Source.parse(text)


def test_tomogram_uris() -> None:
    assert TomogramUri.parse("wbp@10") == TomogramUri("wbp", 10.0)
    assert str(TomogramUri.parse("wbp-denoised@13.48")) == "wbp-denoised@13.48"
    for text in ("wbp", "wbp@", "@10", "wbp@ten", "wbp@10 Å"):
        with pytest.raises(ValueError, match="is not a tomogram URI; expected algorithm@spacing"):
            TomogramUri.parse(text)


# Options of a training


def test_a_loss_by_name_as_a_mapping_or_several() -> None:
    assert parse(train={"loss": "Dice"}).train.loss == [Dice()]
    assert parse(train={"loss": {"name": "Focal", "gamma": 3}}).train.loss == [Focal(gamma=3)]
    both = parse(train={"loss": ["Dice", {"name": "CrossEntropy", "weight": 0.5}]}).train.loss
    assert both == [Dice(), CrossEntropy(weight=0.5)]


@pytest.mark.parametrize(
    ("metric", "beta", "label"), [("avg_f1", 1.0, None), ("fBeta4", 4.0, None), ("fBeta0.5_class12", 0.5, 12)]
)
def test_metrics(metric: str, beta: float, label: int | None) -> None:
    options = parse(train={"best_metric": metric}).train
    assert (options.beta, options.best_class) == (beta, label)


def test_the_patch_of_a_fine_tuning_is_left_to_the_network_of_its_base() -> None:
    assert parse(train={"patch": [36, 36, 36], "base": "somewhere"}).train.crop == (36, 36, 36)
    assert parse(train={"patch": "auto"}).train.patch == "auto"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_from_what_is_written_of_it(family: str) -> None:
    config = parse(train={"network": {"family": family}, "patch": "auto", "loss": ["Tversky", "Focal"]})
    assert config.train.network == parse_network({"family": family})
    assert parse_config(config.model_dump(mode="json", by_alias=True), "written") == config
    assert Train.model_validate(config.train.model_dump()) == config.train


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_option_of_a_family_is_refused_with_the_nearest(family: str) -> None:
    for key in type(parse_network({"family": family})).model_fields:
        message = refusal(train={"network": {"family": family, key + "x": 1}})
        assert message == f"my.yaml: train.network: unknown key '{key}x'; did you mean '{key}'?"


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_an_unknown_option_of_a_loss_is_refused_with_the_nearest(loss: type[Section]) -> None:
    for key in loss.model_fields:
        message = refusal(train={"loss": {"name": loss.__name__, key + "x": 1}})
        assert message == f"my.yaml: train.loss.0.{loss.__name__}: unknown key '{key}x'; did you mean '{key}'?"


def test_several_voxel_spacings() -> None:
    config = parse(tomograms=["a@10", "b@5", "c@10.0"])
    assert (config.voxel_spacing, config.target_spacings) == (10.0, [10.0, 5.0])
    assert parse(tomograms=["a@10", "b@5"], segment={"tomogram": "d@5.0"}).voxel_spacing == 5.0


def test_sessions_of_predictions() -> None:
    assert parse(train={"name": "mine"}).session == "mine"
    assert parse(train={"name": "mine"}, segment={"models": "folds"}).session == "mine-folds"
    assert parse(segment={"models": ["/models/my_unet (2)", "other"]}).session == "my-unet--2-"
    assert parse(segment={"models": ["other"]}, localize={"session": "best"}).session == "best"


# What is refused


def sections(
    section: type[Section] = Config, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Every section by its path, with the keys a user may write."""
    yield path, [field.alias or name for name, field in section.model_fields.items()]
    for name, field in section.model_fields.items():
        kind = field.annotation
        if kind is NetworkOptions:
            # Of the family that is the default.
            kind = type(field.get_default(call_default_factory=True))
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from sections(kind, (*path, name))


@pytest.mark.parametrize(("path", "keys"), list(sections()), ids=lambda value: ".".join(value) if value else "top")
def test_an_unknown_key_is_refused_with_the_nearest(path: tuple[str, ...], keys: list[str]) -> None:
    for key in keys:
        misspelt = key + "x"
        values: dict[str, Any] = {misspelt: 1}
        for part in reversed(path):
            values = {part: values}
        message = refusal(**values)
        where = ".".join(path) or "top level"
        assert message == f"my.yaml: {where}: unknown key '{misspelt}'; did you mean '{key}'?"


def test_a_key_like_no_other_is_refused_with_all() -> None:
    message = refusal(split={"zzzzzz": 1})
    assert message.startswith("my.yaml: split: unknown key 'zzzzzz'; known keys: name, ratios, train, validate, test")
    assert "validate_" not in message


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("train.steps", "many", "many"),
        ("train.steps", 0, 0),
        ("train.learning_rate", -1, -1),
        ("train.device", "tpu", "tpu"),
        ("train.patch", "automatic", "automatic"),
        ("train.patch", [64.5, 64, 64], 64.5),
        ("train.freeze", "head", "head"),
        ("train.precision", "fp8", "fp8"),
        ("train.schedule", "linear", "linear"),
        ("train.loss", [], []),
        ("train.loss", 5, 5),
        ("train.harder_classes", 2, 2),
        ("train.class_weights", {"ribosome": 0}, 0),
        ("train.augmentation.mixup", 1.5, 1.5),
        ("train.seed", -1, -1),
        ("tracking.enabled", "perhaps", "perhaps"),
        ("segment.models", "unet", "unet"),
        ("train.network", "UNet", None),
        ("train.network.dropout", 1.5, 1.5),
        ("train.augmentation.flip", "maybe", "maybe"),
        ("train", 5, 5),
        ("targets.radius_scale", 0, 0),
        ("targets.radius_scale", "big", "big"),
        ("targets.runs", "a", "a"),
        ("split.folds", 1, 1),
        ("split.ratios", [0.7, -0.1], -0.1),
        ("split.exclude", {"a": 1}, 1),
        ("segment.overlap", 2, 2),
        ("segment.tile", [64, 64], [64, 64]),
        ("localize.threshold", {"ribosome": 3}, {"ribosome": 3}),
        ("evaluate.runs", "some", "some"),
        ("projects", {}, {}),
        ("projects", "copick.json", "copick.json"),
        ("tomograms", "wbp@10.0", "wbp@10.0"),
        ("runs_per_job", 0, 0),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_with_key_and_value(key: str, value: object, found: object) -> None:
    section, *inner = key.split(".")
    values: Any = value
    for part in reversed(inner):
        values = {part: values}
    message = refusal(**{section: values})
    # The key as it stands in the file, or one inside of it.
    assert re.match(rf"my\.yaml: {re.escape(key)}(\.\w+)?: ", message), message
    assert message.endswith(f", found {value if found is None else found!r}")


@pytest.mark.parametrize("missing", ["projects", "tomograms"])
def test_what_must_be_given(missing: str) -> None:
    with pytest.raises(TomoscoutError, match=f"^my.yaml: {missing}: Field required$"):
        parse_config({key: value for key, value in LEAST.items() if key != missing}, "my.yaml")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"tomograms": ["wbp"]}, "tomograms: 'wbp' is not a tomogram URI; expected algorithm@spacing"),
        (
            {"tomograms": ["a@10", "b@5"], "segment": {"tomogram": "c@7.5"}},
            "top level: segment.tomogram c@7.5 has another voxel spacing than all of tomograms: a@10.0, b@5.0",
        ),
        ({"segment": {"tomogram": "wbp"}}, "segment.tomogram: 'wbp' is not a tomogram URI"),
        ({"targets": {"picks": "ribosome"}}, "targets.picks: 'ribosome' is not user/session"),
        ({"targets": {"picks": ["a:b"]}}, "targets.picks: 'a:b' is not a source"),
        ({"targets": {"segmentations": ["a b"]}}, "targets.segmentations: 'a b' is not a source"),
        ({"split": {"ratios": [0.7, 0.4]}}, "split.ratios: [0.7, 0.4] are not one to three fractions of at most 1"),
        ({"split": {"ratios": "0.7,most"}}, "split.ratios: could not convert string to float: 'most'"),
        ({"split": {"folds": 3, "leave_one_out": True}}, "split: give folds or leave_one_out, not both"),
        ({"split": {"folds": 3, "train": ["a"]}}, "split: folds choose train and validation themselves"),
        ({"split": {"leave_one_out": True, "validate": ["a"]}}, "split: folds choose train and validation"),
        ({"split": {"group_pattern": "grid"}}, "split.group_pattern: 'grid' must hold exactly one (group)"),
        ({"split": {"group_pattern": "(grid"}}, "split.group_pattern: '(grid' is not a regular expression"),
        ({"train": {"network": {"channels": [8, 16], "strides": [2, 2]}}}, "train.network: 2 channels need 1 strides"),
        (
            {"train": {"patch": [64, 60, 64]}},
            "train: patch [64, 60, 64] (z, y, x) must be multiples of [8, 8, 8] and at least [8, 16, 16] for",
        ),
        ({"train": {"patch": [64, 64, 0]}}, "train: patch [64, 64, 0] (z, y, x) must be multiples of [8, 8, 8] and at"),
        ({"train": {"patch": [64, 64]}}, "train: patch [64, 64] must be three numbers of voxels, z, y, x"),
        (
            {"train": {"patch": [16, 64, 32], "augmentation": {"rotate90": True}}},
            "train: augmentation.rotate90 needs a patch as wide as it is high, found [16, 64, 32]",
        ),
        (
            {"train": {"network": {"family": "ViT"}}},
            "train.network: unknown family 'ViT'; known: UNet, AttentionUNet, ",
        ),
        ({"train": {"network": {"family": "unet"}}}, "train.network: unknown family 'unet'; did you mean 'UNet'?"),
        ({"train": {"network": {"family": "nowhere.py"}}}, "train.network: family 'nowhere.py': no such file"),
        ({"train": {"network": {"family": 5}}}, "train.network: family must be a name or a Python file, found 5"),
        ({"train": {"loss": "Jaccard"}}, "train.loss.0: Input tag 'Jaccard' found using 'name' does not match any of"),
        (
            {"train": {"loss": {"name": "WeightedFocalTversky", "weight_focal": 0, "weight_tversky": 0}}},
            "train.loss.0.WeightedFocalTversky: weight_tversky and weight_focal are both 0",
        ),
        ({"train": {"best_metric": "f1"}}, "train.best_metric: 'f1' is not avg_f1, fBetaN or fBetaN_classK with"),
        ({"train": {"best_metric": "fBeta4_class0"}}, "train.best_metric: 'fBeta4_class0' is not avg_f1, fBetaN or"),
        ({"train": {"freeze": "body"}}, "train: freeze is for a fine-tuning; give base, a model folder, too"),
        ({"train": {"freeze_steps": 5}}, "train: freeze_steps is for a fine-tuning; give base, a model folder, too"),
        ({"train": {"base_weights": "a"}}, "train: base_weights is for a fine-tuning; give base, a model folder, too"),
        ({"segment": {"models": []}}, "segment.models: an empty list; leave it out to apply the model that is trained"),
        ({"targets": {"session": "my session"}}, "targets.session: a name must hold no space, no underscore"),
        ({"train": {"name": "my_unet"}}, "train.name: a name must hold no space, no underscore"),
    ],
    ids=str,
)
def test_what_does_not_make_sense(values: dict[str, Any], expected: str) -> None:
    assert refusal(**values).startswith(f"my.yaml: {expected}")


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    with pytest.raises(TomoscoutError, match=f"^{path}: no such configuration file$"):
        load_config(path)
    path.write_text("projects: [\n")
    with pytest.raises(TomoscoutError, match=f"^{path}: not valid YAML ") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    path.write_text("- a\n- b\n")
    with pytest.raises(TomoscoutError, match=f"^{path}: expected a mapping of options, found list$"):
        load_config(path)
    path.write_text("")
    with pytest.raises(TomoscoutError, match=f"^{path}: expected a mapping of options, found NoneType$"):
        load_config(path)


# The files beside it


@pytest.mark.parametrize(
    ("form", "file"), [("schema", "schema.json"), ("yaml", "config.yaml"), ("markdown", "README.md")]
)
def test_the_reference_is_written_from_the_definition(form: str, file: str) -> None:
    written = (ROOT / "config" / file).read_text()
    assert succeeded(tomoscout("options", form)).stdout == written, f"config/{file} has drifted; run `make docs`"


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_loads_and_editors_agree(path: Path) -> None:
    assert load_config(path).projects
    assert is_valid(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "sections",
    [
        {"split": {"ratios": 0.8}},
        {"split": {"ratios": "0.7,0.1"}},
        {"split": {"exclude": ["run-001"]}},
        {"split": {"exclude": {"run-001": "ice"}}},
        {"targets": {"picks": "data-portal/0"}},
        {"train": {"loss": "Dice"}},
        {"train": {"network": [{"family": "SegResNet"}]}},
        {"train": {"loss": {"name": "Focal", "gamma": 1}}},
        {"train": {"loss": ["Dice", {"name": "Focal", "weight": 0.5}]}},
    ],
)
def test_editors_know_the_short_forms(sections: dict[str, Any]) -> None:
    parse_config({**LEAST, **sections}, "config.yaml")
    assert is_valid({**LEAST, **sections})


def test_editors_know_what_is_wrong() -> None:
    assert not is_valid({**LEAST, "train": {"loss": "Dise"}})
    assert not is_valid({**LEAST, "split": {"ratios": [0.7, 2]}})


def is_valid(values: dict[str, Any]) -> bool:
    """By the schema that editors use."""
    from jsonschema import Draft202012Validator

    return bool(Draft202012Validator(json.loads(json_schema())).is_valid(values))


def test_the_commented_configuration_holds_the_defaults() -> None:
    values = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config = parse_config(values, "config.yaml")
    assert config == parse_config({key: values[key] for key in LEAST}, "config.yaml")
    for path, keys in sections():
        section = values
        for part in path:
            section = section[part]
        assert list(section) == keys
