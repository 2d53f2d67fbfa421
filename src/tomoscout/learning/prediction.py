"""Sliding-window inference: a network predicts overlapping tiles of a volume, which are blended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
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


def predict(
    network: nn.Module,
    volume: NDArray[np.float32],
    *,
    sizes: InputSizes,
    tile: Sequence[int],
    overlap: float,
    flips: int = 1,
    quarter_turns: int = 1,
    device: torch.device,
    readout: Readout = PROBABILITIES,
    precision: torch.dtype = torch.float32,
    progress: Callable[[str], None] | None = None,
) -> NDArray[Any]:
    """The prediction for a volume in memory (channels, *space) as `readout` stores it, by default probabilities of
    every class but background. A readout of every n-th voxel gives a prediction with that many times shorter sides,
    rounded up. `volume` is a prepared volume, (*space) or (channels, *space); see `predict_blocks` for the rest."""
    space = volume.shape[-len(sizes.step) :]
    channels = volume.reshape(-1, *space)
    stored: NDArray[Any] | None = None
    for window, block in predict_blocks(
        network,
        lambda window: channels[(slice(None), *window)],
        space,
        sizes=sizes,
        tile=tile,
        overlap=overlap,
        flips=flips,
        quarter_turns=quarter_turns,
        device=device,
        readout=readout,
        precision=precision,
        progress=progress,
    ):
        if stored is None:
            stored = np.empty((len(block), *(math.ceil(size / readout.every) for size in space)), dtype=block.dtype)
        stored[(slice(None), *window)] = block
    assert stored is not None
    return stored


@torch.inference_mode()
def predict_blocks(
    network: nn.Module,
    part: Part,
    space: Sequence[int],
    *,
    sizes: InputSizes,
    tile: Sequence[int],
    overlap: float,
    flips: int = 1,
    quarter_turns: int = 1,
    device: torch.device,
    readout: Readout = PROBABILITIES,
    precision: torch.dtype = torch.float32,
    progress: Callable[[str], None] | None = None,
) -> Iterator[tuple[Window, NDArray[Any]]]:
    """The prediction for a volume of any size, block by block: places in the prediction, and their values (channels,
    *space) as `readout` stores them. Each place comes once. Planes follow each other along the longest axis.

    Args:
        part: reads a region of the volume.
        space: voxels (*space) of the volume.
        sizes: input sizes that the network takes.
        tile: the largest tile. If the device has too little memory for it, tiles are halved along the longest side
            that can be reduced, until they fit.
        overlap: of neighbouring tiles, as a fraction of the tile.
        flips, quarter_turns: each tile is predicted in so many mirrored copies, and turned about the first axis so many
            times, and the predictions are averaged (test-time augmentation); more than one only where mirroring or
            turning an image does nothing but mirror or turn its prediction.
        progress: told of smaller tiles.

    Raises:
        TomoscoutError: even the smallest tile does not fit.
    """
    network.eval()
    kind = torch.float16 if device.type == "cuda" else torch.float32
    tile = [min(length, size) for length, size in zip(tile, space, strict=True)]
    grid = TileGrid.of(space, sizes, tile, overlap, readout.every)

    copies = augmented_copies(len(space), flips, quarter_turns)

    def values(corner: tuple[int, ...]) -> torch.Tensor:
        crop = _tile(part, grid.window(corner), space, device)
        return _values(network, crop, copies, readout, precision).to(kind)

    first: torch.Tensor | None = None
    while first is None:
        try:
            # All tiles are of one size: where there is memory for the first, there is for the others.
            first = values(tuple(places[0] for places in grid.starts))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if first is None:
            # Outside the handler, which keeps the tensors of the failed attempt alive.
            tile = _smaller(tile, sizes, device)
            if progress:
                progress(f"out of memory; going on with tiles of {times(tile)}")
            grid = TileGrid.of(space, sizes, tile, overlap, readout.every)
    # The first tile is predicted already.
    predicted = [first]
    del first
    blender = Blender(grid, lambda corner: predicted.pop() if predicted else values(corner), kind)
    ends = [math.ceil(size / readout.every) for size in space]
    for window, block in blender.blocks():
        # Tiles that are longer than the volume go beyond its end.
        inside = tuple(slice(place.start, min(place.stop, end)) for place, end in zip(window, ends, strict=True))
        kept = block[(slice(None), *(slice(0, place.stop - place.start) for place in inside))]
        yield inside, readout.stored(kept.float()).cpu().numpy()


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
    inside = tuple(slice(side.start, min(side.stop, size)) for side, size in zip(window, space, strict=True))
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
