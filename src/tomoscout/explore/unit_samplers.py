"""Samplers with Optuna's interface and without state: a scrambled Sobol sequence (quasi-Monte Carlo) and CMA-ES.

Optuna's QMCSampler and CmaEsSampler keep a state between trials. Here a study is rebuilt for each proposal, and its
trials carry no state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from tomoscout.explore.options import Choice, Number
from tomoscout.explore.space import SearchSpace, label


class _UnitSampler(BaseSampler):
    """Proposes a point of the unit cube, which has one axis for each searched entry of the space."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.domains = dict(space.searched)
        self._drawn: tuple[int, Mapping[str, float]] | None = None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """No parameters: each is sampled independently."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """No values; see `infer_relative_search_space`."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of an entry at the point of the trial."""
        if self._drawn is None or self._drawn[0] != trial.number:
            self._drawn = trial.number, self.positions(study, trial)
        value = self.domains[param_name].at(self._drawn[1][param_name])
        return label(value) if isinstance(self.domains[param_name], Choice) else value

    def positions(self, study: optuna.Study, trial: FrozenTrial) -> Mapping[str, float]:
        """The point of a trial: a position from 0 to 1 for each entry."""
        raise NotImplementedError


class SobolSampler(_UnitSampler):
    """The scrambled Sobol sequence (Owen 1998). Trial n is point n; Optuna's QMCSampler counts the points it has drawn
    instead."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__(space)
        self.seed = seed

    def positions(self, study: optuna.Study, trial: FrozenTrial) -> Mapping[str, float]:
        """See `_UnitSampler.positions`."""
        from scipy.stats.qmc import Sobol

        sequence = Sobol(len(self.domains), scramble=True, rng=self.seed)
        [point] = sequence.fast_forward(trial.number).random(1) if trial.number else sequence.random(1)
        return dict(zip(self.domains, point.tolist(), strict=True))


class EvolutionSampler(_UnitSampler):
    """CMA-ES (Hansen 2016) over the numeric parameters that every trial has. The other parameters are drawn at random.

    The trials with known results, in order, are divided into generations of the population size, whichever generation
    proposed them. The state of CMA-ES thus follows from the trials alone. Trials without a score are skipped.

    Optuna's CmaEsSampler keeps its state in attributes of the trials, and therefore learns nothing in a rebuilt study
    (regret after 100 trials on Sphere, Levy, Hartmann: 0.10, 0.10, 0.39; here 0.004, 0.03, 0.11; random points 0.11,
    0.10, 0.38).

    Optuna's GPSampler also proposes from the seed and the trials alone. After 50 trials it was nearer to the optimum
    than CMA-ES on 8 of 9 test functions (tests/benchmarks/functions.py), at 0.1 to 2 s per proposal. It does not
    replace CMA-ES as `cmaes`, because existing studies would then propose other trials; it can be added as another
    sampler.
    """

    def __init__(self, space: SearchSpace, startup: int, seed: int) -> None:
        super().__init__(space)
        self.startup = startup
        self.seed = seed
        self.axes = [entry.name for entry in space.entries if isinstance(entry.domain, Number) and not entry.when]

    def positions(self, study: optuna.Study, trial: FrozenTrial) -> Mapping[str, float]:
        """See `_UnitSampler.positions`."""
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
