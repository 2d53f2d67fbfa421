"""Every option of tomoscout, defined once: name, type, default, unit and meaning.

The workflow, the command line and the files in `config/` all come from here.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from tomoscout.explore.options import Explore
from tomoscout.learning.options import Tracking
from tomoscout.machine.errors import TomoscoutError, cut, shown
from tomoscout.machine.files import digest
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.config_file import ConfigFile, WrittenNumber, as_written, read_config_file
from tomoscout.options.sections import (
    NAME_RULE,
    FilePath,
    Fraction,
    Name,
    Note,
    ObjectName,
    ProjectName,
    RunName,
    Section,
    as_meant,
    collected_notes,
    copick_name,
    expand_path,
    note_change,
)
from tomoscout.tasks.picking.options import Train

Size = Annotated[int, Field(ge=1, le=100_000)]


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
        match = re.fullmatch(r"([^@:\s]+)@(\d+\.?\d*|\.\d+)", text.strip())
        if not match:
            raise ValueError(f"'{cut(text)}' is not a tomogram URI; expected algorithm@spacing, such as wbp@10.0")
        if not 0 < float(match[2]) <= 10_000:
            raise ValueError(
                f"'{cut(text)}' has a spacing of {cut(match[2])} Å, expected more than 0 and at most 10,000"
            )
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
            raise ValueError(f"'{cut(text)}' is not a source; expected name, name:user/session or name,user,session")
        return cls(match[1], match[2] or match[4], match[3] or match[5])

    def __str__(self) -> str:
        return self.name if self.user is None else f"{self.name}:{self.user}/{self.session}"


def split_ratios(value: Any) -> Any:
    """`0.8`, `"0.7,0.1"` or `[0.7, 0.1]` → a list of fractions."""
    if isinstance(value, str):
        return [float(part) for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value


def read_sources(section: type[Section], key: str, value: Any) -> Any:
    """Sources as they may be given, alone or several with commas between them: a list, in copick's characters.
    `user/session` stays as it is, and so does what is no source at all."""
    single = isinstance(value, str)
    if single and key != "segmentations" and not re.search("[:,]", value):
        return _source_name(value)
    old_form = single and re.fullmatch(r"[^:/,]+,[^:/,]+,[^:/,]+", value)
    texts = [value] if old_form else value.split(",") if single else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return value
    taken = [_source_name(text) for text in texts]
    if [text.strip() for text in texts] != taken or (single and len(taken) > 1):
        note_change(section, key, value, taken)
    return taken


def check_sources(value: str | list[str]) -> str | list[str]:
    """Refuse what names no picks.

    Raises:
        ValueError: it is neither `user/session` nor a list of sources.
    """
    if isinstance(value, list):
        for entry in value:
            Source.parse(entry)
    elif not re.fullmatch(r"[^:/,\s]+/[^:/,\s]+", value):
        raise ValueError(f"'{cut(value)}' is not user/session (such as data-portal/0) and not a list of sources")
    return value


def _source_name(text: str) -> str:
    """A source with its names as copick writes them."""
    parts = re.split(r"\s*([:/,])\s*", text.strip())
    return "".join(part if part in tuple(":/,") else copick_name(part) for part in parts)


class Targets(Section):
    """What the network is to learn."""

    picks: str | list[str] = []
    """`user/session`: every pickable object that has picks of this user and session. Or a list of objects:
    `name`, `name:user/session` or `name,user,session`; one object may be listed with several sources."""
    segmentations: list[str] = []
    """Membranes, organelles and other continuous classes: a list of `name:user/session`. Particles win over them. Taken
    at the tomogram's voxel spacing where there is one, else brought over from the finest by nearest neighbour."""
    segmentation_threshold: float = 0.5
    """Of a segmentation that holds fractions (probabilities, say), voxels from this value on count; of one that holds
    whole numbers, all but 0."""
    existing: str | None = None
    """Take the voxels of the classes from a multilabel segmentation that is there already (octopi's targets, or one
    made by hand), `name:user/session`, in place of spheres at picks. `picks` still says which objects are particles and
    where they are, for centring crops and for validation."""
    labels: dict[ObjectName, Annotated[int, Field(ge=1, lt=2**16)]] = {}
    """The value that each class has in `existing`. Default: the object's `label` in the copick config. Classes named
    here that are not among `picks` are continuous ones."""
    runs: list[RunName] | None = None
    """Make targets for these runs alone (`run` or `project/run`), even where they have no picks at all. Default:
    every run that has picks or a segmentation of the sources above, empty ones included."""
    radius_scale: float = Field(default=0.8, gt=0, le=2)
    """Target radius = object radius × this. Below 1 neighbouring particles stay apart."""
    name: Name = "targets"
    """Name of the multilabel segmentation written, one for each voxel spacing of the tomograms."""
    user: Name = "tomoscout"
    """User of the multilabel segmentation written."""
    session: Name = "1"
    """Session of the multilabel segmentation written."""
    unannotated: Literal["background", "exclude", "ignore"] = "background"
    """What an object means that is not annotated in a run though others are: no picks of its sources, not even an empty
    file, or no segmentation. background: there is none of it. exclude: the run takes no part in the split. ignore:
    the object does not count in that run, neither in the loss nor in scores."""
    allow_missing_chunks: bool = False
    """Accept source segmentations whose zarr lacks chunks (some writers leave empty ones out). By default a
    missing chunk counts as a truncated file."""

    @field_validator("picks", "segmentations", mode="before")
    @classmethod
    def _read_sources(cls, value: Any, info: ValidationInfo) -> Any:
        return read_sources(cls, info.field_name or "", value)

    @field_validator("existing", mode="before")
    @classmethod
    def _read_existing(cls, value: Any) -> Any:
        taken = _source_name(value) if isinstance(value, str) else value
        if taken != value:
            note_change(cls, "existing", value, taken)
        return taken

    @field_validator("existing")
    @classmethod
    def _check_existing(cls, value: str | None) -> str | None:
        if value is not None and Source.parse(value).user is None:
            raise ValueError(f"'{value}' names no user and session; expected name:user/session")
        return value

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.labels and self.existing is None:
            raise ValueError("labels are those of existing; give that, too")
        if self.existing is not None and self.segmentations:
            raise ValueError("existing holds all classes; leave out segmentations, or existing")
        return self

    @field_validator("picks", "segmentations")
    @classmethod
    def _check_sources(cls, value: str | list[str]) -> str | list[str]:
        return check_sources(value)


