"""Spheres of another size than those of the targets: drawn for one training, by object or for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.training import SETTINGS, Workspace, trained
from tomoscout.data.labels import from_stored
from tomoscout.machine.errors import TomoscoutError
from tomoscout.plan.plan import Plan
from tomoscout.stages.targets import run_targets
from tomoscout.stages.train import run_train
from tomoscout.tasks.picking.data import TrainingData
from tomoscout.tasks.picking.model import PickingModel
from tomoscout.tasks.picking.targets import read_target

SHORT = {**SETTINGS["train"], "steps": 2, "validate_every": 2}


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Workspace:
    return trained(tmp_path_factory.getbasetemp()).copy(tmp_path / "workspace")


def learnt(workspace: Workspace, **sections: Any) -> tuple[TrainingData, np.ndarray]:
    """The data of a training, and the labels of its first volume."""
    plan = Plan(workspace.configure(**sections), workspace.records())
    data = TrainingData(plan.config, plan.targets, plan.records, plan.fold())
    return data, data._read(*data.training[0])[1]


def written(workspace: Workspace, scale: float) -> np.ndarray:
    """The labels of the same volume, of targets that are written with a scale."""
    config = workspace.configure(targets={"radius_scale": scale, "name": "others"})
    plan = Plan(config, workspace.records())
    run_targets(plan, 0, workspace.folder / "results/targets/others/batch-0000.json")
    record = plan.by_key["phantom/phantom-000"]
    return read_target(workspace.project(), config, plan.targets, record, 20.0, (24, 48, 48))


@pytest.mark.parametrize("scale", [0.8, 1.2])
def test_spheres_are_those_of_targets_with_this_scale(workspace: Workspace, scale: float) -> None:
    before = learnt(workspace)[1]
    data, labels = learnt(workspace, train={"radius_scale": scale})
    assert (labels != before).any()
    np.testing.assert_array_equal(labels, written(workspace, scale))
    assert [e.target_radius for e in data.plan.classes if e.radius] == pytest.approx(
        [e.radius * scale for e in data.plan.classes if e.radius]
    )


def test_one_object_alone(workspace: Workspace) -> None:
    before, plain = learnt(workspace)[1], learnt(workspace)[0]
    data, labels = learnt(workspace, train={"radius_scale": {"ribosome": 0.4}})
    ribosome = next(entry for entry in data.plan.classes if entry.name == "ribosome")
    assert ribosome.target_radius == pytest.approx(0.4 * ribosome.radius)
    others = [e for e in data.plan.classes if e.name != "ribosome"]
    assert others == [e for e in plain.plan.classes if e.name != "ribosome"]
    assert 0 < np.count_nonzero(labels == ribosome.label) < np.count_nonzero(before == ribosome.label)
    # What was drawn under its sphere may show now: a membrane, or a sphere that lies deeper.
    changed = labels != before
    assert (before[changed] == ribosome.label).all()


def test_without_it_the_written_targets_are_read(workspace: Workspace) -> None:
    data, labels = learnt(workspace)
    record = data.training[0][0]
    stored = workspace.project().read_segmentation(record.run, _target(data))
    np.testing.assert_array_equal(labels, from_stored(stored, data.plan.stored_labels["phantom"], "target"))


def _target(data: TrainingData) -> Any:
    from tomoscout.plan.annotations import target_segmentation

    return target_segmentation(data.config, 20.0)


def test_the_model_says_what_it_has_learnt(workspace: Workspace) -> None:
    config = workspace.configure(train={**SHORT, "radius_scale": 0.5})
    folder = workspace.folder / "results/models/halved"
    run_train(Plan(config, workspace.records()), folder)
    for entry in PickingModel.read(folder).classes:
        if entry.radius:
            assert entry.target_radius == pytest.approx(entry.radius / 2)


def test_names_are_checked(workspace: Workspace) -> None:
    config = workspace.configure(train={**SHORT, "radius_scale": {"ribosom": 0.5}})
    with pytest.raises(TomoscoutError, match=r"train\.radius_scale: no class 'ribosom'"):
        run_train(Plan(config, workspace.records()), workspace.folder / "results/models/other")


@pytest.mark.parametrize("scale", [0, -1, 2.5, {"ribosome": 0}])
def test_scales_that_are_refused(workspace: Workspace, scale: Any) -> None:
    with pytest.raises(TomoscoutError, match=r"train\.radius_scale"):
        workspace.configure(train={"radius_scale": scale})
