"""Options of the extraction of particles by their surroundings."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple, Self

from annotated_types import MaxLen, MinLen
from pydantic import Field, ValidationInfo, field_validator, model_validator

from tomoscout.options.names import Name, ObjectName, RunName
from tomoscout.options.sections import IN_ANOTHER_FORM, Section
from tomoscout.plan.options import check_segmentation_source, check_sources, read_segmentation_source, read_sources

_Distance = Annotated[float, Field(ge=0, le=1e9)]
Kind = Literal["near", "inside", "outside", "mask", "neighbours", "midpoints", "label"]


class _Takes(NamedTuple):
    """The options that a kind needs, and those that it takes besides."""

    needed: tuple[str, ...]
    others: tuple[str, ...]


_OF_SURFACE = ("picks", "label", "surface", "smoothing", "orient")
_TAKES: dict[Kind, _Takes] = {
    "near": _Takes(("segmentation", "distance"), _OF_SURFACE),
    "inside": _Takes(("segmentation",), (*_OF_SURFACE, "distance")),
    "outside": _Takes(("segmentation",), (*_OF_SURFACE, "distance")),
    "mask": _Takes(("segmentation",), ("picks", "label")),
    "neighbours": _Takes(("distance",), ("picks", "partners")),
    "midpoints": _Takes(("distance",), ("picks", "partners", "pairs", "object")),
    "label": _Takes(("segmentation",), ("label", "object")),
}
_OF_ALL = ("kind", "runs", "user", "session")


class Extraction(Section):
    """What is extracted, from what, and where it is written."""

    kind: Kind
    """`near`, `inside`, `outside`: picks by their distance to the surface of a segmentation. `mask`: picks in a
    segmentation. `neighbours`: picks near other picks. `midpoints`: the middles of pairs of picks. `label`: one label
    of a segmentation as a binary segmentation."""
    picks: Annotated[str | list[str] | None, IN_ANOTHER_FORM] = None
    """The picks to choose from: `user/session` for all objects, or a list of `name:user/session`. Default: those that
    `localize` makes."""
    segmentation: str | None = None
    """The segmentation, `name:user/session`. Taken at the voxel spacing of the tomogram that is segmented where there
    is one, else the finest."""
    label: ObjectName | None = None
    """Of a multilabel segmentation: the object, which has its label in the copick config, or the number of the label.
    Default: all that is not 0."""
    surface: Literal["boundary", "middle"] = "boundary"
    """`boundary`: where the segmentation begins; inside is what it fills. `middle`: the middle of a segmentation that
    is itself a sheet, such as a membrane; inside is the side towards which it is bent, the lumen of a vesicle."""
    distance: _Distance | Annotated[list[_Distance], MinLen(2), MaxLen(2)] | None = None
    """Largest distance in Å, or the smallest and the largest: to the surface, or between two picks."""
    smoothing: float = Field(default=30.0, gt=0, le=10_000)
    """Standard deviation in Å of the Gaussian that smooths the segmentation before its normals are taken."""
    orient: bool = False
    """Turn each pick, by the smallest angle, so that its z axis is the outward normal at the nearest point of the
    surface."""
    partners: str | list[str] | None = None
    """The other picks, as in `picks`. Default: the same picks."""
    pairs: Literal["nearest", "all"] = "nearest"
    """`nearest`: two picks are a pair if each is the other's nearest. `all`: any two within the distance."""
    object: ObjectName | None = None
    """Name of what is written. Default: the object of the picks; of a label its object, or else the name of the
    segmentation."""
    runs: Annotated[list[RunName] | None, IN_ANOTHER_FORM] = None
    """These runs alone. Default: every run that has what is read."""
    user: Annotated[Name | None, IN_ANOTHER_FORM] = None
    """User of what is written. Default: `localize.user`."""
    session: Annotated[Name | None, IN_ANOTHER_FORM] = None
    """Session of what is written. Default: the name of the extraction."""

    @property
    def needs_picks(self) -> bool:
        """Whether it chooses among picks."""
        return "picks" in _TAKES[self.kind].others

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest distance in Å; infinite where there is no limit."""
        if isinstance(self.distance, list):
            return self.distance[0], self.distance[1]
        return 0.0, math.inf if self.distance is None else self.distance

    @field_validator("distance")
    @classmethod
    def _check_distance(cls, value: float | list[float] | None) -> float | list[float] | None:
        if isinstance(value, list) and value[0] >= value[1]:
            raise ValueError(f"{value[0]:g} and {value[1]:g} are not in rising order")
        return value

    @field_validator("picks", "partners", mode="before")
    @classmethod
    def _read_picks(cls, value: Any, info: ValidationInfo) -> Any:
        return read_sources(cls, info.field_name or "", value)

    @field_validator("picks", "partners")
    @classmethod
    def _check_picks(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list):
            for entry in value:
                check_segmentation_source(entry)
        return value if value is None else check_sources(value)

    @field_validator("segmentation", mode="before")
    @classmethod
    def _read_segmentation(cls, value: Any) -> Any:
        return read_segmentation_source(cls, "segmentation", value)

    @field_validator("segmentation")
    @classmethod
    def _check_segmentation(cls, value: str | None) -> str | None:
        return check_segmentation_source(value)

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        takes = _TAKES[self.kind]
        for name in takes.needed:
            if getattr(self, name) is None:
                raise ValueError(f"kind {self.kind} needs {name}")
        for name, field in type(self).model_fields.items():
            if name not in (*_OF_ALL, *takes.needed, *takes.others) and getattr(self, name) != field.default:
                raise ValueError(f"kind {self.kind} takes no {name}; expected {', '.join(takes.needed + takes.others)}")
        return self
