"""Sliding-window inference: a network predicts overlapping tiles of a volume, which are blended."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tomoscout.learning.precision import autocast, chosen_precision
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
        """The values (channels, *space) that tiles are blended by, of the network's outputs (outputs, *space)."""

    @abstractmethod
    def stored(self, values: torch.Tensor) -> torch.Tensor:
        """Blended values of a channel (*space) as they are stored."""


class Probabilities(Readout):
    """Softmax probabilities of every class but background, quantised: 255 = 1."""

    kind = torch.uint8

    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        """Probabilities without background."""
        return torch.softmax(outputs, dim=0)[1:]

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
            return _predict(network, volume, sizes, tile, overlap, flips, device, readout)
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


@torch.inference_mode()
def _predict(
    network: nn.Module,
    volume: NDArray[np.float32],
    sizes: InputSizes,
    tile: Sequence[int],
    overlap: float,
    flips: int,
    device: torch.device,
    readout: Readout,
) -> NDArray[Any]:
    every = readout.every
    # Tiles begin and end at voxels that are read out.
    sizes = InputSizes(tuple(math.lcm(step, every) for step in sizes.step), sizes.smallest)
    space = [math.ceil(size / every) * every for size in volume.shape[1:]]
    plans = sizes.tiles(space, tile, overlap)
    lengths = [length for _, length in plans]
    padding = [(0, max(n, length) - had) for had, n, length in zip(volume.shape[1:], space, lengths, strict=True)]
    mode: Literal["reflect", "edge"] = "edge"
    if all(after < n for (_, after), n in zip(padding, volume.shape[1:], strict=True)):
        mode = "reflect"
    padded = np.pad(volume, [(0, 0), *padding], mode=mode)
    kind = torch.float16 if device.type == "cuda" else torch.float32
    total: torch.Tensor | None = None
    read = [size // every for size in padded.shape[1:]]
    norm = torch.zeros(read, dtype=kind, device=device)
    weights = blending_weights([length // every for length in lengths], device)
    source = torch.from_numpy(padded)
    if device.type == "cuda":
        source = source.pin_memory()
    network.eval()
    for start in itertools.product(*([at // every * every for at in starts] for starts, _ in plans)):
        window = tuple(slice(a, a + n) for a, n in zip(start, lengths, strict=True))
        crop = source[(slice(None), *window)].to(device, torch.float32, non_blocking=True)[None]
        values = _values(network, crop, flips, readout) * weights
        window = tuple(slice(part.start // every, part.stop // every) for part in window)
        if total is None:
            total = torch.zeros((len(values), *read), dtype=kind, device=device)
        total[(slice(None), *window)] += values.to(kind)
        norm[window] += weights.to(kind)
    assert total is not None
    stored = torch.empty(total.shape, dtype=readout.kind, device=device)
    for channel, values in enumerate(total):
        stored[channel] = readout.stored(values.float() / norm.float())
    return stored.cpu().numpy()[(slice(None), *(slice(0, n // every) for n in space))]


def _values(network: nn.Module, crop: torch.Tensor, flips: int, readout: Readout) -> torch.Tensor:
    """Values (channels, *space) averaged over the first `flips` mirrored copies of the crop (test-time augmentation).
    In three dimensions there are eight copies."""
    spatial = range(-1, 1 - crop.ndim, -1)
    mirrored = [axes for count in range(crop.ndim - 1) for axes in itertools.combinations(spatial, count)][:flips]
    with autocast(crop.device, chosen_precision("auto", crop.device)):
        outputs = [network(crop.flip(axes)).flip(axes) for axes in mirrored]
    return sum(readout.values(output[0].float()) for output in outputs) / len(mirrored)  # type: ignore[return-value]


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
    highest = np.zeros(probabilities.shape[1:], dtype=np.uint8)
    rest = np.full(probabilities.shape[1:], 255, dtype=np.int32)
    for label, values in enumerate(probabilities, 1):
        higher = values > highest
        labels[higher] = label
        highest[higher] = values[higher]
        rest -= values
    labels[rest > highest] = 0
    return labels
