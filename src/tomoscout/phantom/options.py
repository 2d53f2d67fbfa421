"""Options of a phantom."""

from __future__ import annotations

from typing import Annotated, Self

from annotated_types import MaxLen, MinLen
from pydantic import Field, model_validator

from tomoscout.options.names import Name
from tomoscout.options.sections import HOW_MANY, FilePath, Section, Size

_Ratio = Annotated[float, Field(ge=1e-6, le=1e6)]
SignalToNoise = _Ratio | Annotated[list[_Ratio], MinLen(2), MaxLen(2)]
"""One ratio, or the range that each run draws its own from."""

SHAPES = ("ribosome", "virus-like-particle", "proteasome", "apo-ferritin", "hemoglobin")
"""Names of the built-in shapes."""


class PhantomTomograms(Section):
    """Tomograms whose truth is known."""

    runs: Annotated[int, HOW_MANY] = Field(default=6, ge=1, le=100_000)
    """Number of tomograms."""
    shape: list[Size] = Field(default=[64, 192, 192], min_length=3, max_length=3)
    """Voxels z, y, x."""
    particles: int = Field(default=12, ge=0, le=100_000)
    """Particles of every kind per tomogram, as far as they fit."""
    numbers: dict[Name, Annotated[int, Field(ge=0, le=100_000)]] = {}
    """Other numbers of particles, by object name."""
    absent: dict[Name, Annotated[int, Field(ge=1)]] = {}
    """Objects that some runs lack: object name → 3 leaves it out of every third run."""
    signal_to_noise: SignalToNoise = 0.15
    """Variance of the signal inside particles over the variance of the noise. Of a range, each run has its own (its
    logarithm is drawn evenly)."""
    tilt_range: float = Field(default=60.0, gt=0, le=90)
    """Largest tilt in degrees; what lies beyond is the missing wedge."""
    defocus: list[Annotated[float, Field(gt=0, le=100)]] = Field(default=[2.0, 4.0], min_length=2, max_length=2)
    """Range of the defocus in µm; each run has its own."""
    membranes: int = Field(default=0, ge=0, le=10_000)
    """Vesicles per tomogram: their membranes are written as a segmentation named membrane, the vesicles as one named
    vesicles, in which each has a number of its own."""
    maps: dict[Name, FilePath] = {}
    """Density maps (MRC): object name → file. A map with the name of a built-in shape takes its place, others come
    beside the built-in ones."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random."""


class Phantom(PhantomTomograms):
    """A project whose truth is known."""

    voxel_spacing: float = Field(default=10.0, gt=0, le=10_000)
    """Å per voxel."""
    shapes: list[Name] = list(SHAPES)
    """Built-in shapes that take part."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in self.shapes:
            if name not in SHAPES:
                raise ValueError(f"shapes: no built-in shape '{name}'; there are {', '.join(SHAPES)}")
        objects = [*self.shapes, *self.maps]
        if not objects:
            raise ValueError("neither shapes nor maps: a phantom needs at least one kind of particle")
        for option in ("numbers", "absent"):
            for name in getattr(self, option):
                if name not in objects:
                    raise ValueError(f"{option}: no object '{name}'; there are {', '.join(objects)}")
        return self

    def number(self, name: str, run: int) -> int:
        """How many particles of an object are to be placed in run number `run`, from 0."""
        every = self.absent.get(name)
        if every and run % every == every - 1:
            return 0
        return self.numbers.get(name, self.particles)
