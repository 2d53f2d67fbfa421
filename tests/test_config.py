"""The configuration: what is accepted, what is refused and how, and the files written from its definition."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import succeeded, tomoscout
from tomoscout.config import Config, Source, TomogramUri, load_config, parse_config
from tomoscout.errors import TomoscoutError
from tomoscout.sections import Section

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


# What is refused


def sections(
    section: type[Section] = Config, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Every section by its path, with the keys a user may write."""
    yield path, [field.alias or name for name, field in section.model_fields.items()]
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from sections(field.annotation, (*path, name))


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
        ("train.network.family", "ViT", "ViT"),
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
    assert message.startswith(f"my.yaml: {key}")
    assert message.endswith(f", found {found!r}")


@pytest.mark.parametrize("missing", ["projects", "tomograms"])
def test_what_must_be_given(missing: str) -> None:
    with pytest.raises(TomoscoutError, match=f"^my.yaml: {missing}: Field required$"):
        parse_config({key: value for key, value in LEAST.items() if key != missing}, "my.yaml")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"tomograms": ["wbp"]}, "tomograms: 'wbp' is not a tomogram URI; expected algorithm@spacing"),
        ({"tomograms": ["a@10", "b@5"]}, "tomograms: a@10, b@5 differ in voxel spacing"),
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
        ({"train": {"patch": [64, 60, 64]}}, "train: patch [64, 60, 64] must be multiples of 8"),
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
def test_every_example_loads(path: Path) -> None:
    assert load_config(path).projects


def test_the_commented_configuration_holds_the_defaults() -> None:
    values = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config = parse_config(values, "config.yaml")
    assert config == parse_config({key: values[key] for key in LEAST}, "config.yaml")
    for path, keys in sections():
        section = values
        for part in path:
            section = section[part]
        assert list(section) == keys
