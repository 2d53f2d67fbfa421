"""The segmentation stage on a small trained model."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import copick
import numpy as np
import pytest
import torch

from endurance.half_written import half_written
from support.training import Workspace, trained
from tomoscout.data.written import Probabilities, Segmentation
from tomoscout.learning.normalisation import standardise
from tomoscout.learning.precision import chosen_precision
from tomoscout.learning.prediction import Inference, predict
from tomoscout.learning.readout import argmax_labels
from tomoscout.learning.tiles import InputSizes
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.models.folder import load_network
from tomoscout.options.config import load_config
from tomoscout.options.names import Source
from tomoscout.plan.plan import Plan
from tomoscout.plan.predictions import predicted_picks, predicted_probabilities, predicted_segmentation, segmented_runs
from tomoscout.stages.segment import run_segment
from tomoscout.tasks.picking.model import PickingModel

URI = "wbp@20.0"
PROBABILITIES = Probabilities(URI, "tomoscout-unet")
RUNS = ("phantom-002", "phantom-003")


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Workspace:
    return trained(tmp_path_factory.getbasetemp()).copy(tmp_path / "workspace")


def segment(workspace: Workspace, batch: int = 0, **sections: object) -> None:
    config = workspace.configure(**sections)
    output = workspace.segmented / f"batch-{batch}.json"
    run_segment(Plan(config, workspace.records()), [workspace.model], batch, output, threads=1)


def manifest(workspace: Workspace, run: str) -> dict:
    return read_json(workspace.segmented / "phantom" / f"{run}.json")


def data_files(workspace: Workspace, run: str) -> dict[str, int]:
    """Every file of a run's probabilities and labels with the time it was written."""
    folder = workspace.folder / "phantom/ExperimentRuns" / run
    files = [*folder.glob("VoxelSpacing*/*_features.zarr/**/*"), *folder.glob("Segmentations/*predicted*/**/*")]
    assert files
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_probabilities_and_labels_of_every_run_asked_for(workspace: Workspace) -> None:
    segment(workspace)
    config, model, project = workspace.configure(), PickingModel.read(workspace.model), workspace.project()
    network = load_network(workspace.model, model, torch.device("cpu"))
    for run in RUNS:
        expected = predict(
            network,
            standardise(project.read_tomogram(run, URI)),
            Inference(
                InputSizes.of([model.network], 3),
                (24, 32, 32),
                0.15,
                torch.device("cpu"),
                precision=chosen_precision("auto", torch.device("cpu")),
            ),
        )
        probabilities = project.read_probabilities(run, PROBABILITIES)
        np.testing.assert_array_equal(probabilities, expected)
        labels = project.read_segmentation(run, predicted_segmentation(config))
        np.testing.assert_array_equal(labels, argmax_labels(probabilities))
        facts = manifest(workspace, run)
        assert facts["model"] == model.weights_digest
        assert facts["probabilities"]["digest"] == project.digest_written(run, PROBABILITIES)
        assert facts["segmentation"]["digest"] == project.digest_written(run, predicted_segmentation(config))
        voxels = facts["segmentation"]["voxels"]
        assert voxels == {entry.name: int((labels == entry.label).sum()) for entry in model.classes}
        assert sum(voxels.values()) > 0
    written = read_json(workspace.segmented / "batch-0.json")
    assert list(written["runs"]) == [f"phantom/{run}" for run in RUNS]
    assert project.made_from("phantom-000", PROBABILITIES) is None


def test_a_tomogram_with_a_voxel_that_is_no_number_stops_no_other(workspace: Workspace) -> None:
    broken, other = RUNS
    volume = workspace.project().read_tomogram(broken, URI)
    volume[3, 4, 5] = np.nan
    workspace.project().write_tomogram(broken, URI, volume)
    with pytest.raises(TomoscoutError, match=f"{broken}: tomogram {URI} holds NaN or infinite values"):
        segment(workspace)
    assert "segmentation" not in manifest(workspace, broken)
    assert "segmentation" in manifest(workspace, other)


def test_copick_reads_what_is_written(workspace: Workspace) -> None:
    segment(workspace)
    project = workspace.project()
    run = copick.from_file(str(workspace.folder / "phantom/copick.json")).get_run("phantom-003")
    (entry,) = run.get_segmentations(name="predicted", user_id="tomoscout", session_id="unet", is_multilabel=True)
    np.testing.assert_array_equal(
        entry.numpy(), project.read_segmentation("phantom-003", predicted_segmentation(workspace.configure()))
    )
    features = run.get_voxel_spacing(20.0).get_tomograms("wbp")[0].get_features("tomoscout-unet")
    np.testing.assert_array_equal(features.numpy(), project.read_probabilities("phantom-003", PROBABILITIES))


