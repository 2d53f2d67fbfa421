"""The plan: what is decided, is decided once in a process, and only where it is asked for."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.octopi import UNET, write_model
from support.training import Workspace, trained
from tomoscout.data.copick_config import read_objects
from tomoscout.plan import plan as module
from tomoscout.plan.members import Member
from tomoscout.plan.paths import Results, batch_file, results_of
from tomoscout.plan.plan import Plan
from tomoscout.plan.stages import STAGES
from tomoscout.workflow import Workflow

PACKAGE = Path(module.__file__).parents[1]
ONCE = {"plan_targets": 1, "make_split": 1}
SHORT = {"steps": 2, "validate_every": 2}
PREDICTED_PAIRS = {"pairs": {"kind": "neighbours", "distance": 100}}


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Workspace:
    return trained(tmp_path_factory.getbasetemp()).copy(tmp_path / "workspace")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each was called."""
    counted: Counter[str] = Counter()

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any) -> Any:
            counted[function.__name__] += 1
            return function(*arguments)

        return wrapper

    for name in ONCE:
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    return counted


@pytest.mark.parametrize("name", ONCE)
def test_only_the_plan_decides(name: str) -> None:
    callers = [path for path in PACKAGE.rglob("*.py") if re.search(rf"(?<!def ){name}\(", path.read_text())]
    assert callers == [PACKAGE / "plan/plan.py"]


