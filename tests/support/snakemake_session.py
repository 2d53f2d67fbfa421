"""Snakemake as users start it: a working directory, a configuration kept outside of it, the project's Snakefile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tomoscout.data.project import Project

ROOT = Path(__file__).parents[2]
TARGETS = ["all", "targets", "splits", "train", "segment", "localize", "evaluate", "report"]
# Those that need options of their own.
OTHER_TARGETS = [
    "pretrain",
    "finetune",
    "cross_validate",
    "learning_curve",
    "explore",
    "track",
    "segment_instances",
    "extract",
    "export",
    "import",
    "download",
    "import_tomograms",
    "import_picks",
]
# Those of instances of cells.
CELL_TARGETS = [
    "check_annotations",
    "split_cells",
    "train_cells",
    "evaluate_cells",
    "segment_cells",
    "explore_cells",
    "export_cells",
    "cells",
]
NO_TRACEBACK = "Traceback (most recent call last)"

CONFIG: dict[str, Any] = {
    "projects": {"phantom": "results/phantom/copick.json"},
    "tomograms": ["wbp@10.0"],
    "targets": {"picks": "phantom/0"},
    "phantom": {"runs": 4, "shape": [32, 64, 64], "particles": 1, "signal_to_noise": 2.0},
    # In the second of two batches the run that is tested lies beside one that is trained on.
    "split": {"train": ["phantom-000", "phantom-002"], "validate": ["phantom-001"], "test": ["phantom-003"]},
    "runs_per_job": 2,
    "train": {
        "name": "tiny",
        "device": "cpu",
        "steps": 8,
        "batch_size": 2,
        "patch": [16, 16, 16],
        "validate_every": 4,
        "network": {"channels": [4, 8], "strides": [2]},
    },
    "segment": {"device": "cpu", "tile": [32, 64, 64]},
}


class Session:
    """A working directory in which snakemake runs with a configuration kept outside of it."""

    def __init__(self, folder: Path, base: dict[str, Any] = CONFIG) -> None:
        self.base = base
        self.folder = folder / "work"
        self.folder.mkdir(parents=True)
        self.config = folder / "my config.yaml"
        self.configure({})

    def configure(self, changes: dict) -> None:
        """Write the configuration, with some sections of the base changed."""
        values = json.loads(json.dumps(self.base))
        for section, options in changes.items():
            if isinstance(options, dict):
                values.setdefault(section, {}).update(options)
            else:
                values[section] = options
        self.config.write_text(yaml.safe_dump(values))

    def snakemake(self, *arguments: str, check: bool = True) -> str:
        """Run snakemake and return all it printed."""
        running = self.start(*arguments)
        output = running.communicate()[0]
        assert not check or running.returncode == 0, output
        return output

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start snakemake in a process group of its own, as a scheduler does."""
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
        command += [
            "--snakefile",
            str(ROOT / "Snakefile"),
            "--directory",
            str(self.folder),
            "--configfile",
            str(self.config),
        ]
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
            # Where the tests run in the background of a shell, Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def would_run(self, *arguments: str) -> list[str]:
        """The jobs that a dry run announces."""
        return announced_jobs(self.snakemake("--dry-run", *arguments))

    def job_counts(self, *arguments: str) -> dict[str, int]:
        """How many jobs of each rule a dry run announces."""
        output = self.snakemake("--dry-run", *arguments)
        return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.M)}

    def project(self) -> Project:
        """The phantom's project."""
        return Project("phantom", self.folder / "results/phantom/copick.json")

    def batch_of(self, run: str) -> str:
        """The batch of a run."""
        rows = (self.folder / "results/inventory.tsv").read_text().splitlines()
        return next(f"{int(row.split()[2]):04d}" for row in rows if row.split("\t")[1] == run)


def announced_jobs(output: str) -> list[str]:
    """The jobs that snakemake runs, or would run, such as `targets_runs 0001`, without the named targets."""
    jobs = []
    for block in re.split(r"\n\n|\n(?=\[)", output):
        rule = re.search(r"^(?:local)?rule (\w+):", block, re.M)
        if rule and rule[1] not in [*TARGETS, *OTHER_TARGETS, *CELL_TARGETS, "gather_targets", "gather_study_targets"]:
            batch = re.search(r"wildcards: batch=(\d+)", block)
            jobs.append(f"{rule[1]} {batch[1]}" if batch else rule[1])
    return sorted(set(jobs))


def announced_trainings(output: str) -> dict[str, str]:
    """The trainings that snakemake announces: what it says of each, by model."""
    blocks = re.split(r"\n\n|\n(?=\[)", output)
    found = {match[1]: block for block in blocks if (match := re.search(r"wildcards: model=(\S+)", block))}
    return {model: block for model, block in found.items() if "rule train_model:" in block}


def killed_in_training(
    session: Session, kill: Callable[[subprocess.Popen[str]], None], *arguments: str
) -> subprocess.Popen[str]:
    """Start snakemake, wait for the training's first checkpoint, end it."""
    running = session.start(*arguments)
    checkpoint = session.folder / "results/models/tiny/checkpoint.pt"
    while not checkpoint.exists():
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.05)
    kill(running)
    running.wait()
    return running


def copy_of(phantom: Session, folder: Path, base: dict[str, Any] = CONFIG) -> Session:
    """A session with a copy of the phantom, and no results."""
    made = Session(folder, base)
    copy_project(phantom.folder / "results/phantom/copick.json", made.folder / "results/phantom")
    return made


def copy_project(config: Path, folder: Path) -> str:
    """The same project in another folder, which its config names; returns that config."""
    shutil.copytree(config.parent, folder)
    copied = folder / config.name
    copied.write_text(copied.read_text().replace(str(config.parent), str(folder)))
    return str(copied)


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Put a file back as it was, its time included."""
    content, facts = path.read_bytes(), path.stat()
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@contextmanager
def configured(session: Session, changes: dict) -> Iterator[None]:
    """Change the configuration for a while."""
    session.configure(changes)
    try:
        yield
    finally:
        session.configure({})
