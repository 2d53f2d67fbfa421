"""What the formats of picks have in common: the tomograms that coordinates refer to, and the interface of a format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.angles import Convention
from tomoscout.data.geometry import Shape
from tomoscout.data.picks import Picks


@dataclass(frozen=True)
class TiltSeries:
    """What RELION's tomograms.star says of a tomogram: its size as x, y, z in unbinned pixels, the pixel size of the
    tilt series in Å, and the columns of its optics group."""

    size: tuple[float, float, float]
    pixel_size: float
    optics: tuple[tuple[str, str | float], ...] = ()


@dataclass(frozen=True)
class Grid:
    """The tomogram of a run that coordinates refer to: its shape (z, y, x), its voxel spacing in Å, and the tilt series
    where tomograms.star is given."""

    shape: Shape
    voxel_spacing: float
    tilt_series: TiltSeries | None = None

    @property
    def centre(self) -> NDArray[np.float64]:
        """RELION's centre, x, y, z in Å: half of the size, also of an odd one (`TomogramSet` in its tomogram_set.cpp).
        Without tomograms.star of the binned size, which differs where the binning does not divide the size."""
        if self.tilt_series is None:
            return np.array(self.shape[::-1]) / 2 * self.voxel_spacing
        return np.array(self.tilt_series.size) / 2 * self.tilt_series.pixel_size

    @property
    def middle(self) -> NDArray[np.float64]:
        """The voxel in the middle, x, y, z in Å; of an even size the one after the middle."""
        return np.array(self.shape[::-1]) // 2 * self.voxel_spacing

    def unbinned(self, given: float | None) -> float | None:
        """Å per pixel of the tilt series: by tomograms.star, else as given."""
        return given if self.tilt_series is None else self.tilt_series.pixel_size


class PickSet(NamedTuple):
    """The picks of an object in a run, both by the names that a file has for them: empty where it names none. `radius`
    of the object in Å, None if unknown."""

    run: str
    name: str
    picks: Picks
    radius: float | None = None


@dataclass(frozen=True)
class Frame:
    """What the numbers of a file refer to, where the file does not say so.

    `grids`: names of runs → their tomograms; raises a TomoscoutError where one is unknown.
    `pixel_size`: Å per pixel of coordinates in pixels. None: as the format has it.
    `origin`: the number of the first voxel. None: as the format has it.
    `indices`: number → name of a run, for formats that number tomograms.
    """

    grids: Callable[[Collection[str]], Mapping[str, Grid]]
    pixel_size: float | None = None
    origin: int | None = None
    indices: Mapping[int, str] | None = None


class Format(ABC):
    """A format of picks.

    `suffix` of its files. `one_run`: whether a file has the picks of one run. `objects`: whether a file tells objects
    apart. `lists_files`: whether the program imports files of runs by a list of them. `centred`: whether coordinates
    are counted from RELION's centre. `coordinates`: where they are counted from and in what. `in_pixels`: whether they
    are in pixels, not in Å. `first`: the number of the first voxel. `angles`, `score`, `instance`: how a file has
    them, None where it has none.
    """

    suffix: ClassVar[str]
    one_run: ClassVar[bool] = False
    objects: ClassVar[bool] = False
    lists_files: ClassVar[bool] = False
    centred: ClassVar[bool] = False
    coordinates: ClassVar[str]
    in_pixels: ClassVar[bool] = False
    first: ClassVar[int] = 0
    angles: ClassVar[Convention | str | None] = None
    score: ClassVar[str | None] = None
    instance: ClassVar[str | None] = None

    def files(self, path: Path) -> list[Path]:
        """The files that `write` writes: `path`, and those beside it that belong to it."""
        return [path]

    @abstractmethod
    def write(self, path: Path, sets: Sequence[PickSet], frame: Frame) -> None:
        """Write picks into a file, and beside it what belongs to it.

        Raises:
            TomoscoutError: something that the format needs is not known.
        """

    @abstractmethod
    def read(self, path: Path, frame: Frame) -> list[PickSet]:
        """Read picks. A file of one run names it by its own name.

        Raises:
            TomoscoutError: the file is not of this format, lacks something, or holds NaN.
        """

    def pixel_size(self, grid: Grid, frame: Frame) -> float | None:
        """Å per pixel of the coordinates that are written; None where they are in Å.

        Raises:
            TomoscoutError: it is not known.
        """
        return frame.pixel_size or grid.voxel_spacing if self.in_pixels else None

    def origin(self, frame: Frame) -> int:
        """The number of the first voxel; another than the format's own only where that is 1, which some writers do not
        heed."""
        return frame.origin if frame.origin is not None and self.first == 1 else self.first

    def to_pixels(self, picks: Picks, grid: Grid, frame: Frame) -> NDArray[np.float64]:
        """Positions (N, 3) in pixels, the first voxel having the number `origin`."""
        pixel_size = self.pixel_size(grid, frame)
        assert pixel_size is not None, "coordinates are in Å"
        return picks.positions / pixel_size + self.origin(frame)
