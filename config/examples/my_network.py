"""A network of your own, as a template: copy this file, change it, and name it in the configuration.

    train:
      network:
        family: config/examples/my_network.py     # relative to the working directory
        channels: 24
        dilations: [1, 2, 4, 8]

`tomoscout train` then treats it like a built-in family: its options are checked before anything loads, unknown ones are
refused with the nearest known, and the model folder holds them. The digest of this file counts as an option, so that
an edit here trains again, and a model refuses to be applied with other code than it was trained with.

To share a network, put the same module into a Python package and offer it as an entry point in its pyproject.toml:

    [project.entry-points."tomoscout.networks"]
    MyNetwork = "my_package.my_network"

Once the package is installed, `family: MyNetwork` works everywhere.

The module must have two things, a class `Options` and a function `build`, and for explorations a third, `SPACE`. Import
torch inside `build` (or in a module that `build` imports): the options are read whenever the workflow is parsed, which
must not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tomoscout.networks.options import NetworkOptions

if TYPE_CHECKING:
    import torch
    from torch import nn


class Options(NetworkOptions):
    """The options, with types, limits and defaults (https://docs.pydantic.dev). `family` is among them already."""

    channels: int = Field(default=24, ge=1)
    """Feature channels."""
    dilations: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 2, 4, 8], min_length=1)
    """One residual convolution each; a dilation d looks d half-resolution voxels around itself."""

    def size_step(self, dimensions: int = 3) -> tuple[int, ...]:
        """Input sizes must be multiples of this many voxels, per axis (z, y, x): the network halves them once."""
        return (2,) * dimensions

    @classmethod
    def from_search(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Options from what an exploration tries. May be left out where `SPACE` names the options themselves."""
        if "depth" not in values:
            return values
        rest = dict(values)
        depth = rest.pop("depth")
        return {**rest, "dilations": [2**level for level in range(depth)]}


SPACE = {"channels": {"choices": [16, 24, 32]}, "depth": {"low": 3, "high": 5}}
"""What an exploration searches (`explore.networks`), each entry as in the configuration; conditions name entries of
this file. May be left out: what is to be searched then stands in the configuration alone."""


def build(options: Options, inputs: int, outputs: int, dimensions: int) -> nn.Module:
    """The network: (batch, inputs, *space) → logits (batch, outputs, *space), background first.

    In training it may return a list of logits instead, the full resolution first: the loss then sees all of them (deep
    supervision). In evaluation it must return the full resolution alone.
    """
    from torch import nn

    convolution = nn.Conv3d if dimensions == 3 else nn.Conv2d
    upsampling = nn.ConvTranspose3d if dimensions == 3 else nn.ConvTranspose2d
    norm = nn.InstanceNorm3d if dimensions == 3 else nn.InstanceNorm2d
    channels = options.channels

    class Residual(nn.Module):
        def __init__(self, dilation: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                norm(channels, affine=True),
                nn.GELU(),
                convolution(channels, channels, 3, padding=dilation, dilation=dilation),
            )

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features + self.layers(features)

    return nn.Sequential(
        convolution(inputs, channels, 3, stride=2, padding=1),
        *(Residual(dilation) for dilation in options.dilations),
        norm(channels, affine=True),
        nn.GELU(),
        upsampling(channels, outputs, 2, stride=2),
    )
