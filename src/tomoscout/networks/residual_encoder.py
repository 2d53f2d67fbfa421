"""The network of the family ResidualEncoderUNet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import nn

SLOPE = 0.01
"""Of the leaky ReLU."""


class ResidualEncoderUNet(nn.Module):
    """nnU-Net's U-Net with a residual encoder and a plain decoder (Isensee et al., nnU-Net Revisited, 2024).

    A stem; per level of the encoder some residual blocks, the first of which may have a stride; per level of the
    decoder a transposed convolution of that stride, the encoder's features beside it, and some convolutions.
    Instance normalisation and leaky ReLU throughout. Maps (batch, inputs, *space) to logits (batch, outputs, *space);
    in training with more than one supervised resolution to a list of logits, the full resolution first.

    What differs from nnU-Net: convolutions that are normalised right after have no bias, since normalising takes it
    out again; and resolutions that are not supervised have no output layer.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        channels: Sequence[int],
        strides: Sequence[tuple[int, ...]],
        kernels: Sequence[tuple[int, ...]],
        blocks: Sequence[int],
        decoder: Sequence[int],
        supervised: int,
    ) -> None:
        """Take channels, kernels and residual blocks per level, strides and decoder convolutions one fewer."""
        super().__init__()
        dimensions = len(kernels[0])
        self.stem = _convolutions(inputs, channels[0], kernels[0], 1)
        entries = [(channels[0], channels[0]), *pairwise(channels)]
        self.encoder = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(before, after, kernel, stride),
                *(ResidualBlock(after, after, kernel, (1,) * dimensions) for _ in range(count - 1)),
            )
            for (before, after), kernel, stride, count in zip(
                entries, kernels, [(1,) * dimensions, *strides], blocks, strict=True
            )
        )
        self.upsampling = nn.ModuleList(
            _layer("ConvTranspose", dimensions)(below, here, stride, stride)
            for (here, below), stride in zip(pairwise(channels), strides, strict=True)
        )
        self.decoder = nn.ModuleList(
            _convolutions(2 * here, here, kernel, count)
            for here, kernel, count in zip(channels[:-1], kernels[:-1], decoder, strict=True)
        )
        self.heads = nn.ModuleList(_layer("Conv", dimensions)(here, outputs, 1) for here in channels[:supervised])
        self.apply(_initialise)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits, or a list of them."""
        features = [self.encoder[0](self.stem(inputs))]
        for level in self.encoder[1:]:
            features.append(level(features[-1]))
        below = features.pop()
        decoded: list[torch.Tensor] = []
        for upsample, merge in zip(reversed(self.upsampling), reversed(self.decoder), strict=True):
            below = merge(torch.cat((upsample(below), features.pop()), dim=1))
            decoded.insert(0, below)
        if self.training and len(self.heads) > 1:
            return [head(level) for head, level in zip(self.heads, decoded, strict=False)]
        logits: torch.Tensor = self.heads[0](decoded[0])
        return logits


class ResidualBlock(nn.Module):
    """Two convolutions beside a path that skips them (ResNet-D of He et al. 2019): where the block has a stride, the
    skipping path averages over it; where the channels change, a convolution of one voxel follows."""

    def __init__(self, before: int, after: int, kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
        super().__init__()
        dimensions = len(kernel)
        self.first = nn.Sequential(*_normalised(before, after, kernel, stride), nn.LeakyReLU(SLOPE, inplace=True))
        self.second = nn.Sequential(*_normalised(after, after, kernel, (1,) * dimensions))
        skip: list[nn.Module] = []
        if prod(stride) > 1:
            skip.append(_layer("AvgPool", dimensions)(stride, stride))
        if before != after:
            skip += _normalised(before, after, (1,) * dimensions, (1,) * dimensions)
        self.skip = nn.Sequential(*skip)
        self.activation = nn.LeakyReLU(SLOPE, inplace=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, before, *space) → (batch, after, *space / stride)."""
        outputs: torch.Tensor = self.activation(self.second(self.first(inputs)) + self.skip(inputs))
        return outputs


def _layer(name: str, dimensions: int) -> type[nn.Module]:
    layer: type[nn.Module] = getattr(nn, f"{name}{dimensions}d")
    return layer


def _normalised(before: int, after: int, kernel: tuple[int, ...], stride: tuple[int, ...]) -> list[nn.Module]:
    dimensions = len(kernel)
    padding = tuple(size // 2 for size in kernel)
    return [
        _layer("Conv", dimensions)(before, after, kernel, stride, padding, bias=False),
        _layer("InstanceNorm", dimensions)(after, affine=True),
    ]


def _convolutions(before: int, after: int, kernel: tuple[int, ...], count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n in range(count):
        layers += _normalised(before if n == 0 else after, after, kernel, (1,) * len(kernel))
        layers.append(nn.LeakyReLU(SLOPE, inplace=True))
    return nn.Sequential(*layers)


def _initialise(module: nn.Module) -> None:
    """He et al. 2015 for convolutions; a residual block starts as its skipping path (Goyal et al. 2017)."""
    if isinstance(module, nn.modules.conv._ConvNd):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResidualBlock):
        norm = module.second[1]
        assert isinstance(norm, nn.modules.instancenorm._InstanceNorm)
        nn.init.zeros_(norm.weight)
