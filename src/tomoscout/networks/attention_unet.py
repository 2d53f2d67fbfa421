"""MONAI's attention U-Net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tomoscout.networks.options import DROPOUT_SPACE, LEVELS_SPACE, LevelledOptions

if TYPE_CHECKING:
    from torch import nn


class Options(LevelledOptions):
    """MONAI's attention U-Net (Oktay et al. 2018): what the encoder passes on is weighted by what the decoder sees
    there. Meant for objects that look alike and lie in different surroundings. MONAI's has plain convolutions of three
    voxels and normalises by the batch, so give it batches of eight crops or more."""

    family: Literal["AttentionUNet"] = "AttentionUNet"
    channels: list[Annotated[int, Field(ge=2)]] = Field(default=[16, 32, 64, 64], min_length=2)
    """Feature channels per level, at least 2 each."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the channels' values dropped while training: try 0.1 to 0.3 where a few tomograms are learnt by
    heart."""


SPACE = {**LEVELS_SPACE, "dropout": DROPOUT_SPACE}


def build(options: Options, inputs: int, outputs: int, dimensions: int) -> nn.Module:
    """Build the attention U-Net of the options."""
    from monai.networks.nets import AttentionUnet

    network: nn.Module = AttentionUnet(
        spatial_dims=dimensions,
        in_channels=inputs,
        out_channels=outputs,
        channels=options.channels,
        strides=options.strides,
        dropout=options.dropout,
    )
    return network
