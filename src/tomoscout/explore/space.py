"""The search space: which options are searched, between what, and what a point in it means for a training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from tomoscout.errors import TomoscoutError
from tomoscout.explore.options import Choice, Explore, Fixed, Number, Space, parse_entry
from tomoscout.networks import family_module, parse_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.training_options import LOSSES, Train

_WITH_ALPHA = {"loss.name": ["Tversky", "FocalTversky", "WeightedFocalTversky"]}

TRAINING: dict[str, Any] = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "weight_decay": {"low": 1e-4, "high": 1e-1, "log": True},
    "patch": {"low": 48, "high": 160, "step": 16},
    "batch_size": {"choices": [4, 8, 16, 24, 32, 48]},
    "background_fraction": {"low": 0.0, "high": 0.5},
    "loss.name": {"choices": [loss.model_fields["name"].default for loss in LOSSES]},
    "loss.alpha": {"low": 0.1, "high": 0.9, "when": _WITH_ALPHA},
    "loss.beta": {"low": 0.1, "high": 0.9, "when": _WITH_ALPHA},
    "loss.gamma": {"low": 0.1, "high": 3.0, "when": {"loss.name": ["Focal", "FocalTversky", "WeightedFocalTversky"]}},
    # Against weight_focal, which stays 0.5.
    "loss.weight_tversky": {"low": 0.05, "high": 5.0, "log": True, "when": {"loss.name": ["WeightedFocalTversky"]}},
    "foreground_weight": {
        "low": 1.0,
        "high": 256.0,
        "log": True,
        "when": {"loss.name": ["CrossEntropy", "Focal", "WeightedFocalTversky"]},
    },
    "augmentation.probability": {"low": 0.0, "high": 1.0},
    "augmentation.rotate": {"low": 0.0, "high": 30.0},
    "augmentation.tilt": {"low": 0.0, "high": 15.0},
    "augmentation.noise": {"low": 0.0, "high": 0.5},
}
"""What is searched of `train` unless `explore.space` says otherwise: no less than octopi searches. The families of
networks list theirs as `SPACE`."""

NOT_SEARCHED = {
    "network": "list the families under explore.networks",
    "name": "trials have names of their own",
    "seed": "set train.seed, which all trials share",
    "validate_every": "set explore.validations",
    **dict.fromkeys(("best_metric", "best_metric_on"), "trials are compared by it"),
    **dict.fromkeys(("device", "memory_gb", "gpu_memory_gb", "checkpoint_seconds"), "it is for the machine"),
    **dict.fromkeys(("base", "base_weights", "freeze", "freeze_steps", "promote"), "trials are no fine-tunings"),
}
"""Options of `train` that are no part of a search, and why."""

Domain = Number | Choice | Fixed
Suggest = Callable[[str, Number | Choice], Any]


class Entry(NamedTuple):
    """One entry: its name, where its values come from, and under which conditions it counts."""

    name: str
    domain: Domain
    when: dict[str, list[Any]]

    def counts(self, values: Mapping[str, Any]) -> bool:
        """Whether its conditions hold."""
        return all(name in values and values[name] in allowed for name, allowed in self.when.items())


@dataclass(frozen=True)
class SearchSpace:
    """Entries in the order in which they are decided: those that others depend on come first.

    Entries are named as the options of `train` are, those of a network `{family}.{option}`; the family is `network`.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, options: Explore) -> SearchSpace:
        """The space of a configuration: what is built in, with its changes.

        Raises:
            TomoscoutError: an entry cannot be searched, or depends on what is not there.
        """
        families = list(options.networks)
        entries = [Entry("network", Choice(choices=families) if len(families) > 1 else Fixed(value=families[0]), {})]
        for family, changes in options.networks.items():
            built_in = getattr(family_module(family), "SPACE", {})
            merged = _merge(built_in, changes, {"network": [family]})
            entries += [Entry(f"{family}.{name}", domain, when) for name, domain, when in merged]
        for name in options.space:
            _check_name(name)
        entries += _merge(TRAINING, options.space, {})
        return cls(tuple(_in_order(entries)))

    @classmethod
    def parse(cls, values: Sequence[Mapping[str, Any]]) -> SearchSpace:
        """The space in a study's file."""
        return cls(tuple(Entry(entry["name"], parse_entry(entry["domain"]), entry["when"]) for entry in values))

    def to_json(self) -> list[dict[str, Any]]:
        """As plain data."""
        return [
            {"name": e.name, "domain": e.domain.model_dump(exclude={"when"}, exclude_defaults=True), "when": e.when}
            for e in self.entries
        ]

    @property
    def searched(self) -> list[tuple[str, Number | Choice]]:
        """The entries that have more than one value, and where from."""
        return [(entry.name, entry.domain) for entry in self.entries if not isinstance(entry.domain, Fixed)]

    def values(self, suggest: Suggest, known: Mapping[str, Any]) -> dict[str, Any]:
        """A value for every entry that counts. `known`: what conditions may also ask for."""
        found: dict[str, Any] = {}
        for entry in self.entries:
            if entry.counts({**known, **found}):
                domain = entry.domain
                found[entry.name] = domain.value if isinstance(domain, Fixed) else suggest(entry.name, domain)
        return found


