"""Options of an exploration, and the entries of its search space."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from tomoscout.explore.pruners import Pruning
from tomoscout.explore.samplers import Sampling
from tomoscout.networks import family_module, family_name
from tomoscout.options.names import Name
from tomoscout.options.sections import HOW_MANY, IN_ANOTHER_FORM, Section

Conditions = dict[str, list[Any]]


class Number(Section):
    """A number between two others, both included. Whole where these are, unless the option takes fractions."""

    low: int | float
    """The least."""
    high: int | float
    """The most."""
    log: bool = False
    """Orders of magnitude are equally likely, in place of values."""
    step: int | float | None = None
    """Only `low` and what lies whole steps above it."""
    when: Conditions = {}
    """Searched only where the entries named here have one of the values listed."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"low {self.low} and high {self.high} are no range")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0 and takes no step")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step {self.step}, expected more than 0")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers: both ends are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def suited(self, fractions: bool | None) -> Number:
        """The range for an option that takes fractions (True), only whole numbers (False), or either (None).

        Raises:
            ValueError: an end or the step must be a whole number and is not.
        """
        if fractions:
            return self.model_copy(update={"low": float(self.low), "high": float(self.high)})
        numbers = {name: getattr(self, name) for name in ("low", "high", "step") if getattr(self, name) is not None}
        if fractions is False or self.is_whole:
            for name, value in numbers.items():
                if value != int(value):
                    raise ValueError(f"{name} {value}, expected a whole number")
            return self.model_copy(update={name: int(value) for name, value in numbers.items()})
        return self

    def at(self, position: float) -> int | float:
        """The value at a position in 0…1. Whole numbers, or steps, have equal shares of 0…1 unless `log` is set."""
        if self.log:
            low, high = self._logarithms()
            value = math.exp(low + position * (high - low))
            return self._clip(round(value) if self.is_whole else value)
        if self._is_continuous:
            return self._clip(self.low + position * (self.high - self.low))
        # Decimal arithmetic, as in Optuna: 0.1 + 2 × 0.1 is 0.3.
        first, step, count = self._grid()
        chosen = first + min(int(position * count), count - 1) * step
        return int(chosen) if self.is_whole else float(chosen)

    def position(self, value: float) -> float:
        """The position of a value in 0…1: the middle of its share."""
        if self.log:
            low, high = self._logarithms()
            return (math.log(value) - low) / (high - low) if high > low else 0.5
        if self._is_continuous:
            return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        first, step, count = self._grid()
        return ((value - float(first)) / float(step) + 0.5) / count

    @property
    def _is_continuous(self) -> bool:
        return self.step is None and not self.is_whole

    def _logarithms(self) -> tuple[float, float]:
        half = 0.5 if self.is_whole else 0.0
        return math.log(self.low - half), math.log(self.high + half)

    def _grid(self) -> tuple[Decimal, Decimal, int]:
        """The first value, the step, and the number of values."""
        low, high, step = (Decimal(str(value)) for value in (self.low, self.high, self.step or 1))
        return low, step, int((high - low) // step) + 1

    def _clip(self, value: float) -> float:
        return min(max(value, self.low), self.high)


class Choice(Section):
    """One of several values: numbers, words, or lists such as the channels of a network."""

    choices: list[Any] = Field(min_length=1)
    """The values."""
    when: Conditions = {}
    """Searched only where the entries named here have one of the values listed."""

    def at(self, position: float) -> Any:
        """The value at a position in 0…1, of which every value has an equal share."""
        return self.choices[min(int(position * len(self.choices)), len(self.choices) - 1)]


class Fixed(Section):
    """The same value in every trial."""

    value: Any
    """The value."""
    when: Conditions = {}
    """Set only where the entries named here have one of the values listed."""


def key_in(section: str, key: str) -> str:
    """The whole key of an option in a configuration. `section`: see `Explore.SECTION`."""
    return f"{section}.{key}" if section else key


def parse_entry(value: Any) -> Any:
    """Parse an entry of a search space: a mapping with `low` and `high`, or with `choices`; null for an option that is
    not searched; any other value for one that is the same in every trial.

    Raises:
        ValueError: a mapping has none of these keys.
    """
    if isinstance(value, Number | Choice | Fixed) or value is None:
        return value
    if not isinstance(value, dict):
        return Fixed(value=value)
    if "value" in value:
        return Fixed.model_validate(value)
    if "choices" in value:
        return Choice.model_validate(value)
    if "low" in value or "high" in value:
        return Number.model_validate(value)
    raise ValueError(f"expected low and high, or choices, found {', '.join(map(str, value)) or 'nothing'}")


Written = Number | Choice | Fixed | bool | int | float | str | list[Any] | None
"""An entry as it may stand in a configuration, for its schema."""
Entry = Annotated[SerializeAsAny[Section] | None, BeforeValidator(parse_entry, json_schema_input_type=Written)]
Space = dict[str, Entry]


def parse_families(value: Any) -> Any:
    """Convert the name of a family, or a list of names, to a mapping from names to changes, which are empty."""
    families = re.split(r"\s*,\s*", value.strip()) if isinstance(value, str) else value
    if isinstance(families, list) and all(isinstance(family, str) for family in families):
        families = dict.fromkeys(families)
    if not isinstance(families, dict):
        return families
    return {
        family_name(family, "explore.networks") if isinstance(family, str) else family: changes or {}
        for family, changes in families.items()
    }


class Proposals(Section):
    """How many trials a study has, and on what their proposals depend."""

    name: Name = "search"
    """Name of the study: `results/explore/{name}-{digest}/`. The digest stands for all that decides on its trials."""
    trials: Annotated[int, HOW_MANY] = Field(default=48, ge=1, le=1_000_000)
    """Trainings in all. More can be added at any time; those that are done stay as they are."""
    window: int = Field(default=8, ge=1)
    """A trial is proposed once all but the last `window` - 1 before it are done. Part of the study, as the number of
    GPUs is not: choose 1.5 times the GPUs you expect, from some 30 on three times. Larger keeps more of them busy,
    smaller learns sooner."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of the proposals. `train.seed` is that of the trainings, the same for all."""
    baseline: bool = True
    """Whether the first trial is the training as `train` has it: what the search is to beat."""


class Explore(Pruning, Sampling, Proposals):
    """A search for the best training: many short trainings, each with what the ones before it suggest. Same settings
    and data, same trials, however many run at once; other settings or data make another study."""

    SECTION: ClassVar[str] = ""
    """The section of the configuration that holds this one and `train`; empty for the configuration itself."""

    budget: Literal["voxels", "steps"] = "voxels"
    """What trials have in common. voxels: crops of as many voxels in all as `train.steps` steps of the training as
    `train` has it; with twice the batch or patch a trial makes half the steps, so that all take about as long and none
    is better for having seen more. steps: `train.steps`, whatever is in a step."""
    validations: int = Field(default=10, ge=1)
    """Validations of a trial, evenly spaced, unless `train.validate_every` says otherwise."""
    networks: Annotated[
        dict[str, Space],
        BeforeValidator(parse_families, json_schema_input_type=str | list[str] | dict[str, Space | None]),
        IN_ANOTHER_FORM,
    ] = Field(default={"UNet": {}, "DynUNet": {}, "SegResNet": {}}, min_length=1)
    """Families of networks to search: a list, or a mapping with changes to what is searched of a family's options.
    `tomoscout explore space` prints the whole space."""
    space: Annotated[Space, IN_ANOTHER_FORM] = {}
    """Changes to what is searched besides: entries by name of an option of `train`, such as `learning_rate` or
    `augmentation.rotate`. `{low: 1.0e-4, high: 1.0e-2, log: true}`, `{choices: [4, 8]}`, each perhaps with a condition,
    `when: {loss.name: [Tversky]}`; a plain value is the same in every trial; null takes `train`'s."""
    top: Annotated[int, HOW_MANY] = Field(default=1, ge=1)
    """The best so many are kept as `best`, `best-2` and so on; `segment.models: explored` applies them together."""
    threads: int = Field(default=4, ge=1)
    """CPU threads of a trial, however many cores there are: on a CPU another number changes the last digits."""

    @field_validator("networks")
    @classmethod
    def _check_families(cls, value: Mapping[str, Space]) -> Mapping[str, Space]:
        for family in value:
            family_module(family)
        return value
