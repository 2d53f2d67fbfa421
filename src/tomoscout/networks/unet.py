"""MONAI's U-Net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tomoscout.networks.options import DROPOUT_SPACE, LEVELS_SPACE, LevelledOptions

if TYPE_CHECKING:
    from torch import nn


class Options(LevelledOptions):
    """MONAI's U-Net with residual units (Kerfoot et al. 2019): small, fast, and the best of the small ones in the CZII
    challenge. MONAI's own default is plain convolutions; residual ones are the default here, as in octopi."""

    family: Literal["UNet"] = "UNet"
    residual_units: int = Field(default=1, ge=0)
    """Residual units per level; 0 for plain convolutions."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the channels' values dropped while training. Helps where a few tomograms are learnt by heart: try 0.1
    to 0.3."""


SPACE = {**LEVELS_SPACE, "residual_units": {"low": 1, "high": 2}, "dropout": DROPOUT_SPACE}


def build(options: Options, inputs: int, outputs: int, dimensions: int) -> nn.Module:
    """Build the U-Net of the options."""
    from monai.networks.nets import UNet

    network: nn.Module = UNet(
        spatial_dims=dimensions,
        in_channels=inputs,
        out_channels=outputs,
        channels=options.channels,
        strides=options.strides,
        num_res_units=options.residual_units,
        dropout=options.dropout,
    )
    return network
