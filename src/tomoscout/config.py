"""Every option of tomoscout, defined once: name, type, default, unit and meaning.

The workflow, the command line and the files in `config/` all come from here.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tomoscout.errors import TomoscoutError

# Copick replaces these in names, so a name that holds one would not be found again.
_NAME = r"^[^<>:\"/\\|?*\s_\x00-\x1f\x7f]+$"
Name = Annotated[str, Field(pattern=_NAME)]
ProjectName = Annotated[str, Field(pattern=r"^[^/:\s]+$")]
Fraction = Annotated[float, Field(ge=0, le=1)]


class TomogramUri(NamedTuple):
    """A kind of tomogram: `algorithm@voxel spacing in Å`."""

    algorithm: str
    voxel_spacing: float

    @classmethod
    def parse(cls, text: str) -> TomogramUri:
        """Read `wbp@10.0`.

        Raises:
            ValueError: the text has another form.
        """
        match = re.fullmatch(r"([^@:\s]+)@([0-9.]+)", text.strip())
        if not match:
            raise ValueError(f"'{text}' is not a tomogram URI; expected algorithm@spacing, such as wbp@10.0")
        return cls(match[1], float(match[2]))

    def __str__(self) -> str:
        return f"{self.algorithm}@{self.voxel_spacing}"


class Source(NamedTuple):
    """Where picks or a segmentation come from. `user` and `session` are None where any will do."""

    name: str
    user: str | None
    session: str | None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read `name`, `name:user/session` or the older `name,user,session`.

        Raises:
            ValueError: the text has another form.
        """
        match = re.fullmatch(r"([^:/,\s]+)(?:(?::([^:/,\s]+)/([^:/,\s]+))|(?:,([^:/,\s]+),([^:/,\s]+)))?", text.strip())
        if not match:
            raise ValueError(f"'{text}' is not a source; expected name, name:user/session or name,user,session")
        return cls(match[1], match[2] or match[4], match[3] or match[5])

    def __str__(self) -> str:
        return self.name if self.user is None else f"{self.name}:{self.user}/{self.session}"


