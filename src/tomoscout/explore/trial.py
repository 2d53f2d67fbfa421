"""A trial: a training that the pruner may stop, and whose result the study uses."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomoscout.explore.optuna_trials import frozen_trials, rebuild
from tomoscout.explore.records import BY_PRUNER, GIVEN_UP, Ask, Result, trial_folder, trial_name
from tomoscout.explore.start import check_study
from tomoscout.explore.study import Study
from tomoscout.learning.options import Training
from tomoscout.machine.errors import TomoscoutError, TrainingFailed
from tomoscout.machine.files import write_json
from tomoscout.machine.locks import alone_in, owner_of
from tomoscout.models.so_far import remove_so_far
from tomoscout.options.forms import read_form

if TYPE_CHECKING:
    from tomoscout.learning.progression import Outcome, Progression


class _Pruned(Exception):
    """The pruner stops the trial."""


class _GivenUp(Exception):
    """The user gave the trial up."""


Train = Callable[[Training, Path, "Callable[[Progression], None]"], "Outcome"]
"""Function that trains with the options of a trial. Arguments: the options, the folder, and a function to be called
after every validation."""


def run_trial(make_study: Callable[[], Study], study_folder: Path, number: int, train: Train) -> Result:
    """Run a trial, resuming an interrupted training, and write the result. An existing result is kept; the study, which
    needs the data, is then not created.

    Raises:
        TomoscoutError: the study has other settings, or data is missing. The trial then has no result.
        Interrupted: a signal stopped the training.
    """
    folder = trial_folder(study_folder, number)
    ask = Ask.read(folder)
    if not (folder / "result.json").exists():
        try:
            _check_given_up(folder)
            study = make_study()
            check_study(study, study_folder)
            result = _train(study, study_folder, ask, train)
        except _GivenUp as reason:
            result = _result(ask, [], {}, str(reason))
        result.write(folder / "result.json")
    _clear(folder)
    return Result.read(folder)


def give_up(study_folder: Path, number: int, reason: str = "given up") -> bool:
    """Mark a trial as given up, so that the study continues without it. Returns whether the trial has ended. If not,
    its job ends it after the next validation; a job that hangs must be killed and ends it when started again.

    Raises:
        TomoscoutError: the trial does not exist, or it is done.
    """
    folder = trial_folder(study_folder, number)
    if (folder / "result.json").exists():
        raise TomoscoutError(f"{folder / 'result.json'}: trial {trial_name(number)} is done; its result stays")
    ask = Ask.read(folder)
    write_json(folder / GIVEN_UP, {"reason": reason})
    if owner_of(folder):
        return False
    with alone_in(folder):
        if not (folder / "result.json").exists():
            _result(ask, [], {}, reason).write(folder / "result.json")
        _clear(folder)
    return True


def _check_given_up(folder: Path) -> None:
    path = folder / GIVEN_UP
    if path.exists():
        raise _GivenUp(read_form(dict[str, str], path, "a trial that is given up").get("reason", ""))


def _clear(folder: Path) -> None:
    # A trial that is done is never resumed, and its checkpoints are many times as large as its weights.
    for pattern in ("checkpoint*", ".checkpoint*"):
        for checkpoint in folder.glob(pattern):
            checkpoint.unlink(missing_ok=True)
    shutil.rmtree(folder / "volumes", ignore_errors=True)
    remove_so_far(folder)


def _train(study: Study, study_folder: Path, ask: Ask, train: Train) -> Result:
    folder = trial_folder(study_folder, ask.number)
    options = ask.options(folder, study.options, name=f"{study.name}-{trial_name(ask.number)}")
    judge = _Judge(study, study_folder, ask)

    def watch(progression: Progression) -> None:
        _check_given_up(folder)
        judge(progression)

    try:
        outcome = train(options, folder, watch)
    except _Pruned:
        scores = judge.scores
        reason = f"{BY_PRUNER} {len(scores)}: {study.settings['pruner']}"
        return _result(ask, scores, judge.attributes, reason)
    except TrainingFailed as error:
        return _result(ask, error.validations, judge.attributes, str(error))
    progression = outcome.progression
    classes = progression.best_details["scores"]
    return _result(ask, progression.validations, judge.attributes, None, progression.best_score, classes)


def _result(
    ask: Ask,
    validations: Sequence[float],
    attributes: Mapping[str, Any],
    reason: str | None,
    value: float | None = None,
    scores: Mapping[str, float] | None = None,
) -> Result:
    return Result(
        ask.number,
        ask.params,
        ask.distributions,
        "PRUNED" if reason else "COMPLETE",
        max(validations, default=None) if reason else value,
        dict(enumerate(validations, 1)),
        dict(scores or {}),
        reason,
        dict(attributes),
    )


class _Judge:
    """Reports every validation to Optuna's pruner, which compares it with the trials that were known when this one was
    proposed."""

    def __init__(self, study: Study, study_folder: Path, ask: Ask) -> None:
        import optuna

        known = rebuild(study, study_folder, ask.number)
        known.add_trials(frozen_trials(ask, None))
        self._study = known
        self._trial = optuna.Trial(known, known.trials[-1]._trial_id)
        options = ask.options(trial_folder(study_folder, ask.number), study.options)
        self._planned = math.ceil(options.steps / (options.validate_every or options.steps))
        self.scores: list[float] = []

    def __call__(self, progression: Progression) -> None:
        """Report the validations of a training that are new since the last call; after a resume, all of them.

        Raises:
            _Pruned: the pruner stops the trial.
        """
        for score in progression.validations[len(self.scores) :]:
            self.scores.append(score)
            self._trial.report(score, len(self.scores))
            # After the last validation, pruning saves nothing.
            if self._trial.should_prune() and len(self.scores) < self._planned:
                raise _Pruned

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that the pruner stored with the trial."""
        return dict(self._study.trials[-1].system_attrs)
