"""How long an exploration takes when a trial waits for the one a window before it, simulated."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np
from measure import spread, table
from numpy.typing import NDArray

HOUR = 3600.0
GPUS = (4, 8, 64, 256)
WINDOWS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Windows, as multiples of the GPUs."""

ROUNDS = 10
"""Trials for each GPU."""

PROPOSAL = 3.0
"""Seconds of a proposal, the start of its process included."""

Durations = NDArray[np.float64]


def _log_normal(deviation: float) -> Callable[[np.random.Generator, int], Durations]:
    return lambda generator, trials: HOUR * generator.lognormal(0, deviation, trials)


def _half_pruned(generator: np.random.Generator, trials: int) -> Durations:
    """Log-normal with 0.5; half of them end after 20 to 50 % of it."""
    pruned = generator.random(trials) < 0.5
    return _log_normal(0.5)(generator, trials) * np.where(pruned, generator.uniform(0.2, 0.5, trials), 1)


DURATIONS = {
    "equal": _log_normal(0.0),
    "log-normal, 0.5": _log_normal(0.5),
    "log-normal, 0.5, half of them pruned": _half_pruned,
    "log-normal, 1": _log_normal(1.0),
}


def windowed_ends(
    durations: Sequence[float],
    gpus: int,
    window: int,
    proposal: float = 0.0,
    order: np.random.Generator | None = None,
) -> list[float]:
    """When each trial of an exploration is done, in seconds.

    A proposal waits for the one before and for the result of the trial a window before; proposals take no GPU. `order`:
    which of the proposed trials starts next is drawn at random; without it, the first.
    """
    events: list[tuple[float, bool, int]] = []
    ends, ready = [float("inf")] * len(durations), list[int]()
    now, proposed, proposing = 0.0, 0, False
    while True:
        if not proposing and proposed < len(durations) and (proposed < window or ends[proposed - window] <= now):
            heapq.heappush(events, (now + proposal, False, proposed))
            proposing = True
        while gpus and ready:
            trial = ready.pop(0 if order is None else int(order.integers(len(ready))))
            heapq.heappush(events, (now + durations[trial], True, trial))
            gpus -= 1
        if not events:
            return ends
        now, trained, trial = heapq.heappop(events)
        if trained:
            ends[trial], gpus = now, gpus + 1
        else:
            ready.append(trial)
            proposed, proposing = trial + 1, False


def asynchronous_ends(durations: Sequence[float], gpus: int, proposal: float = 0.0) -> list[float]:
    """The same for workers that take the next trial on their own; each proposes on its GPU."""
    free, ends = [0.0] * gpus, []
    for duration in durations:
        ends.append(free[0] + proposal + duration)
        heapq.heapreplace(free, ends[-1])
    return ends


def makespans(seeds: int) -> str:
    """Seconds until all trials are done over total work / GPUs, the least there can be."""
    rows = []
    for name, draw in DURATIONS.items():
        for gpus in GPUS:
            cells: dict[str, list[float]] = {}
            for seed in range(seeds):
                drawn = draw(np.random.default_rng([seed, gpus]), ROUNDS * gpus).tolist()
                ideal = sum(drawn) / gpus
                ends = {"asynchronous": asynchronous_ends(drawn, gpus, PROPOSAL)}
                for factor in WINDOWS:
                    ends[f"W = {factor:g} × GPUs"] = windowed_ends(drawn, gpus, int(factor * gpus), PROPOSAL)
                any_order = np.random.default_rng(seed)
                ends["2 ×, started in any order"] = windowed_ends(drawn, gpus, 2 * gpus, PROPOSAL, any_order)
                for what, found in ends.items():
                    cells.setdefault(what, []).append(max(found) / ideal)
            rows.append([name, gpus, *(spread(values) for values in cells.values())])
    title = f"Makespan over total work / GPUs, {ROUNDS} trials for each GPU, {seeds} seeds"
    return table(title, ["durations", "GPUs", *cells], rows)