def _merge(built_in: Mapping[str, Any], changes: Space, when: Mapping[str, list[Any]]) -> Iterator[Entry]:
    """Built-in entries with the changes to them; an entry keeps its conditions unless it is given others."""
    for name in dict.fromkeys([*built_in, *changes]):
        default: Domain | None = parse_entry(built_in.get(name))
        entry: Domain | None = parse_entry(changes.get(name, default))
        if entry is None:
            continue
        conditions = entry.when or (default.when if default else {})
        yield Entry(name, entry.model_copy(update={"when": {}}), {**when, **conditions})


def _check_name(name: str) -> None:
    top, *rest = name.split(".")
    if top in NOT_SEARCHED:
        raise TomoscoutError(f"explore.space.{name}: not to be searched: {NOT_SEARCHED[top]}")
    if top not in Train.model_fields or (top == "loss" and len(rest) != 1):
        raise TomoscoutError(f"explore.space.{name}: no option of train; known: {', '.join([*TRAINING, '…'])}")


def _in_order(entries: Sequence[Entry]) -> Iterator[Entry]:
    """The entries, each after those that its conditions name."""
    names = {entry.name for entry in entries}
    waiting, placed = list(entries), set[str]()
    while waiting:
        ready = next((e for e in waiting if all(name in placed or name not in names for name in e.when)), None)
        if ready is None:
            raise TomoscoutError(f"explore.space: {waiting[0].name} depends on itself: {', '.join(waiting[0].when)}")
        waiting.remove(ready)
        placed.add(ready.name)
        yield ready


# Values in the unit interval, for samplers that know no other.


def from_unit(domain: Number | Choice, position: float) -> Any:
    """The value of a domain at a position in 0…1; each value of a discrete one has an equal share of it."""
    if isinstance(domain, Choice):
        return domain.choices[min(int(position * len(domain.choices)), len(domain.choices) - 1)]
    if domain.log:
        half = 0.5 if domain.is_whole else 0.0
        low, high = math.log(domain.low - half), math.log(domain.high + half)
        value = math.exp(low + position * (high - low))
        return _clip(round(value) if domain.is_whole else value, domain)
    step = _step(domain)
    if step is None:
        return _clip(domain.low + position * (domain.high - domain.low), domain)
    count = math.floor((domain.high - domain.low) / step + 1e-9) + 1
    return domain.low + min(int(position * count), count - 1) * step


def to_unit(domain: Number, value: float) -> float:
    """The position of a value in 0…1: the middle of its share."""
    if domain.log:
        half = 0.5 if domain.is_whole else 0.0
        low, high = math.log(domain.low - half), math.log(domain.high + half)
        return (math.log(value) - low) / (high - low) if high > low else 0.5
    step = _step(domain)
    if step is None:
        return (value - domain.low) / (domain.high - domain.low) if domain.high > domain.low else 0.5
    count = math.floor((domain.high - domain.low) / step + 1e-9) + 1
    return ((value - domain.low) / step + 0.5) / count


