"""The exploration of picking: its study, proposals and trials from the configuration and the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tomoscout.data.inventory import RunRecord
from tomoscout.explore.machine import misfit_of
from tomoscout.explore.records import Ask, Result
from tomoscout.explore.start import start, suggest
from tomoscout.explore.study import Misfit, Study
from tomoscout.explore.trial import run_trial
from tomoscout.options.config import Config
from tomoscout.plan.classes import TargetPlan, plan_targets
from tomoscout.plan.fingerprints import training_fingerprint
from tomoscout.plan.splits import Fold, SplitResult, chosen_fold, make_split, training_tomograms

if TYPE_CHECKING:
    from tomoscout.learning.options import Training
    from tomoscout.learning.progression import Outcome, Progression


def study_of(config: Config, records: Sequence[RunRecord], plan: TargetPlan, split: SplitResult) -> Study:
    """The study of a configuration.

    Raises:
        TomoscoutError: its space is at fault, or there is nothing to train on.
    """
    fold = chosen_fold(config.split, split)
    shapes = [record.tomograms[uri] for record, uri in training_tomograms(config, records, fold)]
    return Study.of(config.explore, config.train, shapes, training_fingerprint(config, records, plan, fold))


def configured_study(config: Config, records: Sequence[RunRecord]) -> Study:
    """The study of a configuration, as of `study_of`."""
    plan = plan_targets(config, records)
    return study_of(config, records, plan, make_split(config, records, plan))


def start_study(config: Config, records: Sequence[RunRecord], folder: Path) -> None:
    """Write study.json.

    Raises:
        TomoscoutError: the folder is for another study.
    """
    start(configured_study(config, records), folder)


def suggest_trial(config: Config, records: Sequence[RunRecord], folder: Path, number: int) -> Ask:
    """Write what a trial is asked, as of `explore.start.suggest`."""
    plan = plan_targets(config, records)
    split = make_split(config, records, plan)
    study = study_of(config, records, plan, split)

    def misfit() -> Misfit:
        return picking_misfit(config, plan, records, chosen_fold(config.split, split))

    return suggest(study, folder, number, config.explore.trials, misfit)


def picking_misfit(config: Config, plan: TargetPlan, records: Sequence[RunRecord], runs: Fold) -> Misfit:
    """Tells of trainings that need more memory than the configuration states, as of `misfit_of`."""
    from tomoscout.tasks.picking.data import TrainingData
    from tomoscout.tasks.picking.task import PickingTask

    data = TrainingData(config, plan, records, runs)
    return misfit_of(config.train, lambda options: PickingTask(data, options))


def train_trial(config: Config, records: Sequence[RunRecord], folder: Path, number: int) -> Result:
    """Train what a trial was asked for, as of `explore.trial.run_trial`."""
    study = configured_study(config, records)
    machine = config.train.model_dump(include={"device", "checkpoint_seconds"})
    # The summary records all trials: many at once would wait for each other's lock on a file.
    enabled = config.tracking.enabled and bool(config.tracking.uri)
    tracking = config.tracking.model_copy(update={"enabled": enabled})

    def train(options: Training, folder: Path, watch: Callable[[Progression], None]) -> Outcome:
        from tomoscout.stages.train import run_train

        own = config.model_copy(update={"train": options.model_copy(update=machine), "tracking": tracking})
        return run_train(own, records, folder, threads=study.settings["threads"], watch=watch)

    return run_trial(study, folder, number, train)
