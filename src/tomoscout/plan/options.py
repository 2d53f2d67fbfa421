"""Options of the targets and of the split."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from tomoscout.machine.errors import cut
from tomoscout.options.names import Name, ObjectName, RunName, Source, source_name
from tomoscout.options.sections import HOW_MANY, IN_ANOTHER_FORM, Fraction, Section, as_meant, note_change

RadiusScale = Annotated[float, Field(gt=0, le=2)]


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
    runs: Annotated[list[RunName] | None, HOW_MANY] = None
    """Make targets for these runs alone (`run` or `project/run`), even where they have no picks at all. Default:
    every run that has picks or a segmentation of the sources above, empty ones included."""
    radius_scale: RadiusScale = 0.5
    """Target radius = object radius × this. Small spheres keep neighbours apart and mark the middle of an object; the
    guide of octopi has 0.8."""
    name: Name = "targets"
    """Name of the multilabel segmentation written, one for each voxel spacing of the tomograms."""
    user: Name = "tomoscout"
    """User of the multilabel segmentation written."""
    session: Name = "1"
    """Session of the multilabel segmentation written."""
    unannotated: Annotated[Literal["background", "exclude", "ignore"], IN_ANOTHER_FORM] = "background"
    """What an object means that is not annotated in a run though others are: no picks of its sources, not even an empty
    file, or no segmentation. background: there is none of it. exclude: the run takes no part in the split. ignore:
    the object does not count in that run, neither in the loss nor in scores."""
    allow_missing_chunks: bool = False
    """Accept source segmentations, and those of `localize`, whose zarr lacks chunks (some writers leave empty ones
    out). By default a missing chunk counts as a truncated file."""

    @field_validator("picks", "segmentations", mode="before")
    @classmethod
    def _read_sources(cls, value: Any, info: ValidationInfo) -> Any:
        return read_sources(cls, info.field_name or "", value)

    @field_validator("existing", mode="before")
    @classmethod
    def _read_existing(cls, value: Any) -> Any:
        return read_segmentation_source(cls, "existing", value)

    @field_validator("existing")
    @classmethod
    def _check_existing(cls, value: str | None) -> str | None:
        return check_segmentation_source(value)

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


class LearningCurve(Section):
    """Whether more annotated runs still help: models trained on fewer and on all training runs, each for as many steps
    and otherwise by `train`, too, and their scores on the same validation runs."""

    fractions: Annotated[list[Fraction], Field(min_length=1), IN_ANOTHER_FORM] = [0.25, 0.5, 1.0]
    """Fractions of the training runs, in hundredths. 1 takes them all; its first draw is the model of `train` itself.
    Of fractions that are equally many runs the largest alone is trained."""
    draws: Annotated[int, IN_ANOTHER_FORM] = Field(default=1, ge=1, le=1000)
    """How many models are trained for each fraction. Each takes other runs and another seed (train.seed + 0, 1, 2 …).
    With one, nothing is known of how far scores differ by chance; 3 tell a little."""

    @field_validator("fractions")
    @classmethod
    def _check_fractions(cls, value: list[float]) -> list[float]:
        percents = [round(100 * fraction) for fraction in value]
        if 0 in percents or any(abs(100 * f - p) > 1e-6 for f, p in zip(value, percents, strict=True)):
            raise ValueError(f"{value} are not all hundredths from 0.01 to 1")
        if len({*percents}) < len(percents):
            raise ValueError(f"{value}: a fraction is there twice")
        return sorted(value)

    @property
    def percents(self) -> list[int]:
        """The fractions in hundredths, from the smallest."""
        return [round(100 * fraction) for fraction in self.fractions]


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
        # 0.7 + 0.2 + 0.1 is not 1 in floating point, so the sum is compared with a tolerance.
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


def split_ratios(value: Any) -> Any:
    """`0.8`, `"0.7,0.1"` or `[0.7, 0.1]` → a list of fractions."""
    if isinstance(value, str):
        return [float(part) for part in value.split(",")]
    return [value] if isinstance(value, int | float) else value


def read_sources(section: type[Section], key: str, value: Any) -> Any:
    """Convert one source, several separated by commas, or a list into a list of sources, with names as copick writes
    them. Text such as `user/session` stays text, and a value that is no source is returned unchanged."""
    single = isinstance(value, str)
    if single and key != "segmentations" and not re.search("[:,]", value):
        return source_name(value)
    old_form = single and re.fullmatch(r"[^:/,]+,[^:/,]+,[^:/,]+", value)
    texts = [value] if old_form else value.split(",") if single else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return value
    taken = [source_name(text) for text in texts]
    if [text.strip() for text in texts] != taken or (single and len(taken) > 1):
        note_change(section, key, value, taken)
    return taken


def read_segmentation_source(section: type[Section], key: str, value: Any) -> Any:
    """Convert the source of a segmentation into one with names as copick writes them."""
    taken = source_name(value) if isinstance(value, str) else value
    if taken != value:
        note_change(section, key, value, taken)
    return taken


def check_segmentation_source(value: str | None) -> str | None:
    """Check the source of one segmentation; None is accepted.

    Raises:
        ValueError: it has another form than name:user/session.
    """
    if value is not None and Source.parse(value).user is None:
        raise ValueError(f"'{value}' names no user and session; expected name:user/session")
    return value


def check_sources(value: str | list[str]) -> str | list[str]:
    """Check a value that selects picks.

    Raises:
        ValueError: it is neither `user/session` nor a list of sources.
    """
    if isinstance(value, list):
        for entry in value:
            Source.parse(entry)
    elif not re.fullmatch(r"[^:/,\s]+/[^:/,\s]+", value):
        raise ValueError(f"'{cut(value)}' is not user/session (such as data-portal/0) and not a list of sources")
    return value
