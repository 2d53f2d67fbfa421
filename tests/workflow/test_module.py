"""Another workflow imports this one: in its own folder, with its own profile, and rules before and after."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import yaml

from support.snakemake_session import NO_TRACEBACK, ROOT, Session, copy_project
from tomoscout.data.project import Project
from tomoscout.options.names import Source

pytestmark = pytest.mark.workflow

APPLIED = "applied on new data"
"""The prefix of the module that applies the model."""


class Study:
    """A copy of the workflow `importing`, for which it is said where tomoscout is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "study"
        shutil.copytree(Path(__file__).with_name("importing"), self.folder)
        config = self.folder / "config/config.yaml"
        tomoscout = yaml.safe_dump({"tomoscout": str(ROOT / "workflow/Snakefile")})
        config.write_text(config.read_text() + tomoscout)

    def snakemake(self, *arguments: str, check: bool = True) -> str:
        """Run snakemake as in this folder, and return all it printed."""
        finished = subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments, "--profile", "profiles/mine"],
            cwd=self.folder,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or finished.returncode == 0, finished.stdout
        return finished.stdout

    def results(self) -> list[str]:
        """The folders of results."""
        return sorted(str(path.parent.relative_to(self.folder)) for path in self.folder.glob("**/inventory.tsv"))


def announced(output: str) -> dict[str, str]:
    """What a dry run says of each rule."""
    blocks = re.split(r"\n\n|\n(?=\[)", output)
    return {match[1]: block for block in blocks if (match := re.search(r"^(?:local)?rule (\w+):", block, re.M))}


@pytest.fixture(scope="module")
def planned(phantom: Session, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is announced of a study whose project is there."""
    study = Study(tmp_path_factory.mktemp("planned"))
    copy_project(phantom.folder / "results/phantom/copick.json", study.folder / "project")
    return announced(study.snakemake("--dry-run"))


def test_both_modules_are_planned_in_one_go(planned: dict[str, str]) -> None:
    assert planned.keys() == {
        "learning_targets_runs",
        "learning_gather_targets",
        "learning_train_model",
        "learning_segment_runs",
        "learning_localize_runs",
        "learning_evaluate_picks",
        "applying_segment_runs",
        "applying_localize_runs",
        "applying_report_page",
        "count_picks",
        "everything",
    }


def test_the_first_rule_of_the_other_workflow_stays_its_default(planned: dict[str, str]) -> None:
    assert f"input: counts.csv, {APPLIED}/results/report/applied.html" in planned["everything"]


def test_prefix_and_pathvars_say_where_everything_lies(planned: dict[str, str]) -> None:
    training = planned["learning_train_model"]
    assert "output: learning/found/models/tiny/history.png, " in training
    assert "log: learning/logs/train/tiny.log" in training
    assert "benchmark: learning/benchmarks/train/tiny.tsv" in training
    # What a configuration names is relative to the working directory, whatever the prefix.
    assert "input: learning/found/models/tiny/model.yaml\n" in planned["applying_segment_runs"]
    assert f"output: {APPLIED}/results/segment/applied/batch-0000.json" in planned["applying_segment_runs"]


def test_resources_of_a_rule_are_replaced(planned: dict[str, str]) -> None:
    resources = re.search(r"resources: (.*)", planned["learning_train_model"])[1]
    assert {"mem_mb=3000", "runtime=20"} <= set(resources.split(", "))
    assert "mem_mb=8096" in planned["applying_segment_runs"]


def test_a_project_that_a_rule_has_yet_to_make(tmp_path: Path) -> None:
    study = Study(tmp_path)
    assert announced(study.snakemake("--dry-run", "make_project")).keys() == {"make_project"}
    output = study.snakemake("--dry-run", check=False)
    # How many runs there are decides what the jobs are.
    expected = "error: project/copick.json: no such copick config; a rule that makes it must have run before"
    assert output.splitlines()[-1] == expected
    assert NO_TRACEBACK not in output


@pytest.mark.long
def test_the_other_workflow_runs(tmp_path: Path) -> None:
    study = Study(tmp_path)
    study.snakemake("make_project")
    study.snakemake()

    # Each module has its own configuration, inventory and results; nothing lies elsewhere.
    assert study.results() == [f"{APPLIED}/results", "learning/found"]
    settings = [json.loads((study.folder / folder / "config.json").read_text()) for folder in study.results()]
    assert [values["targets"]["picks"] for values in settings] == [[], "phantom/0"]
    assert not any((study.folder / folder).exists() for folder in ("results", "found", "logs", "benchmarks"))

    # Both sessions lie in the one project, and the same model found the same.
    project = Project("mine", study.folder / "project/copick.json")
    objects = {source.name for source in project.pick_sources("phantom-003") if source.user == "tomoscout"}
    assert len(objects) == 5
    counts = {}
    for name in objects:
        found, again = (
            project.read_picks("phantom-003", Source(name, "tomoscout", session)) for session in ("tiny", "applied")
        )
        np.testing.assert_array_equal(found.positions, again.positions)
        counts[name] = str(len(found.positions))
    with (study.folder / "counts.csv").open(newline="") as handle:
        *rows, scored = csv.reader(handle)
    assert sorted(rows) == sorted([session, name, counts[name]] for session in ("tiny", "applied") for name in objects)
    assert scored == ["scored", "", "1"]

    assert "Nothing to be done" in study.snakemake("--dry-run")

    study.snakemake("--report", "report.zip")
    with ZipFile(study.folder / "report.zip") as archive:
        names = {Path(name).name for name in archive.namelist()}
    assert {"report.html", "history.png", "applied.html"} <= names

    # A third module trains the model of the first further.
    tuning = announced(study.snakemake("--dry-run", "tuning_finetune", "--configfile", "config/tuning.yaml"))
    expected = "input: tuning/results/models/tuned/targets.made, learning/found/models/tiny/model.yaml"
    assert expected in tuning["tuning_train_model"]
    assert "learning_train_model" not in tuning
