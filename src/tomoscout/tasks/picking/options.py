"""Options of picking: what is trained for it, and how predictions become picks."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from tomoscout.learning.options import AUGMENTATION_SPACE, LOSS_SPACE, TRAINING_SPACE, Training
from tomoscout.machine.errors import shown
from tomoscout.options.sections import Section


class Picking(Section):
    """How validation turns probabilities into picks and counts them. Kept with the model, so that picks are made as
    they were when its thresholds were chosen."""

    smoothing: float = Field(default=0.6, ge=0, le=2)
    """Standard deviation of the Gaussian that smooths probabilities, as a fraction of the target radius."""
    separation: float = Field(default=1.0, gt=0, le=4)
    """Two picks of an object lie at least this many radii apart."""
    distance: float = Field(default=0.5, gt=0)
    """A pick matches a reference pick within this many radii."""


class Train(Training):
    """How a model is trained. A step is one optimiser update."""

    DIMENSIONS = 3
    # No less than octopi searches.
    SPACE = {
        **TRAINING_SPACE,
        **LOSS_SPACE,
        "foreground_weight": {
            "low": 1.0,
            "high": 256.0,
            "log": True,
            "when": {"loss.name": ["CrossEntropy", "Focal", "WeightedFocalTversky"]},
        },
        **AUGMENTATION_SPACE,
    }
    NOT_SEARCHED = {
        **Training.NOT_SEARCHED,
        **dict.fromkeys(("best_metric", "best_metric_on"), "trials are compared by it"),
    }

    patch: list[int] | Literal["auto"] = [64, 64, 64]
    """Crop size in voxels, z, y, x: multiples of what the network halves. `auto`: planned with the network from the
    median tomogram and `plan_memory_gb`."""
    picking: Picking = Picking()
    foreground_weight: float = Field(default=8.0, gt=0, le=1e6)
    """Weight of a voxel of any class against a background voxel in cross-entropy and focal losses."""
    size_balance: float = Field(default=1.0, ge=0, le=3)
    """How far small objects are favoured there: a voxel counts foreground_weight × (largest radius / own radius) to
    this power. 0 treats all voxels alike, 3 all objects."""
    best_metric: str = "fBeta4"
    """The score that chooses the best weights and the thresholds. fBetaN: F-beta with beta N, averaged over the
    classes; 4 counts a missed particle far more than a false one. fBetaN_classK: that of the class with label K.
    avg_f1: the same as fBeta1."""
    best_metric_on: Literal["particles", "voxels"] = "particles"
    """What best_metric counts: particles found, or voxels labelled right."""

    @field_validator("best_metric")
    @classmethod
    def _check_metric(cls, value: str) -> str:
        if value != "avg_f1" and not re.fullmatch(r"fBeta\d{1,3}(\.\d{1,3})?(_class[1-9]\d{0,5})?", value):
            raise ValueError(f"{shown(value)} is not avg_f1, fBetaN or fBetaN_classK with numbers N and K")
        return value

    @property
    def beta(self) -> float:
        """The beta of best_metric."""
        return 1.0 if self.best_metric == "avg_f1" else float(self.best_metric.removeprefix("fBeta").split("_")[0])

    @property
    def best_class(self) -> int | None:
        """The label of the one class that best_metric counts, or None for all."""
        _, _, label = self.best_metric.partition("_class")
        return int(label) if label else None
