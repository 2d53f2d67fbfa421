"""Conversion between points of the search space and options of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import ValidationError

from tomoscout.explore.options import Choice, Fixed
from tomoscout.explore.space import Domain, SearchSpace
from tomoscout.learning.losses import Loss
from tomoscout.learning.options import ClassTraining, Training
from tomoscout.networks import family_module, parse_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.validation_errors import key_of


def known_values(base: Training) -> dict[str, Any]:
    """Values that conditions may refer to besides those of entries: the name of the loss in `train`, if that is a
    single one."""
    losses = losses_of(base)
    return {"loss.name": losses[0].name} if len(losses) == 1 else {}


def losses_of(base: Training) -> list[Loss]:
    """The losses of a training that tells classes apart; none of others."""
    return base.loss if isinstance(base, ClassTraining) else []


def configured_values(space: SearchSpace, base: Training) -> dict[str, Any]:
    """The point of the search space that stands for the configured training, `base`. It may lie outside of the searched
    ranges.

    If the entries of its family cannot make the configured network (`width` and `levels`, if the channels of the
    network do not double), the network's own options replace them, by names such as `UNet.channels`.
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
    """The configured value of an entry that is no option of a network; None if the training has no such option."""
    group, _, option = name.partition(".")
    losses = losses_of(base)
    owner: Any = losses[0] if group == "loss" and len(losses) == 1 else getattr(base, group, None)
    if option:
        return owner.get(option) if isinstance(owner, dict) else getattr(owner, option, None)
    is_cube = name == "patch" and owner != "auto" and len(set(owner)) == 1
    return owner[0] if is_cube else owner


def _searched_network(space: SearchSpace, network: NetworkOptions) -> dict[str, Any]:
    """The values of the family's entries that make the network, by name without the family. If no values do, the
    options of the network."""
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
    """All values of an entry, if they can be enumerated."""
    if isinstance(domain, Fixed):
        return [domain.value]
    if isinstance(domain, Choice):
        return domain.choices
    return range(int(domain.low), int(domain.high) + 1, int(domain.step or 1)) if domain.is_whole else []


def train_options(values: Mapping[str, Any], base: Training, settings: Mapping[str, Any]) -> Training:
    """The options of a trial.

    Args:
        values: the point: values by name of the entry.
        base: the options that all trials share.
        settings: content of study.json, of which are used: `shape`, the voxels (*space) of the median training volume,
            which limits the size of a cubic patch, or None; `budget`; and `validations`, the number of validations of
            a trial.

    Raises:
        ValueError: the options contradict each other.
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
    """The options with an interval for this many evenly spaced validations, unless they have an interval already."""
    interval = options.validate_every or math.ceil(options.steps / validations)
    return options.model_copy(update={"validate_every": interval})


def _options(
    values: Mapping[str, Any], base: Training, network: NetworkOptions, shape: Sequence[int] | None
) -> Training:
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
        options["patch"] = _cube(values["patch"], network, base.DIMENSIONS, shape)
    trained = type(base).model_validate(options)
    if trained.patch != "auto":
        trained.check_patch_of(network)
    return trained


def _with_budget(options: Training, base: Training, shape: Sequence[int] | None, validations: int) -> Training:
    """The options with the number of steps that makes a trial see as many voxels as the training that all trials share.
    It is a multiple of the number of validations, so that all trials have equally many of these."""
    share = _voxels(base, shape) / _voxels(options, shape)
    interval = max(round(base.steps * share / validations), 1)
    return options.model_copy(update={"steps": base.steps if share == 1 else validations * interval})


def _voxels(options: Training, shape: Sequence[int] | None) -> int:
    """Number of voxels in the crops of a step.

    Raises:
        ValueError: the patch is planned from the volumes, whose shape is not known.
    """
    if options.patch != "auto":
        patch = options.crop
    elif shape is None:
        raise ValueError("patch auto is planned from images that are not read yet; give its size, or budget: steps")
    else:
        patch = options.network.plan(shape, options.plan_memory_gb)[1]
    return options.batch_size * math.prod(patch)


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}


def _network(values: Mapping[str, Any], base: Training) -> dict[str, Any]:
    family = values["network"]
    module = family_module(family)
    own: type[NetworkOptions] = module.Options
    # Options of this family in `train` apply to what is not searched.
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


def _cube(size: int, network: NetworkOptions, dimensions: int, shape: Sequence[int] | None) -> list[int]:
    """A cube with sides of about `size` voxels, cut to the volume, if its shape is known, and to multiples that the
    network takes."""
    most = shape or [size] * dimensions
    sides = zip(network.size_step(dimensions), network.smallest_size(dimensions), most, strict=True)
    return [max(least, min(size, side) // step * step) for step, least, side in sides]
