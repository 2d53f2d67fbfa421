"""Samplers: how trials are proposed, and the options for it.

To add a sampler, add a function to `SAMPLERS`. A study is built anew in memory for each proposal, so a sampler must
propose from the seed of the trial and the trials it is given alone: Optuna's own where they do, and those of
unit_samplers.py. Optuna is imported within, as the configuration imports this module.
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
        # multivariate and group are called experimental.
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
"""Name in the configuration → what makes the sampler of a trial from the settings of its study (the content of
study.json), the space, and the seed of the trial; its docstring documents the name."""

NOT_LEARNING = ("random", "qmc")
"""Samplers whose proposals do not depend on the results of trials."""


def make_sampler(settings: Mapping[str, Any], space: SearchSpace, seed: int, told: int) -> BaseSampler:
    """The sampler of a study for one trial. `settings`: content of study.json. `seed`: of this trial. `told`: how many
    results are known."""
    kind = settings["sampler"]
    # With a window, many trials are proposed before the first results: they cover the space evenly.
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
