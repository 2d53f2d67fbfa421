"""Networks by family. A family is a module with `build(options, inputs, outputs, dimensions)`."""

from __future__ import annotations

from importlib import import_module
from math import prod
from typing import TYPE_CHECKING

from tomoscout.config import Network

if TYPE_CHECKING:
    from torch import nn

FAMILIES = {"UNet": "tomoscout.networks.unet"}


def build_network(options: Network, outputs: int, *, inputs: int = 1, dimensions: int = 3) -> nn.Module:
    """A network with random weights: (batch, inputs, *space) → logits (batch, outputs, *space)."""
    network: nn.Module = import_module(FAMILIES[options.family]).build(options, inputs, outputs, dimensions)
    return network


def size_step(options: Network) -> int:
    """Input sizes must be multiples of this many voxels."""
    return prod(options.strides)
