"""An annotated image: what is known of it without reading its voxels, and how these are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Annotation(ABC):
    """An image, or a tomogram, and its labels.

    `source`: its name in the configuration. `channels`: their names. `calibration`: µm per voxel. `group`: images of
    one source and group must not be divided. `shape`: (z,) y, x. `label_type`: of the stored labels.
    """

    source: str
    name: str
    channels: tuple[str, ...]
    calibration: float | None
    group: str
    shape: tuple[int, ...]
    label_type: str

    @property
    def key(self) -> str:
        """Source and name, which tell it from all others."""
        return f"{self.source}/{self.name}"

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the image lies, for messages."""

    @property
    @abstractmethod
    def inputs(self) -> str:
        """A digest of the content of image and labels and of what is known of the channels."""

    @abstractmethod
    def read_image(self) -> NDArray[Any]:
        """The intensities (channels, (z,) y, x) as stored.

        Raises:
            TomoscoutError: they cannot be read, or hold NaN or infinite values.
        """

    @abstractmethod
    def read_labels(self) -> NDArray[np.int32]:
        """The labels ((z,) y, x); 0 is background.

        Raises:
            TomoscoutError: they cannot be read, or are not whole numbers from 0 on.
        """
