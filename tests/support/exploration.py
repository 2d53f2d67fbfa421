"""A small study, as the workflow runs it and as one Python process runs it alone."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path
from typing import Any

import torch

from support.project import succeeded, tomoscout
from support.snakemake_session import CONFIG, Session
from tomoscout.api import create_targets, explore
from tomoscout.machine.files import digest

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


def explored(session: Session) -> Path:
    """The folder of the only study."""
    [folder] = (session.folder / "results/explore").iterdir()
    return folder


def digest_of(study: Path) -> str:
    """One digest of all that was asked and of all that came of it."""
    files = [study / "study.json", *sorted(study.glob("*/ask.json")), *sorted(study.glob("*/result.json"))]
    assert len(files) == 1 + 2 * TRIALS
    return digest([[str(path.relative_to(study)), path.read_text()] for path in files])


def study_session(folder: Path) -> Session:
    """A session with the phantom of the study."""
    made = Session(folder, STUDY)
    succeeded(tomoscout("phantom", made.folder / "results/phantom", "--config", made.config))
    return made


def digest_of_one_process(folder: Path) -> str:
    """The digest of the study whose trials one process runs, one after the other and without Snakemake."""
    alone = study_session(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(STUDY["explore"]["threads"])
    try:
        with chdir(alone.folder):
            create_targets(alone.config)
            explore(alone.config)
    finally:
        torch.set_num_threads(threads)
    return digest_of(explored(alone))
