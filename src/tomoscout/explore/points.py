"""What a point of the search space means for a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import ValidationError

from tomoscout.explore.options import Choice, Fixed
from tomoscout.explore.space import Domain, SearchSpace
from tomoscout.learning.options import Training
from tomoscout.networks import family_module, parse_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.validation_errors import key_of


def known_values(base: Training) -> dict[str, Any]:
    """What conditions may ask for besides the entries: the loss that `train` has, where it has one alone."""
    return {"loss.name": base.loss[0].name} if len(base.loss) == 1 else {}


def configured_values(space: SearchSpace, base: Training) -> dict[str, Any]:
    """The point of the space that the training as `train` has it lies at, which may be outside of every range.

    Where the network is none that the entries of its family make (`width` and `levels` of a network whose channels do
    not double), its own options stand in place of these, by name as `UNet.channels`.
    """
    family = base.network.family
    network = {f"{family}.{name}": value for name, value in _searched_network(space, base.network).items()}
    found: dict[str, Any] = {"network": family}
    entries = {entry.name: entry for entry in space.entries if entry.name != "network"}
    for name, entry in entries.items():
        value = network[name] if name in network else _configured(name, base)
        if value is not None and entry.counts({**known_values(base), **found}):
            found[name] = value
    return found | {name: value for name, value in network.items() if name not in entries}


def _configured(name: str, base: Training) -> Any:
    """The value of an entry that is no option of a network; None where the training has nothing of that name."""
    group, _, option = name.partition(".")
    owner: Any = base.loss[0] if group == "loss" and len(base.loss) == 1 else getattr(base, group, None)
    if option:
        return owner.get(option) if isinstance(owner, dict) else getattr(owner, option, None)
    is_cube = name == "patch" and owner != "auto" and len(set(owner)) == 1
    return owner[0] if is_cube else owner


def _searched_network(space: SearchSpace, network: NetworkOptions) -> dict[str, Any]:
    """The entries of a network's family, without its name, that make the network; where none do, its options."""
    prefix = f"{network.family}."
    domains = {e.name.removeprefix(prefix): e.domain for e in space.entries if e.name.startswith(prefix)}
    own = network.model_dump(exclude={"family"})
    if not domains:
        return own
    known = {name: own[name] for name in domains if name in own}
    made_of = [name for name in domains if name not in own]
    for point in product(*(_candidates(domains[name]) for name in made_of)):
        values = {**known, **dict(zip(made_of, point, strict=True))}
        try:
            made = type(network).from_search(values)
        except (KeyError, TypeError):
            break
        if all(own.get(name) == value for name, value in made.items()):
            return values
    return own


def _candidates(domain: Domain) -> Sequence[Any]:
    """The values of an entry, as far as they can be counted."""
    if isinstance(domain, Fixed):
        return [domain.value]
    if isinstance(domain, Choice):
        return domain.choices
    return range(int(domain.low), int(domain.high) + 1, int(domain.step or 1)) if domain.is_whole else []


def train_options(values: Mapping[str, Any], base: Training, settings: Mapping[str, Any]) -> Training:
    """The options of a trial.

    Args:
        values: the point, by name of the entry.
        base: what all trials share.
        settings: content of study.json. Of it count: `shape`, the voxels (z, y, x) of the median training tomogram: a
            patch is a cube cut to what fits; `budget`; and `validations`, how often a trial is validated.

    Raises:
        ValueError: these options do not go together.
    """
    try:
        network = parse_network(_network(values, base))
        options = _options(values, base, network, settings["shape"])
        if "steps" not in values and settings["budget"] == "voxels":
            options = _with_budget(options, base, settings["shape"], settings["validations"])
        if options.steps != base.steps:
            options = options.model_copy(update={"validate_every": None})
        return with_validations(options, settings["validations"])
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{key_of(first['loc'])}: {message}" if first["loc"] else message) from None


def with_validations(options: Training, validations: int) -> Training:
    """With so many validations, evenly spaced, unless the options say how often."""
    interval = options.validate_every or math.ceil(options.steps / validations)
    return options.model_copy(update={"validate_every": interval})


def _options(values: Mapping[str, Any], base: Training, network: NetworkOptions, shape: Sequence[int]) -> Training:
    options = base.model_dump(mode="json")
    options["network"] = network.model_dump(mode="json")
    loss = _below("loss", values)
    if loss:
        first = options["loss"][0]
        options["loss"] = [{**first, **loss} if loss.get("name", first["name"]) == first["name"] else loss]
    for name, value in values.items():
        if name == "network" or name.startswith(("loss.", f"{values['network']}.")):
            continue
        group, _, option = name.partition(".")
        if option:
            options[group][option] = value
        else:
            options[group] = value
    if isinstance(values.get("patch"), int):
        options["patch"] = _cube(values["patch"], network, shape)
    trained = type(base).model_validate(options)
    if trained.patch != "auto":
        trained.check_patch_of(network)
    return trained


def _with_budget(options: Training, base: Training, shape: Sequence[int], validations: int) -> Training:
    """With as many steps as make as many voxels as the training that all share: as many between two validations, so
    that all trials have equally many of these."""
    share = _voxels(base, shape) / _voxels(options, shape)
    interval = max(round(base.steps * share / validations), 1)
    return options.model_copy(update={"steps": base.steps if share == 1 else validations * interval})


def _voxels(options: Training, shape: Sequence[int]) -> int:
    """In the crops of a step."""
    planned = options.patch == "auto"
    patch = options.network.plan(shape, options.plan_memory_gb)[1] if planned else options.crop
    return options.batch_size * math.prod(patch)


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}


def _network(values: Mapping[str, Any], base: Training) -> dict[str, Any]:
    family = values["network"]
    module = family_module(family)
    own: type[NetworkOptions] = module.Options
    # What train says of this family holds for what is not searched.
    shared = base.network.model_dump(exclude_unset=True) if base.network.family == family else {}
    searched = _below(family, values)
    try:
        made = own.from_search({**shared, **searched})
    except KeyError as error:
        raise ValueError(
            f"{error.args[0]} is missing beside {', '.join(searched)}; search or set those that make a "
            "network together, or none of them"
        ) from None
    except TypeError as error:
        raise ValueError(
            f"{family}: {', '.join(f'{name} {value}' for name, value in searched.items())}: {error}"
        ) from None
    for name in sorted(searched.keys() - getattr(module, "SPACE", {}).keys()):
        if made.get(name) != searched[name]:
            raise ValueError(f"{name} is made from what is searched, too; set that to null, or leave {name} out")
    return {**made, "family": family}


def _cube(size: int, network: NetworkOptions, shape: Sequence[int]) -> list[int]:
    """A cube of about `size` voxels a side, cut to a tomogram and to multiples that the network takes."""
    dimensions = len(shape)
    sides = zip(network.size_step(dimensions), network.smallest_size(dimensions), shape, strict=True)
    return [max(least, min(size, side) // step * step) for step, least, side in sides]
