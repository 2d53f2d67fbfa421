"""How good the proposals of an exploration are: best values found on test functions by its windowed samplers, through
the code that the workflow runs, beside Optuna's own with asynchronous workers."""

from __future__ import annotations

import heapq
import itertools
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from functions import FUNCTIONS, NUMERIC, Function
from makespans import asynchronous_ends, windowed_ends
from measure import table
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from tomoscout.explore.options import Choice, Number
from tomoscout.explore.proposals import propose
from tomoscout.explore.records import Result, trial_folder
from tomoscout.explore.space import SearchSpace
from tomoscout.explore.study import Study
from tomoscout.tasks.picking.options import Train

TRIALS = (50, 100)
STARTUP = 10
WORKERS = {4: (6, 8), 8: (12, 16)}
"""Workers, and the windows to compare with them: 1.5 and 2 times as many."""

UNEQUAL = 1.0
"""Standard deviation of the logarithm of the durations of asynchronous trials."""

FLOOR = 1e-6
"""Smaller regrets count as this, so that their logarithms can be averaged."""

BASE = Train()
Regrets = list[float]


class _OfFunction(Study):
    """A study whose points mean no training."""

    def options_of(self, values: Mapping[str, Any]) -> Train:
        return BASE


def windowed(function: Function, window: int, seed: int, trials: int, sampler: str = "tpe") -> tuple[Regrets, list]:
    """A study by `propose`, its records in a folder. Returns the regrets and the points of all trials."""
    settings = {"name": "bench", "seed": seed, "window": window, "sampler": sampler, "startup_trials": STARTUP}
    settings |= {"baseline": False, "pruner": "none", "space": function.entries, "validations": 1}
    settings |= {"train": BASE.model_dump(mode="json")}
    study, regrets, points = _OfFunction(settings), [], []
    with tempfile.TemporaryDirectory(prefix="tomoscout-bench-") as name:
        for number in range(trials):
            ask = propose(study, Path(name), number, lambda _: None)
            regret = function.regret(function.value(ask.params))
            ask.write(trial_folder(Path(name), number) / "ask.json")
            result = Result(number, ask.params, ask.distributions, "COMPLETE", -regret, {1: -regret}, {})
            result.write(trial_folder(Path(name), number) / "result.json")
            regrets.append(regret)
            points.append(ask.params)
    return regrets, points


def asynchronous(
    function: Function,
    sampler: optuna.samplers.BaseSampler,
    durations: Sequence[float],
    workers: int,
    start: Sequence[Mapping[str, Any]] = (),
) -> Regrets:
    """Optuna with workers that tell and ask on their own; `start` are its first trials. Returns all regrets."""
    study, space = optuna.create_study(direction="maximize", sampler=sampler), SearchSpace.parse(function.entries)
    for point in start:
        study.enqueue_trial(dict(point))
    running: list[tuple[float, int, optuna.Trial, float]] = []
    now, regrets = 0.0, []
    for number, duration in enumerate(durations):
        if len(running) == workers:
            now, _, done, regret = heapq.heappop(running)
            study.tell(done, -regret)
        trial = study.ask()
        point = space.values(lambda name, domain: _suggest(trial, name, domain), {})  # noqa: B023 used at once
        regrets.append(function.regret(function.value(point)))
        heapq.heappush(running, (now + duration, number, trial, regrets[-1]))
    return regrets


def _suggest(trial: optuna.Trial, name: str, domain: Number | Choice) -> Any:
    if isinstance(domain, Choice):
        return trial.suggest_categorical(name, domain.choices)
    if domain.is_whole:
        return trial.suggest_int(name, int(domain.low), int(domain.high), step=int(domain.step or 1), log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)


def optuna_tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(
        n_startup_trials=STARTUP, seed=seed, multivariate=True, group=True, constant_liar=True
    )


def _durations(seed: int, trials: int, deviation: float) -> list[float]:
    return np.random.default_rng([seed, trials]).lognormal(0, deviation, trials).tolist()


