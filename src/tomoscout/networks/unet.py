"""MONAI's U-Net."""

from __future__ import annotations

from monai.networks.nets import UNet
from torch import nn

from tomoscout.config import Network


def build(options: Network, inputs: int, outputs: int, dimensions: int) -> nn.Module:
    """Build the U-Net of the options."""
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
