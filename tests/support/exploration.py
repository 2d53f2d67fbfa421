"""A small study, as the workflow runs it and as one Python process runs it alone."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import torch

from support.project import succeeded, tomoscout
from support.snakemake_session import CONFIG, Session
from tomoscout.api import create_targets, explore
from tomoscout.explore.records import trial_folder
from tomoscout.machine.files import digest
from tomoscout.machine.locks import alone_in
from tomoscout.options.config import load_config
from tomoscout.plan.paths import Results
from tomoscout.stages.divide_cells import run_divide_cells
from tomoscout.stages.explore import start_study, suggest_trial, train_trial
from tomoscout.stages.explore_cells import InstancesOfCells

TRIALS = 6
STUDY: dict[str, Any] = CONFIG | {
    "phantom": {"runs": 4, "shape": [24, 48, 48], "voxel_spacing": 20.0, "particles": 3, "signal_to_noise": 1.0},
    "tomograms": ["wbp@20.0"],
    "runs_per_job": 10,
    "train": {"name": "tiny", "device": "cpu", "steps": 12, "batch_size": 2, "patch": [16, 16, 16]},
    "tracking": {"enabled": False},
    "explore": {
        "trials": TRIALS,
        "window": 3,
        "startup_trials": 2,
        "pruner_startup_trials": 1,
        "pruner_warmup": 1,
        "validations": 4,
        "threads": 1,
        "networks": {
            "UNet": {"width": {"choices": [4, 8]}, "levels": 2, "bottleneck_levels": 0},
            "SegResNet": {"init_filters": 8, "blocks_down": {"choices": [[1, 1], [1, 2]]}, "deep_supervision": 1},
        },
        "space": {"patch": {"choices": [16, 24]}, "batch_size": {"choices": [1, 2]}},
    },
}

CELL_TRIALS = 3
# A search over both heads, without what only takes time.
CELL_STUDY: dict[str, Any] = {
    "cells": {
        "annotations": {"made-up": "results/cells/annotations"},
        "channels": ["nuclei"],
        "train": {
            "steps": 8,
            "batch_size": 1,
            "patch": [32, 32],
            "device": "cpu",
            "checkpoint_seconds": 0,
            "network": {"channels": [4, 8], "strides": [2]},
        },
        "explore": {
            "trials": CELL_TRIALS,
            "window": 2,
            "startup_trials": 1,
            "pruner": "none",
            "validations": 4,
            "threads": 1,
            "networks": {"UNet": {"width": {"choices": [4, 8]}, "levels": 2, "bottleneck_levels": 0}},
            "space": {"patch": 32, "batch_size": {"choices": [1, 2]}},
        },
        "segment": {
            "images": ["results/cells/images"],
            "channels": ["nuclei", "cytoplasm"],
            "calibration": 0.65,
            "device": "cpu",
            "model": "explored",
        },
    },
    "tracking": {"enabled": False},
}


def explored(session: Session) -> Path:
    """The folder of the only study."""
    [folder] = (session.folder / "results/explore").iterdir()
    return folder


def digest_of(study: Path, trials: int = TRIALS) -> str:
    """One digest of all that was asked and of all that came of it."""
    files = [study / "study.json", *sorted(study.glob("*/ask.json")), *sorted(study.glob("*/result.json"))]
    assert len(files) == 1 + 2 * trials
    return digest([[str(path.relative_to(study)), path.read_text()] for path in files])


def study_session(folder: Path) -> Session:
    """A session with the phantom of the study."""
    made = Session(folder, STUDY)
    succeeded(tomoscout("phantom", made.folder / "results/phantom", "--config", made.config))
    return made


def digest_of_one_process(folder: Path) -> str:
    """The digest of the study whose trials one process runs, one after the other and without Snakemake."""
    alone = study_session(folder)
    with chdir(alone.folder), torch_threads(STUDY["explore"]["threads"]):
        create_targets(alone.config)
        explore(alone.config)
    return digest_of(explored(alone))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cell_session(folder: Path, base: dict[str, Any] = CELL_STUDY) -> Session:
    """A session with the annotated images of the study of cells."""
    made = Session(folder, base)
    results = made.folder / "results/cells"
    images = ("--images", 8, "--size", 64, "--images-alone", results / "images")
    succeeded(tomoscout("phantom-cells", results / "annotations", *images))
    return made


def cells_explored_in_one_process(folder: Path, base: dict[str, Any] = CELL_STUDY) -> Path:
    """The folder of the study of cells whose trials one process runs, one after the other and without Snakemake."""
    alone = cell_session(folder, base)
    results = Results(Path("results"))
    with chdir(alone.folder), torch_threads(CELL_STUDY["cells"]["explore"]["threads"]):
        config = load_config(alone.config)
        run_divide_cells(config, results.cell_division)
        subject = InstancesOfCells(config, results.cell_division)
        study = results.study(subject.study().name)
        start_study(subject, study)
        for number in range(config.cells.explore.trials):
            suggest_trial(subject, study, number)
            with alone_in(trial_folder(study, number)):
                train_trial(subject, study, number)
    return explored(alone)


def kill_again_and_again(session: Session, *command: str, trials: int, kills: int) -> int:
    """Start snakemake and kill all of it, somewhere in the life of the trial that is asked for next; returns how often
    there was something to kill. A fast machine may end the study before."""
    generator = random.Random(1)
    killed = 0
    for _ in range(kills):
        running = session.start(*command)
        asked = len(list(session.folder.glob("results/explore/*/*/ask.json"))) + generator.randint(1, 2)
        while len(list(session.folder.glob("results/explore/*/*/ask.json"))) < min(asked, trials):
            assert running.poll() is None
            time.sleep(0.02)
        with_delay = time.monotonic() + generator.uniform(0, 4)
        while time.monotonic() < with_delay and running.poll() is None:
            time.sleep(0.02)
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            killed += 1
            assert not list(session.folder.glob("results/explore/*/trials.csv"))
        running.communicate()
    return killed
