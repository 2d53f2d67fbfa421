"""The two stages without training: starting a study, and proposing a trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tomoscout.explore.options import key_in
from tomoscout.explore.proposals import Misfit, propose
from tomoscout.explore.records import Ask, trial_folder, trial_name
from tomoscout.explore.study import IMAGES, Study
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import write_json
from tomoscout.machine.messages import say


def check_study(study: Study, folder: Path) -> None:
    """Check that a folder belongs to the study.

    Raises:
        TomoscoutError: it belongs to another study, or was started with other images.
    """
    if study.name != folder.name:
        raise TomoscoutError(f"{folder}: not the study of these settings and data, which is {study.name}")
    images = study.settings.get(IMAGES)
    started = images is not None and (folder / "study.json").exists()
    if started and Study.read(folder, study.options).settings.get(IMAGES) != images:
        raise TomoscoutError(
            f"{folder}: started with other annotated images, or another division of them, and trials are compared on "
            f"the same ones: put these back, or set {key_in(study.section, 'explore.name')} to another name"
        )


def start(study: Study, folder: Path) -> None:
    """Write study.json.

    Raises:
        TomoscoutError: the folder belongs to another study.
    """
    check_study(study, folder)
    write_json(folder / "study.json", study.settings)


def suggest(study: Study, folder: Path, number: int, trials: int, make_misfit: Callable[[], Misfit]) -> Ask:
    """Write the proposal of a trial and those of the trials after it that are proposed without any result. They are
    written together, as importing Optuna takes longer than the proposals. An existing proposal is kept.

    Args:
        trials: total number of trials.
        make_misfit: creates the function that says why a training is not possible; called only if a proposal is
            missing.

    Raises:
        TomoscoutError: the folder belongs to another study, or no proposal can be trained.
    """
    check_study(study, folder)
    numbers = [number, *(n for n in range(number + 1, trials) if not study.told(n))]
    missing = [n for n in numbers if not (trial_folder(folder, n) / "ask.json").exists()]
    # This includes the later trials, whose proposals a killed process may not have written.
    if missing:
        misfit = make_misfit()
        for n in missing:
            ask = propose(study, folder, n, misfit)
            for entry in ask.refused:
                say(f"trial {trial_name(n)}: refused: {entry.reason}")
            ask.write(trial_folder(folder, n) / "ask.json")
    return Ask.read(trial_folder(folder, number))
