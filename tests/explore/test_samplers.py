"""Samplers for studies that are rebuilt for every trial: what they propose follows from the trials alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from optuna.trial import TrialState
from scipy.stats import qmc

from tomoscout.explore.options import Choice, Explore, Fixed, Number
from tomoscout.explore.optuna_trials import suggest_value
from tomoscout.explore.pruners import PRUNERS
from tomoscout.explore.samplers import NOT_LEARNING, SAMPLERS, make_sampler
from tomoscout.explore.space import Entry, SearchSpace, label
from tomoscout.explore.unit_samplers import EvolutionSampler, SobolSampler

Values = dict[str, Any]
Objective = Callable[[Values], float | None]

MIXED = SearchSpace(
    (
        Entry("kind", Choice(choices=["a", "b", [1, 2]]), {}),
        Entry("same", Fixed(value=3), {}),
        Entry("rate", Number(low=1e-4, high=1e-1, log=True), {}),
        Entry("share", Number(low=-0.5, high=0.5), {}),
        Entry("steps", Number(low=10, high=200, log=True), {}),
        Entry("patch", Number(low=48, high=160, step=16), {}),
        Entry("tenths", Number(low=0.1, high=0.7, step=0.1), {}),
        Entry("extra", Number(low=0.0, high=1.0), {"kind": ["a"]}),
        Entry("pinned", Number(low=2.0, high=2.0), {}),
    )
)


def numbers(count: int) -> SearchSpace:
    return SearchSpace(tuple(Entry(f"x{axis}", Number(low=0.0, high=1.0), {}) for axis in range(count)))


def settings_of(sampler: str, seed: int = 1, startup: int = 10) -> dict[str, Any]:
    return {"sampler": sampler, "seed": seed, "startup_trials": startup}


def search(
    space: SearchSpace, sampler: str, objective: Objective, trials: int, seed: int = 1, startup: int = 10
) -> list[tuple[Values, float | None]]:
    """A study in which every trial has a sampler of its own; None is a trial that was pruned without a score."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    found = []
    for number in range(trials):
        study.sampler = make_sampler(settings_of(sampler, seed, startup), space, 1000 * seed + number, number)
        trial = study.ask()
        values = space.values(lambda name, domain: suggest_value(trial, name, domain), {})  # noqa: B023 used at once
        value = objective(values)
        study.tell(trial, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)
        found.append((values, value))
    return found


