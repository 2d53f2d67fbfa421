"""The exploration of instances of cells: its name, what it refuses, and what becomes of a trial."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.exploration import torch_threads
from support.instances import TRAIN
from support.project import error_of, succeeded, tomoscout
from tomoscout.explore.records import Result, trial_folder
from tomoscout.explore.status import planned_trials
from tomoscout.learning.progression import Progression
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json, write_json
from tomoscout.options.config import Config, load_config, parse_config
from tomoscout.stages import explore_cells
from tomoscout.stages.divide_cells import run_divide_cells
from tomoscout.stages.explore import start_study, suggest_trial, train_trial
from tomoscout.stages.explore_cells import InstancesOfCells, cell_study, heads_of
from tomoscout.tasks.instances.made_up import make_annotations
from tomoscout.tasks.instances.model import CellModel
from tomoscout.tracking.record import read_record

EXPLORE: dict[str, Any] = {"trials": 2, "window": 1, "validations": 2, "threads": 1, "networks": {"UNet": {}}}


def configured(explore: Mapping[str, Any] | None = None, **cells: Any) -> Config:
    section = {"annotations": {"made-up": "annotations"}, "channels": ["nuclei"], "train": TRAIN, **cells}
    return parse_config({"cells": section | {"explore": {**EXPLORE, **(explore or {})}}}, "config", quiet=True)


class Study:
    """A study of annotated images in a folder."""

    def __init__(self, folder: Path, **cells: Any) -> None:
        make_annotations(folder / "annotations", 6, (64, 64), 0, cells=6, radius=8)
        values = configured(**{"annotations": {"made-up": str(folder / "annotations")}, **cells}).model_dump(
            mode="json", by_alias=True, include={"cells", "tracking"}
        )
        self.config = folder / "results/config.json"
        write_json(self.config, values | {"tracking": {"enabled": False}})
        self.division = folder / "results/cells/division.json"
        self.results = folder / "results"
        self.divide()
        self.folder = self.results / "explore" / self.subject.study().name

    @property
    def subject(self) -> InstancesOfCells:
        return InstancesOfCells(load_config(self.config), self.division)

    def divide(self) -> None:
        run_divide_cells(load_config(self.config), self.division)


def test_the_name_follows_from_the_options_alone() -> None:
    names = {
        cell_study(config.cells).name
        for config in (
            configured(),
            configured({"window": 2}),
            configured({"space": {"head": "star"}}),
            configured(division={"seed": 1}),
            configured(normalisation={"clip": True}),
            configured(train={**TRAIN, "steps": 41}),
        )
    }
    assert len(names) == 6
    same = configured({"trials": 9, "top": 2}, library="models", segment={"device": "cpu"})
    assert cell_study(same.cells).name == cell_study(configured().cells).name
    assert cell_study(configured().cells).with_images("abc").name == cell_study(configured().cells).name


@pytest.mark.parametrize(
    ("explore", "train", "message"),
    [
        ({"space": {"loss.name": "Dice"}}, {}, "cells.explore.space.loss.name: no option of cells.train; "),
        ({"space": {"foreground_weight": 2.0}}, {}, "cells.explore.space.foreground_weight: no option of cells.train"),
        ({"space": {"name": "a"}}, {}, "cells.explore.space.name: not to be searched: trials have names of their own"),
        ({"space": {"augmentation.mixup": 0.5}}, {}, "cells.explore: no training is possible with network UNet: augm"),
        ({"networks": {"UNet": {"depth": 3}}}, {}, "cells.explore.networks.UNet.depth: no option of UNet; "),
        ({"space": {"head": {"choices": ["flow", "wave"]}}}, {}, "cells.explore: no training is possible with head wa"),
        ({}, {"base": "model"}, "cells.explore: trials are trained from scratch; leave out cells.train.base"),
        ({}, {"patch": "auto"}, "cells.explore: no training is possible with network UNet: patch auto is planned from"),
    ],
)
def test_what_is_not_for_cells_is_refused(explore: dict[str, Any], train: dict[str, Any], message: str) -> None:
    with pytest.raises(TomoscoutError) as caught:
        cell_study(configured(explore, train={**TRAIN, **train}).cells)
    assert str(caught.value).startswith(message)


def test_with_equal_steps_patches_may_be_planned() -> None:
    study = cell_study(configured({"budget": "steps"}, train={**TRAIN, "patch": "auto"}).cells)
    assert study.settings["shape"] is None


def test_two_searches_need_two_names() -> None:
    values = {"projects": {"a": "a.json"}, "tomograms": ["wbp@10.0"], "explore": {"name": "cells"}}
    parse_config(values, "config")
    with pytest.raises(TomoscoutError, match=r"cells\.explore\.name: cells is the name of explore; expected another"):
        parse_config(values | {"cells": {"annotations": {"a": "a"}}}, "config")


def test_the_space_that_is_printed_gives_the_same_space(tmp_path: Path) -> None:
    printed = succeeded(tomoscout("explore", "space", "--cells")).stdout
    explore = yaml.safe_load(printed)["cells"]["explore"]
    assert explore["space"]["head"] == {"choices": ["star", "flow"]}
    values = {"cells": {"annotations": {"a": "a"}, "explore": explore}}
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    again = succeeded(tomoscout("explore", "space", "--cells", "--config", tmp_path / "cells.yaml")).stdout
    assert again == printed


@pytest.mark.parametrize(
    ("explore", "head", "heads"),
    [
        ({}, "flow", {"star", "flow"}),
        ({"space": {"head": "flow"}, "baseline": False}, "star", {"flow"}),
        ({"space": {"head": "flow"}}, "star", {"star", "flow"}),
        ({"space": {"head": None}}, "star", {"star"}),
    ],
)
def test_which_heads_trials_have(explore: dict[str, Any], head: str, heads: set[str]) -> None:
    assert heads_of(cell_study(configured(explore, train={**TRAIN, "head": head}).cells)) == heads


def test_without_its_package_no_study_with_the_star_head_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(tmp_path)
    monkeypatch.setattr(explore_cells, "find_spec", lambda name: None)
    arguments = ("--config", study.config, "--division", study.division, "--study", study.folder)
    line = error_of(tomoscout("explore", "start", *arguments))
    assert line.startswith("cells.explore: its trials with the star head need the package stardist: `make .venv/cells`")
    assert not (study.folder / "study.json").exists()
    alone = Study(tmp_path / "flow", explore={**EXPLORE, "space": {"head": "flow"}})
    start_study(alone.subject, alone.folder)


def test_a_study_goes_on_with_the_images_that_it_was_started_with(tmp_path: Path) -> None:
    study = Study(tmp_path)
    start_study(study.subject, study.folder)
    suggest_trial(study.subject, study.folder, 0)
    begun = read_json(study.folder / "study.json")
    sidecar = tmp_path / "annotations" / f"{read_json(study.division)['train'][0]['name']}.json"
    content = sidecar.read_text()
    sidecar.write_text(json.dumps(json.loads(content) | {"spatial_calibration": 0.7}))
    study.divide()
    refused = "started with other annotated images, .*or set cells.explore.name to another name"
    with pytest.raises(TomoscoutError, match=refused):
        start_study(study.subject, study.folder)
    with pytest.raises(TomoscoutError, match=refused):
        suggest_trial(study.subject, study.folder, 1)
    with pytest.raises(TomoscoutError, match=refused):
        train_trial(study.subject, study.folder, 0)
    assert read_json(study.folder / "study.json") == begun
    sidecar.write_text(content)
    study.divide()
    start_study(study.subject, study.folder)


def test_what_tests_models_is_no_matter_of_a_study(tmp_path: Path) -> None:
    study = Study(tmp_path)
    start_study(study.subject, study.folder)
    division = read_json(study.division)
    write_json(study.division, division | {"test": []})
    start_study(study.subject, study.folder)


def test_a_trial_is_a_model_that_no_library_keeps(tmp_path: Path) -> None:
    study = Study(tmp_path, library=str(tmp_path / "library"), train={**TRAIN, "steps": 4, "validate_every": 2})
    start_study(study.subject, study.folder)
    suggest_trial(study.subject, study.folder, 0)
    with torch_threads(1):
        result = train_trial(study.subject, study.folder, 0)
    folder = trial_folder(study.folder, 0)
    assert result == Result.read(folder)
    assert result.state == "COMPLETE" and list(result.intermediate) == [1, 2]
    assert list(result.scores) == [f"AP{iou}" for iou in range(50, 95, 5)]
    assert CellModel.read(folder).name == f"{study.folder.name}-0000"
    assert not (tmp_path / "library").exists()
    record = read_record(folder)
    assert record.finished and record.tags["tomoscout.study"] == study.folder.name
    assert planned_trials(study.results, study.folder) == EXPLORE["trials"]


def test_a_pruner_may_end_a_trial_after_each_validation(tmp_path: Path) -> None:
    study = Study(tmp_path, train={**TRAIN, "steps": 3, "validate_every": 1})
    subject, seen = study.subject, list[int]()

    def watch(progression: Progression) -> None:
        seen.append(len(progression.validations))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with torch_threads(1), pytest.raises(KeyboardInterrupt):
        subject.train(subject.shared, subject.tracking, tmp_path / "model", watch)
    assert seen == [1, 2]
    assert not (tmp_path / "model/model.yaml").exists()


def test_a_proposal_that_needs_too_much_memory_is_refused(tmp_path: Path) -> None:
    study = Study(tmp_path, train={**TRAIN, "memory_gb": 0.01})
    start_study(study.subject, study.folder)
    with pytest.raises(TomoscoutError, match=r"^cells\.explore\.baseline: the training as `train` has it cannot be"):
        suggest_trial(study.subject, study.folder, 0)
