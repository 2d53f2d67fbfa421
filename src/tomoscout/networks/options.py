"""What families of networks have among their options, and the checks that they share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from tomoscout.machine.errors import shown
from tomoscout.options.sections import Section


def _check_per_axis(value: Any) -> Any:
    numbers = value if isinstance(value, list | tuple) else [value]
    whole = all(
        isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= 100_000 for number in numbers
    )
    if not whole or not (numbers is not value or len(numbers) in (2, 3)):
        raise ValueError(
            f"found {shown(value)}, expected a whole number from 1 on, or a list of one per axis (z, y, x)"
        )
    return value


PerAxis = Annotated[int | list[int], BeforeValidator(_check_per_axis)]
"""A whole number from 1 on for all axes, or a list of one per axis (z, y, x)."""

Count = Annotated[int, Field(ge=1, le=100_000)]


def axes(dimensions: int) -> str:
    """Names of the spatial axes in the order of the arrays."""
    return ", ".join("zyx"[-dimensions:])


def per_axis(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """One number for each of the axes.

    Raises:
        ValueError: numbers are given for another number of axes.
    """
    numbers = (value,) * dimensions if isinstance(value, int) else tuple(value)
    if len(numbers) != dimensions:
        raise ValueError(f"{list(numbers)} is for {len(numbers)} dimensions, expected {dimensions} numbers")
    return numbers


def product_per_axis(values: Sequence[int | Sequence[int]], dimensions: int) -> tuple[int, ...]:
    """The product of `values` along each of the axes."""
    return tuple(prod(axis) for axis in zip(*(per_axis(value, dimensions) for value in values), strict=True))


def check_lengths(levels: int, **lists: Sequence[Any] | None) -> None:
    """Refuse lists that do not have one entry for each of `levels`; None is left to its default.

    Raises:
        ValueError: one has more or fewer.
    """
    for name, values in lists.items():
        if values is not None and len(values) != levels:
            raise ValueError(f"{name} {values} has {len(values)} entries, expected {levels}")


def check_deep_supervision(supervised: int, most: int) -> None:
    """Refuse more supervised resolutions than the decoder has.

    Raises:
        ValueError: there are more than `most`.
    """
    if supervised > most:
        raise ValueError(f"deep_supervision is {supervised}, expected at most {most}, the resolutions of the decoder")


def check_kernels(kernel_sizes: Sequence[int | Sequence[int]], strides: Sequence[int | Sequence[int]]) -> None:
    """Refuse kernels that have no centre, or that step over voxels.

    Raises:
        ValueError: a kernel is even, or more than one voxel shorter than its stride.
    """
    for kernel, stride in zip(kernel_sizes, strides, strict=True):
        dimensions = max(len(value) for value in (kernel, stride, [1]) if not isinstance(value, int))
        pairs = zip(per_axis(kernel, dimensions), per_axis(stride, dimensions), strict=True)
        if any(size % 2 == 0 or size < step - 1 for size, step in pairs):
            raise ValueError(f"kernel size {kernel} with stride {stride}, expected odd sizes of at least stride - 1")


class NetworkOptions(Section):
    """Options of a network. A family derives its own from it and says what input sizes it takes."""

    family: str
    """Family of networks."""

    def size_step(self, dimensions: int = 3) -> tuple[int, ...]:
        """Input sizes must be multiples of this many voxels, per axis (z, y, x).

        Raises:
            ValueError: an option is given for another number of axes.
        """
        return (1,) * dimensions

    def smallest_size(self, dimensions: int = 3) -> tuple[int, ...]:
        """Smallest input in voxels, per axis (z, y, x): the deepest level sees two voxels along each axis of the
        plane, since a single voxel has no spread to normalise by. Along z, where tomograms are thin, one will do."""
        steps = self.size_step(dimensions)
        return (*steps[:-2], *(2 * step for step in steps[-2:]))

    def plan(self, shape: Sequence[int], memory_gb: float) -> tuple[Self, tuple[int, ...]]:
        """Options and patch for `train.patch: auto`: tomograms of the median `shape` (z, y, x), a training step that
        may take `memory_gb` GiB. Unless the family has rules of its own: the largest patch of at most 96 voxels a
        side that the tomogram holds, whatever the memory."""
        steps, smallest = self.size_step(len(shape)), self.smallest_size(len(shape))
        patch = [
            max(least, min(96, size) // step * step) for size, step, least in zip(shape, steps, smallest, strict=True)
        ]
        return self, tuple(patch)

    @classmethod
    def from_search(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Options from a point of the search space, whose entries (`SPACE` of the family's module) may stand for
        several options at once; beside them, what `train.network` says of the family. Unless the family has its own
        rules: the entries are the options.

        Raises:
            KeyError: an entry is missing that others need.
        """
        return values


DROPOUT_SPACE = {"low": 0.0, "high": 0.3}
LEVELS_SPACE: dict[str, Any] = {
    "width": {"choices": [8, 16, 32]},
    "levels": {"low": 3, "high": 4},
    "bottleneck_levels": {"low": 0, "high": 2},
}


def doubled_channels(width: int, levels: int, most: int = 320) -> list[int]:
    """Channels that double from level to level."""
    return [min(width * 2**level, most) for level in range(levels)]


class LevelledOptions(NetworkOptions):
    """Options of a network given by the channels of its levels and the strides between them."""

    channels: list[Count] = Field(default=[16, 32, 64, 64], min_length=2)
    """Feature channels per level. More find more kinds of objects; time and memory rise with those of the first
    levels, the number of weights with those of the last."""
    strides: list[PerAxis] = [2, 2, 2]
    """Downsampling between the levels, one fewer than channels. The product of all, times a few voxels, is how far
    the network sees: it should reach across the largest object. A number, or one per axis (z, y, x): `[1, 2, 2]`
    spares the z of thin tomograms."""

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        if len(self.strides) != len(self.channels) - 1:
            raise ValueError(
                f"{len(self.channels)} channels need {len(self.channels) - 1} strides, found {len(self.strides)}"
            )
        return self

    def size_step(self, dimensions: int = 3) -> tuple[int, ...]:
        """The product of the strides: the decoder doubles what the encoder halved, and the two must meet."""
        return product_per_axis(self.strides, dimensions)

    @classmethod
    def from_search(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`width`: channels of the first of `levels` levels, each of which halves the resolution of the one before;
        `bottleneck_levels`: as many more at the lowest resolution."""
        if values.keys().isdisjoint(LEVELS_SPACE):
            return values
        rest = dict(values)
        channels = doubled_channels(rest.pop("width"), rest.pop("levels"))
        more = rest.pop("bottleneck_levels", 0)
        strides = [2] * (len(channels) - 1) + [1] * more
        return {**rest, "channels": channels + channels[-1:] * more, "strides": strides}