class Split(Section):
    """Which runs train, which choose the model, which test it. Runs are `run`, or `project/run` where two
    projects share a run name. Runs without the tomogram that is segmented can only train."""

    name: Name = "default"
    """Name of the split: `results/splits/{name}.json`."""
    ratios: list[Fraction] = [0.7, 0.1]
    """`0.8`: train and validation. `0.7,0.1`: train, validation, and the rest is the test set."""
    train: list[RunName] | None = None
    """Explicit training runs."""
    validate_: list[RunName] | None = Field(default=None, alias="validate")
    """Explicit validation runs."""
    test: list[RunName] | None = None
    """Explicit test runs, never seen by training or model choice."""
    folds: int | None = Field(default=None, ge=2, le=10_000)
    """Cross-validation with this many folds over all runs that are not test runs."""
    leave_one_out: bool = False
    """Cross-validation with one run (or group) left out per fold."""
    fold: int = Field(default=0, ge=0, le=10_000)
    """Which fold a single training uses."""
    group_pattern: str | None = None
    """Regular expression with one group, matched against the run name: runs whose group is the same (one
    grid, one session) are never divided between train, validation and test."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of the random assignment."""
    exclude: dict[RunName, str] = {}
    """Runs to leave out, each with the reason."""
    negatives: list[RunName] = []
    """Runs without any picks to train on as true negatives."""

    model_config = ConfigDict(populate_by_name=True)

    @field_validator("ratios", mode="before", json_schema_input_type=float | str | list[Fraction])
    @classmethod
    def _split_ratios(cls, value: Any) -> Any:
        return split_ratios(value)

    @field_validator("exclude", mode="before", json_schema_input_type=list[str] | dict[str, str])
    @classmethod
    def _exclude_list(cls, value: Any) -> Any:
        if isinstance(value, dict):
            meant = as_meant(value, dict[RunName, str])
            if meant is not value:
                note_change(cls, "exclude", value, meant)
            return meant
        runs = as_meant(value, list[RunName])
        named = isinstance(runs, list | tuple) and all(isinstance(run, str) for run in runs)
        return dict.fromkeys(runs, "excluded in the config") if named else runs

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


