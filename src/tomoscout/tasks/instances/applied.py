"""A model applied to an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.learning.precision import chosen_precision
from tomoscout.learning.prediction import Inference, predict
from tomoscout.learning.tiles import InputSizes
from tomoscout.learning.validation import OVERLAP
from tomoscout.models.folder import load_network
from tomoscout.tasks.instances.model import CellModel
from tomoscout.tasks.instances.prepare import prepare, renumbered, rescale_factor, resize_labels
from tomoscout.tasks.instances.task import TILES, HeadReadout


class AppliedModel:
    """The network of a model folder on a device."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Read a model folder.

        Raises:
            TomoscoutError: it is incomplete, or of another task.
        """
        self.model = CellModel.read(folder)
        self._network = load_network(folder, self.model, device)
        self._head = self.model.head
        self._head.device = device
        self._inference = Inference(
            InputSizes.of([self.model.network], self.model.dimensions),
            TILES[self.model.dimensions],
            OVERLAP,
            device,
            readout=HeadReadout(self._head),
            precision=chosen_precision("auto", device),
        )

    def labels(
        self, image: NDArray[Any], numbers: Sequence[int | None], calibration: float | None
    ) -> NDArray[np.int32]:
        """Instances (*space), 1…N, in an image (channels, *space).

        Args:
            numbers: the channel of the image for each input of the network, None for black.
            calibration: µm per voxel of the image, None to take it as it is.
        """
        factor = rescale_factor(calibration, self.model.calibration, self.model.rescale_tolerance)
        prepared = prepare(image, numbers, self.model.normalisations, factor)
        prediction = predict(self._network, prepared, self._inference)
        labels = self._head.decode(prediction, prepared.shape[1:], self.model.thresholds)
        # Small objects can get lost where the image is smaller than what the network saw.
        return renumbered(resize_labels(labels, image.shape[1:]))
