"""The training stage: what it writes, what it refuses, and that no interruption changes the result."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tomoscout.cli import main
from tomoscout.config import TomogramUri
from tomoscout.errors import TomoscoutError
from tomoscout.files import read_json
from tomoscout.model import load_network, read_model
from tomoscout.project import Segmentation
from tomoscout.train import run_train
from training_data import SETTINGS, Workspace, trained

STEPS = SETTINGS["train"]["steps"]
MADE = ["history.png", "metrics.csv", "model.yaml", "results.json", "weights.safetensors"]
SHORT = {**SETTINGS["train"], "steps": 2, "validate_every": 2}


@pytest.fixture
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Trained without interruption; shared, so not to be changed."""
    return trained(tmp_path_factory.getbasetemp())


@pytest.fixture
def workspace(finished: Workspace, tmp_path: Path) -> Workspace:
    return finished.copy(tmp_path / "workspace")


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_a_training_leaves_a_model(finished: Workspace) -> None:
    assert {path.name for path in finished.model.iterdir()} == {*MADE, "checkpoint.pt"}
    model, results = read_model(finished.model), read_json(finished.model / "results.json")
    rows = metrics(finished.model)
    assert [entry.label for entry in model.classes] == [1, 2, 3, 4, 5, 6]
    assert [entry.name for entry in model.classes if not entry.is_particle] == ["membrane"]
    assert model.thresholds == results["thresholds"]
    assert model.made_from["train"] == ["phantom/phantom-000", "phantom/phantom-001"]
    assert model.made_from["validate"] == ["phantom/phantom-002"]
    assert results["steps"] == STEPS == int(rows[-1]["step"])
    validated = {int(row["step"]): row for row in rows if row["score"]}
    assert list(validated) == [20, 40, 60, 80]
    best = validated[results["best_step"]]
    assert float(best["score"]) == results["score"] == max(float(row["score"]) for row in validated.values())
    assert {name: float(best[name]) for name in results["scores"]} == results["scores"]
    assert "membrane" in results["scores"]
    particles = [score for name, score in results["scores"].items() if name != "membrane"]
    assert results["score"] == pytest.approx(np.mean(particles))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_the_weights_kept_are_those_of_the_best_validation(finished: Workspace) -> None:
    """Validated again, the model folder gives the score it says it has."""
    from tomoscout.classes import read_reference
    from tomoscout.heads import PickingHead, Reference
    from tomoscout.inference import predict
    from tomoscout.volumes import standardise

    model, project = read_model(finished.model), finished.project()
    volume = project.read_tomogram("phantom-002", "wbp@20.0")
    network = load_network(finished.model, model, torch.device("cpu"))
    probabilities = predict(
        network,
        standardise(volume),
        outputs=7,
        size_step=2,
        tile=(160, 160, 160),
        overlap=0.25,
        flips=1,
        device=torch.device("cpu"),
    )
    record = next(r for r in finished.records() if r.run == "phantom-002")
    labels = project.read_segmentation("phantom-002", Segmentation("targets", "tomoscout", "1", 20.0, True))
    picks = {entry.name: read_reference(project, record, entry) for entry in model.classes if entry.is_particle}
    result = PickingHead(model.classes, 20.0, model.picking).measure([probabilities], [Reference(picks, labels)], 4)
    assert result.score == pytest.approx(read_json(finished.model / "results.json")["score"])
    assert result.details["thresholds"] == pytest.approx(model.thresholds)


# Interruptions, with processes of their own


