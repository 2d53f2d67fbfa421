"""The two stages that need no training: starting a study, and proposing a trial."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tomoscout.classes import plan_targets
from tomoscout.config import Config
from tomoscout.errors import TomoscoutError
from tomoscout.explore.machine import misfit_of
from tomoscout.explore.records import Ask, trial_folder, trial_name
from tomoscout.explore.study import Study, propose
from tomoscout.files import write_json
from tomoscout.inventory import RunRecord
from tomoscout.splits import chosen_fold, make_split


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
    """Write what a trial is asked. It is asked once: a proposal that is there stays.

    Raises:
        TomoscoutError: the folder is for another study, or no proposal can be trained.
    """
    study = study_of(config, records, folder)
    target = trial_folder(folder, number)
    if (target / "ask.json").exists():
        return Ask.read(target)
    plan = plan_targets(config, records)
    fold = chosen_fold(config.split, make_split(config, records, plan))
    ask = propose(study, folder, number, misfit_of(config, plan, records, fold))
    for entry in ask.refused:
        print(f"trial {trial_name(number)}: refused: {entry.reason}", file=sys.stderr)
    ask.write(target / "ask.json")
    return ask
