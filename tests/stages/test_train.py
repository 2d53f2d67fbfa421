"""The training stage: what it writes, what it refuses, and that no interruption changes the result."""

from __future__ import annotations

import contextlib
import csv
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from support.project import error_of, succeeded, tomoscout
from support.training import SETTINGS, Workspace, trained
from tomoscout.cli import main
from tomoscout.data.written import Segmentation
from tomoscout.learning import crops, training
from tomoscout.learning.precision import chosen_precision
from tomoscout.learning.trainer import Interrupted
from tomoscout.learning.training import resolve_options
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.models.base import Base
from tomoscout.models.folder import load_network, load_weights
from tomoscout.models.so_far import remove_so_far, replace_so_far
from tomoscout.networks import head_parameters, parse_network
from tomoscout.options.names import TomogramUri
from tomoscout.plan.plan import Plan
from tomoscout.stages.segment import run_segment
from tomoscout.stages.train import run_train
from tomoscout.tasks.picking.model import PickingModel
from tomoscout.tasks.picking.options import Train

STEPS = SETTINGS["train"]["steps"]
MADE = ["history.png", "metrics.csv", "model.yaml", "results.json", "weights.safetensors"]
SHORT = {**SETTINGS["train"], "steps": 2, "validate_every": 2}
MEMBRANE = Segmentation("membrane", "phantom", "0", 20.0, False)
TARGET = Segmentation("targets", "tomoscout", "1", 20.0, True)


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


