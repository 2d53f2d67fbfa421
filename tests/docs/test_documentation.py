"""What the documentation tells people to type: each command is run here, or by a test or script that is named here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mrcfile
import numpy as np
import pytest
import yaml

from support.markdown import DOCUMENTS, ROOT, Block, all_blocks, blocks, commands
from tomoscout.options.config import parse_config

README = ROOT / "README.md"
EXAMPLES = ("tests/workflow/test_dry_runs.py", "def test_every_example_runs_dry(")
PROFILES = ("tests/workflow/test_profiles.py", "def test_the_workflow_runs_dry(")
# Without these programs Snakemake plans nothing either.
DEPLOYED_BY = {"apptainer": ["apptainer", "singularity"], "conda": ["conda", "mamba", "micromamba"]}
STAR_COORDINATES = ["CoordinateX", "CoordinateY", "CoordinateZ"]

pytestmark = pytest.mark.workflow


# What is the reader's own: in the documents → in the folder of these tests.
REPLACED = {
    "--cores 8": "--cores 2",
    "/path/to/tomoscout": str(ROOT),
    "/scratch/me/study": "scratch",
    "results/explore/search-1234abcd/best/train.yaml": "recipe.yaml",
}
# The same in Python, so that a training takes seconds.
REPLACED_IN_PYTHON = {
    "data-portal/0": "alice/1",
    "steps=2000": "steps=2",
    '"folds": 5': '"folds": 2',
    "config = {": "config = TINY | {",
}
TINY = {
    # The examples work on one project, each in a folder of its own.
    "overwrite": True,
    "train": {
        "device": "cpu",
        "steps": 2,
        "batch_size": 2,
        "patch": [16, 16, 16],
        "validate_every": 2,
        "network": {"channels": [4, 8], "strides": [2]},
    },
    "segment": {"device": "cpu"},
    "tracking": {"enabled": False},
}


class Elsewhere(NamedTuple):
    """Why a command is not run here, and the text of a file that has it run instead, or does what it does."""

    reason: str
    file: str
    text: str


ELSEWHERE = {
    "make demo": Elsewhere("takes minutes; a dry run of its configuration", *EXAMPLES),
    "make demo-cells": Elsewhere(
        "takes a minute; with fewer steps",
        "tests/workflow/test_cells.py",
        "def test_from_annotations_to_labels(",
    ),
    "make .venv/stardist": Elsewhere(
        "downloads gigabytes",
        "tests/stages/test_train_backend.py",
        "def test_the_model_is_scored_and_segments_like_any_other(",
    ),
    "make test": Elsewhere("runs these tests", ".ci/run", "make test"),
    "make image": Elsewhere("takes minutes and Apptainer", ".ci/run", "make image"),
    "make image BASE=packages": Elsewhere("takes minutes and Apptainer", ".ci/run", "make image BASE=packages"),
    "apptainer exec --containall --bind /path/to/project containers/tomoscout.sif tomoscout --help": Elsewhere(
        "needs an image", "tests/containers/test_image.py", "def test_an_image_alone("
    ),
    "source .venv/bin/activate": Elsewhere("an environment is active already", "Makefile", "-m venv .venv"),
    "tomoscout explore status": Elsewhere(
        "needs a search", "tests/workflow/test_damaged_files.py", '"explore", "status"'
    ),
    "tomoscout trial give-up 0005": Elsewhere(
        "needs a search", "tests/workflow/test_exploration.py", "def test_a_trial_that_hangs_is_given_up("
    ),
    "tomoscout show-scores results/evaluate/unet": Elsewhere(
        "needs scores", "tests/workflow/test_damaged_files.py", '"show-scores"'
    ),
    "snakemake extract --cores 4 --configfile my.yaml": Elsewhere(
        "needs a section `extract`",
        "tests/workflow/test_extract.py",
        "def test_picks_near_a_membrane_are_extracted(",
    ),
    "copick config dataportal --dataset-id 10440 --overlay portal --output portal.json": Elsewhere(
        "asks the data portal", "tests/stages/test_download.py", "def test_without_a_network_the_portal_is_one_line("
    ),
    "snakemake download --cores 2 --configfile my.yaml": Elsewhere(
        "needs another project", "tests/workflow/test_exchange.py", "def test_a_project_is_made_of_files("
    ),
    "snakemake import_tomograms --cores 4 --configfile my.yaml": Elsewhere(
        "needs files of another program",
        "tests/workflow/test_exchange.py",
        "def test_a_project_is_made_of_files(",
    ),
    "snakemake import_picks --cores 4 --configfile my.yaml": Elsewhere(
        "needs files of another program",
        "tests/workflow/test_exchange.py",
        "def test_what_is_exported_comes_in_again(",
    ),
    "cd /fs/fs/tomoscout": Elsewhere("the volume of a cloud", "tests/workflow/test_profiles.py", "class Volume"),
}
# By how they begin.
ELSEWHERE_ALL = {
    **{
        f"snakemake {target} --cores 4 --configfile cells.yaml": Elsewhere(
            "needs annotated images", "tests/support/snakemake_session.py", f'"{target}"'
        )
        for target in ("check_annotations", "evaluate_cells", "segment_cells", "cells")
    },
    "snakemake segment_instances --cores 4 --configfile vesicles.yaml": Elsewhere(
        "needs annotated tomograms", "tests/workflow/test_cells.py", "def test_vesicles_in_tomograms("
    ),
    "snakemake explore_cells --profile slurm ": Elsewhere(
        "needs annotated images and Slurm",
        "tests/workflow/test_slurm.py",
        "def test_trials_of_cells_have_a_gpu_each_and_go_on(",
    ),
    **{
        f"copick {group} tomoscout ": Elsewhere("needs picks or a model", "tests/cli/test_copick_commands.py", text)
        for group, text in (
            ("training", "def test_a_network_is_trained_and_applied("),
            ("inference", "def test_a_network_is_trained_and_applied("),
            ("evaluation", "def test_picks_of_anybody_are_scored("),
            ("convert", "def test_picks_are_made_of_labels_chosen_and_written("),
        )
    },
    "docker build ": Elsewhere(
        "needs a registry",
        "tests/test_environments.py",
        "def test_the_containerfile_makes_the_same_image(",
    ),
    "kubectl ": Elsewhere(
        "needs a cluster",
        "tests/workflow/test_profiles.py",
        "def test_kubernetes_jobs_get_their_gpu_and_find_their_files(",
    ),
    "snakemake explore --profile workflow/profiles/kubernetes ": Elsewhere("needs plugins", *PROFILES),
    "snakemake explore --profile workflow/profiles/aws-batch ": Elsewhere("needs plugins", *PROFILES),
}


def where_else(command: str) -> Elsewhere | None:
    """What runs a command in place of these tests."""
    beginning = next((there for start, there in ELSEWHERE_ALL.items() if command.startswith(start)), None)
    return ELSEWHERE.get(command, beginning)


def run_here() -> Iterator[object]:
    """The commands that these tests run: in the first tier what a reader with files of their own types first."""
    first = [command for command in commands(README) if not re.search(r"--(sdm|profile) ", command)]
    for command in dict.fromkeys(command for document in DOCUMENTS for command in commands(document)):
        if where_else(command) is None:
            marks = [] if command in first else [pytest.mark.long]
            for way, programs in DEPLOYED_BY.items():
                if f"--sdm {way}" in command:
                    marks.append(pytest.mark.skipif(not any(map(shutil.which, programs)), reason=f"no {way}"))
            yield pytest.param(command, id=command, marks=marks)


class Clone:
    """A folder that looks like a clone of the repository, with a reader's files in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.finished: dict[str, subprocess.CompletedProcess[str]] = {}
        for name in "Snakefile", "workflow", "config", "envs", "profiles", "slurm":
            (folder / name).symlink_to(ROOT / name)
        # What `make image` writes.
        (folder / "containers").mkdir()
        for image in "tomoscout.sif", "tomoscout-light.sif":
            (folder / "containers" / image).touch()
        (folder / "recipe.yaml").write_text("train: {learning_rate: 0.001}\n")
        random = np.random.default_rng(0)
        (folder / "tomograms").mkdir()
        rows = []
        for run in ("TS_01", "TS_02", "TS_03", "TS_04"):
            with mrcfile.new(folder / f"tomograms/{run}.mrc") as file:
                file.set_data(random.normal(size=(16, 32, 32)).astype(np.float32))
            rows += [f"{run} {x} {y} {z}" for x, y, z in random.integers([8, 8, 4], [24, 24, 12], (3, 3))]
        columns = [f"_rln{name} #{number}" for number, name in enumerate(["TomoName", *STAR_COORDINATES], 1)]
        (folder / "particles.star").write_text("\n".join(["data_particles", "", "loop_", *columns, *rows, ""]))

    def own(self, text: str) -> str:
        """A text with what is in this folder in place of the reader's own."""
        for theirs, here in REPLACED.items():
            text = text.replace(theirs, here)
        for name in "copick.json", "project":
            text = text.replace(f"/path/to/{name}", str(self.folder / name))
        return text

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the documents, Snakemake's as dry runs; each once."""
        command = self.own(command)
        if "snakemake " in command and "--dry-run" not in command:
            command += " --dry-run"
        if command not in self.finished:
            self.finished[command] = subprocess.run(
                ["bash", "-c", command],
                cwd=self.folder,
                env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
        return self.finished[command]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which the README has been followed up to the file my.yaml."""
    made = Clone(tmp_path_factory.mktemp("clone"))
    for command in commands(README):
        if command.startswith("copick "):
            assert not made.run(command).returncode, made.run(command).stdout
    [minimal] = blocks(README, "yaml")
    (made.folder / "my.yaml").write_text(made.own(minimal.text))
    return made


@pytest.mark.parametrize("command", run_here())
def test_commands(clone: Clone, command: str) -> None:
    finished = clone.run(command)
    assert finished.returncode == 0, finished.stdout
    if "snakemake " in command:
        assert "Job stats:" in finished.stdout


def test_the_readers_project_is_found(clone: Clone) -> None:
    listed = clone.run("tomoscout inventory --config my.yaml").stdout
    assert "4 runs, 4 with picks" in listed
    assert "ribosome" in listed


@pytest.mark.parametrize(
    ("command", "there"), [*ELSEWHERE.items(), *ELSEWHERE_ALL.items()], ids=[*ELSEWHERE, *ELSEWHERE_ALL]
)
def test_what_is_run_elsewhere(command: str, there: Elsewhere) -> None:
    assert any(known.startswith(command) for document in DOCUMENTS for known in commands(document)), "in no document"
    assert there.text in (ROOT / there.file).read_text()


@pytest.mark.parametrize("block", [b for document in DOCUMENTS for b in blocks(document, "yaml")], ids=str)
def test_configurations(block: Block) -> None:
    first, *more = yaml.safe_load_all(block.text)
    if "apiVersion" in first:
        assert all(entry.keys() >= {"apiVersion", "kind", "metadata"} for entry in [first, *more])
        return
    least = {} if "projects" in first else {"projects": {"mydata": "copick.json"}, "tomograms": ["wbp@10.0"]}
    picks = {} if "projects" in first or "targets" in first else {"targets": {"picks": "alice/1"}}
    parse_config(least | picks | first, str(block))


@pytest.mark.parametrize("block", [b for document in DOCUMENTS for b in blocks(document, "yaml profile")], ids=str)
def test_what_a_site_sets_is_in_the_profile(block: Block) -> None:
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/profile.yaml").read_text())
    assert yaml.safe_load(block.text) == profile["__variables__"]


@pytest.mark.long
@pytest.mark.parametrize("block", [b for document in DOCUMENTS for b in blocks(document, "python")], ids=str)
def test_python(clone: Clone, tmp_path: Path, block: Block) -> None:
    text = f"TINY = {TINY!r}\n{clone.own(block.text)}"
    for theirs, here in REPLACED_IN_PYTHON.items():
        text = text.replace(theirs, here)
    finished = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert list((tmp_path / "results/localize").glob("*/batch-0000.json"))


@pytest.mark.long
@pytest.mark.parametrize("block", [b for document in DOCUMENTS for b in blocks(document, "python snakefile")], ids=str)
def test_snakefiles(clone: Clone, tmp_path: Path, block: Block) -> None:
    (tmp_path / "Snakefile").write_text(block.text.replace("/path/to/tomoscout", str(ROOT)))
    config = {"picking": yaml.safe_load((clone.folder / "my.yaml").read_text())}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "picking_all",
        "--cores",
        "1",
        "--dry-run",
        "--configfile",
        "config.yaml",
    ]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "rule picking_report_page:" in finished.stdout
    assert "picking/results/report/unet.html" in finished.stdout


def test_every_block_says_what_it_is() -> None:
    known = {"", "bash", "yaml", "yaml profile", "python", "python snakefile"}
    for document in DOCUMENTS:
        for block in all_blocks(document):
            assert block.kind in known, block
            # What can be typed is in blocks of commands, which are run. The benchmarks take hours.
            if block.kind == "" and document.parent.name != "benchmarks":
                assert not re.search(r"^(\$ |make |python |snakemake |tomoscout |copick )", block.text, re.M), block
