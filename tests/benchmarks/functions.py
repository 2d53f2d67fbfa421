"""Functions with a known least value, as search spaces of an exploration: what samplers are usually compared on, a
mixed one, and one that is built as the search for a network is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.explore.space import SearchSpace


@dataclass(frozen=True)
class Function:
    """A function to be made small. `entries`: its space, as a study's file has it. `least`: its smallest value."""

    name: str
    entries: list[dict[str, Any]]
    value: Callable[[Mapping[str, Any]], float]
    least: float = 0.0

    @cached_property
    def typical(self) -> float:
        """The median over 2,000 random points, how far above the least."""
        generator, space = np.random.default_rng(0), SearchSpace.parse(self.entries)
        points = (space.values(lambda _, domain: domain.at(generator.random()), {}) for _ in range(2000))
        return float(np.median([self.value(point) for point in points])) - self.least

    def regret(self, value: float) -> float:
        """How far above the least, as a fraction of a random point's median."""
        return (value - self.least) / self.typical


def _entry(name: str, when: Mapping[str, list[Any]] | None = None, **domain: Any) -> dict[str, Any]:
    return {"name": name, "domain": domain, "when": dict(when or {})}


def _numeric(
    name: str,
    value: Callable[[NDArray[np.float64]], float],
    ranges: Sequence[tuple[float, float]],
    least: float = 0.0,
    *,
    moved: int | None = None,
) -> Function:
    """A function of numbers. `moved`: seed of a shift of the optimum from the middle, where some samplers begin, by up
    to 30 % of the range to either side."""
    axes = [f"x{number}" for number in range(len(ranges))]
    low, high = np.array(ranges).T
    generator = np.random.default_rng(moved)
    shift = np.zeros(len(ranges)) if moved is None else generator.uniform(-0.3, 0.3, len(ranges)) * (high - low)
    entries = [_entry(axis, low=float(a), high=float(b)) for axis, (a, b) in zip(axes, ranges, strict=True)]
    return Function(name, entries, lambda point: value(np.array([point[axis] for axis in axes]) - shift), least)


# Formulas and ranges: Surjanovic & Bingham, Virtual Library of Simulation Experiments (2013).


def _sphere(x: NDArray[np.float64]) -> float:
    return float(np.sum(x**2))


def _rosenbrock(x: NDArray[np.float64]) -> float:
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def _rastrigin(x: NDArray[np.float64]) -> float:
    return float(np.sum(x**2 - 10 * np.cos(2 * np.pi * x) + 10))


def _ackley(x: NDArray[np.float64]) -> float:
    waves = math.exp(np.mean(np.cos(2 * np.pi * x)))
    return 20 - 20 * math.exp(-0.2 * math.sqrt(np.mean(x**2))) + math.e - waves


def _levy(x: NDArray[np.float64]) -> float:
    w = 1 + (x - 1) / 4
    between = np.sum((w[:-1] - 1) ** 2 * (1 + 10 * np.sin(np.pi * w[:-1] + 1) ** 2))
    return float(np.sin(np.pi * w[0]) ** 2 + between + (w[-1] - 1) ** 2 * (1 + np.sin(2 * np.pi * w[-1]) ** 2))


def _branin(x: NDArray[np.float64]) -> float:
    valley = x[1] - 5.1 / (4 * np.pi**2) * x[0] ** 2 + 5 / np.pi * x[0] - 6
    return float(valley**2 + 10 * (1 - 1 / (8 * np.pi)) * np.cos(x[0]) + 10)


_HEIGHTS = np.array([1.0, 1.2, 3.0, 3.2])
_WIDTHS = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_PLACES = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def _hartmann(x: NDArray[np.float64]) -> float:
    return -float(_HEIGHTS @ np.exp(-np.sum(_WIDTHS * (x - _PLACES) ** 2, axis=1)))


