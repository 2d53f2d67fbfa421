"""The configuration: what is accepted, what is refused and how, and the files written from its definition."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.project import succeeded, tomoscout
from tomoscout.data.formats.options import ImportedPicks
from tomoscout.learning.losses import LOSSES
from tomoscout.learning.losses.cross_entropy import CrossEntropy
from tomoscout.learning.losses.dice import Dice
from tomoscout.learning.losses.focal import Focal
from tomoscout.learning.losses.tversky import Tversky
from tomoscout.machine.errors import TomoscoutError
from tomoscout.networks import FAMILIES, parse_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.config import Config, load_config, parse_config
from tomoscout.options.names import Source, TomogramUri
from tomoscout.options.other_names import ELSEWHERE
from tomoscout.options.reference import json_schema
from tomoscout.options.sections import Section
from tomoscout.tasks.picking.options import Train
from tomoscout.workflow import Workflow

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize("fractions", [[1, 0.29, 0.5], "1,0.29,0.5"])
def test_the_fractions_of_a_learning_curve_in_any_order(fractions: object) -> None:
    # 100 * 0.29 is not 29 in floating point.
    assert parse(learning_curve={"fractions": fractions}).learning_curve.percents == [29, 50, 100]


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


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: loss.__name__)
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
    assert parse(segment={"models": ["/models/my_unet (2)", "other"]}).session == "my-unet--2"
    assert parse(segment={"models": ["other"]}, localize={"session": "best"}).session == "best"
    assert parse(localize={"segmentation": "my_labels:octopi/1"}).session == "my-labels-octopi-1"
    assert parse(localize={"segmentation": "predict:octopi/1", "session": "best"}).session == "best"


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
        ("split.folds", 1, 1),
        ("split.ratios", [0.7, -0.1], -0.1),
        ("split.exclude", {"a": 1}, 1),
        ("segment.overlap", 2, 2),
        ("segment.tile", [64, 64], [64, 64]),
        ("localize.threshold", {"ribosome": 3}, {"ribosome": 3}),
        ("evaluate.runs", "some", "some"),
        ("projects", {}, {}),
        ("projects", "copick.json", "copick.json"),
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
        ({"localize": {"segmentation": "predict"}}, "localize.segmentation: 'predict' names no user and session"),
        ({"localize": {"mask": "lamella"}}, "localize.mask: 'lamella' names no user and session"),
        ({"localize": {"labels": {"a": 1}}}, "localize: labels are those of segmentation; give that, too"),
        (
            {"localize": {"segmentation": "a:b/1", "method": {"c": "peaks"}}},
            "localize: method: a segmentation has no peaks; expected components or watershed",
        ),
        (
            {"localize": {"segmentation": "a:b/1", "threshold": 0.3}},
            "localize: threshold is of probabilities, and segmentation has none; smallest and largest limit sizes",
        ),
        ({"localize": {"method": "com"}}, "localize.method: "),
        ({"localize": {"border": {"a": -1}}}, "localize.border"),
        ({"targets": {"picks": ["a:b"]}}, "targets.picks: 'a:b' is not a source"),
        ({"targets": {"segmentations": ["a:b"]}}, "targets.segmentations: 'a:b' is not a source"),
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
        ({"train": {"network": {"family": "unets"}}}, "train.network: unknown family 'unets'; did you mean 'UNet'?"),
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
        ({"targets": {"session": "my/session"}}, "targets.session: a name must hold no space, no underscore"),
        ({"learning_curve": {"fractions": [0, 1]}}, "learning_curve.fractions: [0.0, 1.0] are not all hundredths from"),
        ({"learning_curve": {"fractions": [0.125]}}, "learning_curve.fractions: [0.125] are not all hundredths from"),
        ({"learning_curve": {"fractions": [0.5, 0.5]}}, "learning_curve.fractions: [0.5, 0.5]: a fraction is there"),
        ({"learning_curve": {"fractions": [1.5]}}, "learning_curve.fractions.0: Input should be less than or equal to"),
        ({"learning_curve": {"fractions": []}}, "learning_curve.fractions: List should have at least 1 item"),
        ({"learning_curve": {"draws": 0}}, "learning_curve.draws: Input should be greater than or equal to 1"),
        ({"train": {"name": ".."}}, "train.name: a name must hold no space, no underscore"),
        ({"train": {"name": "a{b}"}}, "train.name: a name must hold no space, no underscore"),
        ({"train": {"name": ""}}, "train.name: a name must hold no space, no underscore"),
        ({"train": {"name": "n" * 101}}, "train.name: String should have at most 100 characters"),
        ({"projects": {".": "copick.json"}}, "projects: a name must hold no space, slash or colon, and be more than"),
        ({"projects": {"p": ""}}, "projects.p: String should have at least 1 character"),
        (
            {"pathvars": {"results": "$SCRATCH/me"}},
            "pathvars: results is '$SCRATCH/me': Snakemake takes it as it stands",
        ),
        (
            {"evaluate": {"reference": "alice"}},
            "evaluate.reference: 'alice' is not user/session (such as data-portal/0)",
        ),
        ({"evaluate": {"reference": ["a:b"]}}, "evaluate.reference: 'a:b' is not a source"),
        ({"segment": {"tile": [0, 0, 0]}}, "segment.tile.0: Input should be greater than or equal to 1, found 0"),
        ({"tomograms": ["wbp@0"]}, "tomograms: 'wbp@0' has a spacing of 0 Å, expected more than 0 and at most 10,000"),
        ({"tomograms": ["wbp@1.2.3"]}, "tomograms: 'wbp@1.2.3' is not a tomogram URI"),
        ({"train": {"patch": [0, 64, 64], "base": "a"}}, "train: patch [0, 64, 64] must be three numbers of voxels"),
        (
            {"train": {"steps": True}},
            "train.steps: Input should be a valid integer, unable to parse string as an integer",
        ),
        ({"train": {"network": {"dropout": True}}}, "train.network.dropout: Input should be a valid number"),
        ({"train": {"memory_gb": 1e300}}, "train.memory_gb: Input should be less than or equal to 1000000"),
        ({"train": {"best_metric": "fBeta" + "9" * 400}}, "train.best_metric: 'fBeta999"),
        ({"runs_per_job": 10**30}, "runs_per_job: expected a number below 9.2e+18"),
        (
            {"explore": {"space": {"batch_size": {"choices": [10**400]}}}},
            "explore.space.batch_size.choices.0: expected",
        ),
        ({"report": {"title": "a\0b"}}, "report.title: not text, found 'a\\x00b'"),
        ({"report": {"title": "\ud800"}}, "report.title: not text, found '\\ud800'"),
        ({"split": {"exclude": [["a"]]}}, "split.exclude: Input should be a valid dictionary"),
        (
            {"localize": {"threshold": {"a_b": 0.1, "a-b": 0.2}}},
            "localize: two of the keys ['a_b', 'a-b'] mean the same",
        ),
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


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "inf", "nan"], ids=str)
@pytest.mark.parametrize(
    "key",
    [
        "train.learning_rate",
        "train.class_weights.ribosome",
        "train.loss.alpha",
        "evaluate.distance",
        "phantom.defocus.0",
    ],
)
def test_numbers_without_end_are_refused(key: str, value: object) -> None:
    section, *inner = key.split(".")
    values: Any = value
    for part in reversed(inner):
        values = [values, 1.0] if part == "0" else {part: values}
    if "loss" in values:
        values["loss"]["name"] = "Tversky"
    message = refusal(**{section: values})
    assert message.startswith(f"my.yaml: {section}.{inner[0]}")
    assert "finite number" in message


def test_long_values_are_cut() -> None:
    long = "x" * 5000
    for values in (
        {"train": {"device": long}},
        {"train": {"best_metric": long}},
        {"train": {"network": {"family": long}}},
        {"targets": {"picks": long}},
        {"targets": {"segmentations": [f"{long}:a"]}},
        {"split": {"train": {"a": list(range(2000))}}},
        {"tomograms": [long]},
        {long: 1},
    ):
        assert len(refusal(**values)) < 2000


# What YAML would drop or change


def written(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text("projects: {mydata: copick.json}\ntomograms: [wbp@10]\n" + text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("train: {steps: 5}\nsegment: {}\ntrain: {batch_size: 2}\n", "'train' stands there twice, in lines 3 and 5"),
        ("train:\n  steps: 5\n  picking:\n    smoothing: 1\n    smoothing: 2\n", "'train.picking.smoothing' stands"),
        ("explore:\n  space:\n  - {a: 1, a: 2}\n", "'explore.space.0.a' stands there twice, in lines 5 and 5"),
    ],
)
def test_a_key_twice_is_refused_with_both_lines(tmp_path: Path, text: str, twice: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TomoscoutError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {twice}")
    # Snakemake, which keeps the last, is told by the main process.
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    with pytest.raises(TomoscoutError, match="stands there twice"):
        Workflow(values, str(tmp_path / "results"), main=True, files=[path])


def test_a_key_twice_in_json(tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    path.write_text('{"train": {"steps": 5, "steps": 6}}')
    with pytest.raises(TomoscoutError, match=f"^{path}: 'steps' stands there twice"):
        load_config(path)


def test_json_keeps_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LEAST | {"explore": {"space": {"weight_decay": {"choices": [1e-05, 0.1]}}}}))
    assert load_config(path).explore.space["weight_decay"].choices == [1e-05, 0.1]


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("split: {train: [a, 007]}", "split.train.1", 3),
        ("split:\n  test: [2024_01]", "split.test.0", 4),
        ("split: {negatives: [no]}", "split.negatives.0", 3),
        ("split: {negatives: [1.0]}", "split.negatives.0", 3),
        ("split: {negatives: [2024-01-31]}", "split.negatives.0", 3),
        ("split: {exclude: {007: thick}}", "split.exclude", 3),
        ("split: {exclude: {no: thick}}", "split.exclude", 3),
        ("targets: {session: 01}", "targets.session", 3),
        ("targets: {user: 0x10}", "targets.user", 3),
    ],
)
def test_names_that_yaml_changes_are_to_be_quoted(tmp_path: Path, text: str, key: str, line: int) -> None:
    path = written(tmp_path, text + "\n")
    name = re.search(r"[\w.-]*(?:\d|no)[\w.-]*(?=[\]}]|: )", text)
    assert name
    expected = f': {key}: text is expected, and YAML takes {name[0]} for .*; put it in quotes, "{name[0]}" '
    with pytest.raises(TomoscoutError, match=re.escape(str(path)) + expected + rf"\({path}, line {line}\)"):
        load_config(path)
    # What Snakemake made of it is told by what stands in the file.
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    with pytest.raises(TomoscoutError, match="config" + expected):
        Workflow(values, str(tmp_path / "results"), main=True, files=[path])


def test_numbers_of_options_may_be_written_in_any_form(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "train: {steps: 1_000, learning_rate: 1e-3, seed: 007}\n"))
    assert (config.train.steps, config.train.learning_rate, config.train.seed) == (1000, 1e-3, 7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &a [*a]\n", "an alias stands inside of what it repeats"),
        ("a: &a [" + "1, " * 99 + "1]\n", "unknown key 'a'"),
        ("a: " + "[" * 5000 + "]" * 5000 + "\n", "nested too deeply for a configuration"),
        ("a: " + "9" * 5000 + "\n", "a value cannot be read"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("a: \x01\n", "not valid YAML"),
    ],
    ids=["inside itself", "wide", "deep", "long number", "code", "control character"],
)
def test_yaml_that_is_no_configuration(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TomoscoutError, match=expected) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_aliases_that_grow_beyond_all_measure(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(TomoscoutError, match="holds more than 1,000,000 values"):
        load_config(written(tmp_path, "\n".join(lines) + "\n"))


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes("projects: {Zürich: a}\n".encode("latin-1"))
    with pytest.raises(TomoscoutError, match=f"^{path}: text that is not UTF-8: byte 0xfc at position 12"):
        load_config(path)


# What is taken for what it means


@pytest.mark.parametrize(
    ("given", "place", "taken", "note"),
    [
        ({"targets": {"session": 1}}, "targets.session", "1", "targets.session: 1 is taken as '1'"),
        ({"targets": {"name": "my_targets"}}, "targets.name", "my-targets", "'my_targets' is taken as 'my-targets'"),
        ({"train": {"name": "my unet"}}, "train.name", "my-unet", "train.name: 'my unet' is taken as 'my-unet'"),
        (
            {"targets": {"picks": "my_ribo:al_ice/1, apo"}},
            "targets.picks",
            ["my-ribo:al-ice/1", "apo"],
            "targets.picks: 'my_ribo:al_ice/1, apo' is taken as ['my-ribo:al-ice/1', 'apo']",
        ),
        ({"targets": {"segmentations": "a:b/1"}}, "targets.segmentations", ["a:b/1"], None),
        ({"targets": {"picks": "ribosome,me,1"}}, "targets.picks", ["ribosome,me,1"], None),
        ({"evaluate": {"reference": "my_ribo:me/1"}}, "evaluate.reference", ["my-ribo:me/1"], "evaluate.reference: "),
        ({"tomograms": "wbp@10,denoised@10"}, "tomograms", ["wbp@10.0", "denoised@10.0"], "tomograms: 'wbp@10,"),
        (
            {"train": {"patch": "64,64,32"}},
            "train.patch",
            [64, 64, 32],
            "train.patch: '64,64,32' is taken as [64, 64, 32]",
        ),
        ({"train": {"patch": 96}}, "train.patch", [96, 96, 96], "train.patch: 96 is taken as [96, 96, 96]"),
        ({"train": {"patch": (64, 64, 64)}}, "train.patch", [64, 64, 64], None),
        ({"segment": {"tile": 128}}, "segment.tile", [128, 128, 128], "segment.tile: 128 is taken as [128, 128, 128]"),
        (
            {"import_picks": {"my_picks": {"files": "a.star"}}},
            "import_picks",
            {"my-picks": ImportedPicks(files=["a.star"])},
            "import_picks.files: 'a.star' is taken as ['a.star']",
        ),
        ({"segment": {"models": "my/model"}}, "segment.models", ["my/model"], "segment.models: "),
        ({"split": {"train": "TS_1,TS_2"}}, "split.train", ["TS_1", "TS_2"], "split.train: "),
        ({"split": {"test": [7]}}, "split.test", ["7"], "split.test: [7] is taken as ['7']"),
        ({"split": {"exclude": {7: "thick"}}}, "split.exclude", {"7": "thick"}, "split.exclude: "),
        ({"localize": {"threshold": {"my_ribo": 0.4}}}, "localize.threshold", {"my-ribo": 0.4}, "localize.threshold: "),
        ({"train": {"network": {"family": "Unet"}}}, "train.network.family", "UNet", "train.network.family: 'Unet' is"),
        (
            {"train": {"network": {"family": "swin-unetr"}, "patch": "auto"}},
            "train.network.family",
            "SwinUNETR",
            "note: ",
        ),
        (
            {"train": {"network": {"channels": "8,16", "strides": "2"}}},
            "train.network.channels",
            [8, 16],
            "train.network.channels: '8,16' is taken as [8, 16]",
        ),
        ({"train": {"loss": "TverskyLoss"}}, "train.loss", [Tversky()], "train.loss.name: 'TverskyLoss' is taken as"),
        (
            {"train": {"loss": ["dice", {"name": "cross_entropy"}]}},
            "train.loss",
            [Dice(), CrossEntropy()],
            "train.loss",
        ),
        (
            {"explore": {"networks": "unet, Segresnet"}},
            "explore.networks",
            {"UNet": {}, "SegResNet": {}},
            "explore.netw",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_can_only_mean_one_thing_is_taken(
    given: dict[str, Any], place: str, taken: object, note: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    config: Any = parse(**given)
    value = config
    for part in place.split("."):
        value = getattr(value, part)
    assert value == taken
    notes = capsys.readouterr().err
    assert (note is None) == (notes == "")
    assert (note or "") in notes
    assert all(line.startswith("note: ") for line in notes.splitlines())
    # What is written of it, and read by every job, says nothing more.
    assert parse_config(config.model_dump(mode="json", by_alias=True), "written") == config
    assert capsys.readouterr().err == ""


def test_the_common_short_forms_are_no_change(capsys: pytest.CaptureFixture[str]) -> None:
    parse(split={"ratios": 0.8, "exclude": ["a"]}, train={"loss": "Dice", "network": [{"family": "UNet"}]})
    parse(split={"ratios": "0.7,0.1"}, segment={"models": "folds"}, localize={"threshold": 0.4})
    assert capsys.readouterr().err == ""


def test_a_job_does_not_repeat_the_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Workflow(LEAST | {"tomograms": "wbp@10"}, str(tmp_path / "results"), main=False)
    assert capsys.readouterr().err == ""


def test_tuples_as_python_writes_them(tmp_path: Path) -> None:
    path = written(tmp_path, "train:\n  patch: !!python/tuple [64, 64, 64]\n")
    assert load_config(path).train.patch == [64, 64, 64]


@pytest.mark.parametrize("path", ["~/p.json", "$HERE/p.json", "${HERE}/p.json"])
def test_home_and_variables_in_paths(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HERE", str(tmp_path))
    config = parse(
        projects={"p": path},
        train={"base": path, "network": {"family": "UNet"}},
        segment={"models": [path]},
        phantom={"maps": {"ribosome": path}},
        container=path,
    )
    found = [config.projects["p"], config.train.base, *(config.segment.models or []), config.container]
    assert [*found, config.phantom.maps["ribosome"]] == [f"{tmp_path}/p.json"] * 5
    shutil.copy(ROOT / "config" / "examples" / "my_network.py", tmp_path / "mine.py")
    family = path.replace("p.json", "mine.py")
    assert parse(train={"network": {"family": family}, "patch": "auto"}).train.network.family == f"{tmp_path}/mine.py"


def test_a_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    message = "'$NOWHERE/p.json': the environment has no variable NOWHERE"
    assert refusal(projects={"p": "$NOWHERE/p.json"}) == f"my.yaml: projects.p: {message}"
    assert refusal(segment={"models": ["$NOWHERE/p.json"]}).startswith(f"my.yaml: segment.models.0: {message}")
    assert refusal(container="$NOWHERE/p.json") == f"my.yaml: container: {message}"
    assert parse(container="docker://a/$NOWHERE").container == "docker://a/$NOWHERE"


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:hush@example.org",
        "https://me:hu/sh@example.org/path",
        "https://me:hu@sh@example.org",
        "https://hush@example.org",
        "postgresql://me:hush@example.org/db",
        "https://example.org?password=hush",
        "https://example.org/?a=1&api_key=hush",
    ],
)
def test_passwords_are_refused_and_not_repeated(uri: str) -> None:
    for message in (refusal(tracking={"uri": uri}), refusal(tracking=uri), refusal(train={"device": uri})):
        assert "hush" not in message
        assert "hu/sh" not in message
        assert "sh@" not in message
    assert "MLFLOW_TRACKING_PASSWORD" in refusal(tracking={"uri": uri})


@pytest.mark.parametrize(
    "uri", ["https://example.org:5000/a", "sqlite:////home/a@b/mlflow.db", "file:///a@b", "$SERVER"]
)
def test_addresses_without_passwords(uri: str) -> None:
    assert parse(tracking={"uri": uri}).tracking.uri == uri


# Names that others have for options


def test_names_of_others_are_explained_wherever_they_stand() -> None:
    assert refusal(train={"num_epochs": 5}).startswith(
        "my.yaml: train: unknown key 'num_epochs'; in tomoscout: `train.steps`, counted in optimiser updates"
    )
    assert "`train.learning_rate`" in refusal(lr=1)
    assert "`split.train`" in refusal(split={"trainRunIDs": []})
    assert "`train.patch`" in refusal(segment={"--dim-in": 96})
    assert "`train.learning_rate`" in refusal(train={"network": {"lr": 1}})
    # What not every family has is not promised.
    assert "known keys: family, init_filters" in refusal(train={"network": {"family": "SegResNet", "strides": [2]}})


def test_the_names_of_others_lead_to_options_that_are_there() -> None:
    known = {".".join((*path, key)) for path, keys in sections() for key in keys} | {"user", "session", "split"}
    for text in ELSEWHERE.values():
        for option in re.findall(r"`([a-z][\w.]*)`", text):
            assert option in known, option


# The files beside it


@pytest.mark.parametrize(
    ("form", "file"), [("schema", "schema.json"), ("yaml", "config.yaml"), ("markdown", "README.md")]
)
def test_the_reference_is_written_from_the_definition(form: str, file: str) -> None:
    written = (ROOT / "config" / file).read_text()
    assert succeeded(tomoscout("options", form)).stdout == written, f"config/{file} has drifted; run `make docs`"


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_loads_and_editors_agree(path: Path) -> None:
    config = load_config(path)
    assert config.projects or config.cells.annotations
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
