"""Tiles, blending, mirrored copies: against networks whose answer is known for the whole volume at once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tomoscout.errors import TomoscoutError
from tomoscout.inference import blending_weights, predict, tile_starts

torch.set_num_threads(1)
checked = settings(deadline=None, max_examples=150, derandomize=True)
few = settings(deadline=None, max_examples=25, derandomize=True)
CPU = torch.device("cpu")


def made_up(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def voxel_by_voxel(outputs: int = 4) -> nn.Module:
    """A network that looks at one voxel alone: tiles and mirroring cannot change what it says."""
    torch.manual_seed(1)
    layers = [nn.Conv3d(1, 6, 1), nn.ReLU(), nn.Conv3d(6, outputs, 1)]
    for layer in (layers[0], layers[2]):
        nn.init.normal_(layer.weight, std=2)
    return nn.Sequential(*layers).eval()


def at_once(network: nn.Module, volume: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        probabilities = torch.softmax(network(torch.from_numpy(volume)[None, None])[0], dim=0)[1:]
    return (probabilities * 255).numpy()


class PlaceInTile(nn.Module):
    """A network that depends on where in the tile a voxel is, so that every detail of the blending shows."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        z, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in inputs.shape[2:]), indexing="ij")
        images = inputs[:, 0]
        return torch.stack([torch.zeros_like(images), images + 0.3 * z - 0.2 * y, 0.25 * x - images + 0.1 * y], dim=1)


class Limited(nn.Module):
    """A network on a device with memory for so many voxels at a time."""

    def __init__(self, network: nn.Module, voxels: int) -> None:
        super().__init__()
        self.network = network
        self.voxels = voxels
        self.refused: list[tuple[int, ...]] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs[0, 0].numel() > self.voxels:
            self.refused.append(tuple(inputs.shape[2:]))
            raise torch.OutOfMemoryError("out of memory")
        return self.network(inputs)


@given(st.integers(1, 300), st.integers(1, 120), st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75]), st.integers(1, 16))
@checked
def test_tiles(size: int, tile: int, overlap: float, step: int) -> None:
    starts, length = tile_starts(size, tile, overlap, step)
    largest = -(-tile // step) * step
    assert length % step == 0
    assert length <= largest
    covered = np.zeros(max(size, length), dtype=int)
    for start in starts:
        assert 0 <= start <= max(size - length, 0)
        covered[start : start + length] += 1
    assert covered.min() >= 1
    # Starts are whole voxels, so an overlap can fall short by less than one.
    assert all(start + length - following > overlap * length - 1 for start, following in itertools.pairwise(starts))
    assert starts == sorted(starts)
    # As few tiles as possible, as short as possible.
    sizes = ((count, n) for count in itertools.count(1) for n in range(step, largest + 1, step))
    enough = next((c, n) for c, n in sizes if n * (c - (c - 1) * overlap) >= size)
    assert (len(starts), length) == enough


def test_blending_weights() -> None:
    weights = blending_weights((8, 5, 12), CPU).numpy()
    for z, y, x in np.ndindex(8, 5, 12):
        exponent = sum(((i - (n - 1) / 2) / (n / 8)) ** 2 for i, n in ((z, 8), (y, 5), (x, 12)))
        assert weights[z, y, x] == pytest.approx(max(np.exp(-exponent / 2), 1e-3), rel=1e-5)


@given(
    st.tuples(*[st.integers(1, 23)] * 3),
    st.tuples(*[st.integers(1, 16)] * 3),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 8),
)
@few
def test_tiles_give_what_the_whole_volume_gives(shape, tile, overlap, size_step, flips) -> None:
    network, volume = voxel_by_voxel(), made_up(shape)
    found = predict(
        network, volume, outputs=4, size_step=size_step, tile=tile, overlap=overlap, flips=flips, device=CPU
    )
    assert (found.shape, found.dtype) == ((3, *shape), np.uint8)
    assert abs(found - at_once(network, volume)).max() <= 0.502


def mirrored_softmax(network: nn.Module, tile: np.ndarray, copies: list[tuple[int, ...]]) -> np.ndarray:
    total = np.zeros((3, *tile.shape))
    for axes in copies:
        logits = network(torch.from_numpy(np.flip(tile, axes).copy())[None, None])[0].double().numpy()
        exponentials = np.exp(np.flip(logits, [axis + 1 for axis in axes]))
        total += exponentials / exponentials.sum(axis=0) / len(copies)
    return total[1:]


