"""A model of tomoscout or of a back end, applied to images alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tomoscout.machine.device import choose_device
from tomoscout.models.folder import read_description
from tomoscout.tasks.instances.applied import AppliedModel
from tomoscout.tasks.instances.backends.model import NAMES, BackendModel
from tomoscout.tasks.instances.backends.processes import Predictor, python_of
from tomoscout.tasks.instances.model import CellModel
from tomoscout.tasks.instances.prepare import prepare, renumbered, rescale_factor, resize_labels


class Applied(Protocol):
    """A model that finds instances in an image; see `AppliedModel.labels`."""

    @property
    def model(self) -> CellModel | BackendModel:
        """What is known of the model."""

    def labels(
        self, image: NDArray[Any], numbers: Sequence[int | None], calibration: float | None
    ) -> NDArray[np.int32]:
        """Instances (*space), 1…N, in an image (channels, *space)."""


class AppliedBackend:
    """A model of a back end at work."""

    def __init__(self, model: BackendModel, predictor: Predictor) -> None:
        self.model = model
        self._predictor = predictor

    def labels(
        self, image: NDArray[Any], numbers: Sequence[int | None], calibration: float | None
    ) -> NDArray[np.int32]:
        """See `AppliedModel.labels`."""
        factor = rescale_factor(calibration, self.model.calibration, self.model.rescale_tolerance)
        labels = self._predictor.labels(prepare(image, numbers, self.model.normalisations, factor))
        return renumbered(resize_labels(labels, image.shape[1:]))


def read_cell_model(folder: Path) -> CellModel | BackendModel:
    """Read the model folder of a network of tomoscout or of a back end.

    Raises:
        TomoscoutError: it is incomplete, or of another task.
    """
    of_backend = read_description(folder).get("head") in NAMES
    return BackendModel.read(folder) if of_backend else CellModel.read(folder)


@contextmanager
def applied_model(folder: Path, device: str, python: str | None) -> Iterator[Applied]:
    """A model of a folder, ready to be applied. `device`, `python`: as in the options.

    Raises:
        TomoscoutError: the folder is incomplete, or the Python of a back end is not there.
    """
    model = read_cell_model(folder)
    if isinstance(model, CellModel):
        yield AppliedModel(folder, choose_device(device))
        return
    with closing(Predictor(python_of(model.backend, python), model.backend, folder, device)) as predictor:
        yield AppliedBackend(model, predictor)
