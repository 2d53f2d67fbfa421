"""A model folder: everything needed to apply a trained network, and what it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tomoscout.classes import TargetClass
from tomoscout.config import Network, Picking, Source
from tomoscout.errors import TomoscoutError
from tomoscout.files import digest, digest_file, write_bytes, write_text

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT = 1


@dataclass(frozen=True)
class Model:
    """What `model.yaml` says. Thresholds are by class name; `made_from` and `made_with` are for people and digests."""

    name: str
    network: Network
    classes: tuple[TargetClass, ...]
    thresholds: dict[str, float]
    voxel_spacing: float
    patch: tuple[int, ...]
    picking: Picking
    made_from: dict[str, Any]
    weights_digest: str

    def to_yaml(self) -> str:
        """The text of `model.yaml`."""
        return yaml.safe_dump(
            {
                "format": FORMAT,
                "name": self.name,
                "head": "picking",
                "network": self.network.model_dump(),
                "classes": [
                    entry.to_json() | ({"threshold": self.thresholds[entry.name]} if entry.is_particle else {})
                    for entry in self.classes
                ],
                "voxel_spacing": self.voxel_spacing,
                "normalisation": "standardise",
                "patch": list(self.patch),
                "picking": self.picking.model_dump(),
                "weights": self.weights_digest,
                "made_from": self.made_from,
                "made_with": {name: version(name) for name in ("tomoscout", "torch", "monai", "copick", "zarr")},
            },
            sort_keys=False,
            allow_unicode=True,
        )


def save_model(folder: Path, model: Model) -> None:
    """Write `model.yaml`, which makes the folder a model: the last file of a training."""
    write_text(folder / "model.yaml", model.to_yaml())


def save_weights(folder: Path, weights: dict[str, torch.Tensor]) -> str:
    """Write `weights.safetensors`; returns its digest."""
    from safetensors.torch import save

    content = save({name: value.contiguous() for name, value in sorted(weights.items())})
    write_bytes(folder / "weights.safetensors", content)
    return digest(content)


def read_model(folder: Path) -> Model:
    """Read `model.yaml`.

    Raises:
        TomoscoutError: it is missing, or not of a form this version knows.
    """
    path = folder / "model.yaml"
    try:
        values = yaml.safe_load(path.read_text())
        if values.get("format") != FORMAT or values["head"] != "picking" or values["normalisation"] != "standardise":
            raise TomoscoutError(f"{path}: format {values.get('format')!r}, expected {FORMAT} with the head 'picking'")
        return Model(
            values["name"],
            Network.model_validate(values["network"]),
            tuple(_read_class(entry) for entry in values["classes"]),
            {entry["name"]: entry["threshold"] for entry in values["classes"] if "threshold" in entry},
            values["voxel_spacing"],
            tuple(values["patch"]),
            Picking.model_validate(values["picking"]),
            values["made_from"],
            values["weights"],
        )
    except FileNotFoundError:
        raise TomoscoutError(f"{path}: no model there; train it first") from None
    except (yaml.YAMLError, KeyError, AttributeError, ValueError, TypeError) as error:
        raise TomoscoutError(f"{path}: not a model description ({' '.join(str(error).split())})") from None


def _read_class(entry: dict[str, Any]) -> TargetClass:
    sources = tuple(Source.parse(source) for source in entry["sources"])
    return TargetClass(entry["name"], entry["label"], entry["radius"], entry["target_radius"], sources)


def load_network(folder: Path, model: Model, device: torch.device) -> nn.Module:
    """Build the network of a model folder with its weights, ready to be applied.

    Raises:
        TomoscoutError: the weights are missing, changed since the training, or do not fit the network.
    """
    from safetensors.torch import load_file

    from tomoscout.networks import build_network

    path = folder / "weights.safetensors"
    if not path.exists():
        raise TomoscoutError(f"{path}: no such file; the model folder is incomplete")
    if digest_file(path) != model.weights_digest:
        raise TomoscoutError(f"{path}: not the weights that {folder / 'model.yaml'} describes (digests differ)")
    network = build_network(model.network, len(model.classes) + 1)
    try:
        network.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise TomoscoutError(f"{path}: weights do not fit the network ({str(error).splitlines()[0]})") from None
    return network.to(device).eval()
