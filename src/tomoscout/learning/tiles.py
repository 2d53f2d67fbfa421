"""Sliding-window inference: a network predicts overlapping tiles of a volume, which are blended."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tomoscout.learning.precision import autocast
from tomoscout.machine.device import is_out_of_memory
from tomoscout.machine.errors import TomoscoutError
from tomoscout.networks.options import NetworkOptions


class InputSizes(NamedTuple):
    """The input sizes that a network takes, per axis: multiples of `step`, at least `smallest` voxels."""

    step: tuple[int, ...]
    smallest: tuple[int, ...]

    @classmethod
    def of(cls, networks: Sequence[NetworkOptions], dimensions: int) -> InputSizes:
        """The sizes that all of the networks take, in this number of spatial dimensions."""
        all_steps = (options.size_step(dimensions) for options in networks)
        steps = tuple(math.lcm(*axis) for axis in zip(*all_steps, strict=True))
        all_smallest = (options.smallest_size(dimensions) for options in networks)
        least = [max(axis) for axis in zip(*all_smallest, strict=True)]
        return cls(steps, tuple(math.ceil(size / step) * step for size, step in zip(least, steps, strict=True)))

    def tiles(self, shape: Sequence[int], tile: Sequence[int], overlap: float) -> list[tuple[list[int], int]]:
        """Starts and length of the tiles along each axis of a volume; see `tile_starts`."""
        return [
            tile_starts(max(size, least), max(largest, least), overlap, step)
            for size, largest, step, least in zip(shape, tile, *self, strict=True)
        ]


def tile_starts(size: int, tile: int, overlap: float, step: int) -> tuple[list[int], int]:
    """Cover `size` voxels with as few tiles as possible, all of one length.

    The length is the shortest multiple of `step`, at most `tile` (rounded up to a multiple of `step`), with which
    neighbours still overlap by the fraction `overlap`. Returns the starts and the length.
    """
    largest = max(step, math.ceil(tile / step) * step)
    if size <= largest:
        return [0], math.ceil(size / step) * step
    count = math.ceil((size - largest * overlap) / (largest * (1 - overlap)))
    length = min(largest, math.ceil(size / (count - (count - 1) * overlap) / step) * step)
    return [round(n * (size - length) / (count - 1)) for n in range(count)], length


def blending_weights(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Gaussian weights (*space) around the centre of a tile, with a standard deviation of one eighth of its size, as in
    nnU-Net (Isensee et al., Nature Methods 2021). A minimum keeps the weight of every voxel above 0."""
    weights = torch.ones((), device=device)
    for size in shape:
        places = torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (places / (size / 8)) ** 2)
    return weights.clamp_min(1e-3)


class Readout(ABC):
    """What the outputs of a network mean. `kind`: dtype of a stored prediction. `every`: it has a value for one of so
    many voxels along each axis."""

    kind: torch.dtype
    every: int = 1

    @abstractmethod
    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        """The values (channels, *space), float32, that tiles are blended by, of the network's outputs (outputs,
        *space) in any precision."""

    @abstractmethod
    def stored(self, values: torch.Tensor) -> torch.Tensor:
        """Blended values of a channel (*space) as they are stored."""


class Probabilities(Readout):
    """Softmax probabilities of every class but background, quantised: 255 = 1."""

    kind = torch.uint8

    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        """Probabilities without background."""
        return torch.softmax(outputs, dim=0, dtype=torch.float32)[1:]

    def stored(self, values: torch.Tensor) -> torch.Tensor:
        """Whole 255ths."""
        return (values * 255).round_().clamp_(0, 255).to(torch.uint8)


PROBABILITIES = Probabilities()


