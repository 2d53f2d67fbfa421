"""The exploration of picking: its study, proposals and trials from the configuration and the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tomoscout.explore.machine import misfit_of
from tomoscout.explore.proposals import Misfit
from tomoscout.explore.records import Ask, Result
from tomoscout.explore.start import start, suggest
from tomoscout.explore.study import Study
from tomoscout.explore.trial import run_trial
from tomoscout.plan.fingerprints import training_fingerprint
from tomoscout.plan.folds import training_tomograms
from tomoscout.plan.plan import Plan

if TYPE_CHECKING:
    from tomoscout.learning.options import Training
    from tomoscout.learning.progression import Outcome, Progression


def study_of(plan: Plan) -> Study:
    """The study of a configuration.

    Raises:
        TomoscoutError: its space is at fault, or there is nothing to train on.
    """
    config, fold = plan.config, plan.fold()
    shapes = [record.tomograms[uri] for record, uri in training_tomograms(config, plan.records, fold)]
    return Study.of(config.explore, config.train, shapes, training_fingerprint(plan, fold))


def start_study(plan: Plan, folder: Path) -> None:
    """Write study.json.

    Raises:
        TomoscoutError: the folder is for another study.
    """
    start(study_of(plan), folder)


def suggest_trial(plan: Plan, folder: Path, number: int) -> Ask:
    """Write what a trial is asked, as of `explore.start.suggest`."""
    return suggest(study_of(plan), folder, number, plan.config.explore.trials, lambda: picking_misfit(plan))


def picking_misfit(plan: Plan) -> Misfit:
    """Tells of trainings that need more memory than the configuration states, as of `misfit_of`."""
    from tomoscout.tasks.picking.data import TrainingData
    from tomoscout.tasks.picking.task import PickingTask

    data = TrainingData(plan.config, plan.targets, plan.records, plan.fold())
    return misfit_of(plan.config.train, lambda options: PickingTask(data, options))


def train_trial(plan: Plan, folder: Path, number: int) -> Result:
    """Train what a trial was asked for, as of `explore.trial.run_trial`."""
    config = plan.config
    machine = config.train.model_dump(include={"device", "checkpoint_seconds"})
    # The summary records all trials: many at once would wait for each other's lock on a file.
    enabled = config.tracking.enabled and bool(config.tracking.uri)
    tracking = config.tracking.model_copy(update={"enabled": enabled})

    def train(options: Training, folder: Path, watch: Callable[[Progression], None]) -> Outcome:
        from tomoscout.stages.train import run_train

        own = plan.with_options(train=options.model_copy(update=machine), tracking=tracking)
        return run_train(own, folder, threads=config.explore.threads, watch=watch)

    return run_trial(lambda: study_of(plan), folder, number, train)
