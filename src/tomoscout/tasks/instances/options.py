"""Options of instance segmentation: annotations, training, and what is segmented."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tomoscout.explore.options import Explore, Space
from tomoscout.learning.augmentations import Augmentation
from tomoscout.learning.options import Training
from tomoscout.options.names import Name
from tomoscout.options.sections import HOW_MANY, IN_ANOTHER_FORM, WHERE_IT_RUNS, FilePath, NotSearched, Section
from tomoscout.tasks.instances.annotation_options import Annotations, Division, Micrometres


class CellAugmentation(Augmentation):
    """Random changes to every crop, made on the training device; 0 or false turns one off. Images of cells may be
    turned any way, and their brightness says little."""

    rotate90: bool = True
    """Quarter turns."""
    rotate: float = Field(default=45.0, ge=0, le=180)
    """Turn by up to ± this many degrees."""
    tilt: float = Field(default=0.0, ge=0, le=0)
    """For volumes alone."""
    zoom: float = Field(default=0.2, ge=0, lt=1)
    """Magnify by a factor from 1 ± this."""
    intensity_scale: float = Field(default=0.4, ge=0, lt=1)
    """Multiply intensities by a factor from 1 ± this."""
    intensity_shift: float = Field(default=0.2, ge=0)
    """Add an offset of up to ± this, where 0 and 1 are the percentiles of the normalisation."""
    noise: float = Field(default=0.05, ge=0)
    """Add Gaussian noise of up to this standard deviation."""
    mixup: Annotated[float, Field(ge=0, le=0)] = 0.0
    """Not for instances: a blend of two images has no instances of its own."""


_LEARNING_RATES = {"stardist": 3e-4, "cellpose": 5e-3}
"""The default learning rates of the packages."""
_STARDIST_SIZES = 16
"""StarDist's network halves four times, as it works on a grid of 2 × 2 pixels."""
_ONE_BACKEND = NotSearched("all trials train tomoscout's own networks")

_FOR_TOMOGRAMS = ("augmentation.tilt", "augmentation.mixup")


class CellTraining(Training):
    """How a network learns to tell instances apart. A step is one optimiser update."""

    DIMENSIONS = 2
    SPACE: ClassVar[dict[str, Any]] = {
        **{name: entry for name, entry in Training.SPACE.items() if name not in _FOR_TOMOGRAMS},
        "head": {"choices": ["star", "flow"]},
        "inside_loss": {"choices": ["entropy", "entropy-dice"]},
        "shape_weight": {"low": 0.25, "high": 4.0, "log": True},
    }

    name: Annotated[Name, HOW_MANY, NotSearched("trials have names of their own")] = "cells"
    """Name of the model: `results/models/{name}/`."""
    head: Literal["star", "flow"] = "flow"
    """How instances are told apart. star: by their distance to the border along rays, for round objects such as nuclei
    and vesicles. flow: by a field that leads to the middle of each object, for objects of any shape."""
    rays: int = Field(default=32, ge=8, le=256)
    """Rays of the star head."""
    inside_loss: Literal["entropy", "entropy-dice"] = "entropy"
    """Loss of whether a voxel lies in an object: cross-entropy, or that and a Dice loss, which counts rare objects
    more."""
    shape_weight: float = Field(default=1.0, gt=0, le=1000)
    """Weight of what tells objects apart (distances or flow) in the loss, against whether a voxel lies in one."""
    patch: list[int] | Literal["auto"] = [128, 128]
    """Crop size in voxels, (z,) y, x: multiples of what the network halves, and larger than most objects."""
    steps: int = Field(default=4000, ge=1, le=10**9)
    """Optimiser updates, unless `epochs` says how long to train."""
    epochs: Annotated[int | None, NotSearched("trials have the steps of cells.train")] = Field(
        default=None, ge=1, le=10**6
    )
    """Length of the training in epochs. An epoch draws as many crops as there are training images, times
    augmentation_factor."""
    augmentation_factor: Annotated[float, NotSearched("it is the length of an epoch")] = Field(
        default=1.0, gt=0, le=1000
    )
    """Crops that an epoch draws for each training image, on average. Every crop is changed anew whenever it is drawn:
    2 shows the network twice as many different ones in an epoch."""
    augmentation: CellAugmentation = CellAugmentation()
    backend: Annotated[Literal["tomoscout", "stardist", "cellpose"], _ONE_BACKEND] = "tomoscout"
    """What trains: tomoscout, or the packages stardist 0.9 and cellpose 3.1, for models that these and
    Celldetective load. Of the options these take steps, batch_size, patch, seed, device, learning_rate (default: 3e-4
    for stardist, 5e-3 for cellpose), stardist also rays, validate_every (the steps of an epoch, default 100) and of the
    augmentation flip, rotate90, intensities and noise; docs/cells.md says more."""
    python: Annotated[FilePath | None, WHERE_IT_RUNS, _ONE_BACKEND] = None
    """Python that has the package of the back end. Default: that of `make .venv/stardist` or `make .venv/cellpose`, or
    of the image."""

    @property
    def computes_on(self) -> Literal["auto", "cpu", "cuda"]:
        """Where it trains: the environment of stardist has TensorFlow for the CPU alone, so auto means cpu there."""
        return "cpu" if self.backend == "stardist" and self.device == "auto" else self.device

    @model_validator(mode="before")
    @classmethod
    def _take_their_learning_rate(cls, values: Any) -> Any:
        # Here, since the jobs of a workflow read a configuration with all values filled in.
        if not isinstance(values, dict) or values.get("backend") not in _LEARNING_RATES:
            return values
        return {"learning_rate": _LEARNING_RATES[values["backend"]], **values}

    @model_validator(mode="after")
    def _check_backend(self) -> Self:
        if self.backend == "tomoscout":
            return self
        if self.base is not None:
            raise ValueError(f"base is for backend: tomoscout; {self.backend} trains from the start")
        if self.patch == "auto":
            raise ValueError(f"patch: auto is for backend: tomoscout; give {self.backend} numbers of pixels")
        if self.backend == "stardist" and any(size % _STARDIST_SIZES for size in self.patch):
            raise ValueError(f"patch {self.patch} must be multiples of {_STARDIST_SIZES} for stardist")
        if self.backend == "cellpose" and self.patch[0] != self.patch[1]:
            raise ValueError(f"patch {self.patch} must be as wide as it is high for cellpose")
        return self

    def in_steps(self, images: int) -> Self:
        """The options with the length of the training in steps, for so many training images."""
        if self.epochs is None:
            return self
        steps = math.ceil(self.epochs * self.augmentation_factor * images / self.batch_size)
        return self.model_copy(update={"steps": steps, "epochs": None, "augmentation_factor": 1.0})


