"""Kinds of particles from density maps in MRC files."""

from __future__ import annotations

import math
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.machine.errors import TomoscoutError
from tomoscout.phantom.shapes import OVERSAMPLING, Kind, bounding_radius


def kind_from_map(name: str, path: Path, voxel_spacing: float) -> Kind:
    """The particle in a density map (protein brighter than solvent), for tomograms of this voxel spacing (Å).

    The map is blurred like a voxel of the tomogram and segmented by Otsu's threshold. The particle is the largest
    connected component above the threshold, with its rim, scaled so that solvent is 0 and the mean inside is 1. Its
    centre of mass becomes the centre.

    Raises:
        TomoscoutError: the file is missing, broken, not a volume of real numbers, without a voxel size, constant, or
            darker inside than at its corners.
    """
    from scipy.ndimage import affine_transform, binary_dilation, center_of_mass, gaussian_filter, label

    raw, voxel_size = _read(path)
    # The standard deviation of a box one voxel wide.
    blur = voxel_spacing / math.sqrt(12)
    smooth = gaussian_filter(raw, blur / voxel_size, mode="nearest")
    pieces, _ = label(smooth > otsu_threshold(smooth))
    inside = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    if inside[np.ix_(*[(0, -1)] * 3)].all():
        raise TomoscoutError(
            f"{path}: the corners are brighter than the middle; expected a particle brighter than solvent"
        )
    solvent = float(np.median(smooth[~inside]))
    rim = binary_dilation(inside, iterations=max(1, math.ceil(blur / voxel_size.min())))
    particle = np.clip((smooth - solvent) / (float(smooth[inside].mean()) - solvent), 0, None) * rim

    centre = np.array(center_of_mass(particle))
    step = voxel_spacing / OVERSAMPLING
    half = math.ceil(np.linalg.norm((np.argwhere(rim) - centre) * voxel_size, axis=1).max() / step) + 1
    scale = step / voxel_size
    side = 2 * half + 1
    density = affine_transform(particle.astype(np.float32), scale, centre - half * scale, (side,) * 3, order=1)
    return Kind(name, density, step, bounding_radius(density, step))


def otsu_threshold(values: NDArray[Any]) -> float:
    """The threshold that best separates values into two classes, with the largest variance between them (Otsu 1979,
    doi:10.1109/TSMC.1979.4310076), from a histogram of 256 bins."""
    counts, edges = np.histogram(values, bins=256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    mass = np.cumsum(counts * middles)
    difference = mass[:-1] / below - (mass[-1] - mass[:-1]) / above
    return float(edges[1:-1][np.argmax(below * above * difference**2)])


def _read(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A map (z, y, x) and its voxel size in Å along z, y, x."""
    import mrcfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with mrcfile.open(path) as file:
                data, header = np.array(file.data), file.header.copy()
                size = np.array([float(file.voxel_size[axis]) for axis in "zyx"])
    except FileNotFoundError:
        raise TomoscoutError(f"{path}: no such density map") from None
    except (OSError, ValueError, TypeError, EOFError, zlib.error) as error:
        raise TomoscoutError(f"{path}: not a readable MRC file ({' '.join(str(error).split())})") from None
    if data.ndim != 3 or min(data.shape) < 2 or np.iscomplexobj(data):
        raise TomoscoutError(f"{path}: {data.dtype} data of shape {data.shape}; expected a volume of real numbers")
    if not (np.isfinite(size) & (size > 0)).all():
        raise TomoscoutError(f"{path}: voxel size {size[::-1].tolist()} in the header; expected Å above zero")
    if not np.isfinite(data).all() or data.min() == data.max():
        raise TomoscoutError(f"{path}: the density is constant, NaN or infinite; expected a particle")
    stored = [int(header[key]) for key in ("maps", "mapr", "mapc")]
    if sorted(stored) != [1, 2, 3]:
        raise TomoscoutError(f"{path}: axes {stored} in the header; expected each of 1, 2, 3 once")
    return data.transpose([stored.index(axis) for axis in (3, 2, 1)]).astype(np.float32), size
