"""What a training has come to: its progression, validations and outcome, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from tomoscout.learning.options import Optimisation
from tomoscout.learning.schedule import validations_without_progress

COLUMNS = ("step", "loss", "learning_rate", "score")
"""Columns of the history; all others are scores by name."""


@dataclass(frozen=True)
class Validation:
    """What a validation found: the score that chooses the best weights, the scores by name for the history, and
    whatever the caller wants kept with the best weights (plain data)."""

    score: float
    scores: dict[str, float]
    details: dict[str, Any]


@dataclass
class Progression:
    """Where a training is, apart from weights and optimiser: plain data, so a checkpoint can hold it.

    `parts`: parts in which a batch is worked through. `history`: rows of loss, learning rate and, where a validation
    took place, scores. `base_score`: that of the weights a fine-tuning began with."""

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
        """The scores so far, in order, without that of the base."""
        return [row["score"] for row in self.history if "score" in row and row["step"]]

    @property
    def latest(self) -> dict[str, float]:
        """The row of the last validation, or nothing."""
        return next((row for row in reversed(self.history) if "score" in row), {})

    @property
    def is_validated(self) -> bool:
        """Whether the weights of this step were validated."""
        return self.latest.get("step") == self.step


@dataclass(frozen=True)
class Speed:
    """What this process did: steps, the seconds spent on them, and the seconds spent on validations."""

    steps: int
    seconds: float
    validation_seconds: float


@dataclass(frozen=True)
class Outcome:
    """The best weights and how they came about. `finished_early`: the training was ended before its last step."""

    weights: dict[str, torch.Tensor]
    progression: Progression
    speed: Speed
    finished_early: bool = False


def is_complete(progression: Progression, options: Optimisation) -> bool:
    """Whether a training has made all its steps, or is stopped early as `early_stopping` says."""
    patience = options.early_stopping
    return progression.step >= options.steps or bool(
        patience and validations_without_progress(progression.validations) >= patience
    )


def progress_line(progression: Progression, options: Optimisation) -> str:
    """Where a training is, for the line of its progress."""
    loss = f"  loss {progression.history[-1]['loss']:.4f}" if "loss" in (progression.history or [{}])[-1] else ""
    score = f"{progression.best_score:.4f}" if progression.best_step >= 0 else "–"
    return f"step {progression.step}/{options.steps}{loss}  best score {score}"


def validation_line(progression: Progression, options: Optimisation) -> str:
    """What the last validation found: score, score of each class, and the best so far and when it was."""
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
