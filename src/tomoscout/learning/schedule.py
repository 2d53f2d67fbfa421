"""The learning rate of a step: a function of the step and the scores so far, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tomoscout.learning.options import Optimisation


def learning_rate(options: Optimisation, step: int, scores: Sequence[float] = ()) -> float:
    """The learning rate of a step (from 0), after validations with these `scores`.

    Linear warm-up to the peak, then down to `final_learning_rate` × peak: along a cosine (Loshchilov & Hutter, SGDR,
    2017); along a polynomial (Chen et al., DeepLab, 2018); one-cycle, whose warm-up is a cosine from a 25th of the peak
    (Smith & Topin 2018; without its cycling of momentum); or by `plateau_factor` whenever `plateau_patience`
    validations in a row were not better.
    """
    warmup = warmup_steps(options)
    if step < warmup:
        risen = (step + 1) / warmup
        if options.schedule == "one-cycle":
            return options.learning_rate * (1 / 25 + (1 - 1 / 25) * _cosine(1 - risen))
        return options.learning_rate * risen
    done = (step - warmup) / max(1, options.steps - warmup)
    return options.learning_rate * _remaining(options, done, scores)


def warmup_steps(options: Optimisation) -> int:
    """Steps over which the learning rate rises, one at least."""
    return max(1, round(options.warmup if options.warmup >= 1 else options.warmup * options.steps))


def obstacle_to_going_on(before: Optimisation, now: Optimisation, done: int) -> str | None:
    """Why the first `done` steps of a training under the options `before` are not those of one under `now`, where only
    `steps` and `warmup` differ; None where each of them had the learning rate that it would have now."""
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


def _remaining(options: Optimisation, done: float, scores: Sequence[float]) -> float:
    """The fraction of the peak after the fraction `done` of the steps that follow the warm-up."""
    least = options.final_learning_rate
    match options.schedule:
        case "cosine" | "one-cycle":
            return least + (1 - least) * _cosine(done)
        case "polynomial":
            return least + (1 - least) * math.pow(1 - done, options.polynomial_power)
        case "plateau":
            return max(least, math.pow(options.plateau_factor, _plateaus(scores, options.plateau_patience)))
        case "constant":
            return 1.0


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _plateaus(scores: Sequence[float], patience: int) -> int:
    """How often `patience` validations in a row were not better than the best before them."""
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
    """Validations since the best one."""
    scores = list(scores)
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0
