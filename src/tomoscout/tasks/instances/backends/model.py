"""The part of a model folder of a back end that tomoscout reads and writes beside the package's own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, digest_file, write_text
from tomoscout.models.folder import FORMAT, read_description
from tomoscout.options.forms import checked
from tomoscout.tasks.instances.annotation_options import Normalisation

Backend = Literal["stardist", "cellpose"]
NAMES = {"stardist": "StarDist", "cellpose": "Cellpose"}


class _Form(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    name: str = Field(min_length=1)
    head: Backend
    channels: list[str] = Field(min_length=1)
    normalisations: list[Normalisation] = Field(min_length=1)
    calibration: PositiveFloat | None
    rescale_tolerance: float
    weights: str
    made_from: dict[str, Any]
    made_with: dict[str, str]


@dataclass(frozen=True)
class BackendModel:
    """A model of StarDist or Cellpose. As in `CellModel`, `inputs` are names of channels, each with its normalisation,
    and `calibration` is in µm per pixel.

    `made_with`: names of packages and their versions.
    """

    name: str
    backend: Backend
    inputs: tuple[str, ...]
    normalisations: tuple[Normalisation, ...]
    calibration: float | None
    rescale_tolerance: float
    weights_digest: str
    made_from: dict[str, Any]
    made_with: dict[str, str]

    @property
    def dimensions(self) -> int:
        """Spatial dimensions."""
        return 2

    @property
    def kind(self) -> str:
        """What tells instances apart, in words."""
        return f"{NAMES[self.backend]} {self.made_with[self.backend]}"

    @classmethod
    def files(cls, backend: Backend, name: str) -> list[str]:
        """The package's own files in a model folder, the weights first."""
        return {"stardist": ["weights_best.h5", "config.json", "thresholds.json"], "cellpose": [name]}[backend]

    @classmethod
    def digest_of(cls, folder: Path, files: Sequence[str]) -> str:
        """The digest of the package's own files.

        Raises:
            TomoscoutError: one is missing.
        """
        for name in files:
            if not (folder / name).is_file():
                raise TomoscoutError(f"{folder / name}: no such file; the model folder is incomplete")
        return digest([digest_file(folder / name) for name in files])

    def write(self, folder: Path) -> None:
        """Write `model.yaml`, the last file of a training."""
        values = {
            "format": FORMAT,
            "name": self.name,
            "head": self.backend,
            "channels": list(self.inputs),
            "normalisations": [entry.model_dump(mode="json") for entry in self.normalisations],
            "calibration": self.calibration,
            "rescale_tolerance": self.rescale_tolerance,
            "weights": self.weights_digest,
            "made_from": self.made_from,
            "made_with": {"tomoscout": version("tomoscout"), **self.made_with},
        }
        write_text(folder / "model.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `model.yaml`.

        Raises:
            TomoscoutError: it is missing or has another form, or a file of the package is missing or has changed.
        """
        path = folder / "model.yaml"
        form = checked(_Form, read_description(folder), path, "a model description")
        if cls.digest_of(folder, cls.files(form.head, folder.name)) != form.weights:
            raise TomoscoutError(f"{folder}: not the files that {path} describes (digests differ)")
        return cls(
            form.name,
            form.head,
            tuple(form.channels),
            tuple(form.normalisations),
            form.calibration,
            form.rescale_tolerance,
            form.weights,
            form.made_from,
            form.made_with,
        )
