"""A model folder: everything needed to apply a trained network, and a record of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, digest_file, write_bytes, write_text
from tomoscout.networks import code_digest, parse_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.forms import checked

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT = 2


class Described(BaseModel):
    """The fields of `model.yaml` that all tasks have. Each task derives its own form."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str = Field(min_length=1)
    network: dict[str, Any]
    network_code: str | None
    weights: str
    made_from: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """The content of `model.yaml`. Each task derives its own class, with what it needs to prepare volumes and to decode
    predictions.

    `made_from`, and `made_with` in the file, are for the user and for digests.
    """

    HEAD: ClassVar[str]
    """Name of the task in the file."""
    NORMALISATION: ClassVar[str] = "standardise"
    """How volumes are prepared."""
    FORM: ClassVar[type[Described]]

    name: str
    network: NetworkOptions
    made_from: dict[str, Any]
    weights_digest: str

    @property
    def dimensions(self) -> int:
        """Spatial dimensions."""
        return 3

    @property
    def channels(self) -> int:
        """Input channels of the network."""
        return 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the channels of a prediction."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """Output channels of the network: background and the classes."""
        return len(self.class_names) + 1

    def described(self) -> dict[str, Any]:
        """The fields of the task, as plain values."""
        raise NotImplementedError

    @classmethod
    def from_described(cls, common: Mapping[str, Any], described: Any) -> Self:
        """Create the model from a description. `common`: the fields of every model, by name; `described`: of the type
        `FORM`.

        Raises:
            ValueError: the description is inconsistent.
        """
        raise NotImplementedError

    def to_yaml(self) -> str:
        """The text of `model.yaml`."""
        return yaml.safe_dump(
            {
                "format": FORMAT,
                "name": self.name,
                "head": self.HEAD,
                "network": self.network.model_dump(mode="json"),
                "network_code": code_digest(self.network),
                **self.described(),
                "weights": self.weights_digest,
                "made_from": self.made_from,
                "made_with": {name: version(name) for name in ("tomoscout", "torch", "monai", "copick", "zarr")},
            },
            sort_keys=False,
            allow_unicode=True,
        )

    def write(self, folder: Path) -> None:
        """Write `model.yaml`, the last file of a training. It marks the folder as a complete model."""
        write_text(folder / "model.yaml", self.to_yaml())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `model.yaml`.

        Raises:
            TomoscoutError: it is missing, has a form that this version does not know, or the code of its network has
                changed.
        """
        path = folder / "model.yaml"
        values = read_description(folder)
        expected = {"head": cls.HEAD, "normalisation": cls.NORMALISATION}
        found = {key: values.get(key) for key in expected}
        if found != expected:
            raise TomoscoutError(f"{path}: found {found}, expected {expected}")
        described = checked(cls.FORM, values, path, "a model description")
        try:
            _check_code(path, described.network["family"], described.network_code)
            common = {
                "name": described.name,
                "network": parse_network(described.network),
                "made_from": described.made_from,
                "weights_digest": described.weights,
            }
            return cls.from_described(common, described)
        except (KeyError, AttributeError, ValueError, TypeError) as error:
            raise TomoscoutError(f"{path}: not a model description ({' '.join(str(error).split())})") from None


def read_description(folder: Path) -> dict[str, Any]:
    """Read `model.yaml` of any task as plain values.

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
    found: dict[str, Any] = checked(dict[str, Any], values, path, "a model description")
    if found.get("format") != FORMAT:
        raise TomoscoutError(f"{path}: format {found.get('format')!r}, expected {FORMAT}")
    return found


def _check_code(path: Path, family: str, expected: str | None) -> None:
    """Refuse a network whose file has changed, before its code is executed."""
    try:
        found = code_digest(NetworkOptions(family=family))
    except FileNotFoundError:
        raise TomoscoutError(f"{path}: {family}: no such file; the model needs the code of its network") from None
    if found != expected:
        raise TomoscoutError(f"{path}: {family} is not the file that this model was trained with")


def save_weights(folder: Path, weights: Mapping[str, torch.Tensor]) -> str:
    """Write `weights.safetensors`. Returns its digest."""
    from safetensors.torch import save

    content = save({name: value.contiguous() for name, value in sorted(weights.items())})
    write_bytes(folder / "weights.safetensors", content)
    return digest(content)


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
    network = build_network(model.network, model.outputs, inputs=model.channels, dimensions=model.dimensions)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise TomoscoutError(
            f"{folder / 'weights.safetensors'}: weights do not fit the network of {folder / 'model.yaml'} ({reason})"
        ) from None
    return network.to(device).eval()


def ensemble_digest(members: Sequence[Model]) -> str:
    """The digest of the weights of an ensemble of models, in their order."""
    return digest([member.weights_digest for member in members])
