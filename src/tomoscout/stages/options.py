"""Options of the segment stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tomoscout.options.names import Name, RunName, TomogramUri
from tomoscout.options.sections import HOW_MANY, IN_ANOTHER_FORM, WHERE_IT_RUNS, FilePath, Precision, Section, Size
from tomoscout.phantom.options import PhantomTomograms, SignalToNoise
from tomoscout.plan.options import check_segmentation_source, read_segmentation_source


class PretrainingPhantom(PhantomTomograms):
    """What the phantoms are like. `maps` names a density map (MRC) for each object, unless a built-in shape has its
    name; maps of other names are particles that are not to be found."""

    runs: int = Field(default=9, ge=2, le=100_000)
    """Number of tomograms; the last of them validates."""
    signal_to_noise: SignalToNoise = [0.03, 0.3]
    """Variance of the signal inside particles over the variance of the noise. Of a range, each run has its own."""
    membranes: int = Field(default=2, ge=0, le=10_000)
    """Vesicles per tomogram, as particles lie beside membranes in cells."""


class Pretrain(Section):
    """A model that has seen phantoms alone, of the objects of the targets: a base for a training on few annotated
    tomograms."""

    name: Annotated[Name, HOW_MANY] = "pretrained"
    """Name of the model: `results/models/{name}/`, to be given as `train.base`."""
    phantom: PretrainingPhantom = PretrainingPhantom()
    steps: int | None = Field(default=None, ge=1)
    """Optimiser updates. Default: `train.steps`. All else of the training is as in `train`."""


class Segment(Section):
    """How a model is applied to tomograms."""

    runs: Annotated[list[RunName] | None, HOW_MANY] = None
    """Apply to these runs alone. Default: every run that has the tomogram."""
    models: Annotated[Literal["folds", "explored"] | list[FilePath] | None, IN_ANOTHER_FORM] = None
    """Which model is applied. Default: the one trained here. `folds`: all of the cross-validation together, an
    ensemble. `explored`: the best of the exploration, or its best `explore.top` together. Or a list of model folders
    from anywhere, and of models of octopi by their `model_config.yaml`, with `best_model.pth` beside it; several are an
    ensemble. With such a list `targets` can be left out: then nothing is trained."""
    tomogram: Annotated[str | None, IN_ANOTHER_FORM] = None
    """Which kind of tomogram. Default: the first of `tomograms`."""
    resample: bool = False
    """Apply a model to tomograms of another voxel spacing than it was trained at: each tile is brought to that of the
    model, and what is predicted is brought back. Models of several voxel spacings can be an ensemble then. Refused
    otherwise."""
    tile: list[Size] = Field(default=[192, 128, 128], min_length=3, max_length=3)
    """Largest tile in voxels, z, y, x; made smaller where fewer voxels are then computed twice, or memory is short. On
    a CPU a voxel takes a third longer in a tile of 192³ than in one of 64³, whose features stay in the cache, but small
    tiles overlap more often."""
    overlap: float = Field(default=0.15, ge=0, le=0.95)
    """Overlap of neighbouring tiles as a fraction of the tile."""
    mask: Annotated[str | None, IN_ANOTHER_FORM] = None
    """Segment only where this segmentation of the run, `name:user/session`, is not 0: the sample, a lamella, a cell.
    All else is background. Tiles without a voxel of it are not computed, so that a small mask saves most of the time.
    Taken at the tomogram's voxel spacing where there is one, else at the finest."""
    flips: int = Field(default=1, ge=1, le=8)
    """Test-time augmentation: average over this many mirrored copies (1 = none, 8 = all)."""
    quarter_turns: int = Field(default=1, ge=1, le=4)
    """Test-time augmentation: average over this many quarter turns about z, with the mirrored copies of each (1 = none,
    4 = all). The missing wedge turns with them: for models that have seen it in all directions."""
    memory_gb: float = Field(default=4.0, gt=0)
    """Main memory in GiB that a job may take. Where a tomogram would need more, tiles are made thinner."""
    precision: Precision = "auto"
    """Arithmetic of the network, as `train.precision`."""
    keep_probabilities: Annotated[bool, HOW_MANY] = True
    """Keep the class probabilities after picks are made from them. They let you try other thresholds without
    a GPU; without them a changed `localize` section segments again."""
    device: Annotated[Literal["auto", "cpu", "cuda"], WHERE_IT_RUNS] = "auto"
    """Where to run."""

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and not value:
            raise ValueError("an empty list; leave it out to apply the model that is trained here")
        return value

    @field_validator("mask", mode="before")
    @classmethod
    def _read_mask(cls, value: Any) -> Any:
        return read_segmentation_source(cls, "mask", value)

    @field_validator("mask")
    @classmethod
    def _check_mask(cls, value: str | None) -> str | None:
        return check_segmentation_source(value)

    @field_validator("tomogram")
    @classmethod
    def _check_uri(cls, value: str | None) -> str | None:
        return value if value is None else str(TomogramUri.parse(value))
