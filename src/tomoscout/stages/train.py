"""The training stage: trains a picking model on tomograms, targets and a split, and writes its model folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from tomoscout.learning.progression import Outcome, Progression
from tomoscout.learning.training import Job, resolve_options, train_network
from tomoscout.machine.files import digest
from tomoscout.machine.messages import say
from tomoscout.models.base import base_digest, read_base
from tomoscout.plan.fingerprints import training_fingerprint
from tomoscout.plan.members import SINGLE, Member
from tomoscout.plan.paths import results_of
from tomoscout.plan.plan import Plan
from tomoscout.plan.targets import print_warnings
from tomoscout.stages.own_loss import NamedLoss
from tomoscout.tasks.picking.data import TrainingData
from tomoscout.tasks.picking.model import PickingModel
from tomoscout.tasks.picking.task import PickingTask
from tomoscout.tracking.store import default_uri
from tomoscout.tracking.tracker import Tracker


def run_train(
    plan: Plan,
    folder: Path,
    member: Member = SINGLE,
    threads: int | None = None,
    watch: Callable[[Progression], None] = lambda progression: None,
    loss: NamedLoss | None = None,
) -> Outcome:
    """Train a model into `folder`; an interrupted training resumes from its checkpoint. `member`: which runs it
    trains on. `watch`: called after every validation; an exception that it raises ends the training. `loss`: used
    instead of `train.loss`.

    Raises:
        TrainingFailed: training cannot succeed with these options.
        TomoscoutError: data is missing or unusable.
        Interrupted: a signal stopped the training.
    """
    if threads:
        torch.set_num_threads(threads)
    plan, runs = plan.plan_of(member), plan.runs_of(member)
    config = plan.config
    print_warnings(plan.targets)
    besides = [base_digest(config.train), *([loss.name] if loss else [])]
    fingerprint = digest([training_fingerprint(plan, runs), *besides])
    kind = digest([training_fingerprint(plan, runs, leave_out=("steps", "warmup")), *besides])
    base = read_base(config.train, PickingModel) if config.train.base else None
    task = PickingTask(
        TrainingData(config, plan.targets, plan.records, runs), config.train, loss.module if loss else None
    )
    uri = default_uri(results_of(folder))
    job = Job(
        task,
        resolve_options(config.train, base, task),
        member.name(config.train.name),
        folder,
        fingerprint,
        kind,
        lambda facts: Tracker(folder, config.tracking, uri, dict(facts)),
        base,
        runs.train,
        runs.validate,
        {"tomograms": config.tomograms, "train": list(runs.train), "validate": list(runs.validate)},
        loss.name if loss else None,
    )
    outcome = train_network(job, watch)
    details = outcome.progression.best_details
    ranges = details.get("threshold_ranges", {})
    if ranges:
        values = details["thresholds"]
        chosen = (f"{name} {values[name]:g} ({low:g} to {high:g})" for name, (low, high) in ranges.items())
        say(f"thresholds, and where 80 % of them would lie with other validation picks: {', '.join(chosen)}")
    return outcome
