"""The state of a training as plain data: progression, validations and outcome."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tomoscout.learning.options import Optimisation
from tomoscout.learning.schedule import validations_without_progress

COLUMNS = ("step", "loss", "learning_rate", "score")
"""Columns of the history; all others are scores by name."""


@dataclass(frozen=True)
class Validation:
    """The result of a validation: the score that selects the best weights, the scores by name for the history, and
    other plain data that the caller keeps with the best weights. `more`: computes details that only these need."""

    score: float
    scores: dict[str, float]
    details: dict[str, Any]
    more: Callable[[], dict[str, Any]] = dict


@dataclass
class Progression:
    """The progress of a training, without weights and optimiser: plain data, so that a checkpoint can hold it.

    `parts`: number of parts of a batch (gradient accumulation). `history`: rows of loss, learning rate and, after a
    validation, scores. `base_score`: the score of the weights that a fine-tuning started from.
    """

    step: int = 0
    parts: int = 1
    loss_sum: float = 0.0
    loss_steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_step: int = -1
    best_score: float = -math.inf
    best_details: dict[str, Any] = field(default_factory=dict)
    base_score: float | None = None

    @property
    def validations(self) -> list[float]:
        """The validation scores so far, in order, without that of the base."""
        return [row["score"] for row in self.history if "score" in row and row["step"]]

    @property
    def latest(self) -> dict[str, float]:
        """The row of the history with the last validation; empty if there was none."""
        return next((row for row in reversed(self.history) if "score" in row), {})

    @property
    def is_validated(self) -> bool:
        """Whether the weights of this step were validated."""
        return self.latest.get("step") == self.step


@dataclass(frozen=True)
class Speed:
    """The work of this process: steps, seconds spent on them, and seconds spent on validations."""

    steps: int
    seconds: float
    validation_seconds: float


@dataclass(frozen=True)
class Outcome:
    """The best weights, and the progression of the training. `finished_early`: the training ended before its last
    step."""

    weights: dict[str, torch.Tensor]
    progression: Progression
    speed: Speed
    finished_early: bool = False


def is_complete(progression: Progression, options: Optimisation) -> bool:
    """Whether a training has made all its steps, or `early_stopping` ends it."""
    patience = options.early_stopping
    return progression.step >= options.steps or bool(
        patience and validations_without_progress(progression.validations) >= patience
    )


def progress_line(progression: Progression, options: Optimisation) -> str:
    """The step, the loss and the best score, for the progress line."""
    loss = f"  loss {progression.history[-1]['loss']:.4f}" if "loss" in (progression.history or [{}])[-1] else ""
    score = f"{progression.best_score:.4f}" if progression.best_step >= 0 else "–"
    return f"step {progression.step}/{options.steps}{loss}  best score {score}"


def validation_line(progression: Progression, options: Optimisation) -> str:
    """The last validation as text: its score, the scores of the classes, and the best score so far with its step."""
    row = progression.latest
    by_name = ", ".join(f"{name} {score:.3f}" for name, score in row.items() if name not in COLUMNS)
    loss = f", loss {row['loss']:.4f}" if "loss" in row else ""
    what = f"step {progression.step} of {options.steps}{loss}" if progression.step else "the base"
    best = ""
    if progression.best_step == progression.step:
        best = "; the best so far"
    elif progression.best_step >= 0:
        best = f"; best so far {progression.best_score:.4f} at step {progression.best_step}"
    return f"{what}: score {row['score']:.4f}{by_name and f' ({by_name})'}{best}"
