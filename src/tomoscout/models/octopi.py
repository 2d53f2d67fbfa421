"""Models that octopi trained: its `model_config.yaml` and `best_model.pth`.

Such a model is read as the options of a network family (`octopi_networks`) and weights that fit it. Options that the
family does not support, and unknown ones, are refused: they might change what the network computes without changing the
shapes of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tomoscout.machine.errors import TomoscoutError
from tomoscout.models.octopi_networks import read_network
from tomoscout.networks import build_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.names import TomogramUri

if TYPE_CHECKING:
    import torch

WEIGHTS = "best_model.pth"


@dataclass(frozen=True)
class OctopiModel:
    """A model that octopi trained.

    `labels`: the label of each class, by name, in octopi's order; it is the index of the output channel. Of the
    `outputs`, channel 0 and every channel without a class are background. `patch`: size of the training crops in
    voxels, if known. `voxel_spacings`: of the training tomograms in Å, as far as they are known. `weights`: all that
    the network of the options needs, and no others.
    """

    network: NetworkOptions
    labels: dict[str, int]
    outputs: int
    patch: tuple[int, int, int] | None
    voxel_spacings: tuple[float, ...]
    weights: dict[str, torch.Tensor]


def read_octopi_model(config_path: Path, weights: Path | None) -> OctopiModel:
    """Read octopi's `model_config.yaml` and its weights, by default the `best_model.pth` beside it. No code in them is
    executed: the first is read as plain YAML, the second as tensors only.

    Raises:
        TomoscoutError: a file is missing or broken, an option of the network is not supported, or the weights do not
            fit the network.
    """
    config = _read_config(config_path)
    model = _mapping(config_path, config, "model")
    outputs = _whole_number(config_path, model, "num_classes", least=2)
    patch = _whole_number(config_path, model, "dim_in", least=1) if model.get("dim_in") is not None else None
    network = read_network(config_path, model)
    return OctopiModel(
        network=network,
        labels=_labels(config_path, config, outputs),
        outputs=outputs,
        patch=None if patch is None else (patch, patch, patch),
        voxel_spacings=_voxel_spacings(config_path, config),
        weights=_weights(weights or config_path.with_name(WEIGHTS), network, outputs, config_path),
    )


# Configuration


class _Loader(yaml.SafeLoader):
    """Plain YAML; the tag of Python's tuples is read as a list."""


def _list_of(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _list_of)


def _read_config(path: Path) -> dict[Any, Any]:
    try:
        config = yaml.load(
            path.read_text(encoding="utf-8"), _Loader
        )  # Derived from SafeLoader: it makes plain values only.
    except OSError as error:
        raise TomoscoutError(f"{path}: {error.strerror}; expected octopi's model_config.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TomoscoutError(f"{path}: not plain YAML ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise TomoscoutError(f"{path}: holds {type(config).__name__}, expected octopi's model_config.yaml")
    return config


def _mapping(path: Path, config: Mapping[Any, Any], key: str) -> dict[Any, Any]:
    value = config.get(key)
    if not isinstance(value, dict) or not value:
        found = "is missing" if key not in config else f"is {value!r}"
        raise TomoscoutError(f"{path}: {key} {found}, expected a mapping as octopi writes at the end of a training")
    return value


def _whole_number(path: Path, model: Mapping[Any, Any], key: str, least: int) -> int:
    value = model.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        found = "is missing" if key not in model else f"is {value!r}"
        raise TomoscoutError(f"{path}: model.{key} {found}, expected a whole number from {least} on")
    return value


def _labels(path: Path, config: Mapping[Any, Any], outputs: int) -> dict[str, int]:
    labels = _mapping(path, config, "labels")
    for name, label in labels.items():
        if not isinstance(label, int) or isinstance(label, bool) or not 1 <= label < outputs:
            raise TomoscoutError(
                f"{path}: labels.{name} is {label!r}, expected a whole number from 1 to {outputs - 1} "
                f"(model.num_classes is {outputs})"
            )
    if len(set(labels.values())) < len(labels):
        raise TomoscoutError(f"{path}: labels {labels} give two classes the same label")
    return {str(name): label for name, label in labels.items()}


def _voxel_spacings(path: Path, config: Mapping[Any, Any]) -> tuple[float, ...]:
    """The voxel spacings of `dataloader.tomo_uris`, which older versions of octopi do not write."""
    loader = config.get("dataloader")
    uris = loader.get("tomo_uris") if isinstance(loader, dict) else None
    try:
        found = [TomogramUri.parse(uri).voxel_spacing for uri in ([uris] if isinstance(uris, str) else uris or [])]
    except (TypeError, ValueError, AttributeError):
        raise TomoscoutError(f"{path}: dataloader.tomo_uris is {uris!r}, expected tomograms such as wbp@10.0") from None
    return tuple(dict.fromkeys(found))


# Weights


def _weights(path: Path, network: NetworkOptions, outputs: int, config_path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file, under the names and in the dtypes of the network.

    MONAI's DynUNet has two names for most weights; a file may hold both.
    """
    import torch

    found = _read_tensors(path)
    with torch.device("meta"):
        empty = build_network(network, outputs)
    expected = empty.state_dict()
    reason = f"the {network.family} of {config_path}"
    for name, weight in expected.items():
        if name not in found:
            raise TomoscoutError(f"{path}: {name} is missing, expected the weights of {reason}")
        if found[name].shape != weight.shape:
            shapes = f"{tuple(found[name].shape)}, expected {tuple(weight.shape)}"
            raise TomoscoutError(f"{path}: {name} has the shape {shapes} of {reason}")
        if not found[name].isfinite().all():
            raise TomoscoutError(f"{path}: {name} holds numbers that are not finite; the training went wrong")
    unexpected = empty.load_state_dict(found, strict=False, assign=True).unexpected_keys
    if unexpected:
        raise TomoscoutError(f"{path}: {unexpected[0]} is not one of the weights of {reason}")
    return {name: found[name].to(weight.dtype) for name, weight in expected.items()}


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TomoscoutError(f"{path}: no such file; expected the weights that octopi wrote") from None
    except pickle.UnpicklingError:
        raise TomoscoutError(f"{path}: holds more than tensors, or is no file of PyTorch; it was not loaded") from None
    except Exception as error:  # Damaged files raise exceptions of many kinds.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TomoscoutError(f"{path}: cannot be read as weights ({reason})") from None
    if not isinstance(content, dict) or not all(isinstance(weight, torch.Tensor) for weight in content.values()):
        raise TomoscoutError(f"{path}: holds no state dict, expected tensors by name, as octopi's best_model.pth")
    return content
