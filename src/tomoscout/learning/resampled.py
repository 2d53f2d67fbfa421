"""A network that was trained at another voxel spacing than that of the volumes it is applied to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from tomoscout.learning.normalisation import Intensities
from tomoscout.learning.resampling import resampled_size, resampling_matrix
from tomoscout.learning.tiles import InputSizes


def resample(values: torch.Tensor, shape: Sequence[int], ratio: float) -> torch.Tensor:
    """Values (batch, channels, *space) on a grid of `shape`; see `resampling_matrix`."""
    for axis, new_size in enumerate(shape, start=2):
        matrix = torch.from_numpy(resampling_matrix(range(new_size), values.shape[axis], ratio)).to(values.device)
        values = torch.movedim(torch.movedim(values, axis, -1) @ matrix.T, -1, axis)
    return values


class Resampled(nn.Module):
    """A network applied to volumes of another voxel spacing than its own. Every tile is brought to its voxel spacing,
    and its logits are brought back, so that it can be one of an ensemble."""

    def __init__(self, network: nn.Module, ratio: float, sizes: InputSizes) -> None:
        """`ratio`: voxel spacing of the volumes / that of the network. `sizes`: input sizes that the network takes."""
        super().__init__()
        self.network = network
        self.ratio = ratio
        self.own_sizes = sizes
        self.intensities = Intensities(-math.inf, math.inf, 0.0, 1.0)

    @property
    def sizes(self) -> InputSizes:
        """The sizes of tiles of the volumes: any."""
        least = tuple(math.ceil((size - 1) / self.ratio) + 1 for size in self.own_sizes.smallest)
        return InputSizes((1,) * len(least), least)

    def at_own_spacing(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs (batch, channels, *space) at the voxel spacing of the network, with intensities as they are."""
        shape = [resampled_size(size, self.ratio) for size in inputs.shape[2:]]
        return resample(inputs.float(), shape, self.ratio)

    def measure(self, parts: Sequence[torch.Tensor]) -> None:
        """Measure the intensities of a volume at the voxel spacing of the network, in some parts (*space) of it: a
        coarser grid has less noise."""
        sample = [self.at_own_spacing(part[None, None]).flatten() for part in parts]
        self.intensities = Intensities.of(torch.cat(sample).numpy())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes, *space) of inputs (batch, channels, *space)."""
        own = self.at_own_spacing(inputs)
        known = self.intensities
        own = (own.clamp(known.low, known.high) - known.mean) / known.deviation
        shape = own.shape[2:]
        padding = [math.ceil(size / step) * step - size for size, step in zip(shape, self.own_sizes.step, strict=True)]
        ends = [amount for after in reversed(padding) for amount in (0, after)]
        logits = self.network(functional.pad(own, ends, mode="replicate"))
        inner = logits[(slice(None), slice(None), *(slice(0, size) for size in shape))]
        return resample(inner.float(), inputs.shape[2:], 1 / self.ratio)
