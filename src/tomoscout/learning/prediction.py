"""Sliding-window inference: a network predicts overlapping tiles of a volume, which are blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tomoscout.learning.precision import autocast
from tomoscout.learning.readout import PROBABILITIES, Readout
from tomoscout.learning.tiles import Blender, InputSizes, TileGrid, Window
from tomoscout.machine.device import is_out_of_memory
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.messages import times

Part = Callable[[Window], NDArray[np.float32]]
"""Reads a region of a prepared volume: (channels, *space) from a window that lies within it."""


@dataclass(frozen=True)
class Inference:
    """How a network is applied to volumes.

    `sizes`: of inputs that the network takes.
    `tile`: the largest tile. If the device has too little memory for it, tiles are halved along the longest side that
    can be reduced, until they fit.
    `overlap`: of neighbouring tiles, as a fraction of the tile.
    `flips`, `quarter_turns`: each tile is predicted in so many mirrored copies, and turned about the first axis so many
    times, and the predictions are averaged (test-time augmentation); more than one only where mirroring or turning an
    image does nothing but mirror or turn its prediction.
    `readout`: how outputs become stored values, by default probabilities of every class but background.
    `precision`: of the network.
    """

    sizes: InputSizes
    tile: Sequence[int]
    overlap: float
    device: torch.device
    flips: int = 1
    quarter_turns: int = 1
    readout: Readout = PROBABILITIES
    precision: torch.dtype = torch.float32

    def grid(self, space: Sequence[int], tile: Sequence[int]) -> TileGrid:
        """The tiles, of at most `tile`, of a volume (*space)."""
        return TileGrid.of(space, self.sizes, tile, self.overlap, self.readout.every)


def predict(network: nn.Module, volume: NDArray[np.float32], inference: Inference) -> NDArray[Any]:
    """The prediction for a volume in memory, (*space) or (channels, *space), as the readout stores it: (channels,
    *space). A readout of every n-th voxel gives a prediction with that many times shorter sides, rounded up."""
    space = volume.shape[-len(inference.sizes.step) :]
    channels = volume.reshape(-1, *space)
    stored: NDArray[Any] | None = None
    for window, block in predict_blocks(network, lambda window: channels[(slice(None), *window)], space, inference):
        if stored is None:
            shape = (math.ceil(size / inference.readout.every) for size in space)
            stored = np.empty((len(block), *shape), dtype=block.dtype)
        stored[(slice(None), *window)] = block
    assert stored is not None
    return stored


@torch.inference_mode()
def predict_blocks(
    network: nn.Module,
    part: Part,
    space: Sequence[int],
    inference: Inference,
    *,
    needed: Callable[[Window], bool] = lambda _: True,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Window, NDArray[Any]]]:
    """The prediction for a volume of any size, block by block: places in the prediction, and their values (channels,
    *space) as the readout stores them. Each place comes once. Planes follow each other along the longest axis.

    Args:
        part: reads a region of the volume.
        space: voxels (*space) of the volume.
        needed: whether a tile with this window is predicted; the values of the others are 0.
        progress: told of smaller tiles, and of tiles that are not needed.

    Raises:
        TomoscoutError: even the smallest tile does not fit.
    """
    network.eval()
    readout, device = inference.readout, inference.device
    kind = torch.float16 if device.type == "cuda" else torch.float32
    copies = augmented_copies(len(space), inference.flips, inference.quarter_turns)

    def values(window: Window) -> torch.Tensor:
        crop = _tile(part, window, space, device)
        return _values(network, crop, copies, readout, inference.precision).to(kind)

    grid, corners, first = _start(inference, space, needed, values, progress)
    shape, computed = first.shape, set(corners)
    # The first tile is predicted already. Its values must not be kept longer than those of others.
    predicted = dict.fromkeys(corners[:1], first)
    del first

    def tile_values(corner: tuple[int, ...]) -> torch.Tensor:
        if corner not in computed:
            return torch.zeros(shape, dtype=kind, device=device)
        return predicted.pop(corner) if corner in predicted else values(grid.window(corner))

    ends = [math.ceil(size / readout.every) for size in space]
    for window, block in Blender(grid, tile_values, kind).blocks():
        # Tiles that are longer than the volume go beyond its end.
        inside = _within(window, ends)
        kept = block[(slice(None), *(slice(0, place.stop - place.start) for place in inside))]
        yield inside, readout.stored(kept.float()).cpu().numpy()


def _start(
    inference: Inference,
    space: Sequence[int],
    needed: Callable[[Window], bool],
    values: Callable[[Window], torch.Tensor],
    progress: Callable[[str], None],
) -> tuple[TileGrid, list[tuple[int, ...]], torch.Tensor]:
    """The largest tiles for which there is memory, the corners of those that are needed, in order, and the values of
    the first of them: all are of one size, so that there is memory for the others, too. Where none is needed, the
    values are those of another tile."""
    tile = [min(length, size) for length, size in zip(inference.tile, space, strict=True)]
    while True:
        grid = inference.grid(space, tile)
        corners = [corner for corner in grid.corners if needed(_within(grid.window(corner), space))]
        if len(corners) < grid.count:
            progress(f"{len(corners)} of {grid.count} tiles are computed")
        try:
            return grid, corners, values(grid.window((corners or grid.corners)[0]))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, which keeps the tensors of the failed attempt alive.
        tile = _smaller(tile, inference.sizes, inference.device)
        progress(f"out of memory; going on with tiles of {times(tile)}")


def _within(window: Window, space: Sequence[int]) -> Window:
    """The part of a window that lies in a volume (*space)."""
    return tuple(slice(side.start, min(side.stop, size)) for side, size in zip(window, space, strict=True))


def _smaller(tile: Sequence[int], sizes: InputSizes, device: torch.device) -> list[int]:
    """A tile of half the length along the longest side that can be reduced."""
    tile = list(tile)
    reducible = [length if length > least else 0 for length, least in zip(tile, sizes.smallest, strict=True)]
    longest = int(np.argmax(reducible))
    if not reducible[longest]:
        raise TomoscoutError(f"not enough memory on {device} even for tiles of {times(tile)} voxels")
    tile[longest] = max(tile[longest] // 2, sizes.smallest[longest])
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return tile


def _tile(part: Part, window: Window, space: Sequence[int], device: torch.device) -> torch.Tensor:
    """A tile of a volume on the device, (1, channels, *space). Where the volume is shorter than a tile, its mirror
    image continues it."""
    inside = _within(window, space)
    values = part(inside)
    missing = [(0, side.stop - have.stop) for side, have in zip(window, inside, strict=True)]
    if any(after for _, after in missing):
        mirrored = all(after < size for (_, after), size in zip(missing, values.shape[1:], strict=True))
        values = np.pad(values, [(0, 0), *missing], mode="reflect" if mirrored else "edge")
    crop = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        # From pinned memory, which a GPU reads several times faster.
        crop = crop.pin_memory()
    return crop.to(device, torch.float32, non_blocking=True)[None]


class Copy(NamedTuple):
    """How a copy of an image is made: mirrored along some axes (negative), then turned by so many quarters in the plane
    of the last two axes."""

    mirrored: tuple[int, ...]
    quarters: int

    def of(self, image: torch.Tensor) -> torch.Tensor:
        """The copy of an image (…, *space)."""
        image = image.flip(self.mirrored) if self.mirrored else image
        return image.rot90(self.quarters, (-2, -1)) if self.quarters else image

    def undo(self, image: torch.Tensor) -> torch.Tensor:
        """The image of a copy."""
        image = image.rot90(-self.quarters, (-2, -1)) if self.quarters else image
        return image.flip(self.mirrored) if self.mirrored else image


def augmented_copies(dimensions: int, flips: int, quarter_turns: int) -> list[Copy]:
    """The first `flips` mirrored copies of an image, in three dimensions eight at most, in each of the first
    `quarter_turns` orientations. Copies that are the same come once: an image that is mirrored along two axes is one
    that is turned by half."""
    axes = range(-1, -1 - dimensions, -1)
    mirrored = [chosen for count in range(dimensions + 1) for chosen in itertools.combinations(axes, count)][:flips]
    # The corners of a cube tell all copies apart.
    corners = torch.arange(2**dimensions).view([2] * dimensions)
    copies = [Copy(chosen, quarters) for quarters in range(quarter_turns) for chosen in mirrored]
    by_corners: dict[tuple[int, ...], Copy] = {}
    for copy in copies:
        by_corners.setdefault(tuple(copy.of(corners).flatten().tolist()), copy)
    return list(by_corners.values())


def _values(
    network: nn.Module, crop: torch.Tensor, copies: Sequence[Copy], readout: Readout, precision: torch.dtype
) -> torch.Tensor:
    """Values (channels, *space) averaged over copies of the crop."""
    total: torch.Tensor | None = None
    for copy in copies:
        with autocast(crop.device, precision):
            outputs = network(copy.of(crop))
        values = copy.undo(readout.values(outputs[0]))
        total = values if total is None else total.add_(values)
    assert total is not None
    return total if len(copies) == 1 else total.div_(len(copies))


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
