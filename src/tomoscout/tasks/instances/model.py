"""The part of a model folder that belongs to instance segmentation: what images must be like, and how instances are
decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt

from tomoscout.models.folder import Described, Model
from tomoscout.tasks.instances.annotation_options import Normalisation
from tomoscout.tasks.instances.head_of import head_of
from tomoscout.tasks.instances.heads import Head


class _CellForm(Described):
    told_apart_by: Literal["star", "flow"]
    rays: PositiveInt | None
    channels: list[str] = Field(min_length=1)
    normalisations: list[Normalisation] = Field(min_length=1)
    calibration: PositiveFloat | None
    rescale_tolerance: float
    thresholds: dict[str, float]
    patch: list[PositiveInt] = Field(min_length=2, max_length=3)


@dataclass(frozen=True)
class CellModel(Model):
    """A model of instances in images or volumes.

    `inputs`: names of the channels that the network takes, in order. `normalisations`: one for each. `calibration`: µm
    per voxel at which it works; None if images are taken as they are. `patch`: the crop ((z,) y, x) of the training
    in voxels.
    """

    HEAD = "cells"
    NORMALISATION = "per channel"
    FORM = _CellForm

    told_apart_by: Literal["star", "flow"]
    rays: int | None
    inputs: tuple[str, ...]
    normalisations: tuple[Normalisation, ...]
    calibration: float | None
    rescale_tolerance: float
    thresholds: dict[str, float]
    patch: tuple[int, ...]

    @property
    def dimensions(self) -> int:
        return len(self.patch)

    @property
    def head(self) -> Head:
        """What decodes its predictions."""
        return head_of(self.told_apart_by, self.rays, self.dimensions)

    @property
    def kind(self) -> str:
        """What tells instances apart, in words."""
        rays = f" of {self.rays} rays" if self.rays else ""
        return f"{self.told_apart_by.capitalize()} head{rays}, {self.network.family}"

    @property
    def channels(self) -> int:
        return len(self.inputs)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.head.names

    def described(self) -> dict[str, Any]:
        return {
            "told_apart_by": self.told_apart_by,
            "rays": self.rays,
            "channels": list(self.inputs),
            "normalisation": self.NORMALISATION,
            "normalisations": [entry.model_dump(mode="json") for entry in self.normalisations],
            "calibration": self.calibration,
            "rescale_tolerance": self.rescale_tolerance,
            "thresholds": self.thresholds,
            "patch": list(self.patch),
        }

    @classmethod
    def from_described(cls, common: Mapping[str, Any], described: _CellForm) -> Self:
        return cls(
            **common,
            told_apart_by=described.told_apart_by,
            rays=described.rays,
            inputs=tuple(described.channels),
            normalisations=tuple(described.normalisations),
            calibration=described.calibration,
            rescale_tolerance=described.rescale_tolerance,
            thresholds=described.thresholds,
            patch=tuple(described.patch),
        )
