"""Studies without trainings: their trials end with results that are made up."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from support.project import SmallProject
from tomoscout.explore.proposals import Misfit, propose
from tomoscout.explore.records import (
    Ask,
    Result,
    trial_folder,
)
from tomoscout.explore.study import Study
from tomoscout.plan.plan import Plan
from tomoscout.stages.explore import study_of
from tomoscout.tasks.picking.options import Train

EXPLORE: dict[str, Any] = {
    "window": 3,
    "startup_trials": 3,
    "baseline": False,
    "validations": 4,
    "networks": {"UNet": {"width": {"choices": [4, 8]}}, "SegResNet": {}},
}
TRAIN: dict[str, Any] = {"steps": 40}


def configure(project: SmallProject, explore: dict[str, Any] | None = None, **sections: Any) -> Study:
    """The study of these settings in place of those above."""
    values = {"split": {"train": ["one", "two"], "validate": ["three"]}, "train": TRAIN, **sections}
    config = project.configure(explore={**EXPLORE, **(explore or {})}, **values)
    if not project.inventory.exists():
        return Study({}, Train)
    records = project.refresh()
    return study_of(Plan(config, records))


def fits(options: Train) -> str | None:
    return None


def outcome(ask: Ask) -> Result:
    """What might have come of a trial: decided by its parameters, at times without an end or without any score."""
    text = json.dumps(ask.params, sort_keys=True).encode()
    chance = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest()) / 2**32
    last = (chance * 7919) % 1 * 0.5 + 0.3 * ask.params.get("augmentation.probability", 0.5)
    curve = {step: last * (0.4 + 0.15 * step) for step in range(1, 5)}
    if chance < 0.2:
        return Result(ask.number, ask.params, ask.distributions, "PRUNED", None, {}, {}, "out of memory")
    if chance < 0.4:
        seen = {1: curve[1], 2: curve[2]}
        return Result(ask.number, ask.params, ask.distributions, "PRUNED", curve[2], seen, {}, "pruned: median")
    return Result(ask.number, ask.params, ask.distributions, "COMPLETE", curve[4], curve, {"ribosome": curve[4]})


def run(study: Study, folder: Path, trials: int, misfit: Misfit = fits, *, late: bool = False) -> list[Ask]:
    """Trials with made-up results: each is done as soon as it is asked, or as late as it may be."""
    asks: list[Ask] = []
    waiting: list[Ask] = []
    for number in range(trials):
        while waiting and (not late or waiting[0].number in study.told(number)):
            done = waiting.pop(0)
            outcome(done).write(trial_folder(folder, done.number) / "result.json")
        ask = propose(study, folder, number, misfit)
        ask.write(trial_folder(folder, number) / "ask.json")
        asks.append(ask)
        waiting.append(ask)
    return asks