def _tpe_of(function: Function, seed: int) -> dict[str, Regrets]:
    """All of the comparison of TPE. The trials at random before it learns are the same for all."""
    found: dict[str, Regrets] = {}
    trials = max(TRIALS)
    found["random"], points = windowed(function, 1, seed, trials, "random")
    for window in (window for windows in WORKERS.values() for window in windows):
        found[f"W {window}"], _ = windowed(function, window, seed, trials)
    for workers in (1, *WORKERS):
        for what, deviation in {"equal": 0.0, "unequal": UNEQUAL}.items() if workers > 1 else {"": 0.0}.items():
            drawn = _durations(seed, trials, deviation)
            name = f"{workers} {what}".strip()
            found[name] = asynchronous(function, optuna_tpe(seed), drawn, workers, points[:STARTUP])
    return found


def _others_of(function: Function, seed: int) -> dict[str, Regrets]:
    """The comparison of the other samplers: window 8 for ours, eight workers for Optuna's."""
    found: dict[str, Regrets] = {}
    trials = max(TRIALS)
    found["random"], points = windowed(function, 8, seed, trials, "random")
    for sampler in ("cmaes", "qmc", "tpe"):
        found[sampler], _ = windowed(function, 8, seed, trials, sampler)
    drawn = _durations(seed, trials, UNEQUAL)
    cmaes = optuna.samplers.CmaEsSampler(n_startup_trials=STARTUP, seed=seed)
    found["Optuna's CMA-ES"] = asynchronous(function, cmaes, drawn, 8, points[:STARTUP])
    found["Optuna's Sobol"] = asynchronous(function, optuna.samplers.QMCSampler(scramble=True, seed=seed), drawn, 8)
    return found


Found = dict[str, NDArray[np.float64]]
"""Regrets by method: functions × seeds × trials."""

Compared = Callable[[Function, int], dict[str, Regrets]]
_functions: list[Function] = []


def _start(functions: Sequence[Function]) -> None:
    """Begin a process of the pool. Forked, it need not send the functions."""
    _functions[:] = functions
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def _run(compared: Compared, function: int, seed: int) -> dict[str, Regrets]:
    return compared(_functions[function], seed)


def search(compared: Compared, functions: Sequence[Function], seeds: int) -> Found:
    """Run every function with every seed, side by side on all cores."""
    tasks = itertools.product([compared], range(len(functions)), range(seeds))
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, get_context("fork"), _start, (functions,)) as pool:
        results = list(pool.map(_run, *zip(*tasks, strict=True)))
    shape = len(functions), seeds, max(TRIALS)
    return {method: np.array([found[method] for found in results]).reshape(shape) for method in results[0]}


def tpe(seeds: int, functions: Sequence[Function] = FUNCTIONS) -> str:
    """The windowed TPE beside random search and Optuna's TPE with one worker and with several."""
    found = search(_tpe_of, functions, seeds)
    comparisons = [("W 6", "random"), ("W 16", "random"), ("8 equal", "random")]
    comparisons += [("W 6", "1"), ("W 16", "1"), ("8 equal", "1"), ("W 8", "8 equal")]
    for workers, windows in WORKERS.items():
        comparisons += [(f"W {w}", f"{workers} {what}") for w in windows for what in ("equal", "unequal")]
    tables = [_values(found, functions, seeds), _pooled(found, comparisons), _each(found, functions)]
    return "\n".join([*tables, _at_equal_time(found, seeds)])


def others(seeds: int, functions: Sequence[Function] = (*NUMERIC[:3], NUMERIC[-1])) -> str:
    """CMA-ES and the Sobol sequence."""
    found = search(_others_of, functions, seeds)
    comparisons = [(method, "random") for method in found if method != "random"]
    comparisons += [("cmaes", "Optuna's CMA-ES"), ("qmc", "Optuna's Sobol"), ("cmaes", "tpe")]
    return "\n".join([_values(found, functions, seeds), _pooled(found, comparisons)])


# Tables


