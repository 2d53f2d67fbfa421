"""A tomogram that is read part by part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import Shape
from tomoscout.data.ome_zarr import VolumeError
from tomoscout.data.streams import pieces
from tomoscout.data.zarr_files import Volume
from tomoscout.machine.errors import TomoscoutError


@dataclass(frozen=True)
class OpenTomogram:
    """A tomogram of which parts are read. `what` names it in messages."""

    volume: Volume
    what: str

    @property
    def shape(self) -> Shape:
        """Voxels (z, y, x)."""
        z, y, x = self.volume.shape
        return z, y, x

    def read(self, region: tuple[slice, ...]) -> NDArray[np.float32]:
        """A region as float32 (z, y, x).

        Raises:
            TomoscoutError: a chunk cannot be decoded.
        """
        try:
            # Whether chunks are missing was checked when it was opened.
            return self.volume.read(region, allow_missing_chunks=True).astype(np.float32, copy=False)
        except VolumeError as error:
            raise TomoscoutError(f"{self.what}: {error}") from None

    def sample(self, every: int) -> NDArray[np.float32]:
        """Every so-many-th voxel along each axis. Reads the whole tomogram, chunk by chunk.

        Raises:
            TomoscoutError: a voxel is NaN or infinite, all have one value, or a chunk cannot be decoded.
        """
        lowest, highest = [], []
        sample = np.empty([-(-size // every) for size in self.shape], dtype=np.float32)
        for place in pieces(self.shape, self.volume.array.chunks[-3:]):
            chunk = self.read(place)
            lowest.append(chunk.min())
            highest.append(chunk.max())
            here = tuple(slice(-part.start % every, None, every) for part in place)
            there = tuple(slice(-(-part.start // every), -(-part.stop // every)) for part in place)
            sample[there] = chunk[here]
        # NumPy's extremes of numbers with a NaN among them are NaN.
        check_values(float(np.min(lowest)), float(np.max(highest)), self.what)
        return sample


def check_values(low: float, high: float, what: str) -> None:
    """Check the lowest and the highest value of a tomogram.

    Raises:
        TomoscoutError: one of them is NaN or infinite, or they are the same.
    """
    if not np.isfinite(low) or not np.isfinite(high):
        raise TomoscoutError(f"{what} holds NaN or infinite values")
    if low == high:
        raise TomoscoutError(f"{what} is constant (every voxel is {low:g})")
