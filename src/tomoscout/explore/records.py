"""What a study keeps of its trials: one file for what was asked, one for what came of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tomoscout.errors import TomoscoutError
from tomoscout.files import read_json, write_json

Params = dict[str, Any]
"""Values by name of the search parameter, such as `learning_rate` or `UNet.dropout`."""

BY_PRUNER = "pruned at validation"
"""How the reason begins where the pruner ended a trial."""

GIVEN_UP = "given-up.json"
"""What says that a trial is not to be trained any more. Its job makes the result of it: Snakemake removes what others
write while a job runs that fails."""

BASELINE = "the training as the configuration has it"
"""What a trial without parameters is."""

State = Literal["COMPLETE", "PRUNED"]


class Refused(NamedTuple):
    """A proposal that was given back to the sampler at once, and why."""

    params: Params
    distributions: dict[str, str]
    reason: str


@dataclass(frozen=True)
class Ask:
    """A proposal. `distributions`: Optuna's JSON of where each value was drawn from. `train`: all options of the
    training. `refused`: proposals before it that cannot be trained."""

    number: int
    params: Params
    distributions: dict[str, str]
    train: dict[str, Any]
    refused: list[Refused] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Ask:
        """Read it from the folder of its trial.

        Raises:
            TomoscoutError: it is missing or of another form.
        """
        return cls.parse(_read(folder / "ask.json"), folder / "ask.json")

    @classmethod
    def parse(cls, values: Mapping[str, Any], origin: Path) -> Ask:
        """From plain data; `origin` names it in messages.

        Raises:
            TomoscoutError: it has another form.
        """
        try:
            return cls(**{**values, "refused": [Refused(**entry) for entry in values["refused"]]})
        except (KeyError, TypeError) as error:
            raise TomoscoutError(f"{origin}: not what a trial is asked ({error})") from None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "refused": [entry._asdict() for entry in self.refused]}

    def write(self, path: Path) -> None:
        """Write it."""
        write_json(path, self.to_json())


@dataclass(frozen=True)
class Result:
    """What came of a trial; nothing in it depends on when or how fast it ran.

    `value`: the best validation score. `intermediate`: the scores by number of the validation, from 1 on. `scores`: by
    class, of the best validation. `reason`: why it was pruned. `attributes`: what the pruner wants to find again."""

    number: int
    params: Params
    distributions: dict[str, str]
    state: State
    value: float | None
    intermediate: dict[int, float]
    scores: dict[str, float]
    reason: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Read it from the folder of its trial.

        Raises:
            TomoscoutError: it is missing or of another form.
        """
        return cls.parse(_read(folder / "result.json"), folder / "result.json")

    @classmethod
    def parse(cls, values: Mapping[str, Any], origin: Path) -> Result:
        """From plain data; `origin` names it in messages.

        Raises:
            TomoscoutError: it has another form.
        """
        try:
            steps = {int(step): score for step, score in values["intermediate"].items()}
            return cls(**{**values, "intermediate": steps})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TomoscoutError(f"{origin}: not the result of a trial ({error})") from None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write it."""
        write_json(path, self.to_json())


def _read(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise TomoscoutError(f"{path}: expected a mapping, found {type(values).__name__}")
    return values


def trial_name(number: int) -> str:
    """Name of a trial's folder."""
    return f"{number:04d}"


def trial_folder(study: Path, number: int) -> Path:
    """Folder of a trial."""
    return study / trial_name(number)


def trial_numbers(study: Path, file: str) -> list[int]:
    """The trials of a study that have a file, in order."""
    names = (path.parent.name for path in study.glob(f"*/{file}"))
    return sorted(int(name) for name in names if re.fullmatch(r"\d{4,}", name))


def best_names(top: int) -> list[str]:
    """Names of the folders of a study's best models, the best first."""
    return ["best", *(f"best-{number}" for number in range(2, top + 1))]
