"""The part of a model folder that belongs to picking: classes with radii and thresholds, and options of the
decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from tomoscout.machine.errors import TomoscoutError
from tomoscout.models.folder import Described, Model, ensemble_digest
from tomoscout.options.names import Source
from tomoscout.options.sections import Fraction
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking.options import Picking


class _Class(BaseModel):
    """A class in `model.yaml`; a particle has both radii and a threshold, a continuous class none of them."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str = Field(min_length=1)
    label: int
    radius: PositiveFloat | None
    target_radius: PositiveFloat | None
    sources: list[str]
    threshold: Fraction | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({value is None for value in (self.radius, self.target_radius, self.threshold)}) > 1:
            raise ValueError(f"class '{self.name}' has not all of radius, target_radius and threshold, nor none")
        return self

    def to_class(self) -> TargetClass:
        sources = tuple(map(Source.parse, self.sources))
        return TargetClass(self.name, self.label, self.radius, self.target_radius, sources)


class _PickingForm(Described):
    classes: list[_Class] = Field(min_length=1)
    voxel_spacings: list[PositiveFloat] = Field(min_length=1)
    patch: list[PositiveInt]
    picking: Picking

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, value: list[_Class]) -> list[_Class]:
        """Labels must be the channels of the network, 1 to C in order."""
        if [entry.label for entry in value] != list(range(1, len(value) + 1)):
            raise ValueError(f"labels {[entry.label for entry in value]}, expected 1 to {len(value)} in order")
        if len({entry.name for entry in value}) < len(value):
            raise ValueError(f"two classes of one name among {', '.join(entry.name for entry in value)}")
        return value


@dataclass(frozen=True)
class PickingModel(Model):
    """A picking model. `thresholds` are by class name; `voxel_spacings` are those of the training tomograms, in Å;
    `patch` is the crop (z, y, x) of the training in voxels."""

    HEAD = "picking"
    FORM = _PickingForm

    classes: tuple[TargetClass, ...]
    thresholds: dict[str, float]
    voxel_spacings: tuple[float, ...]
    patch: tuple[int, ...]
    picking: Picking

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self.classes)

    def described(self) -> dict[str, Any]:
        return {
            "classes": [
                entry.to_json() | ({"threshold": self.thresholds[entry.name]} if entry.is_particle else {})
                for entry in self.classes
            ],
            "voxel_spacings": list(self.voxel_spacings),
            "normalisation": self.NORMALISATION,
            "patch": list(self.patch),
            "picking": self.picking.model_dump(),
        }

    @classmethod
    def from_described(cls, common: Mapping[str, Any], described: _PickingForm) -> Self:
        return cls(
            **common,
            classes=tuple(entry.to_class() for entry in described.classes),
            thresholds={entry.name: entry.threshold for entry in described.classes if entry.threshold is not None},
            voxel_spacings=tuple(described.voxel_spacings),
            patch=tuple(described.patch),
            picking=described.picking,
        )


def read_ensemble(folders: Sequence[Path]) -> tuple[PickingModel, list[PickingModel]]:
    """Read the models of an ensemble. Returns the ensemble as one model, with the means of the thresholds and the voxel
    spacings that all were trained at, and its members.

    Raises:
        TomoscoutError: a model cannot be read, or they differ in classes, radii or decoding.
    """
    members = [PickingModel.read(folder) for folder in folders]
    first = members[0]
    for folder, member in zip(folders, members, strict=True):
        if member.class_names != first.class_names:
            raise TomoscoutError(
                f"{folder}: finds {', '.join(member.class_names)}, but {folders[0]} {', '.join(first.class_names)}; "
                "an ensemble needs the same classes in one order"
            )
        if member.picking != first.picking or [e.radius for e in member.classes] != [e.radius for e in first.classes]:
            raise TomoscoutError(f"{folder}: its picks are made otherwise than those of {folders[0]} (picking, radii)")
    if len(members) == 1:
        return first, members
    shared = set.intersection(*(set(member.voxel_spacings) for member in members))
    thresholds = {name: float(np.mean([m.thresholds[name] for m in members]).round(3)) for name in first.thresholds}
    together = replace(
        first,
        name=" + ".join(member.name for member in members),
        thresholds=thresholds,
        voxel_spacings=tuple(sorted(shared)),
        weights_digest=ensemble_digest(members),
    )
    return together, members
