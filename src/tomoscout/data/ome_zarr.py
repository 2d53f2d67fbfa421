"""The metadata of OME-Zarr images (OME-NGFF 0.4): resolution levels, axes, scale. Independent of the zarr library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.machine.errors import cut

SPACING_TOLERANCE = 0.01
"""Relative difference allowed between the scale of an image and the voxel spacing in the name of its folder, which is
rounded."""

_UNITS = {None: 1.0, "angstrom": 1.0, "nanometer": 10.0, "micrometer": 1e4}
"""Units of OME-Zarr in Å. Without a unit the numbers are taken as Å, as copick's programs take them."""


class VolumeError(Exception):
    """A volume cannot be read; the message says why, without its name."""


def first_image(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The OME-Zarr metadata of the first image; empty where there is none."""
    images = attributes.get("multiscales")
    found = images[0] if isinstance(images, list) and images else {}
    return found if isinstance(found, dict) else {}


def _levels(image: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    levels = image.get("datasets")
    return [level for level in levels if isinstance(level, dict)] if isinstance(levels, list) else []


def finest_level(image: Mapping[str, Any]) -> str:
    name = _levels(image)[0].get("path") if _levels(image) else None
    return name if isinstance(name, str) and name and ".." not in name else "0"


def check_axes(image: Mapping[str, Any]) -> None:
    axes = image.get("axes")
    if not isinstance(axes, list):
        return
    names = [str(axis.get("name") if isinstance(axis, dict) else axis).lower() for axis in axes]
    if names[-3:] != ["z", "y", "x"]:
        raise VolumeError(f"its axes are {', '.join(names)} by its OME-Zarr metadata, expected z, y, x")


def voxel_sizes(image: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """Sizes of a voxel along z, y, x in Å. None where nothing says them: a scale of 1 without a unit does not."""
    transforms = [entry.get("coordinateTransformations") for entry in (image, *_levels(image)[:1])]
    scale = np.ones(3)
    try:
        for entry in (entry for entries in transforms for entry in entries or []):
            if entry.get("type") == "scale":
                scale = scale * np.array(entry["scale"][-3:], dtype=float)
        named = image.get("axes")
        axes = [
            axis if isinstance(axis, dict) else {} for axis in (named if isinstance(named, list) else [{}] * 3)[-3:]
        ]
        units = [axis.get("unit") for axis in axes]
        if units == [None] * 3 and (scale == 1).all():
            return None
        sizes: NDArray[np.float64] = scale * np.array([_UNITS[unit] for unit in units])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VolumeError(
            f"the scale in its OME-Zarr metadata cannot be read ({cut(str(error) or repr(error))})"
        ) from None
    return sizes


def check_scale(image: Mapping[str, Any], voxel_spacing: float) -> None:
    """Refuse a scale that contradicts the voxel spacing."""
    found = voxel_sizes(image)
    if found is not None and not (np.abs(found - voxel_spacing) <= SPACING_TOLERANCE * voxel_spacing).all():
        sizes = " × ".join(f"{value:g}" for value in dict.fromkeys(found.tolist()))
        raise VolumeError(
            f"its voxels are of {sizes} Å by its OME-Zarr metadata, but {voxel_spacing:g} Å by the name of its folder"
        )


def multiscales(voxel_spacing: float, channels: int) -> dict[str, Any]:
    space = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    scale = [1.0] * channels + [float(voxel_spacing)] * 3
    return {
        "version": "0.4",
        "name": "/",
        "axes": [{"name": "c", "type": "channel"}] * channels + space,
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}],
    }
