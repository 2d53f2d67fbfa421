"""The proposals of a study, each by a sampler that is seeded with the study's seed and the number of the trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomoscout.explore.options import key_in
from tomoscout.explore.optuna_trials import rebuild, suggest_value
from tomoscout.explore.points import known_values, with_validations
from tomoscout.explore.records import Ask, Refused, trial_folder
from tomoscout.explore.samplers import make_sampler
from tomoscout.explore.study import MEMORY, Study
from tomoscout.learning.options import Training
from tomoscout.machine.errors import TomoscoutError

if TYPE_CHECKING:
    pass

Misfit = Callable[[Training], str | None]
"""Function from the options of a training to the reason why it is not possible; None if it is possible."""

MOST_REFUSED = 100
"""Maximum number of refused proposals for one trial, after which an error is raised."""

SEED_PRIME = 1_000_003


def propose(study: Study, folder: Path, number: int, misfit: Misfit) -> Ask:
    """The proposal for a trial.

    Args:
        folder: the folder of the study, with the results and proposals of the earlier trials.
        misfit: says why a training is not possible.

    Raises:
        TomoscoutError: an earlier trial is missing, or no proposal can be trained.
    """
    from optuna.distributions import distribution_to_json
    from optuna.trial import TrialState

    if number == 0 and study.settings["baseline"]:
        return _baseline(study, misfit)
    space, known = study.space, known_values(study.base)
    sampler = make_sampler(study.settings, space, _seed(study, number), len(study.told(number)))
    optuna_study = rebuild(study, folder, number, sampler)
    refused: list[Refused] = []
    while len(refused) < MOST_REFUSED:
        trial = optuna_study.ask()
        values = space.values(lambda name, domain: suggest_value(trial, name, domain), known)  # noqa: B023 used at once
        distributions = {name: distribution_to_json(value) for name, value in trial.distributions.items()}
        try:
            train = study.options_of(values)
            reason = misfit(train)
        except ValueError as error:
            reason = " ".join(str(error).split())
        if reason is None:
            return Ask(number, trial.params, distributions, _asked(train), refused)
        refused.append(Refused(trial.params, distributions, reason))
        optuna_study.tell(trial, state=TrialState.PRUNED)
    raise TomoscoutError(
        f"{trial_folder(folder, number)}: {MOST_REFUSED} proposals, and none can be trained; the last: "
        f"{refused[-1].reason}"
    )


def _baseline(study: Study, misfit: Misfit) -> Ask:
    """The proposal of the baseline: the training that all trials share, without search parameters.

    Raises:
        TomoscoutError: it cannot be trained.
    """
    train = with_validations(study.base, study.settings["validations"])
    reason = misfit(train)
    if reason:
        place = key_in(study.section, "explore.baseline")
        raise TomoscoutError(f"{place}: the training as `train` has it cannot be made: {reason}")
    return Ask(0, {}, {}, _asked(train))


def _asked(train: Training) -> dict[str, Any]:
    return train.decisive(keep=MEMORY)


def _seed(study: Study, number: int) -> int:
    return (int(study.settings["seed"]) * SEED_PRIME + number) % 2**32
