"""Explorations (hyperparameter searches): study, proposals and trials of a configuration, for any task; and that of
picking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tomoscout.explore.machine import misfit_of
from tomoscout.explore.options import Explore
from tomoscout.explore.proposals import Misfit
from tomoscout.explore.records import Ask, Result
from tomoscout.explore.start import start, suggest
from tomoscout.explore.study import Study
from tomoscout.explore.trial import run_trial
from tomoscout.plan.fingerprints import training_fingerprint
from tomoscout.plan.folds import training_tomograms
from tomoscout.plan.plan import Plan
from tomoscout.tracking.options import Tracking

if TYPE_CHECKING:
    from tomoscout.learning.options import Training
    from tomoscout.learning.progression import Outcome, Progression

Watch = Callable[["Progression"], None]
"""Function that is called after every validation of a training; an exception that it raises ends the training."""


class Subject(Protocol):
    """What is explored: a task with its configuration and its data."""

    @property
    def explore(self) -> Explore:
        """The options of the exploration."""

    @property
    def shared(self) -> Training:
        """The options that all trials share."""

    @property
    def tracking(self) -> Tracking:
        """The options of the records of trainings."""

    def study(self) -> Study:
        """The study.

        Raises:
            TomoscoutError: the search space is invalid, or there is nothing to train on.
        """

    def misfit(self) -> Misfit:
        """A check for trainings that need more memory than the configuration allows; see `misfit_of`."""

    def train(self, options: Training, tracking: Tracking, folder: Path, watch: Watch) -> Outcome:
        """Train a model into `folder`."""


def start_study(subject: Subject, folder: Path) -> None:
    """Write study.json.

    Raises:
        TomoscoutError: the folder holds another study.
    """
    start(subject.study(), folder)


def suggest_trial(subject: Subject, folder: Path, number: int) -> Ask:
    """Propose the options of a trial and write them; see `explore.start.suggest`."""
    return suggest(subject.study(), folder, number, subject.explore.trials, subject.misfit)


def train_trial(subject: Subject, folder: Path, number: int) -> Result:
    """Train with the options proposed for a trial; see `explore.trial.run_trial`."""
    machine = subject.shared.model_dump(include={"device", "checkpoint_seconds"})
    # Without a tracking server the summary records all trials: parallel trials would wait for the lock of one database
    # file.
    enabled = subject.tracking.enabled and bool(subject.tracking.uri)
    tracking = subject.tracking.model_copy(update={"enabled": enabled})

    def train(options: Training, folder: Path, watch: Watch) -> Outcome:
        return subject.train(options.model_copy(update=machine), tracking, folder, watch)

    return run_trial(subject.study, folder, number, train)


def study_of(plan: Plan) -> Study:
    """The study of picking of a configuration.

    Raises:
        TomoscoutError: the search space is invalid, or there is nothing to train on.
    """
    config, fold = plan.config, plan.fold()
    shapes = [record.tomograms[uri] for record, uri in training_tomograms(config, plan.records, fold)]
    return Study.of(config.explore, config.train, shapes, training_fingerprint(plan, fold))


@dataclass(frozen=True)
class Picking:
    """The exploration of picking; a `Subject`."""

    plan: Plan

    @property
    def explore(self) -> Explore:
        """See `Subject`."""
        return self.plan.config.explore

    @property
    def shared(self) -> Training:
        """See `Subject`."""
        return self.plan.config.train

    @property
    def tracking(self) -> Tracking:
        """See `Subject`."""
        return self.plan.config.tracking

    def study(self) -> Study:
        """See `Subject`."""
        return study_of(self.plan)

    def misfit(self) -> Misfit:
        """See `Subject`."""
        from tomoscout.tasks.picking.data import TrainingData
        from tomoscout.tasks.picking.task import PickingTask

        plan = self.plan
        data = TrainingData(plan.config, plan.targets, plan.records, plan.fold())
        return misfit_of(self.shared, lambda options: PickingTask(data, options))

    def train(self, options: Training, tracking: Tracking, folder: Path, watch: Watch) -> Outcome:
        """See `Subject`."""
        from tomoscout.stages.train import run_train

        own = self.plan.with_options(train=options, tracking=tracking)
        return run_train(own, folder, threads=self.explore.threads, watch=watch)
