"""Options of annotated images: where they lie, how they are prepared for the network, how they are divided."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from tomoscout.options import names as copick
from tomoscout.options.names import Named
from tomoscout.options.sections import FilePath, Fraction, Section, as_meant, note_change

SourceName = Annotated[str, Field(pattern=r"^[^/\s.][^/\s]*$"), Named(by_copick=False)]
"""The name of a source of annotated images in the configuration; a folder of pictures gets this name, too."""
Micrometres = Annotated[float, Field(gt=0, le=10_000)]
"""µm per voxel."""


class Source(Section):
    """Annotated images: a folder of them, or annotated tomograms of the projects."""

    folder: FilePath | None = None
    """The folder: that of an export (`X.tif`, `X_labelled.tif`, `X.json`), pairs with other endings (`_labels`,
    `_mask`), or the folders `images` and `labels` (or `masks`)."""
    segmentation: str | None = None
    """In place of a folder: a segmentation of tomograms, `name` or `name:user/session`, in which every object has a
    number of its own. Runs without it are passed over."""
    tomogram: str | None = None
    """The kind of these tomograms, `algorithm@spacing in Å`."""
    sample: Literal["nuclei"] | None = None
    """In place of a folder: the annotated image, or volume, of nuclei that comes with the package stardist."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """How often its images are drawn, against those of other folders."""
    channels: list[str] | None = None
    """Names of the channels of its images, in order, where no sidecar gives them. Default: red, green, blue of a colour
    image, else 1, 2, …."""
    calibration: Micrometres | None = None
    """µm per voxel, where no sidecar gives it."""
    group: str | None = None
    """Regular expression, searched for in the name of an image: images with the same match (that of its first group,
    where it has one) are never divided between training, validation and test. Default: experiment, well and position
    of exported images, else each image alone."""

    @field_validator("segmentation")
    @classmethod
    def _check_segmentation(cls, value: str | None) -> str | None:
        return value if value is None else str(copick.Source.parse(value))

    @field_validator("tomogram")
    @classmethod
    def _check_tomogram(cls, value: str | None) -> str | None:
        return value if value is None else str(copick.TomogramUri.parse(value))

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if sum(entry is not None for entry in (self.folder, self.segmentation, self.sample)) != 1:
            raise ValueError("give one of folder, segmentation (with tomogram), and sample")
        if (self.segmentation is None) != (self.tomogram is None):
            raise ValueError("segmentation and tomogram belong together; give both, or neither")
        return self

    @field_validator("group")
    @classmethod
    def _check_group(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"'{value}' is not a regular expression ({error})") from None
        return value


class Normalisation(Section):
    """How the intensities of a channel are brought to about 0…1. Voxels of exactly 0 stay 0."""

    percentile: list[Annotated[float, Field(ge=0, le=100)]] = Field(default=[1.0, 99.8], min_length=2, max_length=2)
    """Percentiles that become 0 and 1, of the voxels that are not exactly 0."""
    values: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """Intensities that become 0 and 1, in place of the percentiles."""
    clip: bool = False
    """Cut off what lies below 0 and above 1."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        for low, high in filter(None, (self.percentile, self.values)):
            if low >= high:
                raise ValueError(f"{low:g} and {high:g} are not in rising order")
        return self


class Annotations(Section):
    """The annotated images, and what the network sees of them."""

    annotations: dict[SourceName, Source] = {}
    """Name → folder of annotated images, or a mapping of options, for tomograms too."""
    channels: list[str] = []
    """The inputs of the network: names of channels in order, in capitals or not. None is black, as is a channel that
    some images lack. Default: the only channel of the images."""
    normalisation: list[Normalisation] = Field(default=[Normalisation()], min_length=1)
    """One for all channels, or a list with one for each."""
    calibration: Micrometres | None = None
    """µm per voxel at which the network works; images are rescaled to it. Default: the median of the annotations."""
    rescale_tolerance: Fraction = 0.05
    """An image is not rescaled if its calibration differs by no more than this fraction."""
    uncalibrated: bool = False
    """Accept images without a calibration; these are never rescaled."""
    dimensions: Literal[2, 3] = 2
    """2: images. 3: volumes and tomograms."""

    @field_validator("annotations", mode="before", json_schema_input_type=dict[SourceName, str | Source])
    @classmethod
    def _read_folders(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        meant = as_meant(value, dict[SourceName, Source])
        if meant is not value:
            note_change(cls, "annotations", value, meant)
        return {name: {"folder": entry} if isinstance(entry, str) else entry for name, entry in meant.items()}

    @field_validator("normalisation", mode="before", json_schema_input_type=Normalisation | list[Normalisation])
    @classmethod
    def _read_normalisation(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict | Normalisation) else value

    @model_validator(mode="after")
    def _check_normalisation(self) -> Self:
        inputs = max(1, len(self.channels))
        if len(self.normalisation) not in (1, inputs):
            raise ValueError(
                f"{len(self.normalisation)} normalisations for {inputs} channels; give one, or one for each"
            )
        return self

    def normalisations(self) -> list[Normalisation]:
        """The normalisation of each input of the network."""
        inputs = max(1, len(self.channels))
        return self.normalisation if len(self.normalisation) == inputs else self.normalisation * inputs


class Division(Section):
    """How annotated images are divided into those that train, that choose the model, and that test it."""

    model_config = ConfigDict(populate_by_name=True)

    validate_: float = Field(default=0.2, gt=0, lt=1, alias="validate")
    """Share of the images that choose the model."""
    test: float = Field(default=0.1, ge=0, lt=1)
    """Share of the images that neither train nor choose the model."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of the random division."""

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        if self.validate_ + self.test >= 1:
            raise ValueError(f"validate ({self.validate_:g}) and test ({self.test:g}) leave no images to train on")
        return self
