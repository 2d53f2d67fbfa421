"""The task of instances, trained on a few made-up images: learning, exact resume, fine-tuning, the library."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from support.instances import TRAIN, UNTRAINED
from support.model import MODEL, random_network
from tomoscout.learning import training
from tomoscout.learning.progression import Outcome, Progression
from tomoscout.learning.sampling import Crop, CropSampler
from tomoscout.learning.training import plan_of, resolve_options, train_network
from tomoscout.learning.validation import Validator
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.models.folder import load_network, load_weights, read_description, save_weights
from tomoscout.options.config import Config, load_config
from tomoscout.report.cell_scores import FOUND
from tomoscout.stages import train_cells
from tomoscout.stages.divide_cells import run_divide_cells
from tomoscout.stages.train_cells import as_base, run_train_cells
from tomoscout.tasks.instances import task as task_module
from tomoscout.tasks.instances.annotations import find_annotations
from tomoscout.tasks.instances.check_pictures import LONGEST_SIDE
from tomoscout.tasks.instances.data import CellData
from tomoscout.tasks.instances.flow import FlowHead
from tomoscout.tasks.instances.made_up import make_annotations
from tomoscout.tasks.instances.model import CellModel
from tomoscout.tasks.instances.options import Cells, CellTraining
from tomoscout.tasks.instances.task import CellTask, choose_thresholds

torch.set_num_threads(1)
CPU = torch.device("cpu")
MADE = ("model.yaml", "weights.safetensors", "metrics.csv", "results.json")


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotations")
    make_annotations(folder, 18, (80, 80), 0, cells=8, radius=9)
    return folder


@pytest.fixture(scope="module")
def folder(annotations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained without interruption."""
    folder = tmp_path_factory.mktemp("trained")
    train(configure(folder, annotations), folder)
    return folder


def configure(folder: Path, annotations: object, train: Mapping[str, Any] | None = None, **cells: Any) -> Config:
    path = folder / "config.yaml"
    sources = annotations if isinstance(annotations, dict) else {"made-up": str(annotations)}
    section = {"annotations": sources, "channels": ["nuclei"], **cells}
    values = {"cells": {**section, "train": {**TRAIN, **(train or {})}}, "tracking": {"enabled": False}}
    path.write_text(yaml.safe_dump(values))
    return load_config(path)


def train(config: Config, folder: Path) -> Outcome:
    run_divide_cells(config, folder / "division.json")
    return run_train_cells(config, folder / "division.json", folder)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder, CellModel.read(folder))


def test_it_learns(folder: Path) -> None:
    model = CellModel.read(folder)
    assert model.made_from["score"] > 0.5
    assert (model.name, model.told_apart_by, model.rays, model.inputs) == ("cells", "flow", None, ("nuclei",))
    assert (model.calibration, model.patch, model.class_names) == (0.65, (64, 64), ("flow y", "flow x"))
    results = read_json(folder / "results.json")
    assert results["scores"]["AP50"] > 0.8
    assert results["score"] == pytest.approx(np.mean(list(results["scores"].values())))
    assert results["thresholds"] == model.thresholds


def test_a_star_head_learns_too(annotations: Path, tmp_path: Path) -> None:
    outcome = train(configure(tmp_path, annotations, {"head": "star", "rays": 16, "steps": 20}), tmp_path)
    assert outcome.progression.best_details["scores"]["AP50"] > 0.5
    model = CellModel.read(tmp_path)
    assert (model.told_apart_by, model.rays, model.outputs) == ("star", 16, 18)


