"""The residual-encoder U-Net of nnU-Net and the rules by which nnU-Net plans it.

Sources: Isensee et al., nnU-Net Revisited (MICCAI 2024), for the network and its sizes; Isensee et al., Nature Methods
18 (2021), for patch and pooling; He et al., Bag of Tricks (CVPR 2019), for the blocks. Constants are those of nnU-Net's
ResEncUNetPlanner.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from tomoscout.networks.options import (
    Count,
    LevelledOptions,
    PerAxis,
    check_deep_supervision,
    check_kernels,
    check_lengths,
    per_axis,
    product_per_axis,
)

if TYPE_CHECKING:
    from torch import nn

SMALLEST_EDGE = 4
"""An axis is halved as long as this many voxels are left of it."""
SHORTENED_FROM = 5 * SMALLEST_EDGE
"""Shorter axes of a patch are left as they are, however little the memory."""
BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6, 6)
"""Residual blocks per level of the encoder."""
MOST_CHANNELS = {2: 512, 3: 320}
LARGEST_PATCH = {2: 2048, 3: 256}
"""Edge of the square or cube from which a patch is shrunk."""
VALUES_PER_GB = {2: 135e6 / 8, 3: 680e6 / 8}
"""Values in the feature maps of one crop per GB of GPU memory, with the batches of nnU-Net."""


class Options(LevelledOptions):
    """The residual-encoder U-Net of nnU-Net (Isensee et al. 2024). With `train.patch: auto` its depth, channels and
    blocks are planned together with the patch by nnU-Net's rules, from the first of `channels` on."""

    family: Literal["ResidualEncoderUNet"] = "ResidualEncoderUNet"
    channels: list[Count] = Field(default=[32, 64, 128, 256], min_length=2)
    """Feature channels per level. nnU-Net: 32, doubled up to 320 (512 in two dimensions)."""
    blocks: list[Count] = [1, 3, 4, 6]
    """Residual blocks per level of the encoder. nnU-Net: 1, 3, 4, and 6 for all further levels."""
    kernel_sizes: list[PerAxis] | None = None
    """Convolution kernel per level, odd: a number, or one per axis (z, y, x). Default: 3 throughout."""
    decoder_convolutions: list[Count] | None = None
    """Convolutions per level of the decoder, highest resolution first: one fewer than channels. Default, and nnU-Net:
    one each."""
    deep_supervision: int | None = Field(default=None, ge=1)
    """How many resolutions the loss sees: 1 the full one alone, 2 the half one, too, and so on. Default, and nnU-Net:
    all of the decoder but the lowest. Fewer where objects are smaller than the voxels of the coarsest."""

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        levels = len(self.channels)
        check_lengths(levels, blocks=self.blocks, kernel_sizes=self.kernel_sizes)
        check_lengths(levels - 1, decoder_convolutions=self.decoder_convolutions)
        check_kernels(self.kernels, [1, *self.strides])
        check_deep_supervision(self.supervised, levels - 1)
        return self

    @property
    def kernels(self) -> list[int | list[int]]:
        """The convolution kernel of each level."""
        return self.kernel_sizes or [3] * len(self.channels)

    @property
    def decoder(self) -> list[int]:
        """The convolutions of each level of the decoder."""
        return self.decoder_convolutions or [1] * (len(self.channels) - 1)

    @property
    def supervised(self) -> int:
        """How many resolutions the loss sees."""
        return self.deep_supervision or max(1, len(self.channels) - 2)

    @classmethod
    def from_search(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`width` channels at the first of `levels`, with nnU-Net's blocks. No more resolutions are supervised than
        there are."""
        if values.keys().isdisjoint(("width", "levels")):
            return values
        levels = values["levels"]
        supervised = min(values.get("deep_supervision") or levels, levels - 1)
        blocks = [BLOCKS[min(level, len(BLOCKS) - 1)] for level in range(levels)]
        return {**super().from_search(values), "blocks": blocks, "deep_supervision": supervised}

    def plan(self, shape: Sequence[int], memory_gb: float) -> tuple[Self, tuple[int, ...]]:
        """Network and patch by the rules of nnU-Net's ResEncUNetPlanner.

        The patch starts as a cube of 256 voxels (in two dimensions a square of 2048), cut to the median `shape`. Each
        axis is halved from level to level until fewer than four voxels would be left, and the patch is rounded up to
        what these halvings need. As long as the feature maps take too much memory, the axis that is largest in
        proportion to the tomogram is shortened by one step and the levels are planned anew.

        The memory is that of a step with two crops (in two dimensions twelve) in 16-bit arithmetic, as nnU-Net has
        them: for larger batches set `train.accumulation`.

        What differs from nnU-Net: voxels are cubic, so that its rules on anisotropic voxels have nothing to decide;
        axes of equal length are shortened together, so that square tomograms have square patches, which quarter turns
        need; axes of less than 20 voxels are not shortened, however little the memory; the maps of the classes, some
        two per cent, are not counted; and the batch is not enlarged where memory is left over.

        Raises:
            ValueError: tomograms of this shape are too small to be halved even once.
        """
        dimensions = len(shape)
        patch, strides = _halve([min(size, LARGEST_PATCH[dimensions]) for size in shape])
        if not strides:
            raise ValueError(f"tomograms of {list(shape)} voxels (z, y, x) are too small to plan a network for")
        options = self._with_levels(strides)
        while options.feature_map_values(patch) > VALUES_PER_GB[dimensions] * memory_gb:
            shorter = _shorten(patch, shape)
            if shorter is None:
                break
            patch, strides = _halve(shorter)
            options = self._with_levels(strides)
        return options, tuple(patch)

    def feature_map_values(self, patch: Sequence[int]) -> int:
        """Numbers in the feature maps of all convolutions but those that make the classes, for one crop of `patch`:
        nnU-Net's measure of the memory that a network takes."""
        sizes = list(patch)
        total = prod(sizes) * self.channels[0]
        before = self.channels[0]
        strides = [per_axis(stride, len(patch)) for stride in (1, *self.strides)]
        for level, (channels, blocks, stride) in enumerate(zip(self.channels, self.blocks, strides, strict=True)):
            sizes = [size // step for size, step in zip(sizes, stride, strict=True)]
            maps = 2 * blocks + (channels != before or prod(stride) > 1)
            if level < len(self.decoder):
                maps += self.decoder[level] + 1
            total += prod(sizes) * channels * maps
            before = channels
        return total

    def _with_levels(self, strides: list[list[int]]) -> Self:
        levels = len(strides) + 1
        most = MOST_CHANNELS[len(strides[0])]
        return type(self).model_validate(
            {
                "channels": [min(most, self.channels[0] * 2**level) for level in range(levels)],
                "strides": strides,
                "blocks": [BLOCKS[min(level, len(BLOCKS) - 1)] for level in range(levels)],
                "kernel_sizes": [3] * levels,
                "decoder_convolutions": [1] * (levels - 1),
                "deep_supervision": min(self.deep_supervision or max(1, levels - 2), levels - 1),
            }
        )


SPACE = {
    "width": {"choices": [16, 32]},
    "levels": {"low": 3, "high": 6},
    "deep_supervision": {"low": 1, "high": 3},
}


def _halve(patch: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """The strides between the levels for a patch, and the patch rounded up to what they need."""
    sizes, strides = list(patch), []
    while True:
        enough = [size >= 2 * SMALLEST_EDGE for size in sizes]
        # A single axis is halved once less, as in nnU-Net.
        if not any(enough) or (sum(enough) == 1 and max(sizes) < 3 * SMALLEST_EDGE):
            break
        strides.append([2 if halved else 1 for halved in enough])
        sizes = [ceil(size / step) for size, step in zip(sizes, strides[-1], strict=True)]
    steps = product_per_axis(strides, len(patch)) if strides else [1] * len(patch)
    return [ceil(size / step) * step for size, step in zip(patch, steps, strict=True)], strides


def _shorten(patch: Sequence[int], shape: Sequence[int]) -> list[int] | None:
    """The patch with the axis shortened that is largest in proportion to the tomogram, together with axes of the same
    length; None where no axis is long enough.

    The step is that of the shorter patch: halved less often, it may be cut finer.
    """
    parts = [size / whole if size >= SHORTENED_FROM else 0 for size, whole in zip(patch, shape, strict=True)]
    if not any(parts):
        return None
    axes = list(zip(patch, shape, strict=True))
    largest = max(range(len(axes)), key=lambda axis: (parts[axis], axis))

    def cut(steps: Sequence[int]) -> list[int]:
        return [size - step * (axis == axes[largest]) for size, step, axis in zip(patch, steps, axes, strict=True)]

    steps = product_per_axis(_halve(patch)[1], len(patch))
    return cut(product_per_axis(_halve(cut(steps))[1], len(patch)))


def build(options: Options, inputs: int, outputs: int, dimensions: int) -> nn.Module:
    """Build the residual-encoder U-Net of the options."""
    from tomoscout.networks.residual_encoder import ResidualEncoderUNet

    return ResidualEncoderUNet(
        inputs,
        outputs,
        channels=options.channels,
        strides=[per_axis(stride, dimensions) for stride in options.strides],
        kernels=[per_axis(kernel, dimensions) for kernel in options.kernels],
        blocks=options.blocks,
        decoder=options.decoder,
        supervised=options.supervised,
    )
