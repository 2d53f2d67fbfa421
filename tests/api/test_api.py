"""tomoscout from Python: what the functions return, and that they write what the command line writes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.losses import TverskyLoss

from support.octopi import UNET, write_model
from support.training import Workspace, trained
from tomoscout.api import TrainedModel, create_targets, cross_validate, evaluate, explore, localize, segment, train
from tomoscout.data.written import Segmentation
from tomoscout.learning.losses.octopi import FocalTverskyLoss
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.options.config import load_config
from tomoscout.tasks.picking.model import PickingModel

MADE = ["history.png", "metrics.csv", "model.yaml", "results.json", "weights.safetensors"]
TARGET = Segmentation("targets", "tomoscout", "1", 20.0, True)
SHORT = {"steps": 2, "validate_every": 2}


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Workspace:
    return trained(tmp_path_factory.getbasetemp()).copy(tmp_path / "workspace")


def values(workspace: Workspace) -> dict[str, Any]:
    """The configuration as a mapping."""
    return dict(yaml.safe_load(workspace.config_path.read_text()))


def results(workspace: Workspace) -> Path:
    return workspace.folder / "results"


def assert_same_model(folder: Path, expected: Path) -> None:
    for name in MADE:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def test_targets_are_made_and_described(workspace: Workspace) -> None:
    made = create_targets(values(workspace), results(workspace))
    assert list(made) == [f"phantom/phantom-00{number}" for number in range(4)]
    folder = results(workspace) / "targets/targets"
    for key, manifest in made.items():
        assert manifest == read_json(folder / f"{key}.json")
        [target] = manifest["targets"]
        digest = workspace.project().digest_written(manifest["run"], TARGET)
        assert (target["segmentation"], target["digest"]) == (str(TARGET), digest)
        assert target["classes"][0]["picks"].keys() >= {"used", "outside", "overlapping"}
    assert set(read_json(folder / "batch-0000.json")["runs"]) == set(made)

    # Fewer runs, from a file: the targets of the others go, and with them the last of a batch.
    workspace.configure(targets={"runs": ["phantom-001"]})
    assert list(create_targets(workspace.config_path, str(results(workspace)))) == ["phantom/phantom-001"]
    there = [run for run in workspace.project().run_names() if TARGET in workspace.project().segmentations(run)]
    assert there == ["phantom-001"]


def test_training_gives_the_model_of_the_command_line(workspace: Workspace) -> None:
    workspace.configure(train=SHORT)
    options = ("--config", workspace.config_path, "--inventory", workspace.inventory_path)
    expected = workspace.folder / "expected"
    workspace.command("train", *options, "--model", expected, "--threads", "1")

    workspace.configure()
    made = [
        train(values(workspace), results(workspace), **SHORT),
        train(workspace.config_path, str(results(workspace) / "again"), **SHORT),
        train(load_config(workspace.config_path), results(workspace) / "more", **SHORT),
    ]
    for model in made:
        assert model.folder.relative_to(results(workspace)).parts[-2:] == ("models", "unet")
        assert_same_model(model.folder, expected)
        assert_describes(model)
    # A mapping that was given, or a configuration, is not changed by the options.
    assert values(workspace)["train"]["steps"] == 80


def assert_describes(model: TrainedModel) -> None:
    found = read_json(model.folder / "results.json")
    assert (model.best_step, model.score, model.scores, model.thresholds) == (
        found["best_step"],
        found["score"],
        found["scores"],
        found["thresholds"],
    )
    with (model.folder / "metrics.csv").open(newline="") as handle:
        rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(handle)]
    assert model.history == rows
    assert model.history[-1].keys() == {"step", "loss", "learning_rate", "score", *model.scores}


def test_options_in_place_of_the_configuration(workspace: Workspace) -> None:
    folder = workspace.folder / "results"
    options: dict[str, Any] = {
        "name": "mine",
        "loss": {"name": "Tversky", "alpha": 0.4},
        "augmentation": {"mixup": 1.0},
    }
    model = train(workspace.config_path, folder, **SHORT, **options)
    assert model.folder == folder / "models/mine"
    used = read_json(model.folder / "training.json")["options"]
    assert used["loss"] == [{"name": "Tversky", "alpha": 0.4, "beta": 0.7, "weight": 1.0}]
    assert used["augmentation"]["mixup"] == 1.0
    with pytest.raises(TomoscoutError, match=r"^config: train: unknown key 'stepz'; did you mean 'steps'\?$"):
        train(workspace.config_path, folder, stepz=3)
    with pytest.raises(TomoscoutError, match=r"^config: train\.steps: "):
        train(workspace.config_path, folder, steps=0)


def test_cross_validation(workspace: Workspace) -> None:
    config = values(workspace)
    config["split"] = {"folds": 2, "test": ["phantom-003"], "seed": 1}
    # What one fold trains on and the other does not must not be a class.
    config["targets"]["picks"] = ["ribosome", "hemoglobin"]
    create_targets(config, results(workspace))
    models = cross_validate(config, results(workspace), **SHORT)
    assert [model.folder.name for model in models] == ["unet-fold-0", "unet-fold-1"]
    validated = [PickingModel.read(model.folder).made_from["validate"] for model in models]
    assert sorted(run for runs in validated for run in runs) == [f"phantom/phantom-00{number}" for number in range(3)]
    for model in models:
        assert_describes(model)
    table = read_json(results(workspace) / "cross_validation/unet.json")
    assert table["metric"] == "fBeta4 of particles"
    whole = next(row for row in table["rows"] if row["object"] == "all")
    assert (whole["fold 0"], whole["fold 1"]) == (models[0].score, models[1].score)
    assert whole["mean"] == pytest.approx((models[0].score + models[1].score) / 2)
    assert (results(workspace) / "cross_validation/unet.csv").read_text().startswith("object,mean,spread,folds,fold 0")

    alone = train(config, results(workspace) / "alone", fold=1, **SHORT)
    assert_same_model(alone.folder, models[1].folder)
    for fold in (2, -1):
        with pytest.raises(TomoscoutError, match=rf"split\.fold: {fold} asked for, but there are folds 0 to 1"):
            train(config, results(workspace), fold=fold)
    with pytest.raises(TomoscoutError, match=r"cross-validation needs split\.folds \(such as 5\) or split\.leave_one"):
        cross_validate(values(workspace), results(workspace))


def test_exploration(workspace: Workspace) -> None:
    options = {"patch": 16, "batch_size": 2, "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}}
    network = {"UNet": {"width": 4, "levels": 2, "bottleneck_levels": 0}}
    study = {"trials": 2, "threads": 1, "validations": 1, "networks": network, "space": options}
    config = values(workspace) | {"explore": study}
    explored = explore(config, results(workspace), steps=2, validate_every=None)
    assert [trial.state for trial in explored.trials] == ["COMPLETE"] * 2
    assert PickingModel.read(explored.best[0]).made_from["score"] == max(trial.value or 0 for trial in explored.trials)
    # More trials are added, and those that are done stay.
    more = explore(
        config | {"explore": {**study, "trials": 3, "top": 2}}, results(workspace), steps=2, validate_every=None
    )
    assert more.trials[:2] == explored.trials
    assert [path.name for path in more.best] == ["best", "best-2"]
    recipe = yaml.safe_load((more.best[0] / "train.yaml").read_text())["train"]
    assert workspace.configure(train=recipe).train.learning_rate == recipe["learning_rate"]


def apply_by_commands(workspace: Workspace) -> None:
    """Segment, localise and score as the workflow does."""
    options = ("--config", workspace.config_path, "--inventory", workspace.inventory_path)
    folder, model = results(workspace), ("--model", workspace.model)
    batch = ("--batch", "0", "--output")
    workspace.command("segment", *options, *model, *batch, folder / "segment/unet/batch-0000.json", "--threads", "1")
    segmented = ("--segmented", folder / "segment/unet")
    workspace.command("localize", *options, *model, *segmented, *batch, folder / "localize/unet/batch-0000.json")
    localized = ("--localized", folder / "localize/unet")
    workspace.command("evaluate", *options, *localized, "--output", folder / "evaluate/unet")


def test_a_model_is_applied_and_scored_as_by_the_command_line(workspace: Workspace, tmp_path: Path) -> None:
    by_commands = workspace.copy(tmp_path / "by commands")
    apply_by_commands(by_commands)
    config, folder = values(workspace), results(workspace)
    with pytest.raises(TomoscoutError, match=r"no manifest; phantom/phantom-002 has not been through this stage"):
        localize(config, folder)
    runs = ["phantom/phantom-002", "phantom/phantom-003"]
    segmented = segment(config, folder)
    assert list(segmented) == runs
    localized = localize(workspace.config_path, str(folder), models=[workspace.model])
    assert list(localized) == runs
    scores = evaluate(config, folder)
    for key in runs:
        for stage, manifest in (("segment", segmented[key]), ("localize", localized[key])):
            assert manifest == read_json(folder / stage / f"unet/{key}.json")
            assert manifest == read_json(results(by_commands) / stage / f"unet/{key}.json")
    for name in ("scores.json", "objects.csv", "runs.csv", "curves.csv"):
        written = (folder / "evaluate/unet" / name).read_bytes()
        assert written == (results(by_commands) / "evaluate/unet" / name).read_bytes(), name
    assert scores["runs_scored"] == ["phantom/phantom-003"]
    # What is there already stays.
    written = (folder / f"segment/unet/{runs[0]}.json").stat().st_mtime_ns
    assert segment(config, folder) == segmented
    assert (folder / f"segment/unet/{runs[0]}.json").stat().st_mtime_ns == written


def test_a_model_of_octopi_is_imported_before_it_is_applied(workspace: Workspace) -> None:
    source = write_model(workspace.folder, UNET, labels={"ribosome": 1, "membrane": 2, "hemoglobin": 3})
    source.write_text(source.read_text().replace("wbp@10.0", "wbp@20.0"))
    config = values(workspace)
    config["segment"] = {**config["segment"], "models": [str(source)], "runs": ["phantom-003"]}
    config["localize"] = {"threshold": 0.9}
    [(run, manifest)] = segment(config, results(workspace)).items()
    [folder] = [
        path.parent for path in (results(workspace) / "models").glob("*/model.yaml") if path.parent.name != "unet"
    ]
    model = PickingModel.read(folder)
    assert (run, manifest["model"]) == ("phantom/phantom-003", model.weights_digest)
    assert list(localize(config, results(workspace))[run]["picks"]) == ["hemoglobin", "ribosome"]


def test_a_loss_of_the_user(workspace: Workspace) -> None:
    results_folder = results(workspace)

    class Counted(torch.nn.CrossEntropyLoss):
        calls = 0

        def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            Counted.calls += 1
            assert (logits.ndim, labels.shape[1:], labels.dtype) == (5, logits.shape[2:], torch.int64)
            return super().forward(logits, labels)

    options: dict[str, Any] = {**SHORT, "name": "own"}
    first = train(workspace.config_path, results_folder, loss=Counted(), loss_name="counted-1", **options)
    assert read_json(first.folder / "training.json")["options"]["loss"] == "counted-1"
    weights = (first.folder / "weights.safetensors").read_bytes()
    fingerprint = PickingModel.read(first.folder).made_from["fingerprint"]
    # The same name goes on from its checkpoint, which is complete; another trains anew.
    Counted.calls = 0
    again = train(workspace.config_path, results_folder, loss=Counted(), loss_name="counted-1", **options)
    assert Counted.calls <= 1  # looked at for the memory that it takes
    assert (again.folder / "weights.safetensors").read_bytes() == weights
    train(workspace.config_path, results_folder, loss=Counted(), loss_name="counted-2", **options)
    assert Counted.calls >= 2
    assert (again.folder / "weights.safetensors").read_bytes() == weights
    assert PickingModel.read(first.folder).made_from["fingerprint"] != fingerprint
    other = train(workspace.config_path, results_folder, loss="CrossEntropy", **{**SHORT, "name": "built-in"})
    assert (other.folder / "weights.safetensors").read_bytes() != weights

    monai = TverskyLoss(to_onehot_y=True, softmax=True)
    mixed = {**SHORT, "name": "monai", "augmentation": {"mixup": 1.0}}
    assert train(workspace.config_path, results_folder, loss=monai, loss_name="monai-tversky", **mixed).history


def test_a_loss_of_the_user_in_a_cross_validation(workspace: Workspace) -> None:
    config = values(workspace)
    config["split"] = {"folds": 2, "test": ["phantom-003"], "seed": 1}
    config["targets"]["picks"] = ["ribosome", "hemoglobin"]
    create_targets(config, results(workspace))
    models = cross_validate(config, results(workspace), loss=FocalTverskyLoss(), loss_name="focal", **SHORT)
    options = [read_json(model.folder / "training.json")["options"] for model in models]
    assert [option["loss"] for option in options] == ["focal", "focal"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": torch.nn.MSELoss()}, r'^loss_name: missing; what MSELoss computes .* loss_name="my-loss-1"'),
        (
            {"loss": torch.nn.MSELoss, "loss_name": "a"},
            r"^loss: found MSELoss, expected a torch\.nn\.Module \(an obj",
        ),
        ({"loss": lambda logits, labels: 0, "loss_name": "a"}, r"^loss: found function, expected a torch"),
        ({"loss": "Dice", "loss_name": "a"}, r"^loss_name: for a loss of your own"),
        ({"loss_name": "a"}, r"^loss_name: for a loss of your own"),
        (
            {"loss": torch.nn.MSELoss(), "loss_name": "a", "class_weights": {"ribosome": 2.0}},
            r"^train\.class_weights: without effect on a loss of your own",
        ),
    ],
    ids=["no name", "a class", "a function", "a name of ours", "a name alone", "weights of classes"],
)
def test_losses_that_are_refused(workspace: Workspace, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TomoscoutError, match=message):
        train(workspace.config_path, results(workspace), **SHORT, **options)
