"""The images that `make image` builds: every step of the workflow within them, and nothing else of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from support.slurm import SOON, running_slurm, site_profile
from support.snakemake_session import CONFIG, ROOT, Session
from tomoscout.options.config import RuleGroup
from tomoscout.plan.containers import IMAGES

pytestmark = pytest.mark.image

FOLDER = ROOT / "containers"
IMAGE = FOLDER / IMAGES["network"]
MISSING = [IMAGES[group] for group in ("light", "network") if not (FOLDER / IMAGES[group]).exists()]
if MISSING or not shutil.which("apptainer"):
    reason = f"no {' and no '.join(MISSING)} (make image)" if MISSING else "no apptainer"
    pytest.skip(reason, allow_module_level=True)

# A network of one's own, outside of the working directory. It says what imported it.
RECORD = """

def _record() -> None:
    import json, os, sys
    modules = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    seen = {"command": sys.argv[1], "python": sys.executable, "modules": [file for file in modules if file],
            "image": os.environ.get("APPTAINER_CONTAINER")}
    with open("seen.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(seen) + "\\n")

_record()
"""
STUDY: dict[str, Any] = CONFIG | {
    "runs_per_job": 10,
    "explore": {
        "trials": 3,
        "window": 2,
        "baseline": False,
        "startup_trials": 1,
        "pruner": "none",
        "validations": 2,
        "threads": 1,
        "networks": {"ResidualEncoderUNet": {"width": {"choices": [4, 8]}, "levels": 2, "deep_supervision": 1}},
        "space": {"patch": 16, "batch_size": {"choices": [1, 2]}},
    },
}
# They hold times.
NOT_COMPARED = {"inventory.tsv", "journal.log", "mlflow.db", "report", "tracking", "training.json", "mlruns"}


class Elsewhere:
    """A session whose project and network lie outside of its working directory."""

    def __init__(self, folder: Path) -> None:
        self.session = Session(folder, STUDY)
        self.project, family = folder / "data" / "project", folder / "networks" / "mine.py"
        family.parent.mkdir()
        family.write_text((ROOT / "config/examples/my_network.py").read_text() + RECORD)
        train = STUDY["train"] | {"network": {"family": str(family), "channels": 4, "dilations": [1]}}
        projects = {"phantom": str(self.project / "copick.json")}
        self.session.base = STUDY | {"projects": projects, "train": train}
        self.session.configure({})

    def run(self, *arguments: str) -> dict[str, bytes]:
        """Everything from the start; returns the files that must not depend on where it was computed."""
        for folder in (self.session.folder, self.project):
            shutil.rmtree(folder, ignore_errors=True)
        self.session.folder.mkdir()
        command = [
            sys.executable,
            "-m",
            "tomoscout",
            "phantom",
            str(self.project),
            "--config",
            str(self.session.config),
        ]
        subprocess.run(command, check=True, cwd=self.session.folder)
        self.session.snakemake("all", "explore", *arguments)
        results = self.session.folder / "results"
        files = [file for file in results.rglob("*") if file.is_file()]
        files += self.project.glob("ExperimentRuns/*/Picks/tomoscout_*")
        return {str(file): file.read_bytes() for file in files if NOT_COMPARED.isdisjoint(file.parts)}

    def seen(self) -> list[dict[str, Any]]:
        """What the network says of the jobs that imported it."""
        lines = (self.session.folder / "seen.jsonl").read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if entry["command"] in ("train", "segment", "trial")]


def different(outside: dict[str, bytes], found: dict[str, bytes]) -> set[str]:
    """The files that are not the same."""
    return {name for name in outside | found if outside.get(name) != found.get(name)}


def within(image: Path, *command: str, options: Sequence[str] = (), **environment: str) -> CompletedProcess[str]:
    """Run a command in an image."""
    words = ["apptainer", "--quiet", "exec", *options, str(image), *command]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | environment)


def alone_with(folder: Path) -> list[str]:
    """Options with which an image sees nothing of this machine but a folder, and no network."""
    return ["--containall", "--net", "--network", "none", "--bind", str(folder), "--pwd", str(folder)]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    return Elsewhere(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with running_slurm(tmp_path_factory.mktemp("slurm")) as folder:
        yield folder


@pytest.fixture(scope="module")
def outside(elsewhere: Elsewhere) -> dict[str, bytes]:
    """What comes of the chain and a search without images."""
    found = elsewhere.run()
    names = {Path(name).name for name in found}
    assert {"scores.json", "weights.safetensors", "trials.csv", "tomoscout_tiny_ribosome.json"} <= names
    assert not any(entry["image"] for entry in elsewhere.seen())
    return found


def test_the_chain_and_a_search_within_the_images(elsewhere: Elsewhere, outside: dict[str, bytes]) -> None:
    """The same to the last byte, with no module of this machine's Python."""
    found = elsewhere.run("--sdm", "apptainer")
    assert different(outside, found) == set()
    seen = elsewhere.seen()
    assert {entry["command"] for entry in seen} == {"train", "trial", "segment"}
    for entry in seen:
        assert entry["image"] == str(IMAGE)
        assert entry["python"] == "/opt/venv/bin/python"
        own = [file for file in entry["modules"] if not file.startswith(("/opt/venv/", "/usr/lib/python3"))]
        assert [Path(file).name for file in own] == ["mine.py"]
    # Caches of the images' programs would lie beside the results.
    assert {path.name for path in elsewhere.session.folder.iterdir()} == {
        ".snakemake", "benchmarks", "logs", "results", "seen.jsonl"
    }  # fmt: skip


@pytest.mark.slurm
def test_the_same_on_slurm(elsewhere: Elsewhere, outside: dict[str, bytes], slurm: Path, tmp_path: Path) -> None:
    # As many threads as the two cores give them outside, since sums depend on that.
    threads = ["--set-threads", "train_model=2", "segment_runs=2"]
    found = elsewhere.run("--sdm", "apptainer", "--profile", str(site_profile(tmp_path).parent), *SOON, *threads)
    assert different(outside, found) == set()
    assert {entry["image"] for entry in elsewhere.seen()} == {str(IMAGE)}
    jobs = subprocess.run(["scontrol", "show", "job", "--oneliner"], capture_output=True, text=True, check=True).stdout
    rules = set(re.findall(r"Comment=rule_(\w+?)(?:_wildcards\S*)?\s", jobs))
    assert {"train_model", "segment_runs", "localize_runs", "evaluate_picks", "trial"} <= rules


def test_a_back_end_within_its_image(tmp_path: Path) -> None:
    """It is found there without being named."""
    image = FOLDER / IMAGES["stardist"]
    if not image.exists():
        pytest.skip(f"no {image.name} (containers/build.py stardist)")
    train = {"backend": "stardist", "patch": [64, 64], "batch_size": 2, "steps": 2, "device": "cpu"}
    cells = {"annotations": {"made-up": "results/cells/annotations"}, "channels": ["nuclei"], "train": train}
    session = Session(tmp_path, {"cells": cells, "tracking": {"enabled": False}})
    session.snakemake("phantom_cells", "--sdm", "apptainer")
    session.snakemake("evaluate_cells", "--sdm", "apptainer")
    model = yaml.safe_load((session.folder / "results/models/cells/model.yaml").read_text())
    assert model["head"] == "stardist" and "tensorflow" in model["made_with"]
    assert (session.folder / "results/cells/evaluate/cells/report.html").exists()


def test_an_image_alone(tmp_path: Path) -> None:
    """Read-only, without a network, and with nothing of the machine but one folder."""
    alone = alone_with(tmp_path)
    made = within(IMAGE, "tomoscout", "phantom", "made", "--runs", "1", options=alone)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "made" / "copick.json").exists()
    assert "Read-only" in within(IMAGE, "touch", "/opt/venv/x", options=alone).stderr
    check = ["/opt/venv/bin/python", "/opt/tomoscout/containers/check.py", "network"]
    assert re.fullmatch(r"tomoscout 0.1.0: \d+ packages, PyTorch 2\.\S+\n", within(IMAGE, *check, options=alone).stdout)