def split_ratios(value: Any) -> Any:
    """`0.8`, `"0.7,0.1"` or `[0.7, 0.1]` → a list of fractions."""
    if isinstance(value, str):
        return [float(part) for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value


class Section(BaseModel):
    """A group of options. Unknown keys are refused with the nearest known one."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in values:
                if key not in known and key not in cls.model_fields:
                    near = difflib.get_close_matches(str(key), known, n=1)
                    hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
                    raise ValueError(f"unknown key '{key}'; {hint}")
        return values


class Targets(Section):
    """What the network is to learn."""

    picks: str | list[str] = []
    """`user/session`: every pickable object that has picks of this user and session. Or a list of objects:
    `name`, `name:user/session` or `name,user,session`; one object may be listed with several sources."""
    segmentations: list[str] = []
    """Membranes, organelles and other continuous classes: a list of `name:user/session`. Particles win over them."""
    runs: list[str] | None = None
    """Make targets for these runs alone (`run` or `project/run`), even where they have no picks at all. Default:
    every run that has picks or a segmentation of the sources above, empty ones included."""
    radius_scale: float = Field(default=0.8, gt=0, le=2)
    """Target radius = object radius × this. Below 1 neighbouring particles stay apart."""
    name: Name = "targets"
    """Name of the multilabel segmentation written."""
    user: Name = "tomoscout"
    """User of the multilabel segmentation written."""
    session: Name = "1"
    """Session of the multilabel segmentation written."""
    allow_missing_chunks: bool = False
    """Accept source segmentations whose zarr lacks chunks (some writers leave empty ones out). By default a
    missing chunk counts as a truncated file."""

    @field_validator("picks")
    @classmethod
    def _check_picks(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str):
            if ":" in value or "," in value:
                return cls._check_picks([value])
            if not re.fullmatch(r"[^:/,\s]+/[^:/,\s]+", value):
                raise ValueError(f"'{value}' is not user/session (such as data-portal/0) and not a list of sources")
        else:
            for entry in value:
                Source.parse(entry)
        return value

    @field_validator("segmentations")
    @classmethod
    def _check_segmentations(cls, value: list[str]) -> list[str]:
        for entry in value:
            Source.parse(entry)
        return value


class Split(Section):
    """Which runs train, which choose the model, which test it. Runs are `run`, or `project/run` where two
    projects share a run name."""

    name: Name = "default"
    """Name of the split: `results/splits/{name}.json`."""
    ratios: list[Fraction] = [0.7, 0.1]
    """`0.8`: train and validation. `0.7,0.1`: train, validation, and the rest is the test set."""
    train: list[str] | None = None
    """Explicit training runs."""
    validate_: list[str] | None = Field(default=None, alias="validate")
    """Explicit validation runs."""
    test: list[str] | None = None
    """Explicit test runs, never seen by training or model choice."""
    folds: int | None = Field(default=None, ge=2)
    """Cross-validation with this many folds over all runs that are not test runs."""
    leave_one_out: bool = False
    """Cross-validation with one run (or group) left out per fold."""
    fold: int = Field(default=0, ge=0)
    """Which fold a single training uses."""
    group_pattern: str | None = None
    """Regular expression with one group, matched against the run name: runs whose group is the same (one
    grid, one session) are never divided between train, validation and test."""
    seed: int = 42
    """Seed of the random assignment."""
    exclude: dict[str, str] = {}
    """Runs to leave out, each with the reason."""
    negatives: list[str] = []
    """Runs without any picks to train on as true negatives."""

    model_config = ConfigDict(populate_by_name=True)

    @field_validator("ratios", mode="before")
    @classmethod
    def _split_ratios(cls, value: Any) -> Any:
        return split_ratios(value)

    @field_validator("exclude", mode="before")
    @classmethod
    def _exclude_list(cls, value: Any) -> Any:
        return dict.fromkeys(value, "excluded in the config") if isinstance(value, list) else value

    @field_validator("ratios")
    @classmethod
    def _check_ratios(cls, value: list[float]) -> list[float]:
        # 0.7 + 0.2 + 0.1 is not 1 in floating point, so the sum is compared with room to spare.
        if not 1 <= len(value) <= 3 or sum(value) > 1 + 1e-6 or value[0] <= 0:
            raise ValueError(f"{value} are not one to three fractions of at most 1 in all")
        return value

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.folds and self.leave_one_out:
            raise ValueError("give folds or leave_one_out, not both")
        if (self.folds or self.leave_one_out) and (self.train or self.validate_):
            raise ValueError("folds choose train and validation themselves; only test can be listed beside them")
        return self

    @field_validator("group_pattern")
    @classmethod
    def _check_group_pattern(cls, value: str | None) -> str | None:
        try:
            if value is None or re.compile(value).groups == 1:
                return value
        except re.error as error:
            raise ValueError(f"'{value}' is not a regular expression ({error})") from None
        raise ValueError(f"'{value}' must hold exactly one (group)")


class Network(Section):
    """The network to train."""

    family: Literal["UNet"] = "UNet"
    """Family of networks."""
    channels: list[int] = Field(default=[16, 32, 64, 64], min_length=2)
    """Feature channels per level."""
    strides: list[int] = [2, 2, 2]
    """Downsampling between the levels, one fewer than channels."""
    residual_units: int = Field(default=1, ge=0)
    """Residual units per level; 0 for plain convolutions."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout fraction."""

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if len(self.strides) != len(self.channels) - 1:
            raise ValueError(
                f"{len(self.channels)} channels need {len(self.channels) - 1} strides, found {len(self.strides)}"
            )
        return self


class Augmentation(Section):
    """Random changes to every crop, made on the training device. None of the defaults moves the missing wedge to
    another axis."""

    flip: bool = True
    """Mirror along each axis with probability one half."""
    rotate90: bool = False
    """Quarter turns about the beam axis. Carries the missing wedge from x to y: only for wedge-free data."""
    intensity_scale: float = Field(default=0.1, ge=0, lt=1)
    """Multiply intensities by a factor from 1 ± this."""
    intensity_shift: float = Field(default=0.1, ge=0)
    """Add an offset of up to ± this, in standard deviations of the tomogram."""
    noise: float = Field(default=0.1, ge=0)
    """Add Gaussian noise of up to this many standard deviations."""


class Picking(Section):
    """How validation turns probabilities into picks and counts them. Kept with the model, so that picks are made as
    they were when its thresholds were chosen."""

    smoothing: float = Field(default=0.6, ge=0, le=2)
    """Standard deviation of the Gaussian that smooths probabilities, as a fraction of the target radius."""
    separation: float = Field(default=1.0, gt=0, le=4)
    """Two picks of an object lie at least this many radii apart."""
    distance: float = Field(default=0.5, gt=0)
    """A pick matches a reference pick within this many radii."""


class Train(Section):
    """How a model is trained. A step is one optimiser update."""

    name: Name = "unet"
    """Name of the model: `results/models/{name}/`."""
    network: Network = Network()
    augmentation: Augmentation = Augmentation()
    picking: Picking = Picking()
    steps: int = Field(default=10_000, ge=1)
    """Optimiser updates in all."""
    batch_size: int = Field(default=8, ge=1)
    """Crops per step, drawn from all training tomograms alike."""
    patch: list[int] = Field(default=[64, 64, 64], min_length=3, max_length=3)
    """Crop size in voxels, z, y, x. Each a multiple of the product of the strides."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW; cosine decay to a hundredth of it."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Weight decay of AdamW."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Fraction of the steps over which the learning rate rises to its peak."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    ema_decay: float = Field(default=0.995, ge=0, lt=1)
    """Decay per step of the averaged weights that are validated and kept; ramped up at the start. 0 turns it off."""
    foreground_weight: float = Field(default=8.0, gt=0)
    """Weight of a voxel of any class against a background voxel in the cross-entropy."""
    size_balance: float = Field(default=1.0, ge=0, le=3)
    """How far small objects are favoured: a voxel counts foreground_weight × (largest radius / own radius) to this
    power. 0 treats all voxels alike, 3 all objects."""
    background_fraction: float = Field(default=0.1, ge=0, le=1)
    """Fraction of crops drawn at random places; the others are centred near a particle, every class as often."""
    validate_every: int = Field(default=500, ge=1)
    """Steps between validations on the whole validation tomograms."""
    beta: float = Field(default=4.0, gt=0)
    """F-beta that chooses the best model and the thresholds; 4 counts a missed particle far more than a false one."""
    checkpoint_seconds: float = Field(default=60, ge=0)
    """Seconds between checkpoints. Does not change the result, only what a killed job loses."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    seed: int = Field(default=42, ge=0)
    """Seed of weights, crops and augmentation."""

    @model_validator(mode="after")
    def _check_patch(self) -> Self:
        step = 1
        for stride in self.network.strides:
            step *= stride
        if any(size % step or size < 2 * step for size in self.patch):
            raise ValueError(
                f"patch {self.patch} must be multiples of {step} (the product of the strides), but not {step}"
            )
        if self.augmentation.rotate90 and self.patch[1] != self.patch[2]:
            raise ValueError(f"augmentation.rotate90 needs a patch as wide as it is high, found {self.patch} (z, y, x)")
        return self


class Segment(Section):
    """How a model is applied to tomograms."""

    runs: list[str] | None = None
    """Apply to these runs alone. Default: every run that has the tomogram."""
    tomogram: str | None = None
    """Which kind of tomogram. Default: the first of `tomograms`."""
    tile: list[int] = Field(default=[160, 160, 160], min_length=3, max_length=3)
    """Largest tile in voxels, z, y, x; made smaller where memory is short."""
    overlap: float = Field(default=0.25, ge=0, lt=1)
    """Overlap of neighbouring tiles as a fraction of the tile."""
    flips: int = Field(default=1, ge=1, le=8)
    """Test-time augmentation: average over this many mirrored copies (1 = none, 8 = all)."""
    keep_probabilities: bool = True
    """Keep the class probabilities after picks are made from them. They let you try other thresholds without
    a GPU; without them a changed `localize` section segments again."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""

    @field_validator("tomogram")
    @classmethod
    def _check_uri(cls, value: str | None) -> str | None:
        return value if value is None else str(TomogramUri.parse(value))


class Localize(Section):
    """How probabilities become picks."""

    threshold: Fraction | dict[str, Fraction] | None = None
    """Smallest score of a pick, for all objects or per object. Default: the model's, chosen on the validation runs."""
    smoothing: float | None = Field(default=None, ge=0, le=2)
    """Another smoothing than the model's, as `train.picking.smoothing`."""
    separation: float | None = Field(default=None, gt=0, le=4)
    """Another separation than the model's, as `train.picking.separation`."""
    user: Name = "tomoscout"
    """User of the picks written."""
    session: Name | None = None
    """Session of the picks written. Default: the model's name."""


class Evaluate(Section):
    """How picks are scored against reference picks."""

    reference: str | list[str] | None = None
    """Reference picks, as in `targets.picks`. Default: the picks the targets were made from."""
    runs: Literal["test", "validate", "train", "all"] = "test"
    """Which part of the split is scored. `all` covers runs the model was trained on. Where the split has no test
    runs, the validation runs are scored and the report says so."""
    distance: float = Field(default=0.5, gt=0)
    """A prediction matches a reference pick within this many radii."""
    beta: float = Field(default=4.0, gt=0)
    """Beta of the F score."""
    counting: Literal["one-to-one", "challenge"] = "one-to-one"
    """one-to-one: a prediction and a reference are used once. challenge: the CZII challenge's counting, in which
    any prediction near a reference makes it found and all others are false."""
    weights: dict[str, float] = {}
    """Weight of an object in the overall score; 1 where none is given."""


class Report(Section):
    """The report."""

    title: str = "tomoscout"
    """Heading of the page."""
    slices_per_run: int = Field(default=3, ge=1, le=20)
    """Tomogram slices shown per scored run."""
    runs: int = Field(default=6, ge=1)
    """Largest number of runs shown."""


class Phantom(Section):
    """A project whose truth is known."""

    runs: int = Field(default=6, ge=1)
    """Number of tomograms."""
    shape: list[Annotated[int, Field(ge=1)]] = Field(default=[64, 192, 192], min_length=3, max_length=3)
    """Voxels z, y, x."""
    voxel_spacing: float = Field(default=10.0, gt=0)
    """Å per voxel."""
    particles: int = Field(default=12, ge=0)
    """Particles of every kind per tomogram, as far as they fit."""
    signal_to_noise: float = Field(default=0.15, gt=0)
    """Variance of the signal inside particles over the variance of the noise."""
    tilt_range: float = Field(default=60.0, gt=0, le=90)
    """Largest tilt in degrees; what lies beyond is the missing wedge."""
    defocus: list[Annotated[float, Field(gt=0)]] = Field(default=[2.0, 4.0], min_length=2, max_length=2)
    """Range of the defocus in µm; each run has its own."""
    membranes: int = Field(default=0, ge=0)
    """Vesicles per tomogram, written as a segmentation named membrane."""
    maps: dict[Name, str] = {}
    """Density maps (MRC) in place of the built-in shapes: object name → file."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""


class Config(Section):
    """The whole configuration. `projects`, `tomograms` and `targets.picks` are enough for a start."""

    projects: dict[ProjectName, str] = Field(min_length=1)
    """Copick projects: a name of yours → the path of its config file (relative to the working directory)."""
    tomograms: list[str] = Field(min_length=1)
    """Kinds of tomogram to train on, `algorithm@spacing in Å`; all of one voxel spacing."""
    runs_per_job: int = Field(default=10, ge=1)
    """Runs handled by one job of the stages that work run by run. Changing it later moves no run to another job."""
    targets: Targets = Targets()
    split: Split = Split()
    train: Train = Train()
    segment: Segment = Segment()
    localize: Localize = Localize()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    phantom: Phantom = Phantom()
    container: str = "containers/tomoscout.sif"
    """Image used with `--sdm apptainer`: a file or a registry address."""
    pathvars: dict[str, str] = {}
    """Snakemake's path variables, such as `results`, to write elsewhere."""

    @field_validator("tomograms")
    @classmethod
    def _check_tomograms(cls, value: list[str]) -> list[str]:
        uris = [TomogramUri.parse(entry) for entry in value]
        if len({uri.voxel_spacing for uri in uris}) > 1:
            raise ValueError(f"{', '.join(value)} differ in voxel spacing; list tomograms of one voxel spacing")
        return [str(uri) for uri in uris]

    @property
    def voxel_spacing(self) -> float:
        """Å per voxel of tomograms, targets and predictions."""
        return TomogramUri.parse(self.tomograms[0]).voxel_spacing

    @property
    def segment_tomogram(self) -> str:
        """The kind of tomogram that is segmented."""
        return self.segment.tomogram or self.tomograms[0]

    @property
    def session(self) -> str:
        """The session of predicted picks and segmentations."""
        return self.localize.session or self.train.name


def parse_config(values: object, origin: str) -> Config:
    """Validate a configuration; `origin` names it in messages.

    Raises:
        TomoscoutError: the first thing wrong, with its key.
    """
    if not isinstance(values, dict):
        raise TomoscoutError(f"{origin}: expected a mapping of options, found {type(values).__name__}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-")) or "top level"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "string_pattern_mismatch":
            message = 'a name must hold no space, no underscore and none of < > : " / \\ | ? *'
            if first["loc"][0] == "projects":
                message = "a name must hold no space, slash or colon"
        found = "" if first["type"] in ("missing", "value_error") else f", found {first['input']!r}"
        raise TomoscoutError(f"{origin}: {where}: {message}{found}") from None


def load_config(path: Path) -> Config:
    """Read and validate a YAML configuration file.

    Raises:
        TomoscoutError: the file is missing, is not YAML, or holds a bad option.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise TomoscoutError(f"{path}: no such configuration file") from None
    except yaml.YAMLError as error:
        raise TomoscoutError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    return parse_config(values, str(path))
