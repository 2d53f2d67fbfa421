"""The importance of search parameters (PED-ANOVA), compared with chance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscout.explore.records import Result

LEAST_TRIALS = 20
"""Minimum number of trials with a score. With fewer, chance alone gives shares as large as those of the strongest
parameters."""

SHUFFLES = 19
"""Number of permutations of the scores. By chance, a value exceeds those of all 19 once in 20 times."""

TOGETHER = 25
"""Size of the blocks of consecutive trials within which scores are permuted. A sampler learns, so later trials are
better and resemble each other; with permutations over all trials, this alone would look like importance."""


class Importance(NamedTuple):
    """The importance of a parameter as a share of the sum over all parameters, 0…1, and the largest share that chance
    gives it."""

    name: str
    share: float
    chance: float


def best_count(trials: int) -> int:
    """Number of the trials with a score that count as the best: a third. A tenth, Optuna's default, is too few in a
    study of some hundred trials to tell importance from chance."""
    return math.ceil(trials / 3)


def importances(results: Sequence[Result]) -> list[Importance]:
    """The importance of every parameter, the greatest first; an empty list if there are too few trials.

    PED-ANOVA for conditional spaces (Watanabe et al. 2023, arXiv:2304.10255, and arXiv:2601.20800), as implemented in
    Optuna: how much the distribution of the values in the best trials differs from that in all trials. Of Optuna's
    evaluators, only this one takes parameters that only some trials have; it draws no random numbers. Pruned trials
    count with their best score: without them, the worst trials would be missing. `chance` is the maximum over
    `SHUFFLES` permutations of the scores among trials of about the same time.
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
        # Warnings that low targets count as good, and that some parameters have few trials.
        warnings.simplefilter("ignore")
        own = evaluate(np.arange(len(losses)))
        chance = np.max([evaluate(_shuffled(len(losses), generator)) for _ in range(SHUFFLES)], axis=0)
    if not own.sum():
        return []
    rows = zip(names, (own / own.sum()).tolist(), (chance / own.sum()).tolist(), strict=True)
    shares = [Importance(*row) for row in rows]
    return sorted(shares, key=lambda entry: (-entry.share, entry.name))


def _shuffled(count: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """A permutation of the trials within blocks of about `TOGETHER` trials."""
    groups = np.array_split(np.arange(count), max(1, round(count / TOGETHER)))
    return np.concatenate([generator.permutation(group) for group in groups])
