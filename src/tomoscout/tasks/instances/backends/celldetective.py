"""The file by which Celldetective knows a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.tasks.instances.backends.model import BackendModel

CONFIG = "config_input.json"
CHANNELS = {"stardist": 1, "cellpose": 2}
"""Fewest inputs of a network; those that there are not are black."""
BLACK = "None"


def celldetective_config(
    model: BackendModel, dataset: dict[str, list[str]], cell_size: float | None, diameter: float | None = None
) -> dict[str, Any]:
    """What Celldetective reads: how it prepares images for the model, and the thresholds of Cellpose.

    Args:
        model: the model.
        dataset: names of images that `train` and those for `validation`.
        cell_size: typical diameter of an object in µm.
        diameter: that of Cellpose, in pixels.
    """
    added = max(0, CHANNELS[model.backend] - len(model.inputs))
    normalisations = [*model.normalisations, *[model.normalisations[0]] * added]
    settings: dict[str, Any] = {
        "channels": [*model.inputs, *[BLACK] * added],
        # Percentiles where true, else intensities.
        "normalization_percentile": [entry.values is None for entry in normalisations],
        "normalization_clip": [entry.clip for entry in normalisations],
        "normalization_values": [entry.values or entry.percentile for entry in normalisations],
        "model_type": model.backend,
        "spatial_calibration": model.calibration,
        "cell_size_um": cell_size,
        "dataset": dataset,
    }
    if model.backend == "cellpose":
        settings |= {"diameter": diameter, "cellprob_threshold": 0.0, "flow_threshold": 0.4}
    return settings


def typical_diameter(labels: Sequence[NDArray[np.integer]]) -> float | None:
    """The median diameter of the circles that have the areas of the objects (y, x), in pixels; None without objects."""
    sizes = np.concatenate([np.bincount(image.ravel())[1:] for image in labels])
    sizes = sizes[sizes > 0]
    return float(np.median(np.sqrt(4 / np.pi * sizes))) if len(sizes) else None
