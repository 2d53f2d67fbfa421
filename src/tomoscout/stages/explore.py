"""The exploration (hyperparameter search) of the picking task: study, proposals and trials of a configuration."""

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
        TomoscoutError: the search space is invalid, or there is nothing to train on.
    """
    config, fold = plan.config, plan.fold()
    shapes = [record.tomograms[uri] for record, uri in training_tomograms(config, plan.records, fold)]
    return Study.of(config.explore, config.train, shapes, training_fingerprint(plan, fold))


def start_study(plan: Plan, folder: Path) -> None:
    """Write study.json.

    Raises:
        TomoscoutError: the folder holds another study.
    """
    start(study_of(plan), folder)


def suggest_trial(plan: Plan, folder: Path, number: int) -> Ask:
    """Propose the options of a trial and write them; see `explore.start.suggest`."""
    return suggest(study_of(plan), folder, number, plan.config.explore.trials, lambda: picking_misfit(plan))


def picking_misfit(plan: Plan) -> Misfit:
    """A check for trainings that need more memory than the configuration allows; see `misfit_of`."""
    from tomoscout.tasks.picking.data import TrainingData
    from tomoscout.tasks.picking.task import PickingTask

    data = TrainingData(plan.config, plan.targets, plan.records, plan.fold())
    return misfit_of(plan.config.train, lambda options: PickingTask(data, options))


def train_trial(plan: Plan, folder: Path, number: int) -> Result:
    """Train with the options proposed for a trial; see `explore.trial.run_trial`."""
    config = plan.config
    machine = config.train.model_dump(include={"device", "checkpoint_seconds"})
    # Without a tracking server the summary records all trials: parallel trials would wait for the lock of one database
    # file.
    enabled = config.tracking.enabled and bool(config.tracking.uri)
    tracking = config.tracking.model_copy(update={"enabled": enabled})

    def train(options: Training, folder: Path, watch: Callable[[Progression], None]) -> Outcome:
        from tomoscout.stages.train import run_train

        own = plan.with_options(train=options.model_copy(update=machine), tracking=tracking)
        return run_train(own, folder, threads=config.explore.threads, watch=watch)

    return run_trial(lambda: study_of(plan), folder, number, train)