class Segment(Section):
    """How a model is applied to tomograms."""

    runs: list[RunName] | None = None
    """Apply to these runs alone. Default: every run that has the tomogram."""
    models: Literal["folds", "explored"] | list[FilePath] | None = None
    """Which model is applied. Default: the one trained here. `folds`: all of the cross-validation together, an
    ensemble. `explored`: the best of the exploration, or its best `explore.top` together. Or a list of model folders
    from anywhere, and of models of octopi by their `model_config.yaml`, with `best_model.pth` beside it; several are an
    ensemble. With such a list `targets` can be left out: then nothing is trained."""
    tomogram: str | None = None
    """Which kind of tomogram. Default: the first of `tomograms`."""
    tile: list[Size] = Field(default=[160, 160, 160], min_length=3, max_length=3)
    """Largest tile in voxels, z, y, x; made smaller where memory is short."""
    overlap: float = Field(default=0.25, ge=0, le=0.95)
    """Overlap of neighbouring tiles as a fraction of the tile."""
    flips: int = Field(default=1, ge=1, le=8)
    """Test-time augmentation: average over this many mirrored copies (1 = none, 8 = all)."""
    keep_probabilities: bool = True
    """Keep the class probabilities after picks are made from them. They let you try other thresholds without
    a GPU; without them a changed `localize` section segments again."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and not value:
            raise ValueError("an empty list; leave it out to apply the model that is trained here")
        return value

    @field_validator("tomogram")
    @classmethod
    def _check_uri(cls, value: str | None) -> str | None:
        return value if value is None else str(TomogramUri.parse(value))


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


class Report(Section):
    """The report."""

    title: str = "tomoscout"
    """Heading of the page."""
    slices_per_run: int = Field(default=3, ge=1, le=20)
    """Tomogram slices shown per scored run."""
    runs: int = Field(default=6, ge=1, le=10_000)
    """Largest number of runs shown."""


class Phantom(Section):
    """A project whose truth is known."""

    runs: int = Field(default=6, ge=1, le=100_000)
    """Number of tomograms."""
    shape: list[Size] = Field(default=[64, 192, 192], min_length=3, max_length=3)
    """Voxels z, y, x."""
    voxel_spacing: float = Field(default=10.0, gt=0, le=10_000)
    """Å per voxel."""
    particles: int = Field(default=12, ge=0, le=100_000)
    """Particles of every kind per tomogram, as far as they fit."""
    signal_to_noise: float = Field(default=0.15, ge=1e-6, le=1e6)
    """Variance of the signal inside particles over the variance of the noise."""
    tilt_range: float = Field(default=60.0, gt=0, le=90)
    """Largest tilt in degrees; what lies beyond is the missing wedge."""
    defocus: list[Annotated[float, Field(gt=0, le=100)]] = Field(default=[2.0, 4.0], min_length=2, max_length=2)
    """Range of the defocus in µm; each run has its own."""
    membranes: int = Field(default=0, ge=0, le=10_000)
    """Vesicles per tomogram, written as a segmentation named membrane."""
    maps: dict[Name, FilePath] = {}
    """Density maps (MRC): object name → file. A map with the name of a built-in shape takes its place, others come
    beside the built-in ones."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random."""


