"""A mask that is read part by part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import nearest_voxels
from tomoscout.data.ome_zarr import VolumeError
from tomoscout.data.zarr_files import Volume
from tomoscout.machine.errors import TomoscoutError


@dataclass(frozen=True)
class OpenMask:
    """The voxels of a segmentation that are not 0, read part by part on the grid of a tomogram.

    `what` names it in messages. `own_spacing`, `voxel_spacing`: of its voxels and of the tomogram's, in Å.
    """

    volume: Volume
    what: str
    own_spacing: float
    voxel_spacing: float

    def read(self, region: tuple[slice, ...]) -> NDArray[np.bool_]:
        """Which voxels of a region (z, y, x) of the tomogram are in the mask; none are beyond its ends.

        Raises:
            TomoscoutError: a chunk cannot be decoded.
        """
        inside = np.zeros([part.stop - part.start for part in region], dtype=bool)
        there = []
        for part, size in zip(region, self.volume.shape, strict=True):
            nearest = nearest_voxels(np.arange(part.start, part.stop), self.voxel_spacing, self.own_spacing)
            there.append(nearest[nearest < size])
        if all(map(len, there)):
            try:
                inside[tuple(slice(len(places)) for places in there)] = self.volume.read_at(there) != 0
            except VolumeError as error:
                raise TomoscoutError(f"{self.what}: {error}") from None
        return inside
