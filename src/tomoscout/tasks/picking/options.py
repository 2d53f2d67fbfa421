"""Options of picking: training, decoding of predictions into picks, and scoring."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tomoscout.learning.augmentations import search_space as augmentation_space
from tomoscout.learning.losses import VOXEL_LOSSES
from tomoscout.learning.losses import search_space as loss_space
from tomoscout.learning.options import TRAINING_SPACE, ClassTraining
from tomoscout.machine.errors import shown
from tomoscout.options.names import Name, ObjectName, RunName
from tomoscout.options.sections import HOW_MANY, Fraction, NotSearched, Section
from tomoscout.plan.options import (
    RadiusScale,
    check_segmentation_source,
    check_sources,
    read_segmentation_source,
    read_sources,
)

Smoothing = Annotated[float, Field(ge=0, le=2)]
Separation = Annotated[float, Field(gt=0, le=4)]
Radii = Annotated[float, Field(ge=0, le=100)]


class Peaks(Section):
    """How picks are decoded: peaks of smoothed probabilities, the best of those near each other."""

    smoothing: Smoothing = 0.6
    """Standard deviation of the Gaussian that smooths probabilities, as a fraction of the target radius."""
    separation: Separation = 1.0
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


_T = TypeVar("_T")
ByObject: TypeAlias = _T | dict[ObjectName, _T]
"""A value for all objects, or for some by name; the others have the default."""

Method = Literal["peaks", "components", "watershed"]
BY_OBJECT = ("method", "threshold", "smoothing", "separation", "smallest", "largest", "border")
"""The options of `Localize` that can be given by object."""


class Localize(Section):
    """How probabilities, or the labels of a segmentation, become picks. Where a mapping is accepted, an option can be
    given by object, such as {ribosome: 0.4}; the other objects have the default."""

    segmentation: str | None = None
    """Make picks from the labels of this multilabel segmentation, `name:user/session`, in place of a model's
    probabilities: octopi's, or one made by hand. Every run that has it is localised; no model is needed. Taken at the
    tomogram's voxel spacing where there is one, else at the finest."""
    labels: dict[ObjectName, Annotated[int, Field(ge=1, lt=2**16)]] = {}
    """The value that an object has in `segmentation`. Default: its `label` in the copick config."""
    objects: Annotated[list[ObjectName], Field(min_length=1)] | None = None
    """Look for these objects alone. Default: all particles that the model finds; in a segmentation all pickable
    particles that have a label and a radius."""
    method: ByObject[Method] | None = None
    """How an object is found. peaks: of smoothed probabilities. components: each connected region of probabilities
    above `threshold`, or of one label, is a particle. watershed: regions in which several particles touch are parted.
    Of a region the centre of mass is picked; its score is the mean probability inside, or the volume over that of the
    object's sphere (1 at most) where there are labels alone. Default: peaks; of a segmentation watershed."""
    threshold: ByObject[Fraction] | None = None
    """Smallest score of a pick; of regions the smallest probability inside, too. Default: of peaks the model's, chosen
    on the validation runs; of regions 0.5."""
    smoothing: ByObject[Smoothing] | None = None
    """Another smoothing of peaks than the model's, as `train.picking.smoothing`."""
    separation: ByObject[Separation] | None = None
    """Another separation than the model's, as `train.picking.separation`. A watershed parts no particles whose middles
    are nearer than that."""
    smallest: ByObject[Radii] = 0.25
    """Regions with less volume than a sphere of so many radii of the object are left out."""
    largest: ByObject[Radii] | None = None
    """Regions with more volume than a sphere of so many radii of the object are left out, after parting."""
    border: ByObject[Annotated[float, Field(ge=0)]] = 0.0
    """Picks nearer than this (Å) to an end of the volume are left out, as the edge may cut the particle."""
    mask: str | None = None
    """Keep picks only where this segmentation of the run, `name:user/session`, is not 0: a lamella, say, or the inside
    of a cell."""
    user: Name = "tomoscout"
    """User of the picks written."""
    session: Name | None = None
    """Session of the picks written. Default: the model's name (of several models, the first's; of all folds,
    `{name}-folds`; of an exploration, `{explore.name}-best`); of a segmentation `{name}-{user}-{session}`."""

    @field_validator("segmentation", "mask", mode="before")
    @classmethod
    def _read_segmentation(cls, value: Any, info: ValidationInfo) -> Any:
        return read_segmentation_source(cls, info.field_name or "", value)

    @field_validator("segmentation", "mask")
    @classmethod
    def _check_segmentation(cls, value: str | None) -> str | None:
        return check_segmentation_source(value)

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.segmentation is None:
            if self.labels:
                raise ValueError("labels are those of segmentation; give that, too")
            return self
        methods = self.method.values() if isinstance(self.method, dict) else [self.method]
        if "peaks" in methods:
            raise ValueError("method: a segmentation has no peaks; expected components or watershed")
        for name in ("threshold", "smoothing"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is of probabilities, and segmentation has none; smallest and largest limit sizes"
                )
        return self

    def own(self, option: str, name: str) -> Any:
        """The value of an option for an object."""
        value = getattr(self, option)
        return value.get(name, type(self).model_fields[option].default) if isinstance(value, dict) else value

    def first_unknown(self, known: Collection[str]) -> tuple[str, str] | None:
        """The first option that names an object which is not among the `known`, and the object; None without one."""
        values = ((option, getattr(self, option)) for option in ("objects", "labels", *BY_OBJECT))
        named = ((option, name) for option, value in values if isinstance(value, list | dict) for name in value)
        return next(((option, name) for option, name in named if name not in known), None)


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

    resamples: int = Field(default=1000, ge=0, le=100_000)
    """How often the runs are drawn anew for the 95 % intervals of scores; 0 for no intervals. With a single run there
    are none."""
    also: list[str] = []
    """Further picks to score on the same runs, `user/session`: of another model, a human, another program."""
    segmentations: list[str] = []
    """Segmentations to score voxel by voxel, `name:user/session`: Dice, IoU and the distance between the surfaces."""
    segmentation_reference: str | None = None
    """The segmentation that these are compared with, `name:user/session`. Default: the targets."""

    @field_validator("also")
    @classmethod
    def _check_also(cls, value: list[str]) -> list[str]:
        return [str(check_sources(entry)) for entry in dict.fromkeys(value)]

    @field_validator("segmentations")
    @classmethod
    def _check_segmentations(cls, value: list[str]) -> list[str]:
        for entry in value:
            check_segmentation_source(entry)
        return list(dict.fromkeys(value))

    @field_validator("segmentation_reference")
    @classmethod
    def _check_segmentation_reference(cls, value: str | None) -> str | None:
        return check_segmentation_source(value)

    @field_validator("reference", mode="before")
    @classmethod
    def _read_reference(cls, value: Any) -> Any:
        return read_sources(cls, "reference", value)

    @field_validator("reference")
    @classmethod
    def _check_reference(cls, value: str | list[str] | None) -> str | list[str] | None:
        return value if value is None else check_sources(value)
