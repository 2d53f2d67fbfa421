"""Fine-tuning: the network and weights that a training starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from tomoscout.learning.options import Training
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, digest_file
from tomoscout.models.folder import Model, load_weights
from tomoscout.models.octopi import WEIGHTS as OCTOPI_WEIGHTS
from tomoscout.networks import build_network, head_parameters
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.names import names_octopi

if TYPE_CHECKING:
    import torch


def base_files(options: Training) -> list[Path]:
    """The files that a base consists of: those of a model folder, or octopi's configuration and weights."""
    if options.base is None:
        return []
    path = Path(options.base)
    if names_octopi(options.base):
        return [path, Path(options.base_weights) if options.base_weights else path.with_name(OCTOPI_WEIGHTS)]
    folder = path.parent if path.name == "model.yaml" else path
    return [folder / "model.yaml", folder / "weights.safetensors"]


def base_digest(options: Training) -> str | None:
    """The digest of the files of the base, a part of the fingerprint of a training; None without a base.

    Raises:
        TomoscoutError: a file of it is missing.
    """
    files = base_files(options)
    for path in files:
        if not path.is_file():
            raise TomoscoutError(
                f"train.base: {path}: no such file; expected a model folder, or octopi's model_config.yaml with its "
                "weights (train.base_weights)"
            )
    return digest([digest_file(path) for path in files]) if files else None


@dataclass(frozen=True)
class Base:
    """A trained network that a fine-tuning starts from.

    `origin`: its file or folder, for messages. `labels`: the output channel of each class, by name. `outputs`,
    `inputs`: numbers of output and input channels. `dimensions`: number of spatial dimensions.
    """

    origin: str
    network: NetworkOptions
    labels: dict[str, int]
    outputs: int
    weights: dict[str, torch.Tensor]
    inputs: int = 1
    dimensions: int = 3

    def shared(self, classes: Sequence[str]) -> list[str]:
        """The classes that the base has, too."""
        return [name for name in classes if name in self.labels]

    def channels(self, classes: Sequence[str]) -> list[tuple[int, int]]:
        """Pairs of output channels of the same class, in a network for `classes` and in the base; without
        background."""
        return [(channel, self.labels[name]) for channel, name in enumerate(classes, 1) if name in self.labels]

    def shared_scores(self, scores: Mapping[str, float], classes: Sequence[str]) -> dict[str, float]:
        """The scores, by class, of those classes that the base has, too."""
        return {name: scores[name] for name in self.shared(classes) if name in scores}

    def knows(self, classes: Sequence[str]) -> bool:
        """Whether these are exactly the classes of the base, in any order, so that its head can be kept."""
        return len(self.shared(classes)) == len(classes) == self.outputs - 1


def read_base(options: Training, kind: type[Model]) -> Base:
    """Read the base that `train.base` names: a model folder of the task's kind, or a model of octopi.

    Raises:
        TomoscoutError: it cannot be read or is inconsistent.
    """
    first, second = base_files(options)
    if first.name == "model.yaml":
        model = kind.read(first.parent)
        labels = {name: channel for channel, name in enumerate(model.class_names, 1)}
        weights = load_weights(first.parent, model)
        return Base(str(first.parent), model.network, labels, model.outputs, weights, model.channels, model.dimensions)
    from tomoscout.models.octopi import read_octopi_model

    theirs = read_octopi_model(first, second)
    return Base(str(first), theirs.network, theirs.labels, theirs.outputs, theirs.weights)


def starting_weights(base: Base, classes: Sequence[str], fresh: dict[str, torch.Tensor]) -> str:
    """Copy the base's weights into `fresh`, the weights of a new network for `classes`, in place.

    The head (the layers with an output channel per class) is assembled channel by channel: from the base for background
    and for classes that it has, too; unchanged from `fresh` for the others. Returns a description for the user.

    Raises:
        TomoscoutError: the weights do not belong to the base's network, or its head has no separate channel per class.
    """
    import torch

    differing = sorted(base.weights.keys() ^ fresh.keys())
    if differing:
        raise TomoscoutError(
            f"train.base: {base.origin}: weights do not fit the network {base.network.family} ({', '.join(differing)})"
        )
    heads = _head_parameters("train.base", base.network, base.outputs, base.inputs, base.dimensions)
    new, old = torch.tensor([(0, 0), *base.channels(classes)]).T
    for name, weights in base.weights.items():
        fresh[name].copy_(_with_channels(fresh[name], weights, heads.get(name, ()), new, old))
    if base.knows(classes):
        return f"starting from {base.origin}"
    kept = ", ".join(base.shared(classes)) or "none"
    added = ", ".join(name for name in classes if name not in base.labels) or "none"
    left = ", ".join(name for name in base.labels if name not in classes) or "none"
    return (
        f"starting from {base.origin} with other classes: the head is rebuilt (kept: {kept}; new: {added}; "
        f"dropped: {left})"
    )


def _head_parameters(
    option: str, network: NetworkOptions, outputs: int, channels: int, dimensions: int
) -> dict[str, tuple[int, ...]]:
    try:
        return head_parameters(network, outputs, inputs=channels, dimensions=dimensions)
    except ValueError as error:
        raise TomoscoutError(f"{option}: {error}") from None


def _with_channels(
    target: torch.Tensor, source: torch.Tensor, axes: Sequence[int], new: torch.Tensor, old: torch.Tensor
) -> torch.Tensor:
    """`target` with its channels `new`, along all `axes` at once, replaced by the channels `old` of `source`. Without
    axes: `source`."""
    if not axes:
        return source
    axis, *others = axes
    taken = _with_channels(target.index_select(axis, new), source.index_select(axis, old), others, new, old)
    return target.index_copy(axis, new, taken)


def frozen_parameters(options: Training, outputs: int, channels: int) -> Callable[[int], frozenset[str]]:
    """A function from the step to the names of the parameters that are frozen (`train.freeze`).

    Raises:
        TomoscoutError: a pattern of `train.freeze` matches no parameter, no parameter is left to train, or the head of
            the network has no separate channel per class.
    """
    if options.freeze == "nothing":
        return lambda step: frozenset()
    import torch

    with torch.device("meta"):
        network = build_network(options.network, outputs, inputs=channels, dimensions=options.DIMENSIONS)
        names = [name for name, _ in network.named_parameters()]
    if options.freeze == "body":
        heads = _head_parameters("train.freeze", options.network, outputs, channels, options.DIMENSIONS)
        frozen = frozenset(names) - heads.keys()
    else:
        for pattern in options.freeze:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise TomoscoutError(f"train.freeze: '{pattern}' matches no parameter; there are {', '.join(names)}")
        frozen = frozenset(name for name in names if any(fnmatchcase(name, p) for p in options.freeze))
    if frozen >= set(names):
        raise TomoscoutError(f"train.freeze: {options.freeze} leaves nothing to train")
    return lambda step: frozen if options.freeze_steps is None or step < options.freeze_steps else frozenset()