def test_every_command_plans_once(workspace: Workspace, calls: Counter[str]) -> None:
    network = {"UNet": {"width": 4, "levels": 2, "bottleneck_levels": 0}}
    space = {"patch": 16, "batch_size": 2, "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}}
    explore = {"trials": 1, "threads": 1, "validations": 1, "networks": network, "space": space}
    train = {**SHORT, "memory_gb": 64}
    results = Results(workspace.inventory_path.parent)
    table = workspace.folder / "picks.csv"
    table.write_text("run_name,object,x,y,z\nphantom-002,ribosome,100,100,100\n")
    imports = {"table": {"files": [str(table)]}}
    config = workspace.configure(
        train=train,
        explore=explore,
        learning_curve={"fractions": [1]},
        import_picks=imports,
        extract=PREDICTED_PAIRS,
    )
    options = ("--config", workspace.config_path, "--inventory", workspace.inventory_path)
    model, targets = ("--model", workspace.model), results.targets("targets")
    segmented, localized = results.segment(config.session), results.localize(config.session)
    study = (
        "--study",
        Workflow(yaml.safe_load(workspace.config_path.read_text()), str(results.folder), main=True).search.folder,
    )
    names = list(read_objects(Path(config.projects["phantom"])))[:3]
    octopi = write_model(workspace.folder, UNET, labels={name: label for label, name in enumerate(names, 1)})
    commands: list[tuple[tuple[str | Path, ...], dict[str, int]]] = [
        (("targets", "--batch", "0", "--output", batch_file(targets, 0)), {"plan_targets": 1}),
        (
            ("overlays", "--targets", targets, "--batch", "0", "--output", batch_file(results.overlays("targets"), 0)),
            {"plan_targets": 1},
        ),
        (("split", "--output", results.split("split")), ONCE),
        (("train", *model, "--threads", "1"), ONCE),
        (("learning-curve", "--output", results.learning_curve(config.train.name)), ONCE),
        (("segment", *model, "--batch", "0", "--output", batch_file(segmented, 0)), {}),
        (("localize", *model, "--segmented", segmented, "--batch", "0", "--output", batch_file(localized, 0)), {}),
        (("extract", "--batch", "0", "--output", batch_file(results.extract, 0)), {}),
        (("evaluate", "--localized", localized, "--output", results.evaluate(config.session)), ONCE),
        (
            (
                *("report", *model, "--localized", localized, "--scores", results.evaluate(config.session)),
                *("--split", results.split("split"), "--targets", targets, "--output", results.report(config.session)),
            ),
            ONCE,
        ),
        (("export", "--format", "csv", "--localized", localized, "--output", results.export("csv")), {}),
        (("import-picks", "--name", "table", "--output", results.import_picks("table")), {}),
        (("import-model", octopi, "--model", results.model("octopi"), "--threads", "1"), ONCE),
        (("explore", "start", *study), ONCE),
        (("explore", "suggest", "0", *study), ONCE),
        (("trial", "run", "0", *study), ONCE),
    ]
    for command, expected in commands:
        calls.clear()
        name = 2 if command[0] in ("explore", "trial") else 1
        workspace.command(*command[:name], *command[name:], *options)
        assert calls == expected, command[0]
        if command[0] == "split":
            workspace.records()
    of_cells = {"check_annotations", "segment_instances"}
    # A pretraining plans once more, for its phantoms. Tomograms come before there are runs to plan for.
    planned = (
        {name for name in STAGES if "cells" not in name}
        - {"phantom", "pretrain", "import_tomograms", "download"}
        - of_cells
    )
    assert {str(command[0]).replace("-", "_") for command, _ in commands} >= planned


def test_the_workflow_plans_once(workspace: Workspace, calls: Counter[str]) -> None:
    workspace.configure(import_picks={"table": {"files": ["picks.csv"]}})
    jobs = {"train": "unet", "import_picks": "table"}
    workspace.records()
    calls.clear()
    values = yaml.safe_load(workspace.config_path.read_text())
    for main in (True, False):
        flow = Workflow(values, str(workspace.inventory_path.parent), main=main)
        assert not calls, "what is decided before it is asked for"
        for name, stage in STAGES.items():
            for job in flow.batches(name) if stage.runs else [jobs.get(name, "")]:
                if stage.depends_on:
                    flow.depends_on(name, job)
        assert flow.training_batches("unet") == flow.study_batches() == ["0000"]
        assert flow.applied_models == [str(workspace.model)]
        assert flow.search.trials_before("0001")[0] == "0000"
        assert calls == ONCE
        calls.clear()


def test_a_plan_of_other_options_decides_nothing_anew(workspace: Workspace, calls: Counter[str]) -> None:
    plan = Plan(workspace.configure(), workspace.records())
    before = plan.fingerprint("train", "unet")
    other = plan.with_options(train=plan.config.train.model_copy(update={"seed": 11}))
    assert other.config.train.seed == 11
    assert plan.config.train.seed == 3
    assert other.fingerprint("train", "unet") != before
    assert plan.fingerprint("train", "unet") == before
    assert calls == ONCE


def test_the_members_of_a_curve_are_trainings_of_their_own(workspace: Workspace, calls: Counter[str]) -> None:
    plan = Plan(workspace.configure(), workspace.records())
    assert plan.plan_of(Member(draw=2)).config.train.seed == plan.config.train.seed + 2
    assert len(plan.runs_of(Member(percent=50)).train) == 1
    names = ["unet", "unet-part-50-0", "unet-part-50-1", "unet-part-100-1"]
    assert len({plan.fingerprint("train", name) for name in names}) == len(names)
    assert calls == ONCE


@pytest.mark.parametrize("stage", [name for name, stage in STAGES.items() if stage.depends_on])
def test_a_version_that_rises_makes_a_stage_anew(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    options = {"import_picks": {"unet": {"files": ["picks.csv"]}}, "extract": PREDICTED_PAIRS}
    config, records = workspace.configure(**options), workspace.records()

    def fingerprints() -> dict[str, str]:
        plan = Plan(config, records)
        return {
            name: plan.fingerprint(name, "0" if row.runs else "unet") for name, row in STAGES.items() if row.depends_on
        }

    before = fingerprints()
    row = STAGES[stage]
    monkeypatch.setitem(STAGES, stage, type(row)(row.version + 1, row.depends_on, row.runs, row.written))
    after = fingerprints()
    # What reads targets depends on what they depend on, a pretraining is a training, and a learning curve is made of
    # trainings; all else depends on the version of its own stage alone.
    others = {"targets": ["train", "import_model", "learning_curve"], "train": ["pretrain", "learning_curve"]}
    expected = {stage, *others.get(stage, [])}
    assert {name for name in before if before[name] != after[name]} == expected


def test_a_model_and_a_study_know_their_results(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results_of(results.model("unet")) == results_of(results.study("default-1")) == tmp_path