class Config(Section):
    """The whole configuration. `projects`, `tomograms` and `targets.picks` are enough for a start."""

    projects: dict[ProjectName, FilePath] = Field(min_length=1)
    """Copick projects: a name of yours → the path of its config file (relative to the working directory)."""
    tomograms: list[str] = Field(min_length=1)
    """Kinds of tomogram to train on, `algorithm@spacing in Å`; a batch mixes all that a run has."""
    overwrite: bool = False
    """Write over targets, segmentations, probabilities and picks in the projects that tomoscout has made for other
    results: of another working directory, or of results that were removed. What others have made is never written
    over."""
    runs_per_job: int = Field(default=10, ge=1, le=1_000_000)
    """Runs handled by one job of the stages that work run by run. Changing it later moves no run to another job."""
    targets: Targets = Targets()
    split: Split = Split()
    train: Train = Train()
    explore: Explore = Explore()
    tracking: Tracking = Tracking()
    segment: Segment = Segment()
    localize: Localize = Localize()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    phantom: Phantom = Phantom()
    container: str = Field(default="containers/tomoscout.sif", min_length=1)
    """Image used with `--sdm apptainer`: a file or a registry address."""
    pathvars: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """Snakemake's path variables, such as `results`, to write elsewhere."""

    @field_validator("tomograms")
    @classmethod
    def _check_tomograms(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(str(TomogramUri.parse(entry)) for entry in value))

    @field_validator("container")
    @classmethod
    def _expand_container(cls, value: str) -> str:
        return value if "://" in value else expand_path(value)

    @field_validator("pathvars")
    @classmethod
    def _check_pathvars(cls, value: dict[str, str]) -> dict[str, str]:
        for name, path in value.items():
            if path.startswith("~") or "$" in path:
                raise ValueError(f"{name} is {shown(path)}: Snakemake takes it as it stands; write the folder out")
        return value

    @model_validator(mode="after")
    def _check_segmented(self) -> Self:
        if self.voxel_spacing not in self.target_spacings:
            raise ValueError(
                f"segment.tomogram {self.segment_tomogram} has another voxel spacing than all of tomograms: "
                f"{', '.join(self.tomograms)}"
            )
        return self

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn; without it models from elsewhere are applied, and nothing is trained."""
        return bool(self.targets.picks or self.targets.segmentations or self.targets.labels)

    @property
    def is_scored(self) -> bool:
        """Whether there is anything to score picks by."""
        return self.learns or self.evaluate.reference is not None

    @property
    def chooses_thresholds(self) -> bool:
        """Whether the thresholds of a model of octopi's, which has none, are chosen on the validation runs."""
        return self.learns and not isinstance(self.localize.threshold, float | int)

    @property
    def voxel_spacing(self) -> float:
        """Å per voxel of the tomograms that are segmented and of all predictions."""
        return TomogramUri.parse(self.segment_tomogram).voxel_spacing

    @property
    def target_spacings(self) -> list[float]:
        """Å per voxel of the targets: one target for every voxel spacing of `tomograms`."""
        return list(dict.fromkeys(TomogramUri.parse(uri).voxel_spacing for uri in self.tomograms))

    @property
    def segment_tomogram(self) -> str:
        """The kind of tomogram that is segmented."""
        return self.segment.tomogram or self.tomograms[0]

    @property
    def session(self) -> str:
        """The session of predicted picks and segmentations."""
        models = self.segment.models
        if self.localize.session or models is None:
            return self.localize.session or self.train.name
        if isinstance(models, str):
            return f"{self.train.name}-folds" if models == "folds" else f"{self.explore.name}-best"
        return model_name(models[0])


def names_octopi(path: str) -> bool:
    """Whether a path is that of octopi's configuration of a model, and not of a model folder."""
    return path.endswith((".yaml", ".yml")) and Path(path).name != "model.yaml"


def model_name(path: str) -> str:
    """What a model from elsewhere is called here: as its folder. Of octopi's models many lie in folders of one name and
    become model folders side by side, so that a part of a digest of the path tells them apart."""
    absolute = Path(path).absolute()
    folder = absolute.parent if absolute.suffix in (".yaml", ".yml") else absolute
    # Copick would replace what a name must not hold, and not find it again.
    name = re.sub(r"[^\w.-]|_", "-", folder.name).strip("-.") or "models"
    return f"{name}-{digest(path)[:6]}" if names_octopi(path) else name


def parse_config(values: object, origin: str, files: Sequence[ConfigFile] = (), *, quiet: bool = False) -> Config:
    """Validate a configuration.

    Args:
        values: options by section.
        origin: names them in messages.
        files: where they come from, for messages; numbers are taken as they are written there.
        quiet: do not note on stderr what was changed.

    Raises:
        TomoscoutError: the first thing wrong, with its key.
    """
    if not isinstance(values, dict):
        raise TomoscoutError(f"{origin}: expected a mapping of options, found {type(values).__name__}")
    for file in files:
        values = as_written(values, file.values)
    try:
        _refuse_odd_values(values, (), origin)
        with collected_notes() as notes:
            config = Config.model_validate(values)
    except ValidationError as error:
        raise TomoscoutError(f"{origin}: {first_error(error, files)}") from None
    except RecursionError:
        raise TomoscoutError(f"{origin}: nested too deeply for a configuration") from None
    if not quiet:
        for line in dict.fromkeys(map(_describe_note, notes)):
            print(f"note: {line}", file=sys.stderr)
    return config