def is_within(domain: Number | Choice | Fixed, value: Any) -> bool:
    if isinstance(domain, Fixed):
        return bool(value == domain.value)
    if isinstance(domain, Choice):
        return value in domain.choices
    if not domain.low <= value <= domain.high or isinstance(value, int) != domain.is_whole:
        return False
    return (
        domain.step is None
        or abs((value - domain.low) / domain.step - round((value - domain.low) / domain.step)) < 1e-9
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_values_lie_where_they_may(sampler: str) -> None:
    trials = search(MIXED, sampler, lambda values: values["share"] * values["patch"], 25, startup=4)
    for values, _ in trials:
        assert list(values) == [entry.name for entry in MIXED.entries if entry.counts(values)]
        for name, domain, _when in MIXED.entries:
            assert name not in values or is_within(domain, values[name]), (name, values[name])
    # Nothing is left out of the search.
    assert len({str(values["kind"]) for values, _ in trials}) == 3
    for name in ("rate", "share", "steps", "patch", "tenths"):
        assert len({values[name] for values, _ in trials}) > 3, name


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_trials_are_followed_by_equal_proposals(sampler: str) -> None:
    one, other, elsewhere = (
        search(MIXED, sampler, lambda values: values["share"], 12, seed, startup=4) for seed in (3, 3, 4)
    )
    assert one == other
    assert one != elsewhere


# Sobol


def sobol_points(space: SearchSpace, seed: int, count: int) -> list[Mapping[str, float]]:
    study = optuna.create_study()
    points = []
    for _ in range(count):
        trial = study.ask()
        # As in a study that is rebuilt for every trial.
        sampler = SobolSampler(space, seed)
        points.append(sampler.positions(study, study.trials[trial.number]))
    return points


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_sobol_points_are_scipys(dimensions: int, seed: int) -> None:
    points = sobol_points(numbers(dimensions), seed, 9)
    expected = qmc.Sobol(dimensions, scramble=True, rng=seed).random(16)[:9]
    assert [list(point.values()) for point in points] == expected.tolist()


def test_sobol_points_cover_the_space_evenly() -> None:
    points = np.array([list(point.values()) for point in sobol_points(numbers(5), 1, 64)])
    random = [qmc.discrepancy(np.random.default_rng(seed).random((64, 5))) for seed in range(20)]
    assert qmc.discrepancy(points) < 0.5 * min(random)
    # Each half, quarter, … of every axis has its share.
    for parts in (2, 4, 8, 16, 32, 64):
        for axis in points.T:
            assert np.all(np.bincount((axis * parts).astype(int), minlength=parts) == 64 // parts)


def test_values_of_a_sobol_study_are_those_of_its_points() -> None:
    trials = search(MIXED, "qmc", lambda values: 0.0, 10, seed=5)
    names = [name for name, _ in MIXED.searched]
    expected = qmc.Sobol(len(names), scramble=True, rng=5).random(16)
    for number, (values, _) in enumerate(trials):
        for name, position in zip(names, expected[number], strict=True):
            if name in values:
                domain = dict(MIXED.searched)[name]
                assert values[name] == domain.at(float(position))


# CMA-ES


def quadratic(values: Values) -> float:
    """Stretched and turned, with its top inside a corner."""
    place = np.array(list(values.values())) - np.linspace(0.2, 0.35, len(values))
    turned = place + 0.5 * np.roll(place, 1)
    return -float(np.sum(turned**2 * np.linspace(1, 3, len(values))))


def test_evolution_converges_where_random_trials_do_not() -> None:
    seeds, trials = range(5), 80
    best = {
        sampler: [
            max(v for _, v in search(numbers(4), sampler, quadratic, trials, seed) if v is not None) for seed in seeds
        ]
        for sampler in ("cmaes", "random")
    }
    assert np.median(best["cmaes"]) > 0.3 * np.median(best["random"])
    assert all(mine > other for mine, other in zip(best["cmaes"], best["random"], strict=True))


def test_evolution_goes_where_the_values_are_high() -> None:
    trials = search(numbers(3), "cmaes", quadratic, 90, seed=2)
    late = np.array([list(values.values()) for values, _ in trials[-20:]])
    assert np.all(np.abs(late.mean(axis=0) - np.linspace(0.2, 0.35, 3)) < 0.1)


def test_evolution_looks_at_orders_of_magnitude() -> None:
    space = SearchSpace(
        (
            Entry("rate", Number(low=1e-6, high=1.0, log=True), {}),
            Entry("levels", Number(low=1, high=64, log=True), {}),
            Entry("patch", Number(low=16, high=160, step=16), {}),
        )
    )

    def objective(values: Values) -> float:
        return -abs(np.log10(values["rate"]) + 4) - abs(np.log2(values["levels"] / 8)) - abs(values["patch"] - 64) / 100

    trials = search(space, "cmaes", objective, 90, seed=1)
    best = max((values for values, _ in trials), key=objective)
    assert best["rate"] == pytest.approx(1e-4, rel=1)
    assert 5 <= best["levels"] <= 12
    assert abs(best["patch"] - 64) <= 16


def test_an_evolution_of_pruned_trials_goes_on_without_them() -> None:
    def halved(values: Values) -> float | None:
        return None if values["x0"] > 0.5 else quadratic(values)

    trials = search(numbers(3), "cmaes", halved, 90, seed=3)
    scores = [value for _, value in trials if value is not None]
    assert np.mean(scores[-10:]) > np.mean(scores[:10])
    assert max(scores) > -0.01
    # Without any score it is a search at random.
    nothing = search(numbers(3), "cmaes", lambda values: None, 30)
    assert len({tuple(values.values()) for values, _ in nothing}) == 30


def test_a_pruned_trial_with_a_score_counts() -> None:
    """Pruned late, it is known how good it was."""
    space = numbers(2)
    points = np.random.default_rng(1).random((24, 2))
    distributions = {name: optuna.distributions.FloatDistribution(0, 1) for name, _ in space.searched}

    def proposed(states: list[TrialState], values: NDArray[np.float64]) -> list[float]:
        study = optuna.create_study(direction="maximize", sampler=EvolutionSampler(space, 4, 7))
        for point, state, value in zip(points, states, values, strict=True):
            params = dict(zip(distributions, point.tolist(), strict=True))
            study.add_trial(
                optuna.trial.create_trial(state=state, value=value, params=params, distributions=distributions)
            )
        trial = study.ask(distributions)
        return list(trial.params.values())

    values = -np.sum((points - 0.2) ** 2, axis=1)
    complete = [TrialState.COMPLETE] * 24
    mixed = [TrialState.PRUNED if number % 3 else TrialState.COMPLETE for number in range(24)]
    assert proposed(complete, values) == proposed(mixed, values) != proposed(mixed, -values)


@pytest.mark.parametrize("axes", [0, 1])
def test_evolution_of_less_than_two_numbers_is_a_search_at_random(axes: int) -> None:
    """CMA-ES needs two."""
    entries = [Entry("kind", Choice(choices=list(range(50))), {})]
    entries += [Entry("x", Number(low=0.0, high=1.0), {})] * axes
    entries += [Entry("y", Number(low=0.0, high=1.0), {"kind": list(range(25))})]
    trials = search(SearchSpace(tuple(entries)), "cmaes", lambda values: -values["kind"], 30, startup=2)
    assert len({values["kind"] for values, _ in trials[10:]}) > 10


def test_axes_that_not_every_trial_has_are_drawn_at_random() -> None:
    space = SearchSpace((*numbers(2).entries, *MIXED.entries))
    trials = search(space, "cmaes", lambda values: quadratic({k: values[k] for k in ("x0", "x1")}), 60, startup=6)
    extras = [values["extra"] for values, _ in trials if "extra" in values]
    assert len(extras) > 5
    assert np.ptp(extras) > 0.5
    assert EvolutionSampler(space, 6, 1).axes == ["x0", "x1", "rate", "share", "steps", "patch", "tenths", "pinned"]


def test_a_position_is_that_of_the_value_that_was_tried() -> None:
    """Rounding is known to the evolution: it is told the middle of a value's share, not where it had drawn."""
    for name in ("rate", "steps", "patch", "tenths"):
        domain = dict(MIXED.searched)[name]
        assert isinstance(domain, Number)
        for position in np.linspace(0, 1, 50, endpoint=False).tolist():
            value = domain.at(position)
            assert domain.at(domain.position(value)) == pytest.approx(value)


# Settings


def test_samplers_are_optunas_where_they_keep_no_state() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tpe = make_sampler(settings_of("tpe", startup=7), MIXED, 1, 7)
    assert isinstance(tpe, optuna.samplers.TPESampler)
    assert tpe._n_startup_trials == 7
    assert tpe._multivariate
    assert tpe._group
    assert tpe._constant_liar
    # Until so many results are known, learning samplers begin as the Sobol sequence does.
    assert isinstance(make_sampler(settings_of("tpe", startup=7), MIXED, 1, 6), SobolSampler)
    assert isinstance(make_sampler(settings_of("cmaes", startup=7), MIXED, 1, 6), SobolSampler)
    assert isinstance(make_sampler(settings_of("random"), MIXED, 1, 100), optuna.samplers.RandomSampler)
    assert isinstance(make_sampler(settings_of("qmc"), MIXED, 1, 100), SobolSampler)
    assert isinstance(make_sampler(settings_of("cmaes"), MIXED, 1, 100), EvolutionSampler)


@pytest.mark.parametrize(("option", "choices"), [("sampler", SAMPLERS), ("pruner", PRUNERS)])
def test_the_option_takes_and_documents_every_choice(option: str, choices: Mapping[str, Callable[..., Any]]) -> None:
    for name, choice in choices.items():
        assert getattr(Explore.model_validate({option: name}), option) == name
        assert f"{name}: {' '.join((choice.__doc__ or 'missing').split())}." in (
            Explore.model_fields[option].description or ""
        )
    assert set(NOT_LEARNING) < SAMPLERS.keys()


def test_labels_of_choices_come_back_as_values() -> None:
    study = optuna.create_study(sampler=SobolSampler(MIXED, 1))
    seen = []
    for _ in range(12):
        trial = study.ask()
        seen.append(suggest_value(trial, "kind", Choice(choices=["a", "b", [1, 2]])))
        assert trial.params["kind"] == label(seen[-1])
    assert {str(value) for value in seen} == {"a", "b", "[1, 2]"}
