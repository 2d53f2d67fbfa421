"""Options of picking: how probabilities become picks, and how these are scored."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from tomoscout.options.names import Name, ObjectName, RunName
from tomoscout.options.sections import Fraction, Section
from tomoscout.plan.options import check_sources, read_sources


class Picking(Section):
    """How validation turns probabilities into picks and counts them. Kept with the model, so that picks are made as
    they were when its thresholds were chosen."""

    smoothing: float = Field(default=0.6, ge=0, le=2)
    """Standard deviation of the Gaussian that smooths probabilities, as a fraction of the target radius."""
    separation: float = Field(default=1.0, gt=0, le=4)
    """Two picks of an object lie at least this many radii apart."""
    distance: float = Field(default=0.5, gt=0)
    """A pick matches a reference pick within this many radii."""


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
    runs: Literal["test", "validate", "train", "all"] | list[RunName] = "test"
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
