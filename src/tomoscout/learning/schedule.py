"""The learning rate of a step. It is a function of the step and the scores so far, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from tomoscout.options.sections import Section


class Schedule(Section):
    """The learning rate over the steps of a training. Another schedule is a name here and a case in `_remaining`."""

    SPACE: ClassVar[dict[str, Any]] = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}

    steps: int = Field(default=10_000, ge=1, le=10**9)
    """Optimiser updates in all. octopi's epochs: epochs × training tomograms (15 at most count)."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "polynomial", "one-cycle", "plateau", "constant"] = "cosine"
    """How the learning rate falls after the warm-up. plateau: lowered when validation stops improving."""
    warmup: float = Field(default=0.03, ge=0)
    """Over what the learning rate rises to its peak: below 1 a fraction of the steps, else a number of steps. With a
    number (or 0) and the schedule `constant` or `plateau`, a training that is given more `steps` later goes on from
    its checkpoint, and ends as if it had had them from the start."""
    final_learning_rate: float = Field(default=0.01, ge=0, le=1)
    """Learning rate at the end (plateau: at the least), as a fraction of the peak."""
    polynomial_power: float = Field(default=0.9, gt=0, le=100)
    """Power of the polynomial schedule."""
    plateau_patience: int = Field(default=3, ge=1)
    """Validations without a better score before the plateau schedule lowers the learning rate."""
    plateau_factor: float = Field(default=0.5, gt=0, lt=1)
    """What the plateau schedule multiplies it by."""

    @field_validator("warmup")
    @classmethod
    def _check_warmup(cls, value: float) -> float:
        if value >= 1 and not value.is_integer():
            raise ValueError(f"{value} is neither a fraction below 1 nor a whole number of steps")
        return value


def learning_rate(options: Schedule, step: int, scores: Sequence[float] = ()) -> float:
    """The learning rate of a step (from 0), after validations with these `scores`: a linear warm-up to the peak, then
    the schedule. The warm-up of one-cycle is a cosine from a 25th of the peak (Smith & Topin 2018; without its cycling
    of momentum)."""
    warmup = warmup_steps(options)
    if step < warmup:
        risen = (step + 1) / warmup
        if options.schedule == "one-cycle":
            return options.learning_rate * (1 / 25 + (1 - 1 / 25) * _cosine(1 - risen))
        return options.learning_rate * risen
    done = (step - warmup) / max(1, options.steps - warmup)
    return options.learning_rate * _remaining(options, done, scores)


def warmup_steps(options: Schedule) -> int:
    """Number of steps of the warm-up, at least one."""
    return max(1, round(options.warmup if options.warmup >= 1 else options.warmup * options.steps))


def obstacle_to_going_on(before: Schedule, now: Schedule, done: int) -> str | None:
    """Why a training cannot be continued under the options `now` after `done` steps under the options `before`, which
    differ only in `steps` and `warmup`. None if the learning rates of all these steps are equal under both."""
    if done > now.steps:
        return f"{done} steps are done, more than the {now.steps} asked for"
    if all(learning_rate(before, step) == learning_rate(now, step) for step in range(done)):
        return None
    if now.schedule in ("constant", "plateau"):
        return (
            f"the learning rate rose over {warmup_steps(before)} steps and would now rise over {warmup_steps(now)}; "
            f"train.warmup: {warmup_steps(before)} goes on from it"
        )
    return (
        f"the schedule {now.schedule} spreads over all steps, and there were {before.steps}; with train.schedule "
        "constant or plateau, and train.warmup a number of steps, more steps go on from where a training was"
    )


def _remaining(options: Schedule, done: float, scores: Sequence[float]) -> float:
    """The learning rate as a fraction of the peak, after the fraction `done` of the steps that follow the warm-up."""
    match options.schedule:
        case "cosine" | "one-cycle":
            return _down_to(options.final_learning_rate, _cosine(done))
        case "polynomial":
            return _down_to(options.final_learning_rate, _polynomial(done, options.polynomial_power))
        case "plateau":
            lowered = _plateaus(scores, options.plateau_patience)
            return max(options.final_learning_rate, math.pow(options.plateau_factor, lowered))
        case "constant":
            return 1.0


def _down_to(least: float, falling: float) -> float:
    """Rescale a value that falls from 1 to 0 to one that falls from 1 to `least`."""
    return least + (1 - least) * falling


def _cosine(done: float) -> float:
    """From 1 to 0 along half a cosine (Loshchilov & Hutter, SGDR, 2017)."""
    return 0.5 * (1 + math.cos(math.pi * done))


def _polynomial(done: float, power: float) -> float:
    """From 1 to 0 along a polynomial (Chen et al., DeepLab, 2018)."""
    return math.pow(1 - done, power)


def _plateaus(scores: Sequence[float], patience: int) -> int:
    """Number of times that `patience` validations in a row were not better than the best before them."""
    best, waited, plateaus = -math.inf, 0, 0
    for score in scores:
        if score > best:
            best, waited = score, 0
        else:
            waited += 1
        if waited == patience:
            waited, plateaus = 0, plateaus + 1
    return plateaus


def validations_without_progress(scores: Iterable[float]) -> int:
    """Number of validations since the best one."""
    scores = list(scores)
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0