def start(workspace: Workspace, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tomoscout", "train", "--threads", "1", "--model", str(folder)]
    options = ["--config", str(workspace.config_path), "--inventory", str(workspace.inventory_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment)


def last_change(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def interrupt(training: subprocess.Popen[str], checkpoint: Path, count: int, number: signal.Signals) -> str:
    """Send a signal once `count` new checkpoints have been seen; returns what the training said."""
    seen = {last_change(checkpoint)}
    while len(seen) <= count:
        try:
            training.wait(timeout=0.002)
        except subprocess.TimeoutExpired:
            pass
        else:
            pytest.fail(f"ended before checkpoint {count}: {training.communicate()[1]}")
        seen.add(last_change(checkpoint))
    training.send_signal(number)
    return training.communicate()[1]


def assert_same_model(folder: Path, expected: Path) -> None:
    for name in MADE:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def test_killed_three_times_the_result_is_the_same(finished: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for count in np.random.default_rng(2).integers(1, 9, 3).tolist():
        training = start(finished, folder)
        interrupt(training, folder / "checkpoint.pt", count, signal.SIGKILL)
        assert training.returncode == -signal.SIGKILL
        assert not (folder / "model.yaml").exists()
    training = start(finished, folder)
    message = training.communicate()[1]
    assert training.returncode == 0, message
    assert "resumed at step" in message
    assert_same_model(folder, finished.model)


def test_told_to_stop_it_says_so_and_goes_on_with_the_same_command(finished: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for number, resumed in ((signal.SIGTERM, False), (signal.SIGUSR1, True)):
        training = start(finished, folder)
        message = interrupt(training, folder / "checkpoint.pt", 3, number)
        assert training.returncode == 75
        last = message.splitlines()[-1]
        assert last == f"stopped; {folder / 'checkpoint.pt'} is written, the same command goes on from it"
        assert ("resumed at step" in message) == resumed
        assert not (folder / "model.yaml").exists()
    training = start(finished, folder)
    message = training.communicate()[1]
    assert training.returncode == 0, message
    assert_same_model(folder, finished.model)


# What it depends on


def test_asked_for_again_a_finished_training_is_written_again_as_it_was(
    workspace: Workspace, finished: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", finished.config_path, "--inventory", finished.inventory_path]
    again = workspace.folder / "again"
    again.mkdir()
    (again / "checkpoint.pt").write_bytes((finished.model / "checkpoint.pt").read_bytes())
    main([str(part) for part in ["train", *options, "--model", again, "--threads", "1"]], standalone_mode=False)
    assert f"resumed at step {STEPS} of {STEPS}" in capsys.readouterr().err
    assert_same_model(again, finished.model)


def test_other_options_start_afresh(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    records = workspace.records()
    run_train(workspace.configure(train=SHORT), records, workspace.model)
    capsys.readouterr()
    first = (workspace.model / "weights.safetensors").read_bytes()
    run_train(workspace.configure(train={**SHORT, "learning_rate": 0.01}), records, workspace.model)
    assert "checkpoint of other settings or data, starting afresh" in capsys.readouterr().err
    assert (workspace.model / "weights.safetensors").read_bytes() != first
    # Neither its name nor how often it is saved is part of what a model is made from.
    run_train(workspace.configure(train={**SHORT, "name": "other", "checkpoint_seconds": 3}), records, workspace.model)
    assert (workspace.model / "weights.safetensors").read_bytes() == first
    assert yaml.safe_load((workspace.model / "model.yaml").read_text())["name"] == "other"


def test_the_seed_decides_the_result(workspace: Workspace) -> None:
    records = workspace.records()
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(weights))
        run_train(workspace.configure(train={**SHORT, "seed": seed}), records, workspace.folder / name)
        weights.append((workspace.folder / name / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_tomograms_thinner_than_the_patch(workspace: Workspace) -> None:
    config = workspace.configure(train={**SHORT, "patch": [32, 64, 16]})
    run_train(config, workspace.records(), workspace.folder / "thin")
    assert read_model(workspace.folder / "thin").patch == (32, 64, 16)


def test_every_kind_of_tomogram_is_trained_on(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    project = workspace.project()
    volume = project.read_tomogram("phantom-000", "wbp@20.0")
    project.write_tomogram("phantom-000", str(TomogramUri("denoised", 20.0)), volume + np.float32(1))
    config = workspace.configure(train=SHORT, tomograms=["wbp@20.0", "denoised@20.0"])
    run_train(config, workspace.records(), workspace.folder / "both")
    assert "2 runs (3 tomograms," in capsys.readouterr().err


def test_validation_needs_the_tomogram_that_is_segmented(workspace: Workspace) -> None:
    project = workspace.project()
    volume = project.read_tomogram("phantom-000", "wbp@20.0")
    project.write_tomogram("phantom-000", str(TomogramUri("denoised", 20.0)), volume)
    config = workspace.configure(
        train=SHORT, tomograms=["wbp@20.0", "denoised@20.0"], segment={"tomogram": "denoised@20.0", "runs": None}
    )
    with pytest.raises(TomoscoutError, match=r"phantom/phantom-002: validation needs the tomogram denoised@20\.0"):
        run_train(config, workspace.records(), workspace.model)


def test_a_missing_target_is_named(workspace: Workspace) -> None:
    wanted = Segmentation("targets", "tomoscout", "1", 20.0, True)
    workspace.project().delete_segmentation("phantom-001", wanted)
    with pytest.raises(TomoscoutError, match=r"phantom/phantom-001: no segmentation targets:tomoscout/1@20\.0"):
        run_train(workspace.configure(train=SHORT), workspace.records(), workspace.folder / "new")


def test_a_target_of_another_shape_is_refused(workspace: Workspace) -> None:
    wanted = Segmentation("targets", "tomoscout", "1", 20.0, True)
    workspace.project().write_segmentation("phantom-001", wanted, np.zeros((24, 48, 60), dtype=np.uint8), {})
    with pytest.raises(TomoscoutError, match=r"phantom/phantom-001: target targets.*\(24, 48, 60\).*\(24, 48, 48\)"):
        run_train(workspace.configure(train=SHORT), workspace.records(), workspace.folder / "new")


def test_validation_without_any_reference_is_an_error(workspace: Workspace) -> None:
    run = workspace.folder / "phantom/ExperimentRuns/phantom-002"
    for path in (run / "Picks").iterdir():
        path.unlink()
    config = workspace.configure(
        train=SHORT,
        targets={"segmentations": []},
        split={"negatives": ["phantom-002"]},
    )
    records = workspace.records()
    workspace.command(
        *("targets", "--config", workspace.config_path, "--inventory", workspace.inventory_path),
        *("--batch", "0", "--output", workspace.folder / "results/targets/batch-0.json"),
    )
    with pytest.raises(
        TomoscoutError, match=r"split: the validation runs \(phantom/phantom-002\) hold no ribosome, .*; choose others"
    ):
        run_train(config, records, workspace.folder / "new")
