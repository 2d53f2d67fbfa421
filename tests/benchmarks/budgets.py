"""What `explore.budget` does to the trials of a search: how unequally long real trainings on a phantom take, and what
they come to, with equally many voxels and with equally many steps."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from makespans import asynchronous_ends, windowed_ends
from measure import table
from phantom_trainings import prepare

from tomoscout.data.inventory_refresh import refresh
from tomoscout.explore.points import known_values
from tomoscout.explore.study import Study
from tomoscout.options.config import parse_config
from tomoscout.plan.plan import Plan
from tomoscout.stages.explore import study_of
from tomoscout.stages.train import run_train

SEARCH: dict[str, Any] = {
    "train": {"device": "cpu", "steps": 120, "batch_size": 4, "patch": [24, 24, 24], "checkpoint_seconds": 1e9},
    "explore": {
        "validations": 3,
        "networks": {"UNet": {"width": {"choices": [4, 8, 16]}, "levels": {"low": 2, "high": 3}}},
        "space": {"patch": {"low": 16, "high": 32, "step": 4}, "batch_size": {"choices": [1, 2, 4, 8]}},
    },
}
GPUS, WINDOW = 8, 12


def budgets(folder: Path, trials: int) -> str:
    """The same random points trained under both budgets, one after the other."""
    torch.set_num_threads(1)
    config = prepare(folder)
    rows = []
    for budget in ("voxels", "steps"):
        values = config.model_dump(mode="json", by_alias=True) | SEARCH
        values["explore"] = {**SEARCH["explore"], "budget": budget}
        records = refresh(folder / "inventory.tsv", config.projects, config.runs_per_job)
        study = study_of(Plan(parse_config(values, "benchmark"), records))
        seconds, scores = [], []
        for number in range(trials):
            values["train"] = _point(study, number)
            shutil.rmtree(folder / "model", ignore_errors=True)
            start = time.process_time()
            outcome = run_train(Plan(parse_config(values, "benchmark"), records), folder / "model", threads=1)
            seconds.append(time.process_time() - start)
            scores.append(outcome.progression.best_score)
        rows.append([budget, *_summary(np.array(seconds), np.array(scores))])
    title = f"{trials} random trials on a phantom; time of a study of as many on {GPUS} GPUs over work / GPUs"
    columns = ["budget", "CPU s", "least–most", "σ of log", "asynchronous", f"W = {WINDOW}", "median score", "best"]
    return table(title, columns, rows)


def _point(study: Study, number: int) -> dict[str, Any]:
    generator = np.random.default_rng(number)
    values = study.space.values(lambda _, domain: domain.at(generator.random()), known_values(study.base))
    return study.options_of(values).model_dump(mode="json") | {"device": "cpu"}


def _summary(
    seconds: np.ndarray[Any, np.dtype[np.float64]], scores: np.ndarray[Any, np.dtype[np.float64]]
) -> list[Any]:
    ideal = seconds.sum() / GPUS
    ends = [max(asynchronous_ends(list(seconds), GPUS)), max(windowed_ends(list(seconds), GPUS, WINDOW))]
    return [
        f"{np.median(seconds):.1f}",
        f"{seconds.min():.1f}–{seconds.max():.1f}",
        f"{np.log(seconds).std():.2f}",
        *(f"{end / ideal:.2f}" for end in ends),
        f"{np.median(scores):.3f}",
        f"{scores.max():.3f}",
    ]
