"""The two stages that need no training: starting a study, and proposing a trial."""

from __future__ import annotations

import sys
from pathlib import Path

from tomoscout.explore.machine import misfit_of
from tomoscout.explore.records import Ask, trial_folder, trial_name
from tomoscout.explore.study import Study, propose
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import write_json
from tomoscout.plan.plan import Plan


def study_of(plan: Plan, folder: Path) -> Study:
    """The study of a configuration, which must be the one that `folder` is for.

    Raises:
        TomoscoutError: it is another.
    """
    study = Study.of(plan)
    if study.name != folder.name:
        raise TomoscoutError(f"{folder}: not the study of these settings and data, which is {study.name}")
    return study


def start_study(plan: Plan, folder: Path) -> None:
    """Write study.json.

    Raises:
        TomoscoutError: the folder is for another study.
    """
    write_json(folder / "study.json", study_of(plan, folder).settings)


def suggest(plan: Plan, folder: Path, number: int) -> Ask:
    """Write what a trial is asked, and, as long as no result is known to any of them, what those after it are: what
    must be imported for it takes longer than they do. A trial is asked once: a proposal that is there stays.

    Raises:
        TomoscoutError: the folder is for another study, or no proposal can be trained.
    """
    study = study_of(plan, folder)
    numbers = [number, *(n for n in range(number + 1, plan.config.explore.trials) if not study.told(n))]
    missing = [n for n in numbers if not (trial_folder(folder, n) / "ask.json").exists()]
    # Also where its own is there: a process that was killed may have left those after it out.
    if missing:
        misfit = misfit_of(plan)
        for n in missing:
            ask = propose(study, folder, n, misfit)
            for entry in ask.refused:
                print(f"trial {trial_name(n)}: refused: {entry.reason}", file=sys.stderr)
            ask.write(trial_folder(folder, n) / "ask.json")
    return Ask.read(trial_folder(folder, number))
