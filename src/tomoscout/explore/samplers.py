"""Samplers and pruners of a study: Optuna's own where a proposal of theirs depends on nothing but the trials, and two
of ours on its interface where theirs keep a state between the trials."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from tomoscout.explore.options import Choice, Number
from tomoscout.explore.space import SearchSpace, label


def make_sampler(settings: Mapping[str, Any], space: SearchSpace, seed: int, told: int) -> BaseSampler:
    """The sampler of a study for one trial. `settings`: content of study.json. `seed`: of this trial. `told`: how many
    results are known."""
    kind, startup = settings["sampler"], settings["startup_trials"]
    if kind == "random":
        return RandomSampler(seed)
    # With a window much is proposed before the first results: even cover makes up for what that costs.
    if kind == "qmc" or told < startup:
        return SobolSampler(space, settings["seed"])
    if kind == "cmaes":
        return EvolutionSampler(space, startup, seed)
    with warnings.catch_warnings():
        # multivariate and group are called experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(n_startup_trials=startup, seed=seed, multivariate=True, group=True, constant_liar=True)


def make_pruner(settings: Mapping[str, Any]) -> BasePruner:
    """The pruner of a study."""
    if settings["pruner"] == "median":
        # Validations count from 1, Optuna's steps from 0.
        return MedianPruner(settings["pruner_startup_trials"], settings["pruner_warmup"] + 1)
    if settings["pruner"] == "hyperband":
        return HyperbandPruner(
            min_resource=1, max_resource=settings["validations"], reduction_factor=settings["hyperband_reduction"]
        )
    return NopPruner()


class _UnitSampler(BaseSampler):
    """Proposes a point of the unit cube, one axis for each entry of the space."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.domains = dict(space.searched)
        self._drawn: tuple[int, Mapping[str, float]] | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: each entry asks for itself."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of an entry."""
        if self._drawn is None or self._drawn[0] != trial.number:
            self._drawn = trial.number, self.positions(study, trial)
        value = self.domains[param_name].at(self._drawn[1][param_name])
        return label(value) if isinstance(self.domains[param_name], Choice) else value

    def positions(self, study: optuna.Study, trial: FrozenTrial) -> Mapping[str, float]:
        """The point: a position in 0…1 for each entry."""
        raise NotImplementedError


class SobolSampler(_UnitSampler):
    """The scrambled Sobol sequence (Owen 1998), point for point: trial n is point n. Optuna's keeps a counter."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__(space)
        self.seed = seed

    def positions(self, study: optuna.Study, trial: FrozenTrial) -> Mapping[str, float]:
        """The point of a trial."""
        from scipy.stats.qmc import Sobol

        sequence = Sobol(len(self.domains), scramble=True, rng=self.seed)
        [point] = sequence.fast_forward(trial.number).random(1) if trial.number else sequence.random(1)
        return dict(zip(self.domains, point.tolist(), strict=True))


class EvolutionSampler(_UnitSampler):
    """CMA-ES (Hansen 2016) over the numbers that every trial has; what is left is drawn at random.

    Its generations are the trials known so far, in order and in groups of the size of a population, whichever
    generation proposed them: the state follows from the trials alone, where Optuna's keeps it in them, pickled.
    Trials without a score are passed over.
    """

    def __init__(self, space: SearchSpace, startup: int, seed: int) -> None:
        super().__init__(space)
        self.startup = startup
        self.seed = seed
        self.axes = [entry.name for entry in space.entries if isinstance(entry.domain, Number) and not entry.when]

    def positions(self, study: optuna.Study, trial: FrozenTrial) -> Mapping[str, float]:
        """The point of a trial."""
        generator = np.random.default_rng([self.seed, trial.number])
        point = dict(zip(self.domains, generator.random(len(self.domains)).tolist(), strict=True))
        trials = study.get_trials(deepcopy=False)
        told = [(self._point_of(t), t.value) for t in trials if self._is_told(t) and t.params.keys() >= set(self.axes)]
        if len(told) >= self.startup and len(self.axes) > 1:
            seed = int(generator.integers(1, 2**31))
            point |= dict(zip(self.axes, self._evolved(told, seed).tolist(), strict=True))
        return point

    @staticmethod
    def _is_told(trial: FrozenTrial) -> bool:
        return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.value is not None

    def _point_of(self, trial: FrozenTrial) -> NDArray[np.float64]:
        places = []
        for name in self.axes:
            domain = self.domains[name]
            assert isinstance(domain, Number)
            places.append(domain.position(trial.params[name]))
        return np.array(places)

    def _evolved(self, told: Sequence[tuple[NDArray[np.float64], float | None]], seed: int) -> NDArray[np.float64]:
        from cmaes import CMA

        dimensions = len(self.axes)
        evolution = CMA(
            mean=np.full(dimensions, 0.5), sigma=1 / 6, bounds=np.array([[0.0, 1.0]] * dimensions), seed=seed
        )
        for start in range(0, len(told) - evolution.population_size + 1, evolution.population_size):
            generation = told[start : start + evolution.population_size]
            evolution.tell([(point, -(value or 0.0)) for point, value in generation])
        point: NDArray[np.float64] = np.clip(evolution.ask(), 0, 1)
        return point
