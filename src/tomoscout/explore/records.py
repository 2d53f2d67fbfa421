"""The records of a trial: `ask.json`, the proposal, and `result.json`, its result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json, write_json
from tomoscout.options.forms import checked

if TYPE_CHECKING:
    from tomoscout.learning.options import Training

Params = dict[str, Any]
"""Values of search parameters by name, such as `learning_rate` or `UNet.dropout`."""

BY_PRUNER = "pruned at validation"
"""Beginning of `Result.reason` for a trial that the pruner stopped."""

GIVEN_UP = "given-up.json"
"""Name of the file that marks a trial as given up. The result is written by the trial's own job: if a job fails,
Snakemake removes its outputs, even those that another process wrote."""

BASELINE = "the training as the configuration has it"
"""Name of the baseline, the trial without search parameters, on pages."""

State = Literal["COMPLETE", "PRUNED"]

Number = Annotated[int, Field(ge=0, strict=True)]
"""Number of a trial, from 0 on."""

Score = Annotated[float, Field(strict=True)]
"""A validation score, from 0 to 1."""

Validation = Annotated[int, Field(ge=1)]
"""Number of a validation, from 1 on; in JSON it is the key of a mapping, as text."""

_EXACT: ConfigDict = {"extra": "forbid"}


@dataclass(frozen=True)
class Refused:
    """A proposal that cannot be trained and was returned to the sampler as pruned. `reason`: why."""

    __pydantic_config__: ClassVar = _EXACT

    params: Params
    distributions: dict[str, str]
    reason: str


@dataclass(frozen=True)
class Ask:
    """The proposal of a trial.

    `distributions`: Optuna's JSON of the distribution that each value was drawn from. `train`: all options of the
    training. `refused`: earlier proposals for the same trial that cannot be trained.
    """

    __pydantic_config__: ClassVar = _EXACT

    number: Number
    params: Params
    distributions: dict[str, str]
    train: dict[str, Any]
    refused: list[Refused] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Ask:
        """Read the proposal from the folder of its trial.

        Raises:
            TomoscoutError: the file is missing or malformed.
        """
        return cls.parse(read_json(folder / "ask.json"), folder / "ask.json")

    @classmethod
    def parse(cls, values: object, origin: Path) -> Ask:
        """Create the proposal from plain data. `origin`: its file, for messages.

        Raises:
            TomoscoutError: the data is malformed.
        """
        return _parsed(cls, values, origin, "what a trial is asked")

    def options(self, folder: Path, kind: type[Training], **own: Any) -> Training:
        """The options of the training. `folder`: the folder of the trial, for messages. `kind`: the class of the task's
        training options. `own`: values that replace those of the proposal.

        Raises:
            TomoscoutError: the options are not valid.
        """
        return checked(kind, {**self.train, **own}, folder / "ask.json", "what a trial is asked")

    def to_json(self) -> dict[str, Any]:
        """The proposal as plain data."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write the proposal to `path`."""
        write_json(path, self.to_json())


@dataclass(frozen=True)
class Result:
    """The result of a trial. Nothing in it depends on when or how fast the trial ran.

    `value`: the best validation score. `intermediate`: the validation scores by number of the validation, from 1 on.
    `scores`: the scores of the best validation by class. `reason`: why the trial was pruned. `attributes`: what the
    pruner stores with the trial.
    """

    __pydantic_config__: ClassVar = _EXACT

    number: Number
    params: Params
    distributions: dict[str, str]
    state: State
    value: Score | None
    intermediate: dict[Validation, Score]
    scores: dict[str, Score]
    reason: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Read the result from the folder of its trial.

        Raises:
            TomoscoutError: the file is missing or malformed.
        """
        return cls.parse(read_json(folder / "result.json"), folder / "result.json")

    @classmethod
    def parse(cls, values: object, origin: Path) -> Result:
        """Create the result from plain data. `origin`: its file, for messages.

        Raises:
            TomoscoutError: the data is malformed.
        """
        result = _parsed(cls, values, origin, "the result of a trial")
        if result.state == "COMPLETE" and result.value is None:
            raise TomoscoutError(f"{origin}: not the result of a trial (it is complete and has no value)")
        return result

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write the result to `path`."""
        write_json(path, self.to_json())


def read_trial(folder: Path) -> tuple[Ask, Result]:
    """Read the proposal and the result of a trial from its folder.

    Raises:
        TomoscoutError: a file is missing or malformed, or the result has other parameters than the proposal.
    """
    ask, result = Ask.read(folder), Result.read(folder)
    if (ask.params, ask.distributions) != (result.params, result.distributions):
        raise TomoscoutError(f"{folder / 'result.json'}: of other parameters than ask.json beside it asks for")
    return ask, result


_Record = TypeVar("_Record", Ask, Result)


def _parsed(form: type[_Record], values: object, origin: Path, what: str) -> _Record:
    record = checked(form, values, origin, what)
    assert isinstance(values, Mapping)
    # Defaults are for new records. If a default replaced a missing entry of a file, later proposals would differ.
    missing = [entry.name for entry in fields(form) if entry.name not in values]
    if missing:
        raise TomoscoutError(f"{origin}: not {what} ({', '.join(missing)} missing)")
    folder = origin.parent.name
    if _is_trial(folder) and int(folder) != record.number:
        raise TomoscoutError(f"{origin}: not {what} of its folder (number is {record.number})")
    return record


def _is_trial(name: str) -> bool:
    return bool(re.fullmatch(r"\d{4,}", name))


def trial_name(number: int) -> str:
    """Name of a trial's folder."""
    return f"{number:04d}"


def trial_folder(study: Path, number: int) -> Path:
    """Folder of a trial."""
    return study / trial_name(number)


def trial_numbers(study: Path, file: str) -> list[int]:
    """The numbers of the trials of a study that have a file of this name, in order."""
    names = (path.parent.name for path in study.glob(f"*/{file}"))
    return sorted(int(name) for name in names if _is_trial(name))


def best_names(top: int) -> list[str]:
    """Names of the folders of the best models of a study, the best first."""
    return ["best", *(f"best-{number}" for number in range(2, top + 1))]


def section_of(study: Path) -> str:
    """The section of the configuration that a study is of; see `Explore.SECTION`. `study`: its folder.

    Raises:
        TomoscoutError: there is no study.json, or it cannot be read.
    """
    return section_in(read_json(study / "study.json"))


def section_in(settings: object) -> str:
    """The same in the content of study.json."""
    return str(settings.get("section", "")) if isinstance(settings, dict) else ""


def short(value: object) -> str:
    """The value of a parameter as text; a float with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
