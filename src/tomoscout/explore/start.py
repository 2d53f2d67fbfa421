"""The two stages that need no training: starting a study, and proposing a trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tomoscout.explore.proposals import Misfit, propose
from tomoscout.explore.records import Ask, trial_folder, trial_name
from tomoscout.explore.study import Study
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import write_json
from tomoscout.machine.messages import say


def check_study(study: Study, folder: Path) -> None:
    """Refuse a folder that is for another study.

    Raises:
        TomoscoutError: it is.
    """
    if study.name != folder.name:
        raise TomoscoutError(f"{folder}: not the study of these settings and data, which is {study.name}")


def start(study: Study, folder: Path) -> None:
    """Write study.json.

    Raises:
        TomoscoutError: the folder is for another study.
    """
    check_study(study, folder)
    write_json(folder / "study.json", study.settings)


def suggest(study: Study, folder: Path, number: int, trials: int, make_misfit: Callable[[], Misfit]) -> Ask:
    """Write what a trial is asked, and, as long as no result is known to any of them, what those after it are: what
    must be imported for it takes longer than they do. A trial is asked once: a proposal that is there stays.

    Args:
        trials: how many there are in all.
        make_misfit: makes what tells of trainings that are not possible; called only where something is to be proposed.

    Raises:
        TomoscoutError: the folder is for another study, or no proposal can be trained.
    """
    check_study(study, folder)
    numbers = [number, *(n for n in range(number + 1, trials) if not study.told(n))]
    missing = [n for n in numbers if not (trial_folder(folder, n) / "ask.json").exists()]
    # Also where its own is there: a process that was killed may have left those after it out.
    if missing:
        misfit = make_misfit()
        for n in missing:
            ask = propose(study, folder, n, misfit)
            for entry in ask.refused:
                say(f"trial {trial_name(n)}: refused: {entry.reason}")
            ask.write(trial_folder(folder, n) / "ask.json")
    return Ask.read(trial_folder(folder, number))
