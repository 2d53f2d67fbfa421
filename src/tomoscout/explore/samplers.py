"""Samplers, which propose trials, and their options.

To add a sampler, add a function to `SAMPLERS`. A study is rebuilt in memory for each proposal, so a sampler may depend
only on the seed of the trial and on the trials in the study. Optuna's own samplers are used where they do;
unit_samplers.py holds the others. Optuna is imported inside of the functions, as the configuration imports this module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tomoscout.explore.pruners import listed
from tomoscout.options.sections import Section

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from tomoscout.explore.space import SearchSpace


def _tpe(settings: Mapping[str, Any], space: SearchSpace, seed: int) -> BaseSampler:
    """a multivariate tree of Parzen estimators, for any space"""
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import TPESampler

    startup = settings["startup_trials"]
    with warnings.catch_warnings():
        # The tree-structured Parzen estimator (TPE). Optuna calls `multivariate` and `group` experimental.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(n_startup_trials=startup, seed=seed, multivariate=True, group=True, constant_liar=True)


def _random(settings: Mapping[str, Any], space: SearchSpace, seed: int) -> BaseSampler:
    """independent random points"""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed)


def _cmaes(settings: Mapping[str, Any], space: SearchSpace, seed: int) -> BaseSampler:
    """an evolution strategy for spaces of numbers, from some 100 trials on; choices and entries with conditions are
    drawn at random"""
    from tomoscout.explore.unit_samplers import EvolutionSampler

    return EvolutionSampler(space, settings["startup_trials"], seed)


def _qmc(settings: Mapping[str, Any], space: SearchSpace, seed: int) -> BaseSampler:
    """a scrambled Sobol sequence, which covers the space evenly"""
    from tomoscout.explore.unit_samplers import SobolSampler

    return SobolSampler(space, settings["seed"])


SAMPLERS: dict[str, Callable[[Mapping[str, Any], SearchSpace, int], BaseSampler]] = {
    "tpe": _tpe,
    "random": _random,
    "cmaes": _cmaes,
    "qmc": _qmc,
}
"""Samplers by name in the configuration: functions that make the sampler of a trial from the settings of its study (the
content of study.json), the search space, and the seed of the trial. Their docstrings document the names."""

NOT_LEARNING = ("random", "qmc")
"""Samplers whose proposals do not depend on the results of trials."""


def make_sampler(settings: Mapping[str, Any], space: SearchSpace, seed: int, told: int) -> BaseSampler:
    """The sampler of a study for one trial. `settings`: content of study.json. `seed`: the seed of this trial. `told`:
    number of known results."""
    kind = settings["sampler"]
    # Start-up trials use the Sobol sequence, so that the many trials proposed before the first results cover the space
    # evenly.
    if kind not in NOT_LEARNING and told < settings["startup_trials"]:
        kind = "qmc"
    return SAMPLERS[kind](settings, space, seed)


class Sampling(Section):
    """How trials are proposed."""

    sampler: Literal[tuple(SAMPLERS)] = Field(  # type: ignore[valid-type]
        default="tpe", description=f"How trials are proposed. {listed(SAMPLERS)}"
    )
    startup_trials: int = Field(default=10, ge=1)
    """Results that must be known before a sampler learns from them; until then trials are proposed as by qmc."""
