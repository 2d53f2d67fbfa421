"""The two stages that need no training: starting a study, and proposing a trial."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tomoscout.data.inventory import RunRecord
from tomoscout.explore.machine import misfit_of
from tomoscout.explore.records import Ask, trial_folder, trial_name
from tomoscout.explore.study import Study, propose
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import write_json
from tomoscout.options.config import Config
from tomoscout.plan.classes import plan_targets
from tomoscout.plan.splits import chosen_fold, make_split


def configured_study(config: Config, records: Sequence[RunRecord]) -> Study:
    """The study of a configuration.

    Raises:
        TomoscoutError: its space is at fault, or there is nothing to train on.
    """
    plan = plan_targets(config, records)
    return Study.of(config, records, plan, make_split(config, records, plan))


def study_of(config: Config, records: Sequence[RunRecord], folder: Path) -> Study:
    """The study of a configuration, which must be the one that `folder` is for.

    Raises:
        TomoscoutError: it is another.
    """
    study = configured_study(config, records)
    if study.name != folder.name:
        raise TomoscoutError(f"{folder}: not the study of these settings and data, which is {study.name}")
    return study


def start_study(config: Config, records: Sequence[RunRecord], folder: Path) -> None:
    """Write study.json.

    Raises:
        TomoscoutError: the folder is for another study.
    """
    write_json(folder / "study.json", study_of(config, records, folder).settings)


def suggest(config: Config, records: Sequence[RunRecord], folder: Path, number: int) -> Ask:
    """Write what a trial is asked, and, as long as no result is known to any of them, what those after it are: what
    must be imported for it takes longer than they do. A trial is asked once: a proposal that is there stays.

    Raises:
        TomoscoutError: the folder is for another study, or no proposal can be trained.
    """
    study = study_of(config, records, folder)
    numbers = [number, *(n for n in range(number + 1, config.explore.trials) if not study.told(n))]
    missing = [n for n in numbers if not (trial_folder(folder, n) / "ask.json").exists()]
    # Also where its own is there: a process that was killed may have left those after it out.
    if missing:
        plan = plan_targets(config, records)
        fold = chosen_fold(config.split, make_split(config, records, plan))
        misfit = misfit_of(config, plan, records, fold)
        for n in missing:
            ask = propose(study, folder, n, misfit)
            for entry in ask.refused:
                print(f"trial {trial_name(n)}: refused: {entry.reason}", file=sys.stderr)
            ask.write(trial_folder(folder, n) / "ask.json")
    return Ask.read(trial_folder(folder, number))