@pytest.mark.parametrize(
    ("flips", "copies"),
    [
        (1, [()]),
        (4, [(), (0,), (1,), (2,)]),
        (8, [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]),
    ],
)
def test_blending_and_mirroring_against_a_slow_reference(flips: int, copies: list[tuple[int, ...]]) -> None:
    volume, network = made_up((9, 14, 17), seed=3), PlaceInTile()
    plans = [tile_starts(n, t, 0.25, 2) for n, t in zip(volume.shape, (16, 8, 8), strict=True)]
    lengths = [length for _, length in plans]
    padded = np.pad(volume, [(0, max(0, n - have)) for n, have in zip(lengths, volume.shape, strict=True)], "reflect")
    assert padded.shape == (10, 14, 17)
    weights = blending_weights(lengths, CPU).double().numpy()
    total, norm = np.zeros((2, *padded.shape)), np.zeros(padded.shape)
    for corner in itertools.product(*(starts for starts, _ in plans)):
        window = tuple(slice(a, a + n) for a, n in zip(corner, lengths, strict=True))
        total[(slice(None), *window)] += mirrored_softmax(network, padded[window], copies) * weights
        norm[window] += weights
    assert (norm > weights.max()).any()
    expected = (total / norm * 255)[:, :9]
    found = predict(network, volume, outputs=3, size_step=2, tile=(16, 8, 8), overlap=0.25, flips=flips, device=CPU)
    assert abs(found - expected).max() < 0.51


def test_mirrored_copies_make_a_symmetric_answer() -> None:
    volume = np.zeros((6, 7, 8), dtype=np.float32)
    found = predict(PlaceInTile(), volume, outputs=3, size_step=1, tile=(8, 8, 8), overlap=0.25, flips=8, device=CPU)
    for axis in (1, 2, 3):
        assert abs(found.astype(int) - np.flip(found, axis)).max() <= 1
    assert np.ptp(found) > 10


def test_certainty_is_quantised_to_the_ends() -> None:
    volume = np.where(made_up((5, 5, 5)) > 0, 100, -100).astype(np.float32)
    network = nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1))
        network.bias.zero_()
    found = predict(network, volume, outputs=2, size_step=1, tile=(4, 4, 4), overlap=0.25, flips=1, device=CPU)
    np.testing.assert_array_equal(found[0], np.where(volume > 0, 255, 0))


@pytest.mark.parametrize("shape", [(1, 40, 40), (3, 5, 40), (1, 1, 1), (2, 64, 3)])
def test_thin_volumes_are_padded_to_what_the_network_takes(shape: tuple[int, ...]) -> None:
    sizes = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = voxel_by_voxel()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            sizes.append(tuple(inputs.shape[2:]))
            return self.network(inputs)

    volume = made_up(shape)
    found = predict(Watching(), volume, outputs=4, size_step=8, tile=(32, 32, 32), overlap=0.25, flips=1, device=CPU)
    assert abs(found - at_once(voxel_by_voxel(), volume)).max() <= 0.502
    assert all(size % 8 == 0 for tile in sizes for size in tile)


def test_padding_repeats_the_volume_rather_than_adding_an_edge() -> None:
    seen = []

    class Keeping(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(inputs[0, 0].clone())
            return torch.cat([inputs, inputs], dim=1)

    volume = made_up((6, 3, 1))
    predict(Keeping(), volume, outputs=2, size_step=4, tile=(16, 16, 16), overlap=0.25, flips=1, device=CPU)
    assert set(seen[0].unique().tolist()) == set(volume.ravel().tolist())


def test_networks_are_applied_without_dropout() -> None:
    network, volume = nn.Sequential(nn.Dropout(0.9), voxel_by_voxel()).train(), made_up((8, 8, 8))
    found = predict(network, volume, outputs=4, size_step=1, tile=(8, 8, 8), overlap=0.25, flips=1, device=CPU)
    assert abs(found - at_once(voxel_by_voxel(), volume)).max() <= 0.502


def test_tiles_are_made_smaller_where_memory_runs_out() -> None:
    volume, messages = made_up((10, 24, 30)), []
    network = Limited(voxel_by_voxel(), 8 * 8 * 8)
    found = predict(
        network,
        volume,
        outputs=4,
        size_step=2,
        tile=(64, 32, 32),
        overlap=0.25,
        flips=2,
        device=CPU,
        progress=messages.append,
    )
    assert abs(found - at_once(voxel_by_voxel(), volume)).max() <= 0.502
    assert len(messages) == len(network.refused) > 2
    assert all("out of memory" in message for message in messages)
    # Each attempt is smaller than the one before: nothing is tried twice.
    voxels = [np.prod(tile) for tile in network.refused]
    assert all(after < before for before, after in itertools.pairwise(voxels))


def test_too_little_memory_for_any_tile_is_an_error() -> None:
    network = Limited(voxel_by_voxel(), 20)
    with pytest.raises(TomoscoutError, match="not enough memory on cpu even for tiles of"):
        predict(
            network, made_up((16, 16, 16)), outputs=4, size_step=4, tile=(16, 16, 16), overlap=0.25, flips=1, device=CPU
        )
    assert np.prod(network.refused[-1]) == 4**3
