"""Seconds until the workflow knows what is left of a large exploration, and of a proposal after many trials."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from made_up import make_project, write_config
from measure import COSTS, TOMOSCOUT, costs, run, spread, table
from starting import ROOT

from tomoscout.data.inventory import RunRecord, read_inventory
from tomoscout.explore.optuna_trials import rebuild
from tomoscout.explore.proposals import propose
from tomoscout.explore.records import Ask, Result, trial_folder
from tomoscout.explore.study import Study
from tomoscout.machine.files import write_json
from tomoscout.options.config import Config, load_config
from tomoscout.plan.plan import Plan
from tomoscout.stages.explore import Picking, study_of
from tomoscout.tasks.picking.options import Train
from tomoscout.workflow import Workflow

VALIDATIONS = 10
STAGES = {"nothing done": 0.0, "half done": 0.5, "all done": 1.0}


def dry_runs(folder: Path, repeats: int, sizes: list[int]) -> str:
    """Dry runs of explorations of which nothing, a half and every trial is done."""
    project = make_project(folder / "project", 20, picks=12)
    rows = []
    for size in sizes:
        place = folder / str(size)
        config = _write_config(place, project, trials=size)
        command = [sys.executable, "-m", "snakemake", "explore", "-n", "-q", "--cores", "2"]
        command += ["--snakefile", str(ROOT / "Snakefile"), "--configfile", str(config), "--directory", str(place)]
        for what, share in STAGES.items():
            study_folder, study = _start(config, place)
            _make_up(study, study_folder, int(share * size))
            measured = [run(command, folder=place) for _ in range(repeats)]
            rows.append([size, what, *costs(measured)])
        shutil.rmtree(place)
    return table("Dry run of an exploration", ["trials", "", *COSTS], rows)


def proposals(folder: Path, repeats: int, numbers: list[int]) -> str:
    """`tomoscout explore suggest` at several numbers of earlier trials, and where its seconds go."""
    project = make_project(folder / "project", 20, picks=12)
    rows = []
    for what, train in {"": {}, "with the memory of a GPU stated": {"gpu_memory_gb": 24}}.items():
        place = folder / (what or "plain")
        config = _write_config(place, project, trials=max(numbers) + 1, train=train)
        study_folder, study = _start(config, place)
        _make_up(study, study_folder, max(numbers))
        records = read_inventory(place / "results/inventory.tsv")
        for number in numbers:
            shutil.rmtree(trial_folder(study_folder, max(numbers)), ignore_errors=True)
            command = ["explore", "suggest", str(number), "--config", str(config), "--study", str(study_folder)]
            target = trial_folder(study_folder, number) / "ask.json"
            kept = target.read_bytes() if target.exists() else None
            measured = []
            for _ in range(repeats):
                target.unlink(missing_ok=True)  # A proposal that is there stays.
                measured.append(run([*TOMOSCOUT, *command], folder=place))
            # The first imports what it needs.
            parts = [_parts(load_config(config), records, study_folder, number) for _ in range(repeats + 1)][1:]
            rows.append([what, number, *costs(measured), *map(spread, zip(*parts, strict=True))])
            if kept:
                target.write_bytes(kept)
    columns = ["", "trial", *COSTS, "settings", "reading", "sampling"]
    title = "A proposal: the command, and seconds of its parts in a process that has imported everything"
    return table(title, columns, rows)


def _parts(config: Config, records: list[RunRecord], folder: Path, number: int) -> list[float]:
    """Seconds of finding the study, of reading the trials before, and of what is left of a proposal."""
    clock = [time.perf_counter()]
    plan = Plan(config, records)
    study = study_of(plan)
    clock.append(time.perf_counter())
    rebuild(study, folder, number)
    clock.append(time.perf_counter())
    propose(study, folder, number, Picking(plan).misfit())
    clock.append(time.perf_counter())
    settings, reading, proposing = np.diff(clock).tolist()
    return [settings, reading, proposing - reading]


def _write_config(place: Path, project: Path, trials: int, train: dict[str, object] | None = None) -> Path:
    place.mkdir()
    path = write_config(place / "config.yaml", project, runs_per_job=10)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "explore": {"trials": trials}, "train": train or {}}))
    run([*TOMOSCOUT, "inventory", "--config", path, "--output", "results/inventory.tsv"], folder=place)
    return path


def _start(config: Path, place: Path) -> tuple[Path, Study]:
    """The folder of the study, and the study; its targets count as made."""
    flow = Workflow(json.loads(config.read_text()), str(place / "results"), main=False)
    folder = flow.search.folder
    study = study_of(Plan(load_config(config), flow.records))
    write_json(folder / "study.json", study.settings)
    for batch in flow.study_batches():
        write_json(place / f"results/targets/{flow.config.targets.name}/batch-{batch}.json", {})
    (folder / "targets.made").write_text(flow.training_targets(flow.config.train.name))
    return folder, study


def _make_up(study: Study, folder: Path, trials: int) -> None:
    """Trials at random points, with learning curves that rise; one in three is pruned halfway."""
    generator = np.random.default_rng(0)
    for number in range(trials):
        settings = {**study.settings, "sampler": "random", "seed": number}
        ask = replace(propose(Study(settings, Train), folder, 0, lambda _: None), number=number, refused=[])
        ask.write(trial_folder(folder, number) / "ask.json")
        _result(ask, generator).write(trial_folder(folder, number) / "result.json")


def _result(ask: Ask, generator: np.random.Generator) -> Result:
    pruned = ask.number % 3 == 2
    best, count = generator.uniform(0.2, 0.9), VALIDATIONS // 2 if pruned else VALIDATIONS
    curve = {step: round(best * step / count, 4) for step in range(1, count + 1)}
    reason = f"pruned at validation {count}: median" if pruned else None
    state = "PRUNED" if pruned else "COMPLETE"
    return Result(ask.number, ask.params, ask.distributions, state, curve[count], curve, {"ribosome": 0.5}, reason)
