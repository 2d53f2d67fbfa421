"""A model folder: everything needed to apply a trained network, and what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, digest_file, write_bytes, write_text
from tomoscout.networks import code_digest, parse_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.forms import checked
from tomoscout.options.names import Source
from tomoscout.options.sections import Fraction
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking.options import Picking

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT = 2


@dataclass(frozen=True)
class Model:
    """What `model.yaml` says. Thresholds are by class name, voxel spacings (those of the training tomograms) in Å;
    `made_from` and `made_with` are for people and digests."""

    name: str
    network: NetworkOptions
    classes: tuple[TargetClass, ...]
    thresholds: dict[str, float]
    voxel_spacings: tuple[float, ...]
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
                "network": self.network.model_dump(mode="json"),
                "network_code": code_digest(self.network),
                "classes": [
                    entry.to_json() | ({"threshold": self.thresholds[entry.name]} if entry.is_particle else {})
                    for entry in self.classes
                ],
                "voxel_spacings": list(self.voxel_spacings),
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


class _Form(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class _Class(_Form):
    """A class in `model.yaml`; a particle has both radii and a threshold, any other class neither."""

    name: str = Field(min_length=1)
    label: int
    radius: PositiveFloat | None
    target_radius: PositiveFloat | None
    sources: list[str]
    threshold: Fraction | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({value is None for value in (self.radius, self.target_radius, self.threshold)}) > 1:
            raise ValueError(f"class '{self.name}' has not all of radius, target_radius and threshold, nor none")
        return self

    def to_class(self) -> TargetClass:
        sources = tuple(map(Source.parse, self.sources))
        return TargetClass(self.name, self.label, self.radius, self.target_radius, sources)


class _Description(_Form):
    """The form of `model.yaml`."""

    name: str = Field(min_length=1)
    network: dict[str, Any]
    network_code: str | None
    classes: list[_Class] = Field(min_length=1)
    voxel_spacings: list[PositiveFloat] = Field(min_length=1)
    patch: list[PositiveInt]
    picking: Picking
    weights: str
    made_from: dict[str, Any]

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, value: list[_Class]) -> list[_Class]:
        """A label is a channel of the network."""
        if [entry.label for entry in value] != list(range(1, len(value) + 1)):
            raise ValueError(f"labels {[entry.label for entry in value]}, expected 1 to {len(value)} in order")
        if len({entry.name for entry in value}) < len(value):
            raise ValueError(f"two classes of one name among {', '.join(entry.name for entry in value)}")
        return value


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
        TomoscoutError: it is missing, not of a form this version knows, or of a network whose code has changed.
    """
    path = folder / "model.yaml"
    described = checked(_Description, read_description(folder), path, "a model description")
    try:
        _check_code(path, described.network["family"], described.network_code)
        return Model(
            described.name,
            parse_network(described.network),
            tuple(entry.to_class() for entry in described.classes),
            {entry.name: entry.threshold for entry in described.classes if entry.threshold is not None},
            tuple(described.voxel_spacings),
            tuple(described.patch),
            described.picking,
            described.made_from,
            described.weights,
        )
    except (KeyError, AttributeError, ValueError, TypeError) as error:
        raise TomoscoutError(f"{path}: not a model description ({' '.join(str(error).split())})") from None


def read_description(folder: Path) -> dict[str, Any]:
    """The content of `model.yaml` as plain values.

    Raises:
        TomoscoutError: it is missing, or not of the format that this version writes.
    """
    path = folder / "model.yaml"
    if not path.is_file():
        raise TomoscoutError(f"{path}: no model there; train it first")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TomoscoutError(f"{path}: not a model description ({' '.join(str(error).split())})") from None
    found = checked(dict[str, Any], values, path, "a model description")
    expected = {"format": FORMAT, "head": "picking", "normalisation": "standardise"}
    if any(found.get(key) != value for key, value in expected.items()):
        raise TomoscoutError(f"{path}: format {found.get('format')!r}, expected {FORMAT} with the head 'picking'")
    return found


def _check_code(path: Path, family: str, expected: str | None) -> None:
    """Refuse a network whose file has changed, before anything in it is run."""
    try:
        found = code_digest(NetworkOptions(family=family))
    except FileNotFoundError:
        raise TomoscoutError(f"{path}: {family}: no such file; the model needs the code of its network") from None
    if found != expected:
        raise TomoscoutError(f"{path}: {family} is not the file that this model was trained with")


def read_ensemble(folders: Sequence[Path]) -> tuple[Model, list[Model]]:
    """Read models that are applied together: what they are as one, with the mean of their thresholds, and each.

    Raises:
        TomoscoutError: one cannot be read, or they differ in classes or voxel spacing.
    """
    members = [read_model(folder) for folder in folders]
    first = members[0]
    for folder, member in zip(folders, members, strict=True):
        if [(e.name, e.label) for e in member.classes] != [(e.name, e.label) for e in first.classes]:
            raise TomoscoutError(
                f"{folder}: finds {', '.join(entry.name for entry in member.classes)}, but {folders[0]} "
                f"{', '.join(entry.name for entry in first.classes)}; an ensemble needs the same classes in one order"
            )
        if member.picking != first.picking or [e.radius for e in member.classes] != [e.radius for e in first.classes]:
            raise TomoscoutError(f"{folder}: its picks are made otherwise than those of {folders[0]} (picking, radii)")
    if len(members) == 1:
        return first, members
    shared = set.intersection(*(set(member.voxel_spacings) for member in members))
    if not shared:
        raise TomoscoutError(f"{', '.join(map(str, folders))}: trained at different voxel spacings")
    thresholds = {name: float(np.mean([m.thresholds[name] for m in members]).round(3)) for name in first.thresholds}
    together = replace(
        first,
        name=" + ".join(member.name for member in members),
        thresholds=thresholds,
        voxel_spacings=tuple(sorted(shared)),
        weights_digest=digest([member.weights_digest for member in members]),
    )
    return together, members


def load_weights(folder: Path, model: Model) -> dict[str, torch.Tensor]:
    """Read the weights of a model folder.

    Raises:
        TomoscoutError: they are missing, or changed since the training.
    """
    from safetensors.torch import load_file

    path = folder / "weights.safetensors"
    if not path.exists():
        raise TomoscoutError(f"{path}: no such file; the model folder is incomplete")
    if digest_file(path) != model.weights_digest:
        raise TomoscoutError(f"{path}: not the weights that {folder / 'model.yaml'} describes (digests differ)")
    weights: dict[str, torch.Tensor] = load_file(path)
    return weights


def load_network(folder: Path, model: Model, device: torch.device) -> nn.Module:
    """Build the network of a model folder with its weights, ready to be applied.

    Raises:
        TomoscoutError: the weights are missing, changed since the training, or do not fit the network.
    """
    from tomoscout.networks import build_network

    weights = load_weights(folder, model)
    network = build_network(model.network, len(model.classes) + 1)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise TomoscoutError(
            f"{folder / 'weights.safetensors'}: weights do not fit the network of {folder / 'model.yaml'} ({reason})"
        ) from None
    return network.to(device).eval()
