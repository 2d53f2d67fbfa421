"""Which search parameters matter, and which only seem to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscout.explore.records import Result

LEAST_TRIALS = 20
"""With fewer, chance alone does what the strongest influences do."""

SHUFFLES = 19
"""What exceeds 19 of 20 equally likely outcomes happens by chance once in 20 times."""

TOGETHER = 25
"""Trials in a row that are shuffled among each other. A sampler learns: later trials are better, and alike in all they
have; shuffled among all trials, that alone would be taken for influence."""


class Importance(NamedTuple):
    """The share of a parameter in what sets the best trials apart, 0…1, and the share that chance gives it."""

    name: str
    share: float
    chance: float


def best_count(trials: int) -> int:
    """How many of the trials that have a score count as the best: a third. Of a tenth, as Optuna has it, a study of
    some hundred trials has too few to tell influences from chance."""
    return math.ceil(trials / 3)


def importances(results: Sequence[Result]) -> list[Importance]:
    """The importance of every parameter, the greatest first; none where there are too few trials to tell.

    PED-ANOVA for conditional spaces (Watanabe et al. 2023, arXiv:2304.10255, and arXiv:2601.20800) as Optuna has it:
    how far the values of the best trials are spread otherwise than those of all. It alone among Optuna's takes
    parameters that only some trials have; it draws no random numbers. Trials that were pruned count with their best
    score until then: left out, the worst would be missing. `chance` is the most that `SHUFFLES` shuffles of the scores
    among trials of about the same time give.
    """
    scored = sorted((result for result in results if result.value is not None), key=lambda result: result.number)
    losses = np.array([-(result.value or 0.0) for result in scored])
    if len(scored) < LEAST_TRIALS or np.ptp(losses) == 0:
        return []

    import optuna
    from optuna.distributions import json_to_distribution
    from optuna.importance import PedAnovaImportanceEvaluator

    names = sorted({name for result in scored for name in result.distributions})
    trials = [
        optuna.trial.create_trial(
            value=result.value,
            params=result.params,
            distributions={name: json_to_distribution(text) for name, text in result.distributions.items()},
        )
        for result in scored
    ]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=best_count(len(scored)) / len(scored))

    def evaluate(order: NDArray[np.intp]) -> NDArray[np.float64]:
        found = evaluator.evaluate(study, names, target=lambda trial: float(losses[order[trial.number]]))
        return np.array([found[name] for name in names])

    generator = np.random.default_rng(0)
    with warnings.catch_warnings():
        # That low targets are taken for good, and that some parameters have few trials.
        warnings.simplefilter("ignore")
        own = evaluate(np.arange(len(losses)))
        chance = np.max([evaluate(_shuffled(len(losses), generator)) for _ in range(SHUFFLES)], axis=0)
    if not own.sum():
        return []
    rows = zip(names, (own / own.sum()).tolist(), (chance / own.sum()).tolist(), strict=True)
    shares = [Importance(*row) for row in rows]
    return sorted(shares, key=lambda entry: (-entry.share, entry.name))


def _shuffled(count: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """An order of so many trials in which each stays near its place."""
    groups = np.array_split(np.arange(count), max(1, round(count / TOGETHER)))
    return np.concatenate([generator.permutation(group) for group in groups])
