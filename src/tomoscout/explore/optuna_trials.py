"""Conversion of entries, trials and studies to Optuna's types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomoscout.explore.options import Choice, Number
from tomoscout.explore.pruners import make_pruner
from tomoscout.explore.records import Ask, Result, read_trial, trial_folder, trial_name
from tomoscout.explore.space import label
from tomoscout.explore.study import Study
from tomoscout.machine.errors import TomoscoutError

if TYPE_CHECKING:
    import optuna


def distribution_of(domain: Number | Choice) -> optuna.distributions.BaseDistribution:
    """Optuna's distribution of an entry of the search space."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):
        return CategoricalDistribution([label(value) for value in domain.choices])
    if domain.is_whole:
        return IntDistribution(int(domain.low), int(domain.high), domain.log, int(domain.step or 1))
    return FloatDistribution(domain.low, domain.high, domain.log, domain.step)


def suggest_value(trial: optuna.Trial, name: str, domain: Number | Choice) -> Any:
    """Let the sampler of a trial draw a value for an entry."""
    if isinstance(domain, Choice):
        chosen = trial.suggest_categorical(name, [label(value) for value in domain.choices])
        return next(value for value in domain.choices if label(value) == chosen)
    if domain.is_whole:
        return trial.suggest_int(name, int(domain.low), int(domain.high), step=int(domain.step or 1), log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)


def rebuild(
    study: Study, folder: Path, number: int, sampler: optuna.samplers.BaseSampler | None = None
) -> optuna.Study:
    """Rebuild the Optuna study in memory as it is when trial `number` is proposed. Trials whose results are known by
    then are complete or pruned; the later ones are running.

    Refused proposals come before their trial, so that a trial has the same number in every rebuilt study.

    Raises:
        TomoscoutError: a trial before this one is missing.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rebuilt = optuna.create_study(
        study_name=study.name, direction="maximize", sampler=sampler, pruner=make_pruner(study.settings)
    )
    told = study.told(number)
    for earlier in range(number):
        place = trial_folder(folder, earlier)
        ask, result = read_trial(place) if earlier in told else (Ask.read(place), None)
        rebuilt.add_trials(frozen_trials(ask, result))
    return rebuilt


def frozen_trials(
    ask: Ask, result: Result | None, notes: Mapping[str, Any] | None = None
) -> list[optuna.trial.FrozenTrial]:
    """A trial as Optuna's frozen trials: first its refused proposals, as pruned, then the trial itself, as running if
    it has no result. `notes`: further user attributes of a trial with a result.

    Raises:
        TomoscoutError: the contents of its files are inconsistent.
    """
    try:
        return list(_frozen_trials(ask, result, notes or {}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        name, why = trial_name(ask.number), " ".join(str(error).split())[:200]
        raise TomoscoutError(f"{name}/ask.json or {name}/result.json: not as they were written ({why})") from None


def _frozen_trials(ask: Ask, result: Result | None, notes: Mapping[str, Any]) -> Iterator[optuna.trial.FrozenTrial]:
    from optuna.distributions import json_to_distribution
    from optuna.trial import TrialState, create_trial

    def distributions(texts: dict[str, str]) -> dict[str, Any]:
        return {name: json_to_distribution(text) for name, text in texts.items()}

    for entry in ask.refused:
        yield create_trial(
            state=TrialState.PRUNED, params=entry.params, distributions=distributions(entry.distributions)
        )
    if result is None:
        yield create_trial(state=TrialState.RUNNING, params=ask.params, distributions=distributions(ask.distributions))
    else:
        yield create_trial(
            state=TrialState[result.state],
            value=result.value,
            params=ask.params,
            distributions=distributions(ask.distributions),
            intermediate_values=result.intermediate,
            system_attrs=result.attributes,
            user_attrs={
                "trial": trial_name(ask.number),
                **({"reason": result.reason} if result.reason else {}),
                **notes,
            },
        )
