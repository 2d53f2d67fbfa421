"""MONAI's MedNeXt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from tomoscout.networks.options import Count, NetworkOptions, check_deep_supervision, check_lengths

if TYPE_CHECKING:
    import torch
    from torch import nn


class Options(NetworkOptions):
    """MONAI's MedNeXt (Roy et al. 2023): a U-Net of ConvNeXt blocks, in which each channel is convolved by itself.
    Residual throughout, as published, where MONAI's own default is not. Other defaults are those of the published size
    S, which has kernels of 3 in place of MONAI's 7, but with three halvings in place of four: particles are small."""

    family: Literal["MedNeXt"] = "MedNeXt"
    init_filters: int = Field(default=32, ge=1)
    """Feature channels of the first level, doubled from level to level."""
    kernel_size: Literal[3, 5, 7] = 3
    """Convolution kernel. 5 and 7 see farther at each level and take more time."""
    blocks_down: list[Count] = Field(default=[2, 2, 2], min_length=1)
    """Blocks per level of the encoder; each level ends by halving the resolution. Published: [2, 2, 2, 2] for the sizes
    S and B, [3, 4, 4, 4] for M, [3, 4, 8, 8] for L."""
    blocks_bottleneck: int = Field(default=2, ge=1)
    """Blocks at the lowest resolution. Published: 2 for S and B, 4 for M, 8 for L."""
    blocks_up: list[Count] = Field(default=[2, 2, 2], min_length=1)
    """Blocks per level of the decoder, deepest first: as many as blocks_down."""
    expansion_down: list[Count] = [2, 2, 2]
    """How many times more channels a block has inside, per level of the encoder. Published: 2 for S, [2, 3, 4, 4] for B
    and M, [3, 4, 8, 8] for L."""
    expansion_bottleneck: int = Field(default=2, ge=1)
    """The same at the lowest resolution. Published: 2 for S, 4 for B and M, 8 for L."""
    expansion_up: list[Count] = [2, 2, 2]
    """The same per level of the decoder, deepest first."""
    deep_supervision: int = Field(default=1, ge=1)
    """How many resolutions the loss sees: 1 the full one alone, 2 the half one, too, and so on, down to the lowest.
    Published: all. Meant for objects that are still larger than a voxel of the coarsest."""

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        check_lengths(
            len(self.blocks_down),
            blocks_up=self.blocks_up,
            expansion_down=self.expansion_down,
            expansion_up=self.expansion_up,
        )
        check_deep_supervision(self.deep_supervision, len(self.blocks_up) + 1)
        return self

    def size_step(self, dimensions: int = 3) -> tuple[int, ...]:
        """Two to the power of the levels."""
        return (2 ** len(self.blocks_down),) * dimensions

    @classmethod
    def from_search(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`levels` of as many `blocks` with as much `expansion`, down, up and between. No more resolutions are
        supervised than there are."""
        if values.keys().isdisjoint(("levels", "blocks", "expansion")):
            return values
        rest = dict(values)
        levels, blocks, expansion = (rest.pop(name) for name in ("levels", "blocks", "expansion"))
        return {
            **rest,
            **dict.fromkeys(("blocks_down", "blocks_up"), [blocks] * levels),
            **dict.fromkeys(("expansion_down", "expansion_up"), [expansion] * levels),
            "blocks_bottleneck": blocks,
            "expansion_bottleneck": expansion,
            "deep_supervision": min(rest.get("deep_supervision", 1), levels + 1),
        }


SPACE = {
    "init_filters": {"choices": [16, 32]},
    "levels": {"low": 2, "high": 4},
    "blocks": {"low": 1, "high": 3},
    "expansion": {"low": 2, "high": 4},
    "kernel_size": {"choices": [3, 5]},
    "deep_supervision": {"low": 1, "high": 3},
}


def build(options: Options, inputs: int, outputs: int, dimensions: int) -> nn.Module:
    """Build the MedNeXt of the options."""
    from monai.networks.nets import MedNeXt
    from torch import nn

    network: Any = MedNeXt(
        spatial_dims=dimensions,
        in_channels=inputs,
        out_channels=outputs,
        init_filters=options.init_filters,
        kernel_size=options.kernel_size,
        blocks_down=options.blocks_down,
        blocks_bottleneck=options.blocks_bottleneck,
        blocks_up=options.blocks_up,
        encoder_expansion_ratio=options.expansion_down,
        bottleneck_expansion_ratio=options.expansion_bottleneck,
        decoder_expansion_ratio=options.expansion_up,
        use_residual_connection=True,
        deep_supervision=options.deep_supervision > 1,
    )
    if options.deep_supervision > 1:
        # MONAI makes an output of every level, the lowest first; those not asked for must have no weights.
        for level in range(len(options.blocks_up) + 1 - options.deep_supervision):
            network.out_blocks[level] = nn.Identity()
        network.register_forward_hook(_OutputList(options.deep_supervision))
    built: nn.Module = network
    return built


class _OutputList:
    """A hook that keeps the outputs of the highest resolutions."""

    def __init__(self, supervised: int) -> None:
        self.supervised = supervised

    def __call__(self, network: Any, inputs: Any, outputs: Any) -> torch.Tensor | list[torch.Tensor]:
        return list(outputs[: self.supervised]) if isinstance(outputs, tuple) else outputs
