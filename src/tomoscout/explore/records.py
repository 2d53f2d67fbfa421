"""What a study keeps of its trials: one file for what was asked, one for what came of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json, write_json

if TYPE_CHECKING:
    from tomoscout.learning.options import Training

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
        _check(values, _ASKED, origin, "what a trial is asked")
        return cls(**{**values, "refused": [Refused(**entry) for entry in values["refused"]]})

    def options(self, folder: Path, kind: type[Training], **own: Any) -> Training:
        """The options of the training, with some of the trial's own. `folder`: the trial's, for messages.
        `kind`: the options of the task's trainings.

        Raises:
            TomoscoutError: they are not those of a training.
        """
        from tomoscout.options.forms import checked

        return checked(kind, {**self.train, **own}, folder / "ask.json", "what a trial is asked")

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
        _check(values, _RESULT, origin, "the result of a trial")
        if values["state"] == "COMPLETE" and values["value"] is None:
            raise TomoscoutError(f"{origin}: not the result of a trial (it is complete and has no value)")
        return cls(**{**values, "intermediate": {int(step): score for step, score in values["intermediate"].items()}})

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write it."""
        write_json(path, self.to_json())


def read_trial(folder: Path) -> tuple[Ask, Result]:
    """What a trial was asked, and what came of it, from its folder.

    Raises:
        TomoscoutError: a file is missing or of another form, or one is not of the other.
    """
    ask, result = Ask.read(folder), Result.read(folder)
    if (ask.params, ask.distributions) != (result.params, result.distributions):
        raise TomoscoutError(f"{folder / 'result.json'}: of other parameters than ask.json beside it asks for")
    return ask, result


def _read(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise TomoscoutError(f"{path}: expected a mapping, found {type(values).__name__}")
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_mapping(value: object, holds: Callable[[Any], bool] = lambda value: True) -> bool:
    return isinstance(value, dict) and all(map(holds, value.values()))


def _are_texts(value: object) -> bool:
    return _is_mapping(value, lambda text: isinstance(text, str))


def _are_numbers(value: object) -> bool:
    return _is_mapping(value, _is_number)


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


_Form = Mapping[str, Callable[[Any], bool]]

# By hand: a status reads hundreds of them in less time than pydantic takes to be imported.
_PROPOSED: _Form = {"params": _is_mapping, "distributions": _are_texts}
_REFUSED: _Form = {**_PROPOSED, "reason": lambda value: isinstance(value, str)}
_ASKED: _Form = {
    **_PROPOSED,
    "number": _is_count,
    "train": _is_mapping,
    "refused": lambda value: isinstance(value, list) and all(_has_form(entry, _REFUSED) for entry in value),
}
_RESULT: _Form = {
    **_PROPOSED,
    "number": _is_count,
    "state": lambda value: value in ("COMPLETE", "PRUNED"),
    "value": lambda value: value is None or _is_number(value),
    "intermediate": lambda value: _are_numbers(value) and all(step.isdecimal() for step in value),
    "scores": _are_numbers,
    "reason": _is_text_or_none,
    "attributes": _is_mapping,
}


def _has_form(values: Any, form: _Form) -> bool:
    return isinstance(values, dict) and values.keys() == form.keys() and all(f(values[key]) for key, f in form.items())


def _check(values: Mapping[str, Any], form: _Form, path: Path, what: str) -> None:
    if values.keys() != form.keys():
        raise TomoscoutError(f"{path}: not {what} (it has {', '.join(values)}, expected {', '.join(form)})")
    for key, fits in form.items():
        if not fits(values[key]):
            raise TomoscoutError(f"{path}: not {what} ({key} is {values[key]!r:.60})")
    folder = path.parent.name
    if _is_trial(folder) and int(folder) != values["number"]:
        raise TomoscoutError(f"{path}: not {what} of its folder (number is {values['number']})")


def _is_trial(name: str) -> bool:
    return bool(re.fullmatch(r"\d{4,}", name))


def trial_name(number: int) -> str:
    """Name of a trial's folder."""
    return f"{number:04d}"


def trial_folder(study: Path, number: int) -> Path:
    """Folder of a trial."""
    return study / trial_name(number)


def trial_numbers(study: Path, file: str) -> list[int]:
    """The trials of a study that have a file, in order."""
    names = (path.parent.name for path in study.glob(f"*/{file}"))
    return sorted(int(name) for name in names if _is_trial(name))


def best_names(top: int) -> list[str]:
    """Names of the folders of a study's best models, the best first."""
    return ["best", *(f"best-{number}" for number in range(2, top + 1))]
