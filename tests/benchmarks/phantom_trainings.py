"""A search over real trainings on a phantom: each point of a grid is trained once, so that a search can be repeated
with many seeds. Between the points the nearest one counts."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exploring import STARTUP, UNEQUAL, asynchronous, optuna_tpe, windowed
from functions import Function
from measure import TOMOSCOUT, run, table
from numpy.typing import NDArray

from tomoscout.data.inventory_refresh import refresh
from tomoscout.options.config import Config, load_config, parse_config
from tomoscout.plan.plan import Plan
from tomoscout.stages.train import run_train

GRID: dict[str, list[Any]] = {
    "width": [4, 8],
    "levels": [2, 3],
    "learning_rate": [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2],
    "loss": ["CrossEntropy", "Dice", "Tversky"],
    "batch_size": [1, 2, 4],
}

ENTRIES = [
    {"name": "width", "domain": {"choices": GRID["width"]}, "when": {}},
    {"name": "levels", "domain": {"low": 2, "high": 3}, "when": {}},
    {"name": "learning_rate", "domain": {"low": 1e-3, "high": 3.2e-2, "log": True}, "when": {}},
    {"name": "loss", "domain": {"choices": GRID["loss"]}, "when": {}},
    {"name": "batch_size", "domain": {"choices": GRID["batch_size"]}, "when": {}},
]

SETTINGS: dict[str, Any] = {
    "tomograms": ["wbp@10.0"],
    "targets": {"picks": "phantom/0"},
    "phantom": {"runs": 5, "shape": [32, 80, 80], "particles": 4, "signal_to_noise": 0.5, "seed": 7},
    "split": {"train": [f"phantom-00{n}" for n in range(3)], "validate": ["phantom-003", "phantom-004"]},
    "tracking": {"enabled": False},
}
STEPS = 40


def phantom_trainings(folder: Path) -> Function:
    """1 - the best validation F4 of a training of 40 steps, as a function to be made small. The table of all trainings
    is kept as trainings.json in `folder` and taken up where it was."""
    known = _table(folder)
    points = {tuple(json.loads(key)): score for key, score in known.items()}

    def value(point: Mapping[str, Any]) -> float:
        rates = GRID["learning_rate"]
        rate = min(rates, key=lambda rate: abs(math.log(rate / point["learning_rate"])))
        return 1 - points[tuple({**point, "learning_rate": rate}[name] for name in GRID)]

    return Function("trainings on a phantom, 5", ENTRIES, value, 1 - max(known.values()))


def _table(folder: Path) -> dict[str, float]:
    path = folder / "trainings.json"
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    missing = [point for point in itertools.product(*GRID.values()) if json.dumps(point) not in known]
    if missing:
        torch.set_num_threads(1)
        config = prepare(folder)
        for number, point in enumerate(missing, 1):
            known[json.dumps(point)] = _score(config, folder, dict(zip(GRID, point, strict=True)))
            path.write_text(json.dumps(known, indent=1))
            print(f"training {number} of {len(missing)}: {point} {known[json.dumps(point)]:.3f}", file=sys.stderr)
    return known


def prepare(folder: Path) -> Config:
    """A phantom with its targets, made once in a folder."""
    path = folder / "config.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**SETTINGS, "projects": {"phantom": str(folder / "phantom/copick.json")}}))
    config = load_config(path)
    if not (folder / "targets").exists():
        run([*TOMOSCOUT, "phantom", str(folder / "phantom"), "--config", str(path)], folder=folder)
        refresh(folder / "inventory.tsv", config.projects, config.runs_per_job)
        options = ["--config", str(path), "--inventory", str(folder / "inventory.tsv")]
        run(
            [*TOMOSCOUT, "targets", *options, "--batch", "0", "--output", str(folder / "targets/batch-0.json")],
            folder=folder,
        )
    return config


def _score(config: Config, folder: Path, point: Mapping[str, Any]) -> float:
    channels = [point["width"] * 2**level for level in range(point["levels"])]
    train = {
        "device": "cpu",
        "steps": STEPS,
        "validate_every": STEPS // 3,
        "patch": [24, 24, 24],
        "batch_size": point["batch_size"],
        "learning_rate": point["learning_rate"],
        "loss": point["loss"],
        "network": {"channels": channels, "strides": [2] * (point["levels"] - 1)},
        "checkpoint_seconds": 1e9,
    }
    values = config.model_dump(mode="json", by_alias=True) | {"train": train}
    records = refresh(folder / "inventory.tsv", config.projects, config.runs_per_job)
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    return run_train(Plan(parse_config(values, "benchmark"), records), model, threads=1).progression.best_score


METHODS = ["random", "one worker", "W 6", "W 8", "4 workers, equal", "4 workers, unequal"]
COUNTS = (24, 48)


def searches(folder: Path, seeds: int) -> str:
    """Best scores that searches find among the trainings: ours in windows for four workers, Optuna's with as many."""
    function = phantom_trainings(folder)
    scores = np.array([_searches(function, seed) for seed in range(seeds)])
    best = {count: np.maximum.accumulate(scores, axis=-1)[..., count - 1] for count in COUNTS}
    rows = []
    for number, method in enumerate(METHODS):
        cells = [method]
        for count in COUNTS:
            values = best[count][:, number]
            cells.append(f"{values.mean():.4f} ± {values.std(ddof=1):.4f}")
            others = (best[count][:, METHODS.index(other)] for other in ("random", "4 workers, unequal"))
            cells += [_difference(values - other) for other in others]
        rows.append(cells)
    against = ["best", "against random", "against 4 workers, unequal"]
    columns = ["", *(f"{name} ({count} trials)" for count in COUNTS for name in against)]
    least, most = 1 - function.least - function.typical, 1 - function.least
    title = f"Searches over {len(_table(folder))} trainings (median {least:.3f}, best {most:.3f}), {seeds} seeds"
    return table(title, columns, rows)


def _searches(function: Function, seed: int) -> list[list[float]]:
    """The scores of all trials, by method. The trials at random before they learn are the same."""
    trials = max(COUNTS)
    random, points = windowed(function, 1, seed, trials, "random")
    regrets = [random]
    for workers, deviation in ((1, 0.0), (4, 0.0), (4, UNEQUAL)):
        drawn = np.random.default_rng([seed, trials]).lognormal(0, deviation, trials).tolist()
        regrets.append(asynchronous(function, optuna_tpe(seed), drawn, workers, points[:STARTUP]))
    regrets[2:2] = [windowed(function, window, seed, trials)[0] for window in (6, 8)]
    return [[1 - function.least - regret * function.typical for regret in method] for method in regrets]


def _difference(values: NDArray[np.float64]) -> str:
    """Mean with the 95 % interval of a bootstrap over the seeds."""
    if not values.any():
        return ""
    means = np.random.default_rng(0).choice(values, (5000, len(values))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{values.mean():+.4f} ({low:+.4f} to {high:+.4f})"