def test_a_training_that_is_stopped_ends_the_same(
    annotations: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(progression: Progression) -> None:
        if progression.step == 20:
            raise KeyboardInterrupt

    config = configure(tmp_path, annotations, {"checkpoint_seconds": 0})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_cells, "train_network", lambda job, _: train_network(job, stop))
        train(config, tmp_path)
    assert (tmp_path / "checkpoint.pt").exists()
    assert not (tmp_path / "model.yaml").exists()
    train(config, tmp_path)
    for name in MADE:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_images_in_files_give_the_same_model(
    annotations: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_training = training.plan_training

    def plan(*arguments: Any) -> Any:
        made = plan_training(*arguments)
        return replace(made, storage=replace(made.storage, tier="files"))

    monkeypatch.setattr(training, "plan_training", plan)
    train(configure(tmp_path, annotations), tmp_path)
    assert (tmp_path / "weights.safetensors").read_bytes() == (folder / "weights.safetensors").read_bytes()


def test_a_fine_tuning_starts_from_its_base(annotations: Path, folder: Path, tmp_path: Path) -> None:
    outcome = train(configure(tmp_path, annotations, {**UNTRAINED, "base": str(folder)}), tmp_path)
    assert outcome.progression.base_score == pytest.approx(CellModel.read(folder).made_from["score"])
    before, after = weights_of(folder), weights_of(tmp_path)
    assert all(torch.allclose(after[name].float(), before[name].float(), atol=1e-5) for name in before)
    named_by_file = as_base(configure(tmp_path, annotations, {"base": str(folder / "model.yaml")}).cells)
    assert named_by_file.channels == ["nuclei"]


def test_a_fine_tuning_takes_over_how_its_base_sees_images(annotations: Path, tmp_path: Path) -> None:
    seen = {"normalisation": {"percentile": [2, 98], "clip": True}, "calibration": 0.9, "rescale_tolerance": 0.1}
    (tmp_path / "base").mkdir()
    star = {**UNTRAINED, "head": "star", "rays": 16}
    train(configure(tmp_path / "base", annotations, star, **seen, channels=["Cytoplasm", "None"]), tmp_path / "base")
    changes = {**UNTRAINED, "base": str(tmp_path / "base"), "head": "flow"}
    asked = configure(tmp_path, annotations, changes, channels=[])
    run_train_cells(asked, tmp_path / "base/division.json", tmp_path)
    base, model = (CellModel.read(path) for path in (tmp_path / "base", tmp_path))
    for name in ("told_apart_by", "rays", "inputs", "normalisations", "calibration", "rescale_tolerance", "network"):
        assert getattr(model, name) == getattr(base, name), name
    assert model.inputs == ("Cytoplasm", "None")
    assert model.normalisations[0].clip
    renamed = configure(tmp_path, annotations, {"base": str(tmp_path / "base")}, channels=["nuclei", "None"])
    assert as_base(renamed.cells).channels == ["nuclei", "None"]


def test_other_numbers_of_channels_than_those_of_the_base_are_refused(
    annotations: Path, folder: Path, tmp_path: Path
) -> None:
    config = configure(tmp_path, annotations, {"base": str(folder)}, channels=["nuclei", "cytoplasm"])
    with pytest.raises(TomoscoutError, match=r"^cells\.channels: nuclei, cytoplasm, but .* takes 1: nuclei$"):
        as_base(config.cells)


def test_a_picking_model_is_no_base(annotations: Path, tmp_path: Path) -> None:
    digest = save_weights(tmp_path / "picking", random_network().state_dict())
    replace(MODEL, weights_digest=digest).write(tmp_path / "picking")
    config = configure(tmp_path, annotations, {"base": str(tmp_path / "picking")})
    with pytest.raises(TomoscoutError, match=r"model\.yaml: found .*'head': 'picking'.*, expected .*'head': 'cells'"):
        train(config, tmp_path)


@pytest.mark.parametrize("option", ["tilt", "mixup"])
def test_augmentations_that_instances_do_not_survive_are_refused(
    annotations: Path, tmp_path: Path, option: str
) -> None:
    with pytest.raises(TomoscoutError, match=rf"cells\.train\.augmentation\.{option}") as error:
        configure(tmp_path, annotations, {"augmentation": {option: 0.3}})
    assert "\n" not in str(error.value)


def test_a_training_that_ends_is_kept_in_the_library(annotations: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    for steps in (1, 2):
        config = configure(tmp_path, annotations, {**UNTRAINED, "steps": steps, "name": "mine"}, library=str(library))
        train(config, tmp_path / "model")
        assert [path.name for path in library.iterdir()] == ["mine"]
        names = {path.name for path in (library / "mine").iterdir()}
        assert {"model.yaml", "weights.safetensors", "history.png", "metrics.csv"} <= names
        assert not any("checkpoint" in name or name == "volumes" for name in names)
        assert (library / "mine/model.yaml").read_bytes() == (tmp_path / "model/model.yaml").read_bytes()
        assert CellModel.read(library / "mine").made_from["fingerprint"]
        assert weights_of(library / "mine").keys() == weights_of(tmp_path / "model").keys()


def task_of(cells: Cells) -> CellTask:
    found = find_annotations(cells)
    return CellTask(CellData(cells, found[2:], found[:2]), cells.train)


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_weights_say_how_often_crops_are_centred_in_a_source(
    annotations: Path, tmp_path: Path, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_annotations(tmp_path / "other", 3, (80, 80), 5, cells=8, radius=9)
    sources = {"a": str(annotations), "b": {"folder": str(tmp_path / "other"), "weight": weight}}
    config = configure(tmp_path, sources, {"background_fraction": 0, "batch_size": 64})
    task = task_of(config.cells)
    options = resolve_options(config.cells.train, None, task)
    drawn = Counter[str]()
    crops = CropSampler.crops

    def count(sampler: CropSampler, *arguments: Any) -> list[Crop]:
        made = crops(sampler, *arguments)
        drawn.update(task.data.training[crop.volume].source for crop in made)
        return made

    monkeypatch.setattr(CropSampler, "crops", count)
    batches = task.batches(options, plan_of(task, options, CPU, tmp_path / "volumes")[2].storage)
    for step in range(6):
        batches(step, {})
    assert drawn.total() == 6 * 64
    assert drawn["b"] / drawn.total() == pytest.approx(weight / (1 + weight), abs=0.1)


def test_a_batch_depends_on_the_step_alone_and_its_targets_fit_the_head(annotations: Path, tmp_path: Path) -> None:
    task = task_of(configure(tmp_path, annotations).cells)
    options = resolve_options(task.options, None, task)
    batches = task.batches(options, plan_of(task, options, CPU, tmp_path / "volumes")[2].storage)
    first, again, other = batches(3, {}), batches(3, {}), batches(4, {})
    assert torch.equal(first[0], again[0]) and all(map(torch.equal, first[1], again[1]))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (4, 1, 64, 64)
    assert [target.shape for target in first[1]] == [(4, 64, 64), (4, 2, 64, 64)]
    assert [target.shape[1:] for target in task.example_targets((64, 64), False)] == [(64, 64), (2, 64, 64)]


def test_small_images_and_images_without_objects_train(tmp_path: Path) -> None:
    make_annotations(tmp_path / "small", 9, (40, 52), 1, cells=3, radius=7, empty=3)
    config = configure(tmp_path, tmp_path / "small", {"steps": 2, "validate_every": 2})
    outcome = train(config, tmp_path)
    assert np.isfinite(outcome.progression.history[-1]["loss"])
    data = task_of(config.cells).data
    assert sum(not labels.any() for _, labels in map(data.read, data.training)) >= 2


def test_images_at_another_calibration_are_rescaled_with_their_labels(annotations: Path, tmp_path: Path) -> None:
    data = task_of(configure(tmp_path, annotations, calibration=1.3).cells).data
    assert data.training_shapes[0] == (40, 40)
    image, labels = data.read(data.training[0])
    assert image.shape == (1, 40, 40) and labels.shape == (40, 40)
    assert image[0][labels > 0].mean() > image[0][labels == 0].mean() + 0.2


def test_thresholds_are_chosen_by_the_score_and_stay_where_nothing_is_better() -> None:
    truth = np.zeros((10, 30), np.int32)
    truth[2:8, 2:8] = 1

    def decode(thresholds: Mapping[str, float]) -> np.ndarray[Any, np.dtype[np.int32]]:
        return truth if thresholds["probability"] == 0.7 else np.zeros_like(truth)

    chosen, found = choose_thresholds(FlowHead(2), [decode], [truth])
    assert chosen == {"probability": 0.7, "agreement": 0.0}
    assert found[0].matched.tolist() == [1.0]


@pytest.mark.parametrize(("factor", "steps"), [(1.0, 30), (2.0, 60), (0.5, 15)])
def test_an_epoch_draws_a_crop_for_each_image_times_the_factor(factor: float, steps: int) -> None:
    options = CellTraining(epochs=10, augmentation_factor=factor, batch_size=4)
    assert options.in_steps(12).steps == steps
    assert CellTraining(steps=7).in_steps(12).steps == 7


def test_a_length_in_epochs_trains_as_many_steps(annotations: Path, folder: Path, tmp_path: Path) -> None:
    images = len(read_json(folder / "division.json")["train"])
    config = configure(tmp_path, annotations, {**UNTRAINED, "epochs": 2, "augmentation_factor": 1.5, "steps": 999})
    assert train(config, tmp_path).progression.step == math.ceil(2 * 1.5 * images / 4)


def test_validation_images_beyond_those_that_choose_thresholds_count_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, model = load_config(folder / "config.yaml").cells, CellModel.read(folder)
    found = find_annotations(cells)
    instances = CellTask(CellData(cells, found[6:], found[:6]), cells.train)
    validator = Validator(instances, model.network, 2, (1024, 1024), CPU)
    monkeypatch.setattr(FlowHead, "thresholds", {name: (value,) for name, value in model.thresholds.items()})
    scores = []
    for choosing in (2, 6):
        monkeypatch.setattr(task_module, "CHOOSING", choosing)
        scores.append(validator(load_network(folder, model, CPU)).score)
    assert scores[0] == scores[1] > 0.3


def test_a_picture_of_validation_images_is_drawn(folder: Path) -> None:
    picture = np.asarray(Image.open(folder / "validation.png"))
    assert picture.shape[0] == LONGEST_SIDE and picture.shape[1] >= 3 * LONGEST_SIDE
    assert (picture == FOUND).all(-1).any()


def test_the_order_of_validation_images_begins_everywhere(annotations: Path, folder: Path) -> None:
    cells = load_config(folder / "config.yaml").cells
    found = find_annotations(cells)[:8]
    order = [found.index(entry) for entry in CellData(cells, found, found).validation]
    assert sorted(order) == list(range(8))
    assert order[:4] == [0, 4, 2, 6]


def test_a_sample_is_mixed_in(annotations: Path, tmp_path: Path) -> None:
    sources = {"mine": str(annotations), "sample": {"sample": "nuclei", "calibration": 0.65}}
    cells = configure(tmp_path, sources, channels=["nuclei", "1"]).cells
    sample = next(entry for entry in find_annotations(cells) if entry.source == "sample")
    assert (sample.shape, sample.channels, sample.group) == ((512, 512), ("1",), "nuclei")
    assert sample.read_image().shape == (1, 512, 512) and sample.read_labels().max() == 183
    unknown = configure(tmp_path, {**sources, "sample": {"sample": "nuclei"}}, channels=["nuclei", "1"]).cells
    with pytest.raises(TomoscoutError, match=r"^cells\.annotations\.sample: no calibration; give "):
        find_annotations(unknown)


def test_a_model_says_what_made_it(folder: Path) -> None:
    values = read_description(folder)
    assert {"tomoscout", "torch", "monai"} <= values["made_with"].keys()
    assert values["made_from"]["train"] and values["made_from"]["validate"]
    assert read_json(folder / "training.json")["options"]["seed"] == 42


def test_networks_take_more_than_two_channels(annotations: Path, tmp_path: Path) -> None:
    config = configure(tmp_path, annotations, UNTRAINED, channels=["nuclei", "Cytoplasm", "None", "nuclei"])
    train(config, tmp_path)
    assert CellModel.read(tmp_path).channels == 4