def train(workspace: Workspace, name: str, options: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A few steps in this process; returns the model folder."""
    config = workspace.configure(train={**SHORT, **(options or {})}, **sections)
    folder = workspace.folder / "results/models" / name
    run_train(Plan(config, workspace.records()), folder)
    return folder


def stop_and_go_on(
    workspace: Workspace, name: str, options: dict[str, Any], step: int, between: Sequence[Any] = (), **sections: Any
) -> Path:
    """The same, told to stop in the middle of a step; `between` is called with the folder before it goes on."""
    augment = crops.augment

    def signal_and_augment(*arguments: Any, **options: Any) -> Any:
        if arguments[-1] == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return augment(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(crops, "augment", signal_and_augment)
        train(workspace, name, options, **sections)
    folder = workspace.folder / "results/models" / name
    assert not (folder / "model.yaml").exists()
    for change in between:
        change(folder)
    return train(workspace, name, options, **sections)


def make_targets(workspace: Workspace, **sections: Any) -> None:
    """The targets of a changed configuration."""
    workspace.configure(**sections)
    for batch in sorted({record.batch for record in workspace.records()}):
        options = ("--config", workspace.config_path, "--inventory", workspace.inventory_path)
        workspace.command(
            "targets",
            *options,
            "--batch",
            str(batch),
            "--output",
            workspace.folder / f"results/targets/targets/batch-{batch:04d}.json",
        )
    workspace.records()


def test_a_training_leaves_a_model(finished: Workspace) -> None:
    assert {path.name for path in finished.model.iterdir()} == {*MADE, "checkpoint.pt", "training.json"}
    model, results = PickingModel.read(finished.model), read_json(finished.model / "results.json")
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
    from tomoscout.learning.normalisation import standardise
    from tomoscout.learning.prediction import Inference, predict
    from tomoscout.learning.tiles import InputSizes
    from tomoscout.tasks.picking.head import PickingHead, Reference
    from tomoscout.tasks.picking.reference import read_reference

    model, project = PickingModel.read(finished.model), finished.project()
    volume = project.read_tomogram("phantom-002", "wbp@20.0")
    network = load_network(finished.model, model, torch.device("cpu"))
    probabilities = predict(
        network,
        standardise(volume),
        Inference(
            InputSizes.of([model.network], 3),
            (160, 160, 160),
            0.25,
            torch.device("cpu"),
            precision=chosen_precision("auto", torch.device("cpu")),
        ),
    )
    record = next(r for r in finished.records() if r.run == "phantom-002")
    labels = project.read_segmentation("phantom-002", Segmentation("targets", "tomoscout", "1", 20.0, True))
    picks = {entry.name: read_reference(project, record, entry) for entry in model.classes if entry.is_particle}
    options = Train(picking=model.picking)
    result = PickingHead(model.classes, 20.0, options).measure([probabilities], [Reference(picks, labels)])
    assert result.score == pytest.approx(read_json(finished.model / "results.json")["score"])
    assert result.details["thresholds"] == pytest.approx(model.thresholds)


# Interruptions, with processes of their own


def start(workspace: Workspace, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tomoscout", "train", "--threads", "1", "--model", str(folder)]
    options = ["--config", str(workspace.config_path), "--inventory", str(workspace.inventory_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment)


def last_change(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


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


@pytest.mark.long
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
    run_train(Plan(workspace.configure(train=SHORT), records), workspace.model)
    capsys.readouterr()
    first = (workspace.model / "weights.safetensors").read_bytes()
    run_train(Plan(workspace.configure(train={**SHORT, "learning_rate": 0.01}), records), workspace.model)
    assert "checkpoint of other settings or data, not used" in capsys.readouterr().err
    assert (workspace.model / "weights.safetensors").read_bytes() != first
    # Neither its name nor how often it is saved is part of what a model is made from.
    run_train(
        Plan(workspace.configure(train={**SHORT, "name": "other", "checkpoint_seconds": 3}), records), workspace.model
    )
    assert (workspace.model / "weights.safetensors").read_bytes() == first
    assert yaml.safe_load((workspace.model / "model.yaml").read_text())["name"] == "other"


def test_the_seed_decides_the_result(workspace: Workspace) -> None:
    records = workspace.records()
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(weights))
        run_train(Plan(workspace.configure(train={**SHORT, "seed": seed}), records), workspace.folder / name)
        weights.append((workspace.folder / name / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_tomograms_thinner_than_the_patch(workspace: Workspace) -> None:
    config = workspace.configure(train={**SHORT, "patch": [32, 64, 16]})
    run_train(Plan(config, workspace.records()), workspace.folder / "thin")
    assert PickingModel.read(workspace.folder / "thin").patch == (32, 64, 16)


def test_every_kind_of_tomogram_is_trained_on(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    project = workspace.project()
    volume = project.read_tomogram("phantom-000", "wbp@20.0")
    project.write_tomogram("phantom-000", str(TomogramUri("denoised", 20.0)), volume + np.float32(1))
    config = workspace.configure(train=SHORT, tomograms=["wbp@20.0", "denoised@20.0"])
    run_train(Plan(config, workspace.records()), workspace.folder / "both")
    assert ", 3 tomograms, " in capsys.readouterr().err


def test_validation_needs_the_tomogram_that_is_segmented(workspace: Workspace) -> None:
    project = workspace.project()
    volume = project.read_tomogram("phantom-000", "wbp@20.0")
    project.write_tomogram("phantom-000", str(TomogramUri("denoised", 20.0)), volume)
    config = workspace.configure(
        train=SHORT, tomograms=["wbp@20.0", "denoised@20.0"], segment={"tomogram": "denoised@20.0", "runs": None}
    )
    with pytest.raises(
        TomoscoutError, match=r"split\.validate: phantom/phantom-002 can only train: it has no tomogram denoised@20\.0"
    ):
        run_train(Plan(config, workspace.records()), workspace.model)


def test_a_missing_target_is_named(workspace: Workspace) -> None:
    wanted = Segmentation("targets", "tomoscout", "1", 20.0, True)
    workspace.project().delete("phantom-001", wanted)
    with pytest.raises(TomoscoutError, match=r"phantom-001: segmentation targets:tomoscout/1@20\.0.* is not there"):
        run_train(Plan(workspace.configure(train=SHORT), workspace.records()), workspace.folder / "new")


def test_a_target_of_another_shape_is_refused(workspace: Workspace) -> None:
    wanted = Segmentation("targets", "tomoscout", "1", 20.0, True)
    made_from = {"inputs": workspace.project().made_from("phantom-001", wanted)}
    workspace.project().write_segmentation("phantom-001", wanted, np.zeros((24, 48, 60), dtype=np.uint8), made_from)
    with pytest.raises(TomoscoutError, match=r"phantom/phantom-001: target targets.*\(24, 48, 60\).*\(24, 48, 48\)"):
        run_train(Plan(workspace.configure(train=SHORT), workspace.records()), workspace.folder / "new")


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
        *("--batch", "0", "--output", workspace.folder / "results/targets/targets/batch-0000.json"),
    )
    with pytest.raises(
        TomoscoutError, match=r"split: the validation runs \(phantom/phantom-002\) hold no ribosome, .*; choose others"
    ):
        run_train(Plan(config, records), workspace.folder / "new")


# Data of several kinds, and every loss

RECIPES: dict[str, dict[str, Any]] = {
    "Tversky, mixup": {"loss": "Tversky", "augmentation": {"mixup": 1.0}},
    "Dice and cross-entropy, by voxels": {
        "loss": ["Dice", {"name": "CrossEntropy", "weight": 0.5}],
        "best_metric": "avg_f1",
        "best_metric_on": "voxels",
    },
    "Focal": {"loss": "Focal"},
    "WeightedFocalTversky, mixup": {"loss": "WeightedFocalTversky", "augmentation": {"mixup": 0.5}},
}


def assert_sane(folder: Path) -> None:
    """A model that can be used, without a number that is none."""
    model, results = PickingModel.read(folder), read_json(folder / "results.json")
    assert all(weights.isfinite().all() for weights in load_weights(folder, model).values())
    assert 0 <= results["score"] <= 1
    assert all(0 <= score <= 1 for score in results["scores"].values())
    cells = [float(cell) for row in metrics(folder) for cell in row.values() if cell]
    assert cells
    assert all(map(math.isfinite, cells))
    assert model.thresholds.keys() == {entry.name for entry in model.classes if entry.is_particle}
    assert all(0 < threshold < 1 for threshold in model.thresholds.values())


def make_noisy(workspace: Workspace) -> dict[str, Any]:
    """Tomograms with five times as much noise as anything else."""
    project, random = workspace.project(), np.random.default_rng(0)
    for run in project.run_names():
        volume = project.read_tomogram(run, "wbp@20.0")
        noise = random.normal(scale=5 * volume.std(), size=volume.shape).astype(np.float32)
        project.write_tomogram(run, "wbp@20.0", volume + noise)
    return {}


def lose_ribosomes(workspace: Workspace) -> dict[str, Any]:
    """No ribosome in the validation run."""
    (workspace.folder / "phantom/ExperimentRuns/phantom-002/Picks/phantom_0_ribosome.json").unlink()
    return {}


def add_negatives(workspace: Workspace) -> dict[str, Any]:
    """A project besides with nothing in its tomograms that anybody picked."""
    empty = workspace.folder / "empty"
    shutil.copytree(workspace.folder / "phantom", empty)
    config = empty / "copick.json"
    config.write_text(config.read_text().replace(str(workspace.folder / "phantom"), str(empty)))
    for run in (empty / "ExperimentRuns").iterdir():
        shutil.rmtree(run / "Picks")
        shutil.rmtree(run / "Segmentations")
    train = ["phantom/phantom-000", "phantom/phantom-001", "empty/phantom-000"]
    validate = ["phantom/phantom-002", "empty/phantom-001"]
    split = {"train": train, "validate": validate, "test": ["phantom/phantom-003"]}
    negatives = ["empty/phantom-000", "empty/phantom-001"]
    return {"projects": {"empty": str(config)}, "split": {**split, "negatives": negatives}}


@pytest.mark.parametrize("change", [None, make_noisy, lose_ribosomes, add_negatives])
def test_every_kind_of_data_ends_in_a_sane_model(
    workspace: Workspace, change: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = change(workspace) if change else {}
    make_targets(workspace, **sections)
    absent = "hold no ribosome: no part in choosing the model, threshold 0.5"
    for number, options in enumerate(RECIPES.values()):
        capsys.readouterr()
        folder = train(workspace, f"unet-{number}", {**options, "steps": 4}, **sections)
        assert_sane(folder)
        lacks_ribosomes = change is lose_ribosomes
        assert (absent in capsys.readouterr().err) == lacks_ribosomes
        assert ("ribosome" not in read_json(folder / "results.json")["scores"]) == lacks_ribosomes
        assert (PickingModel.read(folder).thresholds["ribosome"] == 0.5) >= lacks_ribosomes
    if change is add_negatives:
        assert "empty/phantom-000" in PickingModel.read(folder).made_from["train"]


def test_scores_of_voxels_choose_the_model(workspace: Workspace) -> None:
    folder = train(workspace, "voxels", RECIPES["Dice and cross-entropy, by voxels"])
    results = read_json(folder / "results.json")
    assert results["metric"] == "avg_f1 of voxels"
    assert set(results["scores"]) == {entry.name for entry in PickingModel.read(folder).classes}
    assert results["score"] == pytest.approx(np.mean(list(results["scores"].values())))


def test_a_training_that_diverges_leaves_the_earlier_model(workspace: Workspace) -> None:
    folder = workspace.model
    before = (folder / "weights.safetensors").read_bytes()
    with pytest.raises(
        TomoscoutError, match=r"training: the .* became (nan|inf) before step \d+; lower train.learning"
    ):
        train(workspace, "unet", {"learning_rate": 1e25, "gradient_clip": 0, "steps": 8})
    load_network(folder, PickingModel.read(folder), torch.device("cpu"))
    assert (folder / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"best_metric": "fBeta2_class6"}, "membrane"),
        ({"best_metric": "fBeta2_class6", "best_metric_on": "voxels"}, "membrane"),
        ({"best_metric": "fBeta2_class1"}, "ribosome"),
    ],
)
def test_what_chooses_the_model_must_be_in_the_validation_runs(
    workspace: Workspace, options: dict[str, Any], names: str
) -> None:
    """Said before the first step."""
    project = workspace.project()
    project.delete("phantom-002", MEMBRANE)
    lose_ribosomes(workspace)
    make_targets(workspace)
    message = rf"split: the validation runs \(phantom/phantom-002\) hold no {names}; choose others"
    with pytest.raises(TomoscoutError, match=message):
        train(workspace, "new", options)
    assert not (workspace.folder / "results/models/new/metrics.csv").exists()


def test_continuous_classes_alone(workspace: Workspace) -> None:
    targets: dict[str, Any] = {"picks": [], "segmentations": ["membrane"]}
    make_targets(workspace, targets=targets)
    folder = train(workspace, "membranes", targets=targets)
    assert_sane(folder)
    assert list(read_json(folder / "results.json")["scores"]) == ["membrane"]
    workspace.project().delete("phantom-002", MEMBRANE)
    split = {"negatives": ["phantom-002"]}
    make_targets(workspace, targets=targets, split=split)
    with pytest.raises(TomoscoutError, match=r"split: the validation runs .* hold no membrane; choose others"):
        train(workspace, "new", targets=targets, split=split)


# Stopped and taken up, with every option that a state depends on


SCHEDULES: dict[str, dict[str, Any]] = {
    "early stopping": {"early_stopping": 1, "learning_rate": 1e-12},
    "plateau": {"schedule": "plateau", "plateau_patience": 1, "warmup": 0.0, "learning_rate": 1e-12},
    "accumulation": {"accumulation": 2},
    "harder classes": {"harder_classes": 1.0},
    "planned": {
        "patch": "auto",
        "network": {"family": "ResidualEncoderUNet", "channels": [2, 4], "strides": [2], "blocks": [1, 1]},
        "batch_size": 1,
        "steps": 4,
    },
    "other losses": {"loss": ["GeneralisedDice", "FocalTversky"], "ema_decay": 0.9, "gradient_clip": 0.1},
}


@pytest.mark.parametrize("options", SCHEDULES.values(), ids=SCHEDULES)
def test_stopped_at_any_option_the_result_is_the_same(
    workspace: Workspace, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"steps": 8, **options}
    undisturbed = train(workspace, "undisturbed", {**options, "name": "unet"})
    capsys.readouterr()
    resumed = stop_and_go_on(workspace, "resumed", {**options, "name": "unet"}, step=2)
    assert f"resumed at step 3 of {options['steps']}" in capsys.readouterr().err
    assert_same_model(resumed, undisturbed)
    assert_sane(resumed)
    assert PickingModel.read(resumed).patch == ((24, 48, 48) if "patch" in options else (16, 16, 16))


def test_what_these_options_do(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    rates = [
        float(row["learning_rate"]) for row in metrics(train(workspace, "plateau", SCHEDULES["plateau"] | {"steps": 8}))
    ]
    assert rates[:4] == [1e-12] * 4
    assert rates[4:] == [5e-13] * 2 + [2.5e-13] * 2
    early = read_json(train(workspace, "early", SCHEDULES["early stopping"] | {"steps": 40}) / "results.json")
    assert (early["steps"], early["best_step"]) == (4, 2)
    capsys.readouterr()
    train(workspace, "parts", SCHEDULES["accumulation"] | {"steps": 8})
    assert "a step of 2 crops of 16×16×16 voxels, 1 at a time" in capsys.readouterr().err


def test_harder_classes_are_drawn_more_often_once_scores_are_known(workspace: Workspace) -> None:
    """With all scores 0 nothing changes, so the training starts from weights that find something."""
    base = {"base": str(workspace.model), "steps": 4, "promote": "always"}
    usual, harder = (train(workspace, f"harder-{share}", {**base, "harder_classes": share}) for share in (0.0, 1.0))
    first, second = ([row["loss"] for row in metrics(folder) if row["loss"]] for folder in (usual, harder))
    assert first != second


# Checkpoints and disks that fail


def cut_in_half(*names: str) -> Any:
    def cut(folder: Path) -> None:
        for name in names:
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) // 2])

    return cut


@pytest.mark.parametrize(
    ("damaged", "resumed"),
    [(["checkpoint.pt"], "resumed at step 4 of 6"), (["checkpoint.pt", "checkpoint.previous.pt"], "")],
)
def test_a_truncated_checkpoint_costs_steps_and_nothing_else(
    workspace: Workspace, damaged: list[str], resumed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"steps": 6, "name": "unet"}
    undisturbed = train(workspace, "undisturbed", options)
    capsys.readouterr()
    folder = stop_and_go_on(workspace, "resumed", options, step=4, between=[cut_in_half(*damaged)])
    message = capsys.readouterr().err
    assert message.count("damaged checkpoint, not used") == len(damaged)
    assert ("resumed at step" in message) == bool(resumed)
    assert resumed in message
    assert_same_model(folder, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("a full disk needs mount")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a full disk needs a tmpfs of its own, which only root may mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def train_by_command(workspace: Workspace, folder: Path) -> Any:
    options = ("--config", workspace.config_path, "--inventory", workspace.inventory_path)
    return tomoscout("train", *options, "--model", folder, "--threads", "1")


def test_a_full_disk_leaves_the_earlier_model(workspace: Workspace, small_disk: Path) -> None:
    expected = train(workspace, "expected", {"name": "unet", "seed": 4})
    folder, filler = small_disk / "unet", small_disk / "filler"
    workspace.configure(train=SHORT)
    succeeded(train_by_command(workspace, folder))
    (folder / "checkpoint.pt").unlink()
    earlier = {name: (folder / name).read_bytes() for name in ("weights.safetensors", "model.yaml")}
    workspace.configure(train={**SHORT, "seed": 4})

    def fill(*arguments: Any) -> None:
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))

    def assert_earlier_model() -> None:
        assert {name: (folder / name).read_bytes() for name in earlier} == earlier
        load_network(folder, PickingModel.read(folder), torch.device("cpu"))

    fill()
    message = error_of(train_by_command(workspace, folder))
    assert message.startswith(f"{folder}/checkpoint.pt: the checkpoint cannot be written (")
    assert "No space left on device" in message
    assert_earlier_model()

    # And by somebody else while the model is written, when its weights are there already.
    filler.unlink()
    write_json = training.write_json

    def fill_and_write(path: Path, values: object) -> None:
        # The best so far is written earlier.
        if path.parent.name == "new":
            fill()
        write_json(path, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_json", fill_and_write)
        assert error_of(train_by_command(workspace, folder)) == f"{folder}/new/results.json: No space left on device"
    assert_earlier_model()

    filler.unlink()
    succeeded(train_by_command(workspace, folder))
    assert_same_model(folder, expected)
    assert {path.name for path in folder.iterdir()} == {*MADE, "checkpoint.pt", "training.json"}


@pytest.fixture
def largest_file() -> Iterator[Any]:
    """Limits how large a file this process may write, in bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_checkpoint_that_cannot_be_written_is_one_clear_error(workspace: Workspace, largest_file: Any) -> None:
    """The same where nobody may mount a disk: the checkpoint is the largest file."""
    expected = train(workspace, "expected", {"name": "unet", "seed": 4})
    folder = workspace.model
    earlier = {name: (folder / name).read_bytes() for name in ("weights.safetensors", "model.yaml")}
    workspace.configure(train={**SHORT, "seed": 4})
    largest_file(100_000)
    message = error_of(train_by_command(workspace, folder))
    largest_file(resource.RLIM_INFINITY)
    assert message.startswith(f"{folder}/checkpoint.pt: the checkpoint cannot be written (")
    assert "make room and give the same command again" in message
    assert {name: (folder / name).read_bytes() for name in earlier} == earlier
    succeeded(train_by_command(workspace, folder))
    assert_same_model(folder, expected)


# Memory


def test_mapped_files_give_the_same_model(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit one byte short of what the training takes with its tomograms in main memory."""
    plans = []

    def plan(*arguments: Any, **options: Any) -> Any:
        plans.append(plan_training(*arguments, **options))
        return plans[-1]

    plan_training = training.plan_training
    monkeypatch.setattr(training, "plan_training", plan)
    # A process that holds nothing yet: the limit is for all that it takes.
    monkeypatch.setattr("tomoscout.machine.device.own_memory", lambda: 0)
    options = {"name": "unet", "steps": 4, "memory_gb": 1.0}
    in_memory = train(workspace, "memory", options)
    tight = options | {"memory_gb": (plans[0].needed("main memory") - 1) / 2**30}

    def assert_files(folder: Path) -> None:
        assert len(list((folder / "volumes").glob("*.npy"))) == 4

    in_files = stop_and_go_on(workspace, "files", tight, step=1, between=[assert_files])
    assert [plan.storage.tier for plan in plans] == ["memory", "files", "files"]
    assert_same_model(in_files, in_memory)
    assert not (in_files / "volumes").exists()
    with pytest.raises(TomoscoutError, match=r"^memory: main memory .* while .*\(train\.memory_gb\)$"):
        train(workspace, "none", options | {"memory_gb": 1e-6})


# Several kinds of tomogram, voxel spacings and projects at once; a network of the user


def test_kinds_spacings_and_projects_are_mixed(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    sections = add_negatives(workspace)
    project = workspace.project()
    volume = project.read_tomogram("phantom-001", "wbp@20.0")
    project.write_tomogram("phantom-001", "denoised@20.0", volume + np.float32(1))
    finer = volume.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    project.write_tomogram("phantom-001", "wbp@10.0", finer)
    sections["tomograms"] = ["wbp@20.0", "denoised@20.0", "wbp@10.0"]
    make_targets(workspace, **sections)
    fine = project.read_segmentation("phantom-001", Segmentation("targets", "tomoscout", "1", 10.0, True))
    assert fine.shape == finer.shape
    folder = train(workspace, "mixed", {"batch_size": 8}, **sections)
    assert ", 5 tomograms, " in capsys.readouterr().err
    assert_sane(folder)
    model = PickingModel.read(folder)
    assert model.voxel_spacings == (20.0, 10.0)
    assert model.made_from["tomograms"] == sections["tomograms"]
    segment = {"tomogram": "wbp@10.0", "runs": ["phantom/phantom-001"], "tile": [48, 96, 96]}
    config = workspace.configure(segment=segment, **sections)
    records = workspace.records()
    batch = next(record.batch for record in records if record.key == "phantom/phantom-001")
    run_segment(Plan(config, records), [folder], batch, workspace.segmented / "batch.json", threads=1)
    found = Segmentation("predicted", "tomoscout", "unet", 10.0, True)
    assert workspace.project().read_segmentation("phantom-001", found).shape == finer.shape


def test_a_network_of_the_user(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    path = workspace.folder / "my_network.py"
    shutil.copy(Path(__file__).parents[2] / "config/examples/my_network.py", path)
    options = {"network": {"family": str(path), "channels": 4, "dilations": [1, 2]}}
    undisturbed = train(workspace, "undisturbed", {**options, "name": "mine"})
    folder = stop_and_go_on(workspace, "mine", {**options, "name": "mine"}, step=0)
    assert_same_model(folder, undisturbed)
    config = workspace.configure(train={**SHORT, **options})
    run_segment(Plan(config, workspace.records()), [folder], 0, workspace.segmented / "batch.json", threads=1)

    path.write_text(path.read_text().replace("nn.GELU()", "nn.ReLU()"))
    with pytest.raises(
        TomoscoutError, match=r"model\.yaml: .*my_network\.py is not the file that this model was trained"
    ):
        run_segment(Plan(config, workspace.records()), [folder], 0, workspace.segmented / "batch.json", threads=1)
    capsys.readouterr()
    train(workspace, "mine", options)
    assert "checkpoint of other settings or data, not used" in capsys.readouterr().err


# Fine-tuning


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder, PickingModel.read(folder))


NO_PROGRESS = {"learning_rate": 1e-12, "weight_decay": 0.0, "steps": 4}


def test_a_base_that_nothing_beats_is_kept(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    base = {"base": str(workspace.model), **NO_PROGRESS}
    kept = train(workspace, "kept", base)
    message = capsys.readouterr().err
    assert f"starting from {workspace.model}\n" in message
    assert "warning: no validation scored better than the base" in message
    results = read_json(kept / "results.json")
    assert results["best_step"] == 0
    assert (
        results["score"] == results["base_score"] == pytest.approx(read_json(workspace.model / "results.json")["score"])
    )
    assert (kept / "weights.safetensors").read_bytes() == (workspace.model / "weights.safetensors").read_bytes()
    assert metrics(kept)[0]["step"] == "0"
    assert PickingModel.read(kept).made_from["base"] == str(workspace.model)

    replaced = train(workspace, "replaced", {**base, "promote": "always"})
    results = read_json(replaced / "results.json")
    assert results["best_step"] == 2
    assert results["base_score"] == read_json(kept / "results.json")["base_score"]
    assert (replaced / "weights.safetensors").read_bytes() != (kept / "weights.safetensors").read_bytes()
    assert f"with {workspace.model}, " in capsys.readouterr().err


def test_a_fine_tuning_goes_on_where_it_was_stopped(workspace: Workspace) -> None:
    options = {"base": str(workspace.model), "freeze": "body", "freeze_steps": 3, "steps": 5, "name": "unet"}
    undisturbed = train(workspace, "undisturbed", options)
    assert_same_model(stop_and_go_on(workspace, "stopped", options, step=3), undisturbed)


def test_other_classes_get_a_new_head(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"picks": ["hemoglobin", "ribosome"], "segmentations": []}
    make_targets(workspace, targets=few)
    smaller = train(workspace, "few", {"base": str(workspace.model), "steps": 4}, targets=few)
    message = capsys.readouterr().err
    assert (
        "with other classes: the head is rebuilt (kept: hemoglobin, ribosome; new: none; "
        "dropped: virus-like-particle, proteasome, apo-ferritin, membrane)"
    ) in message
    assert [entry.name for entry in PickingModel.read(smaller).classes] == ["hemoglobin", "ribosome"]
    before = read_json(workspace.model / "results.json")["scores"]
    first = metrics(smaller)[0]
    # The base with its own head, by the classes that both find.
    assert float(first["score"]) == pytest.approx((before["hemoglobin"] + before["ribosome"]) / 2)
    assert f"mean score of hemoglobin, ribosome: {float(first['score']):.4f} with {workspace.model}, " in message
    assert read_json(smaller / "results.json")["best_step"] > 0

    # And to more classes, one of which the validation run lacks.
    lose_ribosomes(workspace)
    make_targets(workspace)
    larger = train(workspace, "all", {"base": str(smaller), "steps": 4})
    message = capsys.readouterr().err
    assert (
        "(kept: ribosome, hemoglobin; new: virus-like-particle, proteasome, apo-ferritin, membrane; dropped: none)"
    ) in message
    assert "mean score of hemoglobin: " in message
    assert_sane(larger)


def test_a_base_that_validation_cannot_judge(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    membranes: dict[str, Any] = {"picks": [], "segmentations": ["membrane"]}
    make_targets(workspace, targets=membranes)
    base = train(workspace, "membranes", targets=membranes)
    few = {"picks": ["ribosome"], "segmentations": []}
    make_targets(workspace, targets=few)
    assert_sane(train(workspace, "other", {"base": str(base)}, targets=few))
    assert f"{base} finds none of these classes, so its scores say nothing" in capsys.readouterr().err
    workspace.project().delete("phantom-002", MEMBRANE)
    make_targets(workspace)
    assert_sane(train(workspace, "more", {"base": str(base)}))
    assert f"the validation runs hold no membrane, all that {base} could be compared by" in capsys.readouterr().err


def test_a_frozen_body_stays_as_it_is(workspace: Workspace) -> None:
    tuned = train(workspace, "tuned", {"base": str(workspace.model), "freeze": "body", "steps": 4, "promote": "always"})
    before, after = weights_of(workspace.model), weights_of(tuned)
    head = head_parameters(PickingModel.read(tuned).network, 7)
    assert head
    for name, weights in after.items():
        assert torch.equal(weights, before[name]) == (name not in head), name


def write_octopi_model(folder: Path, labels: dict[str, int]) -> tuple[Path, torch.nn.Module]:
    """A network as octopi writes one."""
    from monai.networks.nets import UNet

    options: dict[str, Any] = {"channels": [4, 8, 8], "strides": [2, 1], "num_res_units": 1, "dropout": 0.0}
    outputs = len(labels) + 1
    torch.manual_seed(5)
    network = UNet(spatial_dims=3, in_channels=1, out_channels=outputs, **options).eval()
    path = folder / "model_config.yaml"
    model = {"architecture": "Unet", "num_classes": outputs, "dim_in": 16, **options}
    path.write_text(yaml.safe_dump({"model": model, "labels": labels}))
    torch.save(network.state_dict(), folder / "best_model.pth")
    return path, network


def test_from_a_model_of_octopi(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    names = [entry.name for entry in PickingModel.read(workspace.model).classes]
    path, network = write_octopi_model(workspace.folder, dict(zip(names, (3, 1, 2, 6, 5, 4), strict=True)))
    # A patch for its network, which halves once; the one of the configuration would need more.
    options = {"base": str(path), "network": {"channels": [4, 8, 8], "strides": [2, 2]}, "patch": [18, 18, 18]}
    kept = train(workspace, "kept", {**options, **NO_PROGRESS})
    assert f"starting from {path}\n" in capsys.readouterr().err
    model, results = PickingModel.read(kept), read_json(kept / "results.json")
    assert model.network.model_dump()["strides"] == [2, 1]
    assert results["best_step"] == 0
    ours, tomogram = load_network(kept, model, torch.device("cpu")), torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        expected = network(tomogram)[:, [0, 3, 1, 2, 6, 5, 4]]
        torch.testing.assert_close(ours(tomogram), expected, rtol=0, atol=1e-5)
    tuned = train(workspace, "tuned", {**options, "promote": "always"})
    assert_sane(tuned)
    assert (tuned / "weights.safetensors").read_bytes() != (kept / "weights.safetensors").read_bytes()
    weights = path.with_name("best_model.pth")
    weights.rename(path.with_name("other.pth"))
    other = train(
        workspace, "other", {**options, "base_weights": str(path.with_name("other.pth")), "promote": "always"}
    )
    assert (other / "weights.safetensors").read_bytes() == (tuned / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["nowhere", "nowhere/model_config.yaml"])
def test_a_base_that_is_not_there(workspace: Workspace, name: str) -> None:
    workspace.configure(train={**SHORT, "base": str(workspace.folder / name)})
    message = error_of(train_by_command(workspace, workspace.folder / "new"))
    assert message.startswith(f"train.base: {workspace.folder}/nowhere/model")
    assert ": no such file; expected a model folder, or octopi's model_config.yaml" in message


def test_another_base_trains_again_and_the_same_does_not(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    base = train(workspace, "base")
    options = {"base": str(base), "promote": "always"}
    first = (train(workspace, "tuned", options) / "weights.safetensors").read_bytes()
    capsys.readouterr()
    (base / "weights.safetensors").touch()
    assert (train(workspace, "tuned", options) / "weights.safetensors").read_bytes() == first
    assert "resumed at step 2 of 2" in capsys.readouterr().err
    train(workspace, "base", {"seed": 11})
    capsys.readouterr()
    assert (train(workspace, "tuned", options) / "weights.safetensors").read_bytes() != first
    assert "checkpoint of other settings or data, not used" in capsys.readouterr().err


def of_shape(*shape: int) -> Any:
    """What the options of a training are resolved by: the shape of the one tomogram that trains and validates."""
    return SimpleNamespace(training_shapes=[shape], validation_shapes=[shape], tile=(160, 160, 160))


def test_the_patch_must_fit_the_network_of_the_base() -> None:
    """Whatever the network in the configuration, which is not used."""
    network = parse_network({"channels": [4, 8], "strides": [2]})
    base = Base("base", network, {"ribosome": 1}, 2, {})
    task = of_shape(24, 48, 48)
    options = resolve_options(Train(base="base", patch=[18, 20, 22]), base, task)
    assert (options.crop, options.network) == ((18, 20, 22), network)
    with pytest.raises(TomoscoutError, match=r"train: patch \[17, 20, 20\] .* multiples of \[2, 2, 2\]"):
        resolve_options(Train(base="base", patch=[17, 20, 20]), base, task)


def test_a_base_of_a_family_that_plans_its_network_is_left_as_it_is() -> None:
    network = parse_network({"family": "ResidualEncoderUNet", "channels": [4, 8], "blocks": [1, 1], "strides": [2]})
    base = Base("base", network, {"ribosome": 1}, 2, {})
    task = of_shape(24, 48, 50)
    assert resolve_options(Train(base="base", patch="auto"), base, task).network == network
    planned = resolve_options(Train(network=network, patch="auto"), None, task).network
    assert planned != network
    with pytest.raises(
        TomoscoutError, match=r"train: tomograms of \[1, 1, 1\] voxels \(z, y, x\) are too small to plan"
    ):
        resolve_options(Train(network=network, patch="auto"), None, of_shape(1, 1, 1))


# Tracking


def test_a_tracking_server_that_is_away_costs_a_warning(workspace: Workspace) -> None:
    expected = train(workspace, "expected", {"name": "unet", "seed": 4})
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        workspace.configure(train={**SHORT, "seed": 4}, tracking={"enabled": True, "uri": address})
        folder = workspace.folder / "results/models/tracked"
        result = succeeded(train_by_command(workspace, folder))
    warnings = [line for line in result.stderr.splitlines() if "not recorded in MLflow" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: not recorded in MLflow: {address}: ")
    assert warnings[0].endswith("; the training goes on, `tomoscout track` records it later")
    assert_same_model(folder, expected)


# The best so far, an early end, and more steps


def wait_for(path: Path, training: subprocess.Popen[str]) -> None:
    while not path.exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            training.wait(timeout=0.01)
            pytest.fail(f"ended before {path} was there: {training.communicate()[1]}")


@pytest.mark.long
def test_a_running_training_is_finished_early(workspace: Workspace) -> None:
    """Its best so far is a model that can be applied, and then the model."""
    workspace.configure(train={"steps": 100_000, "validate_every": 5})
    folder = workspace.folder / "results/models/early"
    training = start(workspace, folder)
    so_far = folder / "so-far"
    wait_for(so_far / "model.yaml", training)
    model = PickingModel.read(so_far.resolve())
    assert model.made_from["so_far"]
    load_network(so_far.resolve(), model, torch.device("cpu"))
    said = succeeded(tomoscout("train", "finish", folder)).stderr
    assert f"process {training.pid} on " in said
    message = training.communicate()[1]
    assert training.returncode == 0, message
    assert "finished early, at step " in message
    model, results = PickingModel.read(folder), read_json(folder / "results.json")
    assert results["finished_early"]
    assert model.made_from["finished_early"]
    assert model.made_from["steps"] == results["steps"] < 100_000
    load_network(folder, model, torch.device("cpu"))
    assert not [path.name for path in folder.iterdir() if "so-far" in path.name]
    assert error_of(tomoscout("train", "finish", folder)) == f"{folder}: the training is complete"

    # The same command does not train again.
    before = {name: (folder / name).read_bytes() for name in MADE}
    training = start(workspace, folder)
    message = training.communicate()[1]
    assert f"resumed at step {results['steps']} of 100000" in message
    assert {name: (folder / name).read_bytes() for name in MADE} == before

    # Of other settings it does.
    workspace.configure(train={"steps": 2, "validate_every": 5})
    message = start(workspace, folder).communicate()[1]
    assert "finish.json: asked for with other settings or data, without effect" in message
    assert read_json(folder / "results.json")["steps"] == 2
    assert "finished_early" not in read_json(folder / "results.json")


@pytest.mark.long
def test_a_training_that_does_not_run_is_finished_when_it_is_started(workspace: Workspace) -> None:
    folder = workspace.folder / "results/models/stopped"
    assert error_of(tomoscout("train", "finish", folder)).startswith(f"{folder}: no training.json; ")
    workspace.configure(train={"steps": 100_000, "validate_every": 1000})
    training = start(workspace, folder)
    interrupt(training, folder / "checkpoint.pt", 3, signal.SIGKILL)
    assert not (folder / "so-far").exists()
    assert "it ends when it is started again" in succeeded(tomoscout("train", "finish", folder)).stderr
    training = start(workspace, folder)
    message = training.communicate()[1]
    assert training.returncode == 0, message
    results = read_json(folder / "results.json")
    assert results["finished_early"]
    assert results["best_step"] == results["steps"] < 1000


def test_a_trial_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "ask.json").write_text("{}")
    assert "`tomoscout trial give-up` ends one" in error_of(tomoscout("train", "finish", tmp_path))


def test_a_training_is_asked_for_with_all_it_needs(workspace: Workspace) -> None:
    result = tomoscout("train", "--model", workspace.folder / "new")
    assert result.exit_code == 2
    assert "Missing option '--config'" in result.stderr


def test_readers_of_the_best_so_far_never_see_half_of_it(tmp_path: Path) -> None:
    def write(number: int) -> Callable[[Path], None]:
        def write_both(folder: Path) -> None:
            # The one before is whole while the next is written.
            if number:
                assert {path.read_text() for path in reader.iterdir()} == {str(number - 1)}
                assert {path.read_text() for path in (tmp_path / "so-far").iterdir()} == {str(number - 1)}
            for name in ("model.yaml", "weights.safetensors"):
                (folder / name).write_text(str(number))

        return write_both

    reader = tmp_path
    for number in range(5):
        replace_so_far(tmp_path, write(number))
        # Whoever has opened it keeps it while the next comes.
        reader = (tmp_path / "so-far").resolve()
    shutil.copytree(tmp_path, tmp_path.with_name("copy"), symlinks=False)
    replace_so_far(tmp_path.with_name("copy"), write(0))
    remove_so_far(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_more_steps_later_are_more_steps_from_the_start(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"schedule": "constant", "warmup": 2, "validate_every": 2}
    train(workspace, "longer", {**options, "steps": 3})
    longer = train(workspace, "longer", {**options, "steps": 7})
    assert "resumed at step 3 of 7" in capsys.readouterr().err
    expected = train(workspace, "whole", {**options, "steps": 7})
    assert_same_model(longer, expected)