def _refuse_odd_values(value: Any, place: tuple[Any, ...], origin: str) -> None:
    """Refuse what no option can mean: infinite numbers, and what the system's names and numbers cannot hold."""
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            _refuse_odd_values(key, (*place, key), origin)
            _refuse_odd_values(part, (*place, key), origin)
    elif isinstance(value, float) and not math.isfinite(value):
        raise TomoscoutError(f"{origin}: {key_of(place)}: expected a finite number, found {value}")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise TomoscoutError(f"{origin}: {key_of(place)}: expected a number below {2**63:.1e}, found a larger one")
    elif isinstance(value, str) and ("\0" in value or re.search("[\ud800-\udfff]", value)):
        raise TomoscoutError(f"{origin}: {key_of(place)}: not text, found {ascii(value)[:100]}")


def first_error(error: ValidationError, files: Sequence[ConfigFile] = ()) -> str:
    """The first thing wrong: its key, what was expected and, where the message does not say it, what was found."""
    errors = error.errors(include_url=False)
    # Where there is a choice of types, what is wrong with a value of the right one says more than that it is no other.
    inside = [entry for entry in errors if key_of(entry["loc"]).startswith(key_of(errors[0]["loc"]))]
    first = next((entry for entry in inside if entry["type"] == "value_error"), errors[0])
    where = key_of(first["loc"])
    # Otherwise each type says what it would take.
    messages = dict.fromkeys(entry["msg"] for entry in errors if key_of(entry["loc"]) == where)
    message = cut(", or ".join(messages).removeprefix("Value error, "), 1500)
    if first["type"] == "string_pattern_mismatch":
        message = NAME_RULE
        if first["loc"][0] == "projects":
            message = "a name must hold no space, slash or colon, and be more than dots"
    if first["type"] == "string_type" and first["input"] is not None and not isinstance(first["input"], dict | list):
        return f"{where}: {_unquoted(first['input'], first['loc'], files)}"
    found = "" if first["type"] in ("missing", "value_error") else f", found {shown(first['input'])}"
    return f"{where}: {message}{found}"


def _unquoted(value: object, place: tuple[int | str, ...], files: Sequence[ConfigFile]) -> str:
    """What to do where text is expected and YAML took what stands there for something else."""
    known = [(file.path, *written) for file in files if (written := file.written(place, value))]
    text = value.text if isinstance(value, WrittenNumber) else known[-1][1] if known else str(value)
    where = f" ({known[-1][0]}, line {known[-1][2]})" if known else ""
    kind = {bool: "a yes or no", float: "a number", int: "a number", WrittenNumber: "a number"}
    return (
        f"text is expected, and YAML takes {cut(text)} for {kind.get(type(value), 'a date')}; put it in quotes, "
        f'"{cut(text)}"{where}, found {shown(value)}'
    )


def key_of(path: Sequence[int | str]) -> str:
    """The key that a path of pydantic's stands for: without the types among it."""
    types = re.compile(r"function-|\w+\[|(constrained-\w+|str|int|float)$")
    # Of a key that is wrong itself, the mapping that it stands in.
    path = path[:-2] if path and path[-1] == "[key]" else path
    return ".".join(cut(str(part)) for part in path if not types.match(str(part))) or "top level"


def _describe_note(note: Note) -> str:
    section = note.section
    if isinstance(section, type):
        section = dict(section_paths()).get(
            section, "train.network" if issubclass(section, NetworkOptions) else "train.loss"
        )
    return f"{section}.{note.key}: {note.text}".removeprefix(".")


def section_paths(section: type[Section] = Config, path: str = "") -> Iterator[tuple[type[Section], str]]:
    """Every section with its path, such as `train.augmentation`; the networks and losses to choose from left aside."""
    yield section, path
    for name, field in section.model_fields.items():
        if isinstance(kind := field.annotation, type) and issubclass(kind, Section):
            yield from section_paths(kind, f"{path}.{name}".removeprefix("."))


def load_config(path: Path) -> Config:
    """Read and validate a YAML or JSON configuration file.

    Raises:
        TomoscoutError: the file is missing, is neither, or holds a bad option or a key twice.
    """
    file = read_config_file(path)
    return parse_config(file.values, str(path), [file])
