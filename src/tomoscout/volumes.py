"""Tomograms as the network sees them, and where they live while training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.errors import TomoscoutError


def standardise(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Prepare a tomogram (z, y, x) for a network: the one way for training, validation and inference.

    Values are limited to the 0.1 and 99.9 percentiles (gold beads and edges would otherwise set the scale), then
    shifted and scaled to mean 0 and standard deviation 1.
    """
    step = 2 if volume.size > 2**22 else 1
    low, high = np.percentile(volume[::step, ::step, ::step], [0.1, 99.9]).astype(volume.dtype)
    limited = np.clip(volume, low, high)
    mean, deviation = float(limited.mean(dtype=np.float64)), float(limited.std(dtype=np.float64))
    limited -= mean
    limited /= deviation or 1.0
    return limited


@dataclass(frozen=True)
class LabelledVolume:
    """A prepared tomogram and its target, both (z, y, x), on the device or in memory. Voxels with the label
    `ignore` (padding) teach nothing."""

    name: str
    intensities: torch.Tensor
    labels: torch.Tensor
    ignore: int


def labelled_volume(
    name: str, tomogram: NDArray[np.float32], labels: NDArray[np.integer], patch: Sequence[int], device: torch.device
) -> LabelledVolume:
    """Prepare a tomogram and its target for training, padded at the far ends to hold at least one crop.

    Raises:
        TomoscoutError: the two differ in shape.
    """
    if tomogram.shape != labels.shape:
        raise TomoscoutError(f"{name}: tomogram {tomogram.shape} and target {labels.shape} (z, y, x) differ in shape")
    storage = np.uint8 if labels.dtype == np.uint8 and int(labels.max(initial=0)) < 255 else np.int32
    ignore = int(np.iinfo(storage).max)
    padding = [(0, max(0, size - have)) for size, have in zip(patch, tomogram.shape, strict=True)]
    intensities = np.pad(standardise(tomogram), padding)
    padded = np.pad(labels.astype(storage), padding, constant_values=ignore)
    # Half precision halves what a GPU must hold; a CPU would convert it back for every crop.
    kind = torch.float16 if device.type == "cuda" else torch.float32
    return LabelledVolume(
        name, torch.from_numpy(intensities).to(device, kind), torch.from_numpy(padded).to(device), ignore
    )


def storage_device(voxels: int, device: torch.device) -> torch.device:
    """Where training voxels live: on a GPU if they fit in half of its free memory, else in main memory."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if voxels * 3 < free / 2 else torch.device("cpu")
