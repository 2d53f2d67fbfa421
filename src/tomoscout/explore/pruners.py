"""Pruners, which end unpromising trials early, and their options.

To add a pruner, add a function to `PRUNERS`, and its options, if any, to `Pruning`. Optuna is imported inside of the
functions, as the configuration imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tomoscout.options.sections import Section

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


def _median(settings: Mapping[str, Any]) -> BasePruner:
    """those whose best score so far is below the median of the earlier trials at that validation"""
    from optuna.pruners import MedianPruner

    # Validations count from 1, Optuna's steps from 0.
    return MedianPruner(settings["pruner_startup_trials"], settings["pruner_warmup"] + 1)


def _hyperband(settings: Mapping[str, Any]) -> BasePruner:
    """successive halving in several brackets (Li et al. 2018)"""
    from optuna.pruners import HyperbandPruner

    return HyperbandPruner(
        min_resource=1, max_resource=settings["validations"], reduction_factor=settings["hyperband_reduction"]
    )


def _none(settings: Mapping[str, Any]) -> BasePruner:
    """no trial"""
    from optuna.pruners import NopPruner

    return NopPruner()


PRUNERS: dict[str, Callable[[Mapping[str, Any]], BasePruner]] = {
    "median": _median,
    "hyperband": _hyperband,
    "none": _none,
}
"""Pruners by name in the configuration: functions that make the pruner from the settings of a study (the content of
study.json). Their docstrings document the names."""


def make_pruner(settings: Mapping[str, Any]) -> BasePruner:
    """The pruner of a study. `settings`: content of study.json."""
    return PRUNERS[settings["pruner"]](settings)


def listed(choices: Mapping[str, Callable[..., Any]]) -> str:
    """The names of the choices, each with its docstring, as the documentation of an option."""
    return " ".join(f"{name}: {' '.join((choice.__doc__ or '').split())}." for name, choice in choices.items())


class Pruning(Section):
    """Which trials are ended early."""

    pruner: Literal[tuple(PRUNERS)] = Field(  # type: ignore[valid-type]
        default="median", description=f"Which trials are ended early. {listed(PRUNERS)}"
    )
    pruner_startup_trials: int = Field(default=5, ge=0)
    """median: trials that must be complete before any is pruned."""
    pruner_warmup: int = Field(default=2, ge=0)
    """median: validations of a trial before it may be pruned."""
    hyperband_reduction: int = Field(default=3, ge=2)
    """hyperband: one of so many trials goes on to the next rung."""
