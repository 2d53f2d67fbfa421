"""Options of picking: training, decoding of predictions into picks, and scoring."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tomoscout.learning.augmentations import search_space as augmentation_space
from tomoscout.learning.losses import VOXEL_LOSSES
from tomoscout.learning.losses import search_space as loss_space
from tomoscout.learning.options import TRAINING_SPACE, ClassTraining
from tomoscout.machine.errors import shown
from tomoscout.options.names import Name, ObjectName, RunName
from tomoscout.options.sections import HOW_MANY, Fraction, NotSearched, Section
from tomoscout.plan.options import RadiusScale, check_sources, read_sources


class Peaks(Section):
    """How picks are decoded: peaks of smoothed probabilities, the best of those near each other."""

    smoothing: float = Field(default=0.6, ge=0, le=2)
    """Standard deviation of the Gaussian that smooths probabilities, as a fraction of the target radius."""
    separation: float = Field(default=1.0, gt=0, le=4)
    """Two picks of an object lie at least this many radii apart."""


class Picking(Peaks):
    """How validation turns probabilities into picks and counts them. Kept with the model, so that picks are made as
    they were when its thresholds were chosen."""

    distance: float = Field(default=0.5, gt=0)
    """A pick matches a reference pick within this many radii."""


class Train(ClassTraining):
    """How a model is trained. A step is one optimiser update."""

    DIMENSIONS = 3
    # Contains the search space of octopi.
    SPACE = {
        **TRAINING_SPACE,
        "radius_scale": {"low": 0.3, "high": 1.0},
        **loss_space(),
        "foreground_weight": {
            "low": 1.0,
            "high": 256.0,
            "log": True,
            "when": {"loss.name": VOXEL_LOSSES},
        },
        **augmentation_space(),
    }

    patch: list[int] | Literal["auto"] = [64, 64, 64]
    """Crop size in voxels, z, y, x: multiples of what the network halves. `auto`: planned with the network from the
    median tomogram and `plan_memory_gb`."""
    learning_rate: float = Field(default=4e-3, gt=0)
    """Peak learning rate of AdamW."""
    picking: Picking = Picking()
    radius_scale: RadiusScale | dict[ObjectName, RadiusScale] | None = None
    """Learn spheres of another size than `targets.radius_scale`, for all objects or by object: they are drawn anew as
    the tomograms are read, and the targets that are written stay as they are. With `targets.existing` only the size of
    the peaks that are expected changes."""
    foreground_weight: float = Field(default=8.0, gt=0, le=1e6)
    """Weight of a voxel of any class against a background voxel in cross-entropy and focal losses."""
    size_balance: float = Field(default=1.0, ge=0, le=3)
    """How far small objects are favoured there: a voxel counts foreground_weight × (largest radius / own radius) to
    this power. 0 treats all voxels alike, 3 all objects."""
    best_metric: Annotated[str, NotSearched("trials are compared by it")] = "fBeta4"
    """The score that chooses the best weights and the thresholds. fBetaN: F-beta with beta N, averaged over the
    classes; 4 counts a missed particle far more than a false one. fBetaN_classK: that of the class with label K.
    avg_f1: the same as fBeta1."""
    best_metric_on: Annotated[Literal["particles", "voxels"], NotSearched("trials are compared by it")] = "particles"
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


class Localize(Section):
    """How probabilities become picks."""

    threshold: Fraction | dict[ObjectName, Fraction] | None = None
    """Smallest score of a pick, for all objects or per object. Default: the model's, chosen on the validation runs."""
    smoothing: float | None = Field(default=None, ge=0, le=2)
    """Another smoothing than the model's, as `train.picking.smoothing`."""
    separation: float | None = Field(default=None, gt=0, le=4)
    """Another separation than the model's, as `train.picking.separation`."""
    user: Name = "tomoscout"
    """User of the picks written."""
    session: Name | None = None
    """Session of the picks written. Default: the model's name (of several models, the first's; of all folds,
    `{name}-folds`; of an exploration, `{explore.name}-best`)."""


class Evaluate(Section):
    """How picks are scored against reference picks."""

    reference: str | list[str] | None = None
    """Reference picks, as in `targets.picks`. Default: the picks the targets were made from."""
    runs: Annotated[Literal["test", "validate", "train", "all"] | list[RunName], HOW_MANY] = "test"
    """Which part of the split is scored, or a list of runs. `all` covers runs the model was trained on. Where the split
    has no test runs, the validation runs are scored and the report says so. Without `targets` there is no split: every
    segmented run that has reference picks is scored, or those listed."""
    distance: float = Field(default=0.5, gt=0, le=10)
    """A prediction matches a reference pick within this many radii."""
    beta: float = Field(default=4.0, gt=0, le=100)
    """Beta of the F score."""
    counting: Literal["one-to-one", "challenge"] = "one-to-one"
    """one-to-one: a prediction and a reference are used once. challenge: the CZII challenge's counting, in which
    any prediction near a reference makes it found and all others are false."""
    weights: dict[ObjectName, float] = {}
    """Weight of an object in the overall score; 1 where none is given."""

    @field_validator("reference", mode="before")
    @classmethod
    def _read_reference(cls, value: Any) -> Any:
        return read_sources(cls, "reference", value)

    @field_validator("reference")
    @classmethod
    def _check_reference(cls, value: str | list[str] | None) -> str | list[str] | None:
        return value if value is None else check_sources(value)
