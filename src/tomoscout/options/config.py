"""The whole configuration: its sections, each defined beside the code that it controls, and how it is read and
validated."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from tomoscout.data.formats.options import Download, Export, ImportedPicks, ImportedTomograms
from tomoscout.explore.options import Explore
from tomoscout.machine.errors import TomoscoutError, shown
from tomoscout.machine.messages import note
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.config_file import ConfigFile, as_written, read_config_file
from tomoscout.options.names import Name, ProjectName, Source, TomogramUri, model_name
from tomoscout.options.sections import FilePath, Note, Section, collected_notes, expand_path
from tomoscout.options.validation_errors import first_error, key_of
from tomoscout.phantom.options import Phantom
from tomoscout.plan.options import LearningCurve, Split, Targets
from tomoscout.report.options import Report
from tomoscout.stages.options import Pretrain, Segment
from tomoscout.tasks.instances.options import Cells
from tomoscout.tasks.picking.extraction.options import Extraction
from tomoscout.tasks.picking.options import Evaluate, Localize, Train
from tomoscout.tracking.options import Tracking

RuleGroup = Literal["light", "network", "cells", "stardist", "cellpose"]
"""Rules that run in the same image and environment: `light` ones use no network; those of a back end have its package
besides."""
_NONE = object()
"""In place of projects and tomograms where a configuration needs none."""

Image = Annotated[str, Field(min_length=1)]
"""An image: a file, or an address in a registry."""


def _need_either(schema: dict[str, Any]) -> None:
    """What a configuration must have, for editors."""
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["cells"]}]


class Config(Section):
    """The whole configuration. `projects`, `tomograms` and `targets.picks` are enough for a start; for instances of
    cells `cells.annotations`."""

    model_config = ConfigDict(json_schema_extra=_need_either)

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
    pretrain: Pretrain = Pretrain()
    train: Train = Train()
    learning_curve: LearningCurve = LearningCurve()
    explore: Explore = Explore()
    tracking: Tracking = Tracking()
    segment: Segment = Segment()
    localize: Localize = Localize()
    extract: dict[Name, Extraction] = {}
    """Particles chosen and oriented by their surroundings, with `snakemake extract`: a name of yours → what is
    extracted."""
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    export: Export = Export()
    import_picks: dict[Name, ImportedPicks] = {}
    """Picks of other programs to bring into the projects with `snakemake import_picks`: a name of yours → `files`,
    `object`, and what else the files do not say."""
    import_tomograms: dict[Name, ImportedTomograms] = {}
    """Tomograms of other programs to bring into the projects with `snakemake import_tomograms`: a name of yours →
    `files`, and what these do not say."""
    download: dict[Name, Download] = {}
    """What `snakemake download` brings into the projects from the CryoET data portal, or from any other copick project:
    a name of yours → `source`, and what is asked for."""
    phantom: Phantom = Phantom()
    cells: Cells = Cells()
    container: Image | dict[RuleGroup, Image] | None = None
    """Image for `--sdm apptainer`, a file or a registry address: one for all rules, or `light` (stages that use no
    network), `network`, `cells` (the star head), and `stardist` or `cellpose` (cells.train.backend) apart. Null: those
    that `make image` builds."""
    pathvars: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """Snakemake's path variables, such as `results`, to write elsewhere."""

    @field_validator("tomograms")
    @classmethod
    def _check_tomograms(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(str(TomogramUri.parse(entry)) for entry in value))

    @field_validator("container")
    @classmethod
    def _expand_container(cls, value: str | dict[RuleGroup, str] | None) -> str | dict[RuleGroup, str] | None:
        if isinstance(value, dict):
            return {group: _file_of_image(image) for group, image in value.items()}
        return value and _file_of_image(value)

    @field_validator("pathvars")
    @classmethod
    def _check_pathvars(cls, value: dict[str, str]) -> dict[str, str]:
        for name, path in value.items():
            if path.startswith("~") or "$" in path:
                raise ValueError(f"{name} is {shown(path)}: Snakemake takes it as it stands; write the folder out")
        return value

    @model_validator(mode="before")
    @classmethod
    def _need_no_tomograms(cls, values: Any) -> Any:
        """Where there are annotated images of cells, a configuration need not name tomograms."""
        cells = values.get("cells") if isinstance(values, dict) else None
        annotated = isinstance(cells, dict) and cells.get("annotations")
        if annotated and not values.get("projects") and not values.get("tomograms"):
            return {**values, "projects": _NONE, "tomograms": _NONE}
        return values

    @field_validator("projects", "tomograms", mode="wrap")
    @classmethod
    def _take_none(cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if value is _NONE:
            return {} if info.field_name == "projects" else []
        return validate(value)

    @model_validator(mode="after")
    def _check_segmented(self) -> Self:
        if self.tomograms and self.voxel_spacing not in self.target_spacings and not self.segment.resample:
            raise ValueError(
                f"segment.tomogram {self.segment_tomogram} has another voxel spacing than all of tomograms: "
                f"{', '.join(self.tomograms)}; give one of these, or set segment.resample"
            )
        return self

    @model_validator(mode="after")
    def _check_searches(self) -> Self:
        if self.projects and self.cells.annotations and self.explore.name == self.cells.explore.name:
            raise ValueError(f"cells.explore.name: {self.explore.name} is the name of explore; expected another")
        return self

    @property
    def learns(self) -> bool:
        """Whether targets are configured. Otherwise nothing is trained, and models trained elsewhere are applied."""
        return bool(self.targets.picks or self.targets.segmentations or self.targets.labels)

    @property
    def is_scored(self) -> bool:
        """Whether there are reference picks to score against."""
        return self.learns or self.evaluate.reference is not None

    @property
    def chooses_thresholds(self) -> bool:
        """Whether the thresholds of an imported octopi model, which has none, are chosen on the validation runs."""
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
        if self.localize.session:
            return self.localize.session
        if self.localize.segmentation:
            return "-".join(map(str, Source.parse(self.localize.segmentation)))
        models = self.segment.models
        if models is None:
            return self.train.name
        if isinstance(models, str):
            return f"{self.train.name}-folds" if models == "folds" else f"{self.explore.name}-best"
        return model_name(models[0])


def _file_of_image(image: str) -> str:
    return image if "://" in image else expand_path(image)


def parse_config(values: object, origin: str, files: Sequence[ConfigFile] = (), *, quiet: bool = False) -> Config:
    """Validate a configuration.

    Args:
        values: options by section.
        origin: where they come from, for messages.
        files: the files that they were read from, for messages; numbers are taken as they are written there.
        quiet: do not report on stderr which values were converted.

    Raises:
        TomoscoutError: an option is invalid; the message names the key of the first one.
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
            note(f"{line}")
    return config


def _refuse_odd_values(value: Any, place: tuple[Any, ...], origin: str) -> None:
    """Refuse values that no option accepts: infinite numbers, integers beyond 64 bits, and text with null characters or
    surrogates."""
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


def _describe_note(note: Note) -> str:
    section = note.section
    if isinstance(section, type):
        known = dict(section_paths())
        other = "train.network" if issubclass(section, NetworkOptions) else "train.loss"
        section = next((known[kind] for kind in section.__mro__ if kind in known), other)
    return f"{section}.{note.key}: {note.text}".removeprefix(".")


def section_paths(section: type[Section] = Config, path: str = "") -> Iterator[tuple[type[Section], str]]:
    """Every section with its path, such as `train.augmentation`, without the sections of networks and losses to choose
    from. Sections that are the values of a mapping have the path of the mapping."""
    yield section, path
    for name, field in section.model_fields.items():
        of_mapping = get_args(field.annotation)[1:] if get_origin(field.annotation) is dict else ()
        for kind in (field.annotation, *of_mapping):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from section_paths(kind, f"{path}.{name}".removeprefix("."))


def load_config(path: Path) -> Config:
    """Read and validate a YAML or JSON configuration file.

    Raises:
        TomoscoutError: the file is missing, is neither YAML nor JSON, or holds an invalid option or a duplicate key.
    """
    file = read_config_file(path)
    return parse_config(file.values, str(path), [file])
