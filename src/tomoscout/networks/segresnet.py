"""MONAI's SegResNet."""

from __future__ import annotations

from math import floor, log2
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tomoscout.networks.options import (
    Count,
    NetworkOptions,
    check_deep_supervision,
    check_lengths,
    product_per_axis,
)

if TYPE_CHECKING:
    from torch import nn


class Options(NetworkOptions):
    """MONAI's SegResNetDS (Myronenko 2018): residual blocks with more of them deep down, a light decoder, deep
    supervision. MONAI normalises by the batch; by the crop is the default here, as in octopi, since small batches of
    unlike tomograms have no common spread."""

    family: Literal["SegResNet"] = "SegResNet"
    init_filters: int = Field(default=16, ge=1)
    """Feature channels of the first level, doubled from level to level. Start with 16; MONAI's 32
    has four times the weights."""
    blocks_down: list[Count] = Field(default=[1, 2, 2, 4], min_length=2)
    """Residual blocks per level of the encoder; each level after the first halves the resolution. Fewer levels keep
    small objects apart, more see farther."""
    blocks_up: list[Count] | None = None
    """Residual blocks per level of the decoder, deepest first: one fewer than blocks_down. Default: one each."""
    norm: Literal["instance", "batch"] = "instance"
    """Normalise each crop by itself, or the batch together, which needs batches of eight crops or more."""
    activation: Literal["relu", "leakyrelu", "prelu"] = "relu"
    """The non-linearity; octopi has prelu, with a slope that is learnt."""
    upsampling: Literal["deconv", "nontrainable", "pixelshuffle"] = "deconv"
    """How the decoder doubles the resolution: by a transposed convolution, by interpolation, or by eight channels (four
    in two dimensions) that become the voxels of one."""
    resolution: list[Annotated[float, Field(gt=0)]] | None = None
    """Relative voxel size per axis (z, y, x): axes of larger voxels are left alone on the first levels, until the
    others have caught up. Voxels of tomograms are cubic, but thin tomograms do well with a z that is spared:
    `[4, 1, 1]` leaves it alone on the first two levels."""
    deep_supervision: int = Field(default=1, ge=1)
    """How many resolutions the loss sees: 1 the full one alone, 2 the half one, too, and so on. Meant for objects that
    are still larger than a voxel of the coarsest."""

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        halvings = len(self.blocks_down) - 1
        check_lengths(halvings, blocks_up=self.blocks_up)
        check_deep_supervision(self.deep_supervision, halvings)
        if self.resolution is not None and self.upsampling == "pixelshuffle":
            raise ValueError("upsampling pixelshuffle doubles every axis; leave out resolution, or choose another")
        return self

    def size_step(self, dimensions: int = 3) -> tuple[int, ...]:
        """Two to the power of the halvings. With `resolution`, an axis of larger voxels waits until the others' have
        nearly its size (MONAI's scales_for_resolution)."""
        halvings = len(self.blocks_down) - 1
        if self.resolution is None:
            return (2**halvings,) * dimensions
        if len(self.resolution) != dimensions:
            raise ValueError(f"resolution {self.resolution}, expected {dimensions} numbers")
        ahead = [floor(log2(max(self.resolution) / size)) for size in self.resolution]
        waiting = max(ahead)
        strides = [[2 if level >= waiting or level < axis else 1 for axis in ahead] for level in range(halvings)]
        return product_per_axis(strides, dimensions)

    @classmethod
    def from_search(cls, values: dict[str, Any]) -> dict[str, Any]:
        """No more resolutions are supervised than there are."""
        if not {"deep_supervision", "blocks_down"} <= values.keys():
            return values
        return {**values, "deep_supervision": min(values["deep_supervision"], len(values["blocks_down"]) - 1)}


SPACE = {
    "init_filters": {"choices": [8, 16, 32]},
    "blocks_down": {"choices": [[1, 2, 2], [1, 2, 2, 4], [1, 2, 2, 2], [1, 1, 2, 2]]},
    "deep_supervision": {"low": 1, "high": 3},
    "activation": {"choices": ["relu", "prelu"]},
}


def build(options: Options, inputs: int, outputs: int, dimensions: int) -> nn.Module:
    """Build the SegResNet of the options."""
    from monai.networks.nets import SegResNetDS

    network: nn.Module = SegResNetDS(
        spatial_dims=dimensions,
        in_channels=inputs,
        out_channels=outputs,
        init_filters=options.init_filters,
        blocks_down=tuple(options.blocks_down),
        blocks_up=tuple(options.blocks_up) if options.blocks_up else None,
        norm=options.norm,
        act=options.activation,
        upsample_mode=options.upsampling,
        resolution=tuple(options.resolution) if options.resolution else None,
        dsdepth=options.deep_supervision,
    )
    return network
