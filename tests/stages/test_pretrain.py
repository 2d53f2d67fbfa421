"""Pretraining on phantoms of the objects, and the training that starts from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from support.training import SETTINGS, Workspace, trained
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.plan.plan import Plan
from tomoscout.stages.pretrain import phantom_of, run_pretrain
from tomoscout.stages.train import run_train
from tomoscout.tasks.picking.model import PickingModel

TINY = {"runs": 3, "shape": [24, 48, 48], "particles": 3, "membranes": 1, "signal_to_noise": [0.5, 2.0]}
SHORT = {**SETTINGS["train"], "steps": 6, "validate_every": 3}


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Workspace:
    return trained(tmp_path_factory.getbasetemp()).copy(tmp_path / "workspace")


def plan_of(workspace: Workspace, phantom: dict[str, Any] | None = None, **train: Any) -> Plan:
    config = workspace.configure(pretrain={"phantom": {**TINY, **(phantom or {})}}, train={**SHORT, **train})
    return Plan(config, workspace.records(), workspace.folder / "results")


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def test_a_model_of_the_objects_that_a_training_starts_from(workspace: Workspace) -> None:
    plan = plan_of(workspace)
    folder = plan.results.model("pretrained")
    run_pretrain(plan, folder)
    model = PickingModel.read(folder)
    particles = [entry for entry in plan.targets.classes if entry.is_particle]
    assert model.class_names == tuple(entry.name for entry in particles)
    for learnt, entry in zip(model.classes, particles, strict=True):
        assert learnt.target_radius == pytest.approx(entry.target_radius, rel=1e-3)
    assert model.voxel_spacings == (20.0,)
    assert model.made_from["train"] == ["phantom/phantom-000", "phantom/phantom-001"]
    assert not (folder / "phantoms").exists()

    tuned = plan.results.model("few")
    run_train(plan_of(workspace, name="few", base=str(folder), promote="always"), tuned)
    results = read_json(tuned / "results.json")
    # Before the first step the network is the pretrained one, with a membrane besides.
    assert results["base_score"] is not None
    assert PickingModel.read(tuned).class_names == (*model.class_names, "membrane")


def test_the_same_phantoms_and_the_same_model_again(workspace: Workspace, tmp_path: Path) -> None:
    plan = plan_of(workspace)
    one, other = tmp_path / "a/models/pretrained", tmp_path / "b/models/pretrained"
    run_pretrain(plan, one)
    run_pretrain(plan, other)
    assert weights(one) == weights(other)
    assert plan.fingerprint("pretrain") == plan_of(workspace).fingerprint("pretrain")


@pytest.mark.parametrize(
    ("phantom", "train"),
    [({"particles": 4}, {}), ({"runs": 4}, {}), ({"seed": 1}, {}), ({}, {"learning_rate": 0.1})],
)
def test_what_makes_another_model(workspace: Workspace, phantom: dict[str, Any], train: dict[str, Any]) -> None:
    before = plan_of(workspace).fingerprint("pretrain")
    assert plan_of(workspace, phantom, **train).fingerprint("pretrain") != before
    assert plan_of(workspace, base="elsewhere", device="auto").fingerprint("pretrain") == before


def test_density_maps_in_place_of_shapes(workspace: Workspace, tmp_path: Path) -> None:
    density = np.zeros((12, 12, 12), dtype=np.float32)
    density[4:8, 3:9, 4:8] = 1
    paths = {name: tmp_path / f"{name}.mrc" for name in ("ribosome", "debris")}
    for path in paths.values():
        with mrcfile.new(path) as file:
            file.set_data(density)
            file.voxel_size = 20.0
    plan = plan_of(workspace, {"maps": {name: str(path) for name, path in paths.items()}})
    objects = [entry for entry in plan.targets.classes if entry.is_particle]
    phantom = phantom_of(plan.config, objects)
    assert "ribosome" not in phantom.shapes
    assert set(phantom.maps) == {"ribosome", "debris"}
    folder = plan.results.model("pretrained")
    run_pretrain(plan, folder)
    # The particles of the other map are in the tomograms, and no class of the model.
    assert "debris" not in PickingModel.read(folder).class_names


def test_an_object_without_a_map(workspace: Workspace) -> None:
    plan = plan_of(workspace)
    unknown = plan.targets.classes[0].__class__("enigma", 1, 100.0, 50.0, ())
    with pytest.raises(TomoscoutError, match=r"pretrain\.phantom\.maps: no density map of 'enigma'"):
        phantom_of(plan.config, [unknown])


def test_a_number_for_no_object(workspace: Workspace) -> None:
    plan = plan_of(workspace, {"numbers": {"enigma": 3}})
    with pytest.raises(TomoscoutError, match=r"pretrain\.phantom\.numbers: no object 'enigma'; there are ribosome"):
        phantom_of(plan.config, [entry for entry in plan.targets.classes if entry.is_particle])


def test_phantoms_of_a_killed_job_do_not_serve_other_options(workspace: Workspace) -> None:
    folder = plan_of(workspace).results.model("pretrained")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(plan_of(workspace, {"particles": 1}), folder, killed)
    assert list((folder / "phantoms").iterdir())
    plan = plan_of(workspace)
    run_pretrain(plan, folder)
    elsewhere = plan.results.model("elsewhere")
    run_pretrain(plan, elsewhere)
    assert weights(folder) == weights(elsewhere)
    assert not (folder / "phantoms").exists()


def _train(plan: Plan, folder: Path, instead: Callable[..., None]) -> None:
    """Pretrain with something else in place of the training itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tomoscout.stages.pretrain.run_train", instead)
        run_pretrain(plan, folder)


def test_killed_and_started_again(workspace: Workspace, tmp_path: Path) -> None:
    plan = plan_of(workspace, steps=40, validate_every=10)
    expected = tmp_path / "models/pretrained"
    run_pretrain(plan, expected)
    folder = plan.results.model("pretrained")
    command = [sys.executable, "-m", "tomoscout", "pretrain", "--config", workspace.config_path]
    command += ["--inventory", workspace.inventory_path, "--model", folder, "--threads", "1"]
    process = subprocess.Popen([str(part) for part in command], cwd=workspace.folder, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "model.yaml").exists()
    subprocess.run([str(part) for part in command], cwd=workspace.folder, check=True, stderr=subprocess.DEVNULL)
    assert weights(folder) == weights(expected)