def predict(
    network: nn.Module,
    volume: NDArray[np.float32],
    *,
    sizes: InputSizes,
    tile: Sequence[int],
    overlap: float,
    flips: int,
    device: torch.device,
    readout: Readout = PROBABILITIES,
    precision: torch.dtype = torch.float32,
    progress: Callable[[str], None] | None = None,
) -> NDArray[Any]:
    """The prediction for a volume (channels, *space) as `readout` stores it, by default probabilities of every class
    but background. A readout of every n-th voxel gives a prediction with that many times shorter sides, rounded up.

    `volume` is a prepared volume, (*space) or (channels, *space). If the device runs out of memory, tiles are halved
    along the longest side that can be reduced, until they fit. `flips`: so many mirrored copies of each tile are
    predicted and averaged; more than one only where mirroring an image does nothing but mirror its prediction.

    Raises:
        TomoscoutError: even the smallest tile does not fit.
    """
    space = volume.shape[-len(sizes.step) :]
    volume = volume.reshape(-1, *space)
    tile = [min(length, size) for length, size in zip(tile, space, strict=True)]
    while True:
        try:
            grid = TileGrid.of(space, sizes, tile, overlap, readout.every)
            return _predict(network, volume, grid, flips, device, readout, precision)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, which keeps the tensors of the failed attempt alive.
        reducible = [length if length > least else 0 for length, least in zip(tile, sizes.smallest, strict=True)]
        longest = int(np.argmax(reducible))
        if not reducible[longest]:
            raise TomoscoutError(f"not enough memory on {device} even for tiles of {tile} voxels")
        tile[longest] = max(tile[longest] // 2, sizes.smallest[longest])
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if progress:
            progress(f"out of memory; going on with tiles of {'x'.join(map(str, tile))}")


@dataclass(frozen=True)
class TileGrid:
    """The tiles of a volume. All are of one size; those at one place along `axis` are a layer.

    `space`: voxels (*space) that are predicted, a multiple of `every`. `starts`, `lengths`: of the tiles, per axis.
    """

    space: tuple[int, ...]
    starts: tuple[list[int], ...]
    lengths: tuple[int, ...]
    every: int

    @classmethod
    def of(
        cls, shape: Sequence[int], sizes: InputSizes, tile: Sequence[int], overlap: float, every: int = 1
    ) -> TileGrid:
        """The tiles of a volume of `shape` (*space); see `tile_starts`. A value is read out of every so many voxels."""
        # Tiles begin and end at voxels that are read out.
        steps = InputSizes(tuple(math.lcm(step, every) for step in sizes.step), sizes.smallest)
        space = tuple(math.ceil(size / every) * every for size in shape)
        plans = steps.tiles(space, tile, overlap)
        starts = tuple([at // every * every for at in places] for places, _ in plans)
        return cls(space, starts, tuple(length for _, length in plans), every)

    @property
    def axis(self) -> int:
        """The axis along which layers follow each other: that with most tiles, so that a layer is small."""
        return int(np.argmax([len(starts) for starts in self.starts]))

    @property
    def layers(self) -> list[int]:
        """Starts of the layers."""
        return self.starts[self.axis]

    @property
    def count(self) -> int:
        """Number of tiles."""
        return math.prod(map(len, self.starts))

    def corners(self, layer: int) -> Iterator[tuple[int, ...]]:
        """Starts of the tiles of a layer."""
        return itertools.product(*([layer] if n == self.axis else starts for n, starts in enumerate(self.starts)))

    def window(self, corner: Sequence[int]) -> tuple[slice, ...]:
        """The voxels of a tile."""
        return tuple(slice(start, start + length) for start, length in zip(corner, self.lengths, strict=True))

    def read_out(self, corner: Sequence[int]) -> tuple[slice, ...]:
        """The values of a tile within its layer."""
        origin = [start if n == self.axis else 0 for n, start in enumerate(corner)]
        return tuple(
            slice((start - zero) // self.every, (start - zero + length) // self.every)
            for start, zero, length in zip(corner, origin, self.lengths, strict=True)
        )

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Values (*space) of a layer."""
        covered = [max(size, length) for size, length in zip(self.space, self.lengths, strict=True)]
        covered[self.axis] = self.lengths[self.axis]
        return tuple(size // self.every for size in covered)


@torch.inference_mode()
def _predict(
    network: nn.Module,
    volume: NDArray[np.float32],
    grid: TileGrid,
    flips: int,
    device: torch.device,
    readout: Readout,
    precision: torch.dtype,
) -> NDArray[Any]:
    """Sums are held for one layer of tiles alone: what no later layer reaches is stored and leaves."""
    every, axis = grid.every, grid.axis
    kind = torch.float16 if device.type == "cuda" else torch.float32
    weights = blending_weights([length // every for length in grid.lengths], device).to(kind)
    norm = torch.zeros(grid.layer_shape, dtype=kind, device=device)
    sums = stored = None
    network.eval()
    for layer, following in zip(grid.layers, [*grid.layers[1:], grid.space[axis]], strict=True):
        for corner in grid.corners(layer):
            values = _values(network, _tile(volume, grid.window(corner), device), flips, readout, precision)
            if sums is None or stored is None:
                sums = torch.zeros((len(values), *grid.layer_shape), dtype=kind, device=device)
                shape = [len(values), *(size // every for size in grid.space)]
                stored = np.empty(shape, dtype=torch.empty(0, dtype=readout.kind).numpy().dtype)
            place = grid.read_out(corner)
            sums[(slice(None), *place)].addcmul_(values.to(kind), weights)
            norm[place] += weights
        assert sums is not None
        assert stored is not None
        done, behind = (following - layer) // every, layer // every
        finished = tuple(slice(0, done) if n == axis else slice(0, size) for n, size in enumerate(stored.shape[1:]))
        place = tuple(slice(behind, behind + done) if n == axis else part for n, part in enumerate(finished))
        for values, out in zip(sums, stored, strict=True):
            out[place] = readout.stored(values[finished].float() / norm[finished].float()).cpu()
        for buffer in (sums, norm[None]):
            _move_up(buffer, axis + 1, done)
    assert stored is not None
    return stored


def _tile(volume: NDArray[np.float32], window: tuple[slice, ...], device: torch.device) -> torch.Tensor:
    """A tile of a volume (channels, *space) on the device, (1, channels, *space). Where the volume is shorter than a
    tile, its mirror image continues it."""
    part = volume[(slice(None), *window)]
    missing = [(0, side.stop - side.start - size) for side, size in zip(window, part.shape[1:], strict=True)]
    if any(after for _, after in missing):
        mirrored = all(after < size for (_, after), size in zip(missing, part.shape[1:], strict=True))
        part = np.pad(part, [(0, 0), *missing], mode="reflect" if mirrored else "edge")
    crop = torch.from_numpy(np.ascontiguousarray(part))
    if device.type == "cuda":
        # From pinned memory, so that the transfer overlaps with the tile before.
        crop = crop.pin_memory()
    return crop.to(device, torch.float32, non_blocking=True)[None]


def _move_up(buffer: torch.Tensor, axis: int, by: int) -> None:
    """Move what lies from `by` on along an axis to its start, and empty the rest, in place."""
    left = max(0, buffer.shape[axis] - by)
    if left:
        buffer.narrow(axis, 0, left).copy_(buffer.narrow(axis, by, left).clone())
    buffer.narrow(axis, left, buffer.shape[axis] - left).zero_()


def _values(
    network: nn.Module, crop: torch.Tensor, flips: int, readout: Readout, precision: torch.dtype
) -> torch.Tensor:
    """Values (channels, *space) averaged over the first `flips` mirrored copies of the crop (test-time augmentation).
    In three dimensions there are eight copies."""
    spatial = range(-1, 1 - crop.ndim, -1)
    mirrored = [axes for count in range(crop.ndim - 1) for axes in itertools.combinations(spatial, count)][:flips]
    total: torch.Tensor | None = None
    for axes in mirrored:
        with autocast(crop.device, precision):
            outputs = network(crop.flip(axes) if axes else crop)
        values = readout.values(outputs[0])
        values = values.flip(axes) if axes else values
        total = values if total is None else total.add_(values)
    assert total is not None
    return total if len(mirrored) == 1 else total.div_(len(mirrored))


class Ensemble(nn.Module):
    """An ensemble of networks. Its outputs are the logarithm of the mean of their softmax probabilities, so that a
    softmax gives this mean."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes, *space) of inputs (batch, channels, *space)."""
        mean = sum(torch.softmax(network(inputs).float(), dim=1) for network in self.networks) / len(self.networks)
        return torch.log(mean.clamp_min(1e-12))  # type: ignore[union-attr]


def argmax_labels(probabilities: NDArray[np.uint8]) -> NDArray[np.integer]:
    """Labels (*space) from quantised probabilities (class, *space) without background: the most probable class, or
    background (0) if that is more probable than any class."""
    kind = np.uint8 if len(probabilities) <= 255 else np.uint16
    labels = np.zeros(probabilities.shape[1:], dtype=kind)
    # Slice by slice: what is compared stays in the cache, and takes no memory to speak of.
    for out, slices in zip(labels, probabilities.swapaxes(0, 1), strict=True):
        highest = slices.max(axis=0)
        out[:] = slices.argmax(axis=0) + 1
        out[255 - slices.sum(axis=0, dtype=np.int32) > highest] = 0
    return labels