def test_a_second_call_does_nothing(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    segment(workspace)
    before = {run: data_files(workspace, run) for run in RUNS}
    output = (workspace.segmented / "batch-0.json").read_bytes()
    capsys.readouterr()
    segment(workspace)
    assert {run: data_files(workspace, run) for run in RUNS} == before
    assert (workspace.segmented / "batch-0.json").read_bytes() == output
    assert capsys.readouterr().err == "".join(f"phantom/{run}: up to date\n" for run in RUNS)


@pytest.mark.parametrize("damage", ["manifest", "inputs", "probabilities", "labels"])
def test_one_run_that_is_not_as_it_should_be_is_redone(workspace: Workspace, damage: str) -> None:
    segment(workspace)
    config, project = workspace.configure(), workspace.project()
    before = {run: data_files(workspace, run) for run in RUNS}
    output = (workspace.segmented / "batch-0.json").read_bytes()
    path = workspace.segmented / "phantom/phantom-003.json"
    text = path.read_text()
    if damage == "manifest":
        path.unlink()
    elif damage == "inputs":
        path.write_text(text.replace(manifest(workspace, "phantom-003")["inputs"], "0" * 24))
    elif damage == "probabilities":
        project.delete("phantom-003", predicted_probabilities(config))
    else:
        project.delete("phantom-003", predicted_segmentation(config))
    segment(workspace)
    assert path.read_text() == text
    assert (workspace.segmented / "batch-0.json").read_bytes() == output
    assert data_files(workspace, "phantom-002") == before["phantom-002"]
    after = data_files(workspace, "phantom-003")
    assert after.keys() == before["phantom-003"].keys()
    assert after != before["phantom-003"]


@pytest.mark.parametrize(
    ("sections", "redone"),
    [
        ({"segment": {"flips": 2}}, True),
        ({"segment": {"tile": [24, 24, 24]}}, True),
        ({"segment": {"keep_probabilities": False}}, False),
        ({"localize": {"threshold": 0.3}}, False),
    ],
)
def test_what_changes_the_result_and_what_does_not(workspace: Workspace, sections: dict, redone: bool) -> None:
    segment(workspace)
    before = manifest(workspace, "phantom-002")["inputs"]
    files = data_files(workspace, "phantom-002")
    segment(workspace, **sections)
    assert (manifest(workspace, "phantom-002")["inputs"] != before) == redone
    assert (data_files(workspace, "phantom-002") != files) == redone


def test_runs_of_other_batches_are_left_alone(workspace: Workspace) -> None:
    segment(workspace, batch=1)
    assert read_json(workspace.segmented / "batch-1.json") == {"batch": 1, "runs": {}}
    assert workspace.project().made_from("phantom-002", PROBABILITIES) is None


def test_a_model_of_another_voxel_spacing_is_refused(workspace: Workspace) -> None:
    path = workspace.model / "model.yaml"
    path.write_text(path.read_text().replace("voxel_spacings:\n- 20.0", "voxel_spacings:\n- 10.0"))
    with pytest.raises(TomoscoutError, match=r"models/unet: trained at 10\.0 Å per voxel, but .* is wbp@20\.0"):
        segment(workspace)


def test_changed_weights_are_refused(workspace: Workspace) -> None:
    path = workspace.model / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(TomoscoutError, match="not the weights that"):
        segment(workspace)
    assert not (workspace.segmented / "batch-0.json").exists()


def test_a_run_without_the_tomogram_is_refused(workspace: Workspace) -> None:
    workspace.project().write_tomogram(
        "phantom-003", "denoised@20.0", workspace.project().read_tomogram("phantom-003", URI)
    )
    config = workspace.configure(segment={"tomogram": "denoised@20.0", "runs": None})
    assert [record.run for record in segmented_runs(config, workspace.records())] == ["phantom-003"]
    config = workspace.configure(segment={"tomogram": "denoised@20.0", "runs": ["phantom-002"]})
    with pytest.raises(TomoscoutError, match=r"phantom/phantom-002 has no tomogram denoised@20\.0; found: wbp@20\.0"):
        segmented_runs(config, workspace.records())
    config = workspace.configure(segment={"runs": ["phantom-009"]})
    with pytest.raises(TomoscoutError, match=r"segment\.runs: no run 'phantom-009'"):
        segmented_runs(config, workspace.records())


def test_names_of_predictions(workspace: Workspace) -> None:
    config = workspace.configure(localize={"user": "me", "session": "second"})
    assert predicted_probabilities(config).name == "me-second"
    assert predicted_picks(config, "ribosome") == Source("ribosome", "me", "second")
    assert str(predicted_segmentation(config)) == "predicted:me/second@20.0?multilabel=true"


MASK = Segmentation("lamella", "me", "1", 10.0, False)
"""At half of the tomogram's voxel spacing: z, y, x of 48, 96, 96 voxels."""


def add_mask(workspace: Workspace, run: str, until: int) -> np.ndarray:
    """Add a mask: the first `until` voxels of the tomogram along y and x. Returns it on the tomogram's grid."""
    fine = np.zeros((48, 96, 96), dtype=np.uint8)
    fine[:, : 2 * until, : 2 * until] = 2
    workspace.project().write_segmentation(run, MASK, fine, {})
    return fine[::2, ::2, ::2] > 0


def test_nothing_is_found_outside_of_the_mask(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    tiles = {"tile": [24, 24, 24], "flips": 2, "quarter_turns": 2}
    segment(workspace, segment=tiles)
    project, config = workspace.project(), workspace.configure()
    whole = {run: project.read_probabilities(run, PROBABILITIES) for run in RUNS}
    masks = {run: add_mask(workspace, run, until) for run, until in zip(RUNS, (10, 48), strict=True)}
    capsys.readouterr()
    segment(workspace, segment={**tiles, "mask": "lamella:me/1"})
    project, told = workspace.project(), capsys.readouterr().err
    # The mask of the other run is all of it.
    assert "phantom/phantom-002: 1 of 9 tiles are computed" in told
    assert told.count("tiles are computed") == 1
    for run, mask in masks.items():
        found = project.read_probabilities(run, PROBABILITIES)
        np.testing.assert_array_equal(found, whole[run] * mask)
        labels = project.read_segmentation(run, predicted_segmentation(config))
        np.testing.assert_array_equal(labels, argmax_labels(whole[run]) * mask)
    before = manifest(workspace, "phantom-002")
    assert 0 < sum(before["segmentation"]["voxels"].values()) < (whole["phantom-002"] > 0).any(axis=0).sum()

    # Another mask, made by hand under the same name, makes other results; without one they are those from before.
    add_mask(workspace, "phantom-002", 20)
    segment(workspace, segment={**tiles, "mask": "lamella:me/1"})
    assert manifest(workspace, "phantom-002")["inputs"] != before["inputs"]
    assert "phantom/phantom-003: up to date" in capsys.readouterr().err
    segment(workspace, segment=tiles)
    np.testing.assert_array_equal(workspace.project().read_probabilities("phantom-002", PROBABILITIES), whole[RUNS[0]])


def test_a_run_without_the_mask_is_named(workspace: Workspace) -> None:
    segment(workspace)
    add_mask(workspace, "phantom-002", 10)
    with pytest.raises(
        TomoscoutError, match=r"^phantom/phantom-003: segment\.mask: no segmentation lamella:me/1; found: membrane:phan"
    ):
        segment(workspace, segment={"mask": "lamella:me/1"})
    assert manifest(workspace, "phantom-002")["inputs"]
    with pytest.raises(TomoscoutError, match=r"predicted:tomoscout/unet is what segment\.mask reads"):
        segment(workspace, segment={"mask": "predicted:tomoscout/unet"})


KILLED = """
import os, signal, sys
from tomoscout.cli import main
def watch(event, arguments):
    if arguments and "_features.zarr.tmp/0/2" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
main()
"""
"""Segments, and dies when it is about to write the third chunk of the probabilities."""


def test_killed_while_it_writes_it_leaves_no_half_of_a_volume(workspace: Workspace) -> None:
    run = "phantom-003"
    folder = workspace.folder / "phantom/ExperimentRuns" / run
    before = seen_by_copick(workspace, run)
    segment(workspace, segment={"runs": [run]})
    expected, written = contents(folder), seen_by_copick(workspace, run)
    workspace.project().delete(run, PROBABILITIES)
    workspace.project().delete(run, predicted_segmentation(load_config(workspace.config_path)))
    shutil.rmtree(workspace.segmented)

    options = ["--config", workspace.config_path, "--inventory", workspace.inventory_path, "--model", workspace.model]
    command = ["segment", *options, "--batch", "0", "--output", workspace.segmented / "batch-0.json", "--threads", "1"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, command)], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(folder.glob("VoxelSpacing20.000/.*_features.zarr.tmp/0/*/0/0/0"))) == 2
    assert half_written(workspace.folder / "phantom") == []
    assert seen_by_copick(workspace, run) == before

    workspace.command(*command)
    assert contents(folder) == expected
    assert seen_by_copick(workspace, run) == written > before


def seen_by_copick(workspace: Workspace, run: str) -> set[str]:
    """The segmentations and features of a run, as copick lists them."""
    found = copick.from_file(str(workspace.folder / "phantom/copick.json")).get_run(run)
    features = found.get_voxel_spacing(20.0).get_tomograms("wbp")[0].features
    return {f"{entry.name} {entry.session_id}" for entry in found.segmentations} | {e.feature_type for e in features}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