def _step(domain: Number) -> float | None:
    return domain.step or (1 if domain.is_whole else None)


def _clip(value: float, domain: Number) -> float:
    return min(max(value, domain.low), domain.high)


# Values as Optuna keeps them.


def label(value: Any) -> Any:
    """A value of a choice as Optuna takes it: a list as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


# What a point means.


def known_values(base: Train) -> dict[str, Any]:
    """What conditions may ask for besides the entries: the loss that `train` has, where it has one alone."""
    return {"loss.name": base.loss[0].name} if len(base.loss) == 1 else {}


def train_options(values: Mapping[str, Any], base: Train, shape: Sequence[int], validations: int) -> Train:
    """The options of a trial.

    Args:
        values: the point, by name of the entry.
        base: what all trials share.
        shape: voxels (z, y, x) of the median training tomogram: a patch is a cube cut to what fits.
        validations: how often a trial is validated unless `base` says otherwise.

    Raises:
        ValueError: these options do not go together.
    """
    try:
        network = parse_network(_network(values, base))
        return _options(values, base, network, shape, validations)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")) from None


def _options(
    values: Mapping[str, Any], base: Train, network: NetworkOptions, shape: Sequence[int], validations: int
) -> Train:
    options = base.model_dump(mode="json")
    options["network"] = network.model_dump(mode="json")
    loss = _below("loss", values)
    if loss:
        options["loss"] = [loss if "name" in loss else {**options["loss"][0], **loss}]
    for name, value in values.items():
        place = options
        *path, last = name.split(".")
        if name == "network" or path[:1] == ["loss"] or name.startswith(f"{values['network']}."):
            continue
        for part in path:
            place = place[part]
        place[last] = value
    if isinstance(values.get("patch"), int):
        options["patch"] = _cube(values["patch"], network, shape)
    options["validate_every"] = base.validate_every or math.ceil(options["steps"] / validations)
    trained = Train.model_validate(options)
    if trained.patch != "auto":
        trained.check_patch_of(network)
    return trained


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}


def _network(values: Mapping[str, Any], base: Train) -> dict[str, Any]:
    family = values["network"]
    own: type[NetworkOptions] = family_module(family).Options
    # What train says of this family holds for what is not searched.
    shared = base.network.model_dump(exclude_unset=True) if base.network.family == family else {}
    return {**shared, **own.from_search(_below(family, values)), "family": family}


def _cube(size: int, network: NetworkOptions, shape: Sequence[int]) -> list[int]:
    """A cube of about `size` voxels a side, cut to a tomogram and to multiples that the network takes."""
    sides = zip(network.size_step(), network.smallest_size(), shape, strict=True)
    return [max(least, min(size, side) // step * step) for step, least, side in sides]


def describe_space(space: SearchSpace, families: Sequence[str]) -> str:
    """The space as the part of a configuration that would say the same."""

    def part(entries: Iterable[Entry], prefix: str) -> dict[str, Any]:
        found = {}
        for entry in entries:
            domain = entry.domain.model_dump(exclude={"when"}, exclude_defaults=True)
            when = {name: allowed for name, allowed in entry.when.items() if name != "network"}
            plain = isinstance(entry.domain, Fixed) and not when
            found[entry.name.removeprefix(prefix)] = (
                domain["value"] if plain else domain | ({"when": when} if when else {})
            )
        return found

    def of_family(entry: Entry) -> str | None:
        return next((family for family in families if entry.name.startswith(f"{family}.")), None)

    networks = {family: part((e for e in space.entries if of_family(e) == family), f"{family}.") for family in families}
    rest = part((e for e in space.entries if e.name != "network" and of_family(e) is None), "")
    return yaml.safe_dump({"explore": {"networks": networks, "space": rest}}, sort_keys=False, default_flow_style=None)