NUMERIC = [
    _numeric("Sphere, 5", _sphere, [(-5.12, 5.12)] * 5, moved=1),
    _numeric("Rosenbrock, 4", _rosenbrock, [(-2.048, 2.048)] * 4),
    _numeric("Rastrigin, 4", _rastrigin, [(-5.12, 5.12)] * 4, moved=2),
    _numeric("Ackley, 5", _ackley, [(-32.768, 32.768)] * 5, moved=3),
    _numeric("Levy, 5", _levy, [(-10, 10)] * 5, moved=4),
    _numeric("Branin, 2", _branin, [(-5, 10), (0, 15)], 0.39788735772973816),
    _numeric("Hartmann, 6", _hartmann, [(0, 1)] * 6, -3.322368011415515),
]


def _mixed(point: Mapping[str, Any]) -> float:
    """Best at rate 3e-3, decay 1e-2, layers 5, units 96, dropout 0.2, method c, which matters with many layers."""
    method = {"a": 0.6, "b": 0.3, "c": 0.0, "d": 0.9}[point["method"]]
    return (
        (math.log10(point["rate"]) - math.log10(3e-3)) ** 2
        + 0.2 * (math.log10(point["decay"]) + 2) ** 2
        + 0.05 * (point["layers"] - 5) ** 2
        + 0.3 * math.log2(point["units"] / 96) ** 2
        + 4 * (point["dropout"] - 0.2) ** 2
        + method * point["layers"] / 5
    )


_MIXED = [
    _entry("rate", low=1e-5, high=1e-1, log=True),
    _entry("decay", low=1e-6, high=1e-1, log=True),
    _entry("layers", low=1, high=8),
    _entry("units", low=8, high=512, log=True),
    _entry("dropout", low=0.0, high=0.6),
    _entry("method", choices=["a", "b", "c", "d"]),
]

_FAMILIES = {"small": (0.25, 0.5), "middle": (0.1, 1.0), "large": (0.0, 3.0)}
"""The least value of a family, and how much its own options matter: the best one is the worst at a random point."""


def _families(point: Mapping[str, Any]) -> float:
    family = point["network"]
    least, steepness = _FAMILIES[family]
    width, depth, dropout = (point[f"{family}.{option}"] for option in ("width", "depth", "dropout"))
    best_width, best_depth = {"small": (16, 3), "middle": (32, 4), "large": (48, 5)}[family]
    own = 0.15 * math.log2(width / best_width) ** 2 + 0.08 * (depth - best_depth) ** 2 + 3 * (dropout - 0.15) ** 2
    # A deeper network wants a smaller rate.
    rate = (math.log10(point["rate"]) + 2 + 0.2 * depth) ** 2
    loss = {"CrossEntropy": 0.3, "Focal": 0.2, "Tversky": 0.0}[point["loss"]]
    if point["loss"] == "Tversky":
        loss += 2 * (point["alpha"] - 0.3) ** 2 + (point["beta"] - 0.7) ** 2
    if point["loss"] == "Focal":
        loss += 0.1 * (point["gamma"] - 1.5) ** 2
    patch = 0.3 * ((point["patch"] - 96) / 64) ** 2
    batch = {4: 0.2, 8: 0.05, 16: 0.0, 24: 0.05, 32: 0.1}[point["batch"]]
    return least + steepness * own + 0.5 * rate + loss + patch + batch


_FAMILIES_SPACE = [
    _entry("network", choices=list(_FAMILIES)),
    *(
        _entry(f"{family}.{name}", {"network": [family]}, **domain)
        for family in _FAMILIES
        for name, domain in {
            "width": {"low": 8, "high": 64, "log": True},
            "depth": {"low": 2, "high": 6},
            "dropout": {"low": 0.0, "high": 0.5},
        }.items()
    ),
    _entry("rate", low=1e-4, high=1e-1, log=True),
    _entry("loss", choices=["CrossEntropy", "Focal", "Tversky"]),
    _entry("alpha", {"loss": ["Tversky"]}, low=0.1, high=0.9),
    _entry("beta", {"loss": ["Tversky"]}, low=0.1, high=0.9),
    _entry("gamma", {"loss": ["Focal"]}, low=0.1, high=3.0),
    _entry("patch", low=48, high=160, step=16),
    _entry("batch", choices=[4, 8, 16, 24, 32]),
]

FUNCTIONS = [
    *NUMERIC,
    Function("mixed, 6", _MIXED, _mixed),
    Function("families with options of their own, 6 to 9", _FAMILIES_SPACE, _families),
]
