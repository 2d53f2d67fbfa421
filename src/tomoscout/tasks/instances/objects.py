"""The table of the objects of a segmented image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def object_table(
    labels: NDArray[np.integer], image: NDArray[Any], channels: Sequence[str], calibration: float | None
) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows: label, position (z, y, x in voxels), size (voxels; with a calibration also µm² or µm³), and the
    mean intensity in each channel.

    Args:
        labels: (*space), 1…N.
        image: (channels, *space).
        channels: their names.
        calibration: µm per voxel.
    """
    numbers = np.arange(1, labels.max(initial=0) + 1)
    axes = "zyx"[-labels.ndim :]
    centres = np.array(ndimage.center_of_mass(labels > 0, labels, numbers)).reshape(-1, labels.ndim)
    sizes = np.bincount(labels.ravel(), minlength=len(numbers) + 1)[1:]
    means = [ndimage.mean(channel, labels, numbers) for channel in image]
    unit = {2: "area_um2", 3: "volume_um3"}[labels.ndim]
    columns = ["label", *axes, "voxels", *([unit] if calibration else []), *(f"mean_{name}" for name in channels)]
    rows = []
    for index, number in enumerate(numbers.tolist()):
        size = {unit: _rounded(float(sizes[index]) * calibration**labels.ndim)} if calibration else {}
        rows.append(
            {"label": number, "voxels": int(sizes[index])}
            | {axis: round(float(place), 2) for axis, place in zip(axes, centres[index], strict=True)}
            | size
            | {f"mean_{name}": _rounded(float(mean[index])) for name, mean in zip(channels, means, strict=True)}
        )
    return columns, rows


def _rounded(value: float) -> float:
    """Six digits, wherever the point is: a vesicle in a tomogram has 1e-5 µm³."""
    return float(f"{value:.6g}")