def _best(regrets: NDArray[np.float64], done: NDArray[np.bool_] | slice) -> NDArray[np.float64]:
    """Logarithm of the least regret of the trials that are done."""
    chosen = regrets[..., done] if isinstance(done, slice) else np.where(done, regrets, 1.0)
    return np.log10(np.maximum(FLOOR, chosen.min(axis=-1)))


def _values(found: Found, functions: Sequence[Function], seeds: int) -> str:
    rows = []
    for count in TRIALS:
        for number, function in enumerate(functions):
            cells = (_quartiles(_best(regrets[number], slice(count))) for regrets in found.values())
            rows.append([function.name, count, *cells])
    title = f"Least regret, median (quartiles) of {seeds} seeds; 1 is a random point's"
    return table(title, ["function", "trials", *found], rows)


def _quartiles(logarithms: NDArray[np.float64]) -> str:
    low, middle, high = (f"{value:.2g}" for value in 10 ** np.percentile(logarithms, [25, 50, 75]))
    return f"{middle} ({low}–{high})"


def _pooled(found: Found, comparisons: Iterable[tuple[str, str]]) -> str:
    rows = []
    for ours, theirs in comparisons:
        for count in TRIALS:
            cells = compare(_best(found[ours], slice(count)), _best(found[theirs], slice(count)))
            rows.append([ours, theirs, count, *cells])
    return table("All functions together", ["", "against", "trials", *COMPARED], rows)


def _each(found: Found, functions: Sequence[Function]) -> str:
    rows = []
    for number, function in enumerate(functions):
        for workers, windows in WORKERS.items():
            for window in windows:
                cells: list[str] = []
                for count in TRIALS:
                    ours, theirs = found[f"W {window}"][[number]], found[f"{workers} unequal"][[number]]
                    cells += compare(_best(ours, slice(count)), _best(theirs, slice(count)))
                rows.append([function.name, f"W {window}, {workers} workers", *cells])
    columns = [f"{name} ({count})" for count in TRIALS for name in COMPARED]
    return table("By function, against workers with unequal durations", ["function", "", *columns], rows)


def _at_equal_time(found: Found, seeds: int) -> str:
    """What both have found when half of the time is over that all trials take at least, and when all of it is."""
    trials, rows = max(TRIALS), []
    drawn = [_durations(seed, trials, UNEQUAL) for seed in range(seeds)]
    for workers, windows in WORKERS.items():
        for window in windows:
            for share in (0.5, 1.0):
                time = [share * sum(durations) / workers for durations in drawn]
                ends = {
                    f"W {window}": [windowed_ends(durations, workers, window) for durations in drawn],
                    f"{workers} unequal": [asynchronous_ends(durations, workers) for durations in drawn],
                }
                done = {name: np.array(values) <= np.array(time)[:, None] for name, values in ends.items()}
                counts = [f"{np.median(values.sum(axis=1)):.0f}" for values in done.values()]
                ours, theirs = (_best(found[name], values) for name, values in done.items())
                rows.append([f"W {window}", f"{workers} workers", share, *counts, *compare(ours, theirs)])
    columns = ["", "against", "time", "trials done", "by the workers", *COMPARED]
    return table("All functions together, after equal time on as many GPUs, unequal durations", columns, rows)


COMPARED = ["regret, ×", "95 %", "p", "better in"]


def compare(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> list[str]:
    """Ours over theirs, logarithms of functions × seeds: mean ratio (geometric), its 95 % interval by bootstrap of the
    seeds within the functions, p of Wilcoxon's signed-rank test (two-sided), share of pairs that are better (ties:
    half)."""
    difference = ours - theirs
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, difference.shape[1], (2000, *difference.shape))
    means = np.take_along_axis(difference[None], drawn, axis=2).mean(axis=(1, 2))
    low, high = 10 ** np.percentile(means, [2.5, 97.5])
    p = wilcoxon(difference.ravel()).pvalue if difference.any() else 1.0
    better = float(np.mean(difference < 0) + np.mean(difference == 0) / 2)
    return [f"{10 ** difference.mean():.2f}", f"{low:.2f}–{high:.2f}", f"{p:.2g}", f"{better:.0%}"]