def test_another_workflow_runs_within_the_image(tmp_path: Path) -> None:
    """Snakemake, rules of its own and the workflow that it imports are all the image's."""
    study = tmp_path / "study"
    shutil.copytree(ROOT / "tests/workflow/importing", study)
    with (study / "config/config.yaml").open("a") as config:
        config.write("tomoscout: /opt/tomoscout/workflow/Snakefile\n")
    for targets in (["make_project"], []):
        command = ["snakemake", *targets, "--profile", "profiles/mine"]
        ran = within(IMAGE, *command, options=alone_with(study))
        assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (study / "learning/found/evaluate/tiny/scores.json").exists()
    assert (study / "counts.csv").exists()


def test_nothing_of_the_host_reaches_python(tmp_path: Path) -> None:
    (tmp_path / "tomoscout.py").write_text("raise SystemExit('the host')")
    host = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path), "VIRTUAL_ENV": str(tmp_path)}
    found = within(IMAGE, "tomoscout", "--version", options=["--bind", str(tmp_path)], **host)
    assert found.stdout == "tomoscout, version 0.1.0\n", found.stderr


@pytest.mark.parametrize("group", ["light", "network"])
def test_what_an_image_says_of_itself(group: RuleGroup) -> None:
    command = ["apptainer", "inspect", "--json", "--labels", str(FOLDER / IMAGES[group])]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    labels = json.loads(printed)["data"]["attributes"]["labels"]
    assert labels["tomoscout.group"] == group
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels["org.opencontainers.image.revision"])


def test_the_light_image_has_no_network_library() -> None:
    code = "from importlib.util import find_spec; print([name for name in ('torch', 'mlflow') if find_spec(name)])"
    assert within(FOLDER / IMAGES["light"], "python", "-c", code).stdout == "[]\n"


def test_an_image_of_other_code_is_refused() -> None:
    refused = within(IMAGE, "tomoscout", "inventory", "--config", "my.yaml", TOMOSCOUT_CODE="0.0.1 (stages 00000000)")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {IMAGE} has tomoscout 0.1.0 (stages ")
