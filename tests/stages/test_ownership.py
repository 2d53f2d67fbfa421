"""What lies in a project is used only by the results that made it, and what others made is never written over."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import copick
import numpy as np
import pytest
import zarr

from support.project import SHAPE, SmallProject, error_of, succeeded
from tomoscout.data.picks import Picks
from tomoscout.data.written import OF_OTHERS, Probabilities, Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest_file, digest_folder, read_json
from tomoscout.options.names import Source

PLACES = [(100.0, 100.0, 100.0), (300.0, 200.0, 100.0), (200.0, 150.0, 60.0)]
PREDICTED = Source("ribosome", "tomoscout", "unet")
PROBABILITIES = Probabilities("wbp@10.0", "tomoscout-unet")
SETTINGS = {
    "split": {"train": ["a"], "validate": ["b"]},
    "segment": {"device": "cpu"},
    "evaluate": {"runs": "validate"},
    "train": {
        "network": {"channels": [4, 8], "strides": [2]},
        "patch": [16, 16, 16],
        "batch_size": 1,
        "steps": 1,
        "validate_every": 1,
        "device": "cpu",
    },
}


@functools.cache
def made(base: Path) -> SmallProject:
    """Two runs with targets and two models that differ; shared, so not to be changed."""
    small = SmallProject(base / "owned")
    for run in ("a", "b"):
        small.add_run(run)
        small.add_picks(run, "ribosome:expert/0", PLACES)
    small.configure(**SETTINGS)
    succeeded(small.make_targets())
    for seed, name in enumerate(("first", "second")):
        small.configure(**SETTINGS | {"train": SETTINGS["train"] | {"seed": seed}})
        succeeded(small.command("train", "--model", small.folder / name, "--threads", "1"))
    small.configure(**SETTINGS)
    return small


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> SmallProject:
    (tmp_path_factory.getbasetemp() / "owned").mkdir(exist_ok=True)
    source = made(tmp_path_factory.getbasetemp())
    shutil.copytree(source.folder, tmp_path / "copy")
    small = SmallProject(tmp_path / "copy")
    small.configure(**SETTINGS)
    succeeded(small.list_runs())
    return small


def segment(small: SmallProject, model: str, results: str):
    output = small.folder / results / "segment" / "batch-0000.json"
    options = ("--model", small.folder / model, "--batch", "0", "--threads", "1", "--output", output)
    return small.command("segment", *options)


def localize(small: SmallProject, model: str, results: str):
    folder = small.folder / results
    options = ("--model", small.folder / model, "--batch", "0", "--segmented", folder / "segment")
    return small.command("localize", *options, "--output", folder / "localize" / "batch-0000.json")


def evaluate(small: SmallProject, results: str):
    folder = small.folder / results
    return small.command("evaluate", "--localized", folder / "localize", "--output", folder / "scores")


# Results of two working directories in one project


def test_what_another_working_directory_has_made_is_not_written_over(small: SmallProject) -> None:
    succeeded(segment(small, "first", "one"))
    before = digest_folder(small.overlay)
    message = error_of(segment(small, "second", "two"))
    assert message.startswith("2 of 2 runs failed: demo/a: probabilities tomoscout-unet of wbp@10.0")
    assert "made by tomoscout for other results" in message
    assert "choose another localize.session, or set overwrite: true" in message
    assert digest_folder(small.overlay) == before


def test_what_another_working_directory_has_made_is_not_used(small: SmallProject) -> None:
    succeeded(segment(small, "first", "one"))
    succeeded(localize(small, "first", "one"))
    small.configure(**SETTINGS, overwrite=True)
    succeeded(segment(small, "second", "two"))
    small.configure(**SETTINGS, localize={"threshold": 0.1})
    message = error_of(localize(small, "first", "one"))
    assert "demo/a: probabilities tomoscout-unet of wbp@10.0 is not the one that these results have made" in message
    assert "run the segment stage again" in message
    # Nor are they taken for what the first has made.
    assert "made by tomoscout for other results" in error_of(segment(small, "first", "one"))
    small.configure(**SETTINGS, overwrite=True)
    succeeded(localize(small, "second", "two"))
    assert "picks ribosome:tomoscout/unet is not the one" in error_of(evaluate(small, "one"))
    succeeded(evaluate(small, "two"))


def test_the_same_made_by_two_working_directories_is_one(small: SmallProject) -> None:
    succeeded(segment(small, "first", "one"))
    before = digest_folder(small.overlay)
    succeeded(segment(small, "first", "two"))
    assert digest_folder(small.overlay) == before
    assert "up to date" in succeeded(segment(small, "first", "one")).stderr


def test_results_that_were_removed_are_made_again(small: SmallProject) -> None:
    succeeded(segment(small, "first", "one"))
    succeeded(localize(small, "first", "one"))
    before = digest_folder(small.overlay)
    shutil.rmtree(small.folder / "one")
    succeeded(segment(small, "first", "one"))
    succeeded(localize(small, "first", "one"))
    assert digest_folder(small.overlay) == before


def test_targets_of_others_are_not_written_over(small: SmallProject) -> None:
    wanted = Segmentation("targets", "tomoscout", "1", 10.0, True)
    project = small.project()
    labels = np.ones(SHAPE, dtype=np.uint8)
    project.write_segmentation("a", wanted, labels, {})
    message = error_of(small.make_targets())
    assert message.startswith("demo/a: segmentation targets:tomoscout/1@10.0?multilabel=true: there already, and not")
    assert "choose another targets.name, or rename or remove it" in message
    np.testing.assert_array_equal(small.project().read_segmentation("a", wanted), labels)
    # The other run is not held up.
    assert read_json(small.targets / "demo" / "b.json")["inputs"]


def test_a_training_does_not_use_the_targets_of_others(small: SmallProject) -> None:
    wanted = Segmentation("targets", "tomoscout", "1", 10.0, True)
    small.project().write_segmentation("a", wanted, np.full(SHAPE, 7, dtype=np.uint8), {"inputs": "of another"})
    message = error_of(small.command("train", "--model", small.folder / "third", "--threads", "1"))
    assert message.startswith(f"demo/a: segmentation {wanted} is not the one that these results have made")


def test_a_job_that_was_killed_finds_what_it_wrote_to_be_its_own(small: SmallProject) -> None:
    succeeded(segment(small, "first", "one"))
    manifest = small.folder / "one" / "segment" / "demo" / "a.json"
    # As after a kill between data and manifest, and settings that changed before the next start.
    manifest.write_text(manifest.read_text().replace('"inputs": "', '"inputs": "not ', 1))
    small.configure(**SETTINGS | {"segment": {"device": "cpu", "flips": 2}})
    succeeded(segment(small, "first", "one"))


def test_another_model_of_the_same_weights_makes_everything_again(small: SmallProject) -> None:
    succeeded(segment(small, "first", "one"))
    succeeded(localize(small, "first", "one"))
    path = small.folder / "first" / "model.yaml"
    path.write_text(path.read_text().replace("separation: 1.0", "separation: 2.0"))
    assert "up to date" not in succeeded(localize(small, "first", "one")).stderr
    path.write_text(path.read_text().replace("radius: 60.0", "radius: 66.0"))
    assert "up to date" not in succeeded(segment(small, "first", "one")).stderr


# Annotations


@pytest.mark.parametrize("what", ["targets", "predicted"])
def test_a_segmentation_that_a_human_has_painted_in_is_not_written_over(small: SmallProject, what: str) -> None:
    succeeded(segment(small, "first", "one"))
    [entry] = copick.from_file(str(small.copick)).get_run("a").get_segmentations(name=what)
    array = zarr.open_array(entry.zarr(), path="0", mode="r+")
    array[:4] = 7
    painted = array[:]
    if what == "targets":
        small.configure(**SETTINGS, targets={"picks": ["ribosome"], "radius_scale": 0.5})
        message = error_of(small.make_targets())
    else:
        small.configure(**SETTINGS | {"segment": {"device": "cpu", "flips": 2}})
        message = error_of(segment(small, "first", "one"))
    assert message.startswith("demo/a: segmentation ")
    assert "there already, and not written by tomoscout, or changed since" in message
    np.testing.assert_array_equal(zarr.open_array(entry.zarr(), path="0", mode="r")[:], painted)


def test_a_target_that_a_human_has_painted_in_is_not_removed(small: SmallProject) -> None:
    [entry] = copick.from_file(str(small.copick)).get_run("a").get_segmentations(name="targets")
    zarr.open_array(entry.zarr(), path="0", mode="r+")[:4] = 7
    small.configure(**SETTINGS, targets={"picks": ["ribosome"], "runs": ["b"]})
    succeeded(small.make_targets())
    root = copick.from_file(str(small.copick))
    assert (root.get_run("a").get_segmentations(name="targets")[0].numpy()[:4] == 7).all()


@pytest.fixture
def segmented(small: SmallProject) -> SmallProject:
    succeeded(segment(small, "first", "one"))
    return small


def test_picks_of_a_human_are_never_written_over(segmented: SmallProject) -> None:
    path = segmented.add_picks("b", str(PREDICTED), PLACES)
    before = digest_file(path)
    for overwrite in (False, True):
        segmented.configure(**SETTINGS, overwrite=overwrite)
        message = error_of(localize(segmented, "first", "one"))
        assert message.startswith("demo/b: picks ribosome:tomoscout/unet: there already, and not written by tomoscout")
        assert "choose another localize.session" in message
        assert digest_file(path) == before


def test_predictions_that_a_human_has_corrected_are_not_written_over(segmented: SmallProject) -> None:
    succeeded(localize(segmented, "first", "one"))
    [entry] = copick.from_file(str(segmented.copick)).get_run("b").get_picks("ribosome", "tomoscout", "unet")
    entry.from_numpy(np.array(PLACES))
    assert segmented.project().made_from("b", PREDICTED) == OF_OTHERS
    segmented.configure(**SETTINGS, localize={"threshold": 0.1})
    assert "demo/b: picks ribosome:tomoscout/unet: there already" in error_of(localize(segmented, "first", "one"))
    assert len(segmented.project().read_picks("b", PREDICTED)) == len(PLACES)


def test_picks_in_a_static_project_are_not_hidden_by_predictions(tmp_path: Path) -> None:
    small = SmallProject(tmp_path, static=True)
    small.add_run("a")
    small.add_picks("a", str(PREDICTED), PLACES)
    assert small.project().made_from("a", PREDICTED) == OF_OTHERS


def test_half_a_file_of_our_own_is_written_again(segmented: SmallProject) -> None:
    succeeded(localize(segmented, "first", "one"))
    before = digest_folder(segmented.overlay)
    path = segmented.overlay / "ExperimentRuns" / "b" / "Picks" / "tomoscout_unet_ribosome.json"
    path.write_text(path.read_text()[:30])
    succeeded(localize(segmented, "first", "one"))
    assert digest_folder(segmented.overlay) == before


@pytest.mark.parametrize("name", ["alice", "tomoscout"])
@pytest.mark.parametrize("how", ["targets", "reference"])
def test_predictions_under_the_name_of_what_is_read_are_refused_at_once(
    small: SmallProject, name: str, how: str
) -> None:
    source = f"ribosome:{name}/1"
    for run in ("a", "b"):
        path = small.add_picks(run, source, PLACES)
    before = digest_file(path)
    own = {"targets": {"picks": [source]}} if how == "targets" else {"evaluate": {"reference": f"{name}/1"}}
    small.configure(**SETTINGS | own, localize={"user": name, "session": "1"})
    succeeded(small.list_runs())
    message = error_of(small.make_targets() if how == "targets" else evaluate(small, "one"))
    option = "targets" if how == "targets" else "evaluate.reference"
    assert message == (
        f"localize.user and localize.session: {source} is what {option} reads, and would be written over by "
        "predictions; choose another localize.session"
    )
    assert digest_file(path) == before


def test_a_write_that_fails_midway_leaves_the_earlier_picks(small: SmallProject) -> None:
    project = small.project()
    project.write_picks("a", PREDICTED, Picks.at(np.array(PLACES)), "inputs")
    before = digest_folder(small.overlay)
    with pytest.raises(ValueError, match="Out of range"):
        project.write_picks("a", PREDICTED, Picks.at(np.full((1, 3), np.nan)), "others")
    assert digest_folder(small.overlay) == before


def test_a_stamp_outlives_nothing_but_its_own_data(small: SmallProject) -> None:
    project = small.project()
    project.write_picks("a", PREDICTED, Picks.at(np.array(PLACES)), "inputs")
    assert small.project().made_from("a", PREDICTED) == "inputs"
    with pytest.raises(TomoscoutError, match="run the localize stage again"):
        small.project().require("a", PREDICTED, "other", "localize")
    assert small.project().made_from("b", PREDICTED) is None
