"""Pruners: those of the settings, and when they begin."""

from __future__ import annotations

import optuna
import pytest

from tomoscout.explore.pruners import make_pruner


def test_pruners_are_those_of_the_settings() -> None:
    median = make_pruner({"pruner": "median", "pruner_startup_trials": 3, "pruner_warmup": 2})
    assert isinstance(median, optuna.pruners.MedianPruner)
    assert median._n_startup_trials == 3
    hyperband = make_pruner({"pruner": "hyperband", "validations": 9, "hyperband_reduction": 2})
    assert isinstance(hyperband, optuna.pruners.HyperbandPruner)
    assert (hyperband._min_resource, hyperband._max_resource, hyperband._reduction_factor) == (1, 9, 2)
    assert isinstance(make_pruner({"pruner": "none"}), optuna.pruners.NopPruner)


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_the_median_leaves_a_trial_alone_for_its_first_validations(warmup: int) -> None:
    pruner = make_pruner({"pruner": "median", "pruner_startup_trials": 1, "pruner_warmup": warmup})
    study = optuna.create_study(direction="maximize", pruner=pruner)
    good = optuna.trial.create_trial(value=0.9, intermediate_values=dict.fromkeys(range(1, 9), 0.9))
    study.add_trial(good)
    trial = study.ask()
    pruned = []
    for validation in range(1, 9):
        trial.report(0.1, validation)
        pruned.append(trial.should_prune())
    assert pruned == [False] * warmup + [True] * (8 - warmup)
