"""Values of search parameters on scales from 0 to 1, and as text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tomoscout.report.plots import Ticks, ticks

_GOLDEN = (math.sqrt(5) - 1) / 2

_FEW = 6
"""A numeric parameter with at most this many values is shown like a choice."""


def short(value: Any, digits: int = 4) -> str:
    """A value as text; floats with this number of significant digits."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Axis:
    """The axis of a parameter, or of the score: maps values to 0…1. `choices`: the values as text, for a choice."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: float | None = None
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, distribution: str) -> Axis:
        """The axis of a distribution in Optuna's JSON."""
        values = json.loads(distribution)["attributes"]
        if "choices" in values:
            return cls(name, choices=tuple(map(short, values["choices"])))
        low, high, log = values["low"], values["high"], values["log"]
        step = None if log else values["step"]
        if step and (high - low) / step < _FEW - 0.5:
            return cls(name, choices=tuple(short(low + n * step) for n in range(round((high - low) / step) + 1)))
        return cls(name, low, high, log, step)

    def position(self, value: Any) -> float:
        """The position of a value in 0…1."""
        if self.choices:
            return (self.choices.index(short(value)) + 0.5) / len(self.choices)
        scale = math.log if self.log else float
        low, high = scale(self.low), scale(self.high)
        return (scale(value) - low) / (high - low) if high > low else 0.5

    def place(self, value: Any, number: int) -> float:
        """The position of the mark of a trial in 0…1. Marks of the same choice are spread beside each other."""
        width = 0.55 / len(self.choices) if self.choices else 0.0
        return self.position(value) + width * ((number * _GOLDEN) % 1 - 0.5)

    def ticks(self, count: int = 5) -> Ticks:
        """Positions and labels: the values themselves if they are few, else round numbers."""
        return [(self.position(value), label) for value, label in self._labels(count)]

    def _labels(self, count: int) -> Sequence[tuple[Any, str]]:
        if self.choices:
            return [(choice, choice) for choice in self.choices]
        if self.high <= self.low:
            return [(self.low, short(self.low))]
        if self.log:
            return _log_labels(self.low, self.high, count)
        steps = round((self.high - self.low) / self.step) if self.step else math.inf
        if self.step and steps < 2 * count:
            values = [self.low + n * self.step for n in range(int(steps) + 1)]
            return [(value, short(value)) for value in values]
        return ticks(self.low, self.high, count)


def _log_labels(low: float, high: float, count: int) -> Ticks:
    """Powers of ten, with 2 and 5 times each if these are few enough; the ends of the range if fewer than two lie in
    it."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside: list[float] = []
    for factors in ((1, 2, 5), (1,)):
        values = (float(f"{factor}e{power}") for power in powers for factor in factors)
        inside = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) <= count + 2:
            break
    if len(inside) < 2:
        inside = [low, high]
    return [(value, short(float(value), 3)) for value in inside[:: math.ceil(len(inside) / (count + 2))]]


def rounded(low: float, high: float) -> tuple[float, float]:
    """The range extended to rounder numbers."""
    span = max(high - low, 0.01) if high > low else 0.1
    unit = 10 ** math.floor(math.log10(span)) / 2
    start, end = math.floor(low / unit + 1e-9), math.ceil(high / unit - 1e-9)
    return start * unit, max(end, start + 1) * unit