class CellVolumeAugmentation(CellAugmentation):
    """Random changes to every crop of a volume, made on the training device; 0 or false turns one off. None of the
    defaults moves the missing wedge of a tomogram to another axis."""

    rotate90: bool = False
    """Quarter turns about z."""
    rotate: float = Field(default=10.0, ge=0, le=180)
    """Turn about z by up to ± this many degrees."""
    tilt: float = Field(default=5.0, ge=0, le=90)
    """Tilt about y and x by up to ± this many degrees."""


class CellVolumeTraining(CellTraining):
    """How a network learns to tell instances in volumes apart: `cells.train` where `cells.dimensions` is 3."""

    DIMENSIONS = 3
    SPACE: ClassVar[dict[str, Any]] = {**CellTraining.SPACE, "augmentation.tilt": Training.SPACE["augmentation.tilt"]}

    patch: list[int] | Literal["auto"] = [48, 96, 96]
    batch_size: int = Field(default=2, ge=1, le=100_000)
    augmentation: CellVolumeAugmentation = CellVolumeAugmentation()


class CellExplore(Explore):
    """A search for the best training on annotated images: many short trainings, each with what the ones before it
    suggest. Same settings and images, same trials, however many run at once; other settings make another study."""

    SECTION = "cells"

    name: Name = "cells"
    """Name of the study: `results/explore/{name}-{digest}/`. The digest stands for all options that decide on its
    trials; with other images it needs another name."""
    space: Annotated[Space, IN_ANOTHER_FORM] = {}
    """Changes to what is searched besides: entries by name of an option of `cells.train`, such as `head` or
    `augmentation.rotate`, in the form of `explore.space`. A plain value is the same in every trial: `head: flow`; null
    takes `cells.train`'s."""
    top: Annotated[int, HOW_MANY] = Field(default=1, ge=1)
    """The best so many are kept as `best`, `best-2` and so on; `cells.segment.model: explored` applies the first."""


class CellSegment(Section):
    """What is segmented with a model."""

    images: list[FilePath] = []
    """Images, or folders of them, to be segmented by `snakemake segment_cells`."""
    channels: list[str] = []
    """Names of the images' channels, in order. Default: the model's first input, for images of one channel."""
    calibration: Micrometres | None = None
    """µm per pixel of the images."""
    model: FilePath | None = None
    """A model folder, the name of one in the library, or `explored`: the best of `cells.explore`. Default: that of
    `cells.train`."""
    format: Literal["tif", "zarr"] = "tif"
    """Labels are written as TIFF or OME-Zarr."""
    tomogram: str | None = None
    """Kind of the tomograms of the projects to be segmented by `snakemake segment_instances`, `algorithm@spacing`."""
    segmentation: Name = "instances"
    """Name of the segmentation that is written for each of these; its user is
    `localize.user`, its session the name of the model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to segment."""


class CellExport(Section):
    """The package of bioimage.io that `snakemake export_cells` makes of the model that segments."""

    authors: list[str] = []
    """Names of those who made the model."""
    licence: str = "CC-BY-4.0"
    """Its licence, as SPDX names it."""


class Cells(Annotations):
    """Instance segmentation of cells in images, and of organelles and vesicles in volumes. Without `annotations` there
    is none."""

    division: Division = Division()
    train: CellTraining = CellTraining()
    explore: CellExplore = CellExplore()
    segment: CellSegment = CellSegment()
    export: CellExport = CellExport()
    library: FilePath | None = None
    """Folder of your models: each training that ends is copied there under its name. Default: `results/models`
    alone."""

    @model_validator(mode="after")
    def _check_backend(self) -> Self:
        if self.dimensions != CellTraining.DIMENSIONS and self.train.backend != "tomoscout":
            raise ValueError(f"train.backend: {self.train.backend} takes images alone, not with dimensions: 3")
        return self

    @field_validator("train", mode="before")
    @classmethod
    def _read_train(cls, value: Any, info: ValidationInfo) -> Any:
        """A training in volumes has other defaults."""
        kind = CellVolumeTraining if info.data.get("dimensions") == CellVolumeTraining.DIMENSIONS else CellTraining
        if type(value) is kind or not isinstance(value, dict | CellTraining):
            return value
        return kind.model_validate(value if isinstance(value, dict) else value.model_dump(exclude_unset=True))
