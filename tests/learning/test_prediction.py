"""Tiles, blending, mirrored copies: against networks whose answer is known for the whole volume at once."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tomoscout.learning.prediction import Ensemble, Inference, predict, predict_blocks
from tomoscout.learning.readout import Readout
from tomoscout.learning.tiles import InputSizes, blending_weights, tile_starts
from tomoscout.machine.errors import TomoscoutError
from tomoscout.networks import build_network, parse_network

torch.set_num_threads(1)
few = settings(deadline=None, max_examples=25, derandomize=True)
CPU = torch.device("cpu")


def any_size(step: int = 1, smallest: int | None = None) -> InputSizes:
    return InputSizes((step,) * 3, (smallest or step,) * 3)


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


def assembled(network: nn.Module, volume: np.ndarray, inference: Inference, **options: Any) -> np.ndarray:
    """The blocks of a prediction, put together."""
    found: np.ndarray | None = None
    for window, block in predict_blocks(
        network, lambda window: volume[(None, *window)], volume.shape, inference, **options
    ):
        found = np.full((len(block), *volume.shape), np.nan) if found is None else found
        found[(slice(None), *window)] = block
    assert found is not None
    return found


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


@pytest.mark.parametrize("flips", [1, 3])
def test_bfloat16_is_close_to_single_precision(flips: int) -> None:
    torch.manual_seed(0)
    network = build_network(parse_network({"channels": [4, 8], "strides": [2]}), 3)
    volume = made_up((20, 33, 47))
    one, other = (
        predict(
            network, volume, Inference(any_size(2), (16, 24, 24), 0.25, CPU, flips=flips, precision=precision)
        ).astype(int)
        for precision in (torch.float32, torch.bfloat16)
    )
    assert 0 < abs(one - other).max() <= 8
    assert abs(one - other).mean() < 1


@given(
    st.tuples(*[st.integers(1, 23)] * 3),
    st.tuples(*[st.integers(1, 16)] * 3),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.sampled_from([(1, 1), (2, 2), (4, 4), (2, 8), (1, 5)]),
    st.integers(1, 8),
)
@few
def test_tiles_give_what_the_whole_volume_gives(shape, tile, overlap, sizes, flips) -> None:
    network, volume = voxel_by_voxel(), made_up(shape)
    found = predict(network, volume, Inference(any_size(*sizes), tile, overlap, CPU, flips=flips))
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
    weights = [blending_weights(starts, length) for starts, length in plans]
    total = np.zeros((2, *padded.shape))
    for numbers in itertools.product(*(range(len(starts)) for starts, _ in plans)):
        corner = [starts[number] for (starts, _), number in zip(plans, numbers, strict=True)]
        window = tuple(slice(a, a + n) for a, n in zip(corner, lengths, strict=True))
        z, y, x = (along[number].numpy() for along, number in zip(weights, numbers, strict=True))
        weight = z[:, None, None] * y[:, None] * x
        total[(slice(None), *window)] += mirrored_softmax(network, padded[window], copies) * weight
    expected = (total * 255)[:, :9]
    found = predict(network, volume, Inference(any_size(2), (16, 8, 8), 0.25, CPU, flips=flips))
    assert abs(found - expected).max() < 0.51


def test_mirrored_copies_make_a_symmetric_answer() -> None:
    volume = np.zeros((6, 7, 8), dtype=np.float32)
    found = predict(PlaceInTile(), volume, Inference(any_size(1), (8, 8, 8), 0.25, CPU, flips=8))
    for axis in (1, 2, 3):
        assert abs(found.astype(int) - np.flip(found, axis)).max() <= 1
    assert np.ptp(found) > 10


class Planar(nn.Module):
    """A network whose answer depends on the place within a plane, with the first of two axes apart from the second."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        z, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in inputs.shape[2:]), indexing="ij")
        images = inputs[:, 0]
        return torch.stack([torch.zeros_like(images), images + 0.3 * y - 0.1 * z, 0.2 * x * y - images], dim=1)


@pytest.mark.parametrize(("flips", "turns", "count"), [(1, 4, 4), (2, 2, 4), (8, 4, 16), (4, 1, 4)])
def test_quarter_turns_against_a_slow_reference(flips: int, turns: int, count: int) -> None:
    volume, network = made_up((5, 6, 9), seed=3), Planar()
    found = predict(network, volume, Inference(any_size(1), (8, 16, 16), 0.25, CPU, flips=flips, quarter_turns=turns))
    mirrored = [(), (2,), (1,), (0,), (1, 2), (0, 2), (0, 1), (0, 1, 2)][:flips]
    copies: dict[bytes, np.ndarray] = {}
    for quarters in range(turns):
        for axes in mirrored:
            copy = np.rot90(np.flip(volume, axes), quarters, (1, 2))
            probabilities = mirrored_softmax(network, copy, [()])
            back = np.flip(np.rot90(probabilities, -quarters, (2, 3)), [axis + 1 for axis in axes])
            copies.setdefault(copy.tobytes(), back)
    assert len(copies) == count
    assert abs(found - 255 * np.mean(list(copies.values()), axis=0)).max() < 0.51


def test_blocks_cover_a_volume_of_any_size_once_and_in_order() -> None:
    volume, network = made_up((12, 40, 22)), voxel_by_voxel()
    asked: list[tuple[slice, ...]] = []

    def part(window: tuple[slice, ...]) -> np.ndarray:
        asked.append(window)
        return volume[(None, *window)]

    found = np.full((3, *volume.shape), np.nan)
    starts = []
    for window, block in predict_blocks(network, part, volume.shape, Inference(any_size(2), (8, 8, 8), 0.25, CPU)):
        assert np.isnan(found[(slice(None), *window)]).all()
        found[(slice(None), *window)] = block
        starts.append(window[1].start)
    assert abs(found - at_once(network, volume)).max() <= 0.502
    assert starts == sorted(starts)
    rows = [window[1].start for window in asked]
    assert rows == sorted(rows)


@pytest.mark.parametrize("shape", [(12, 40, 22), (5, 9, 30)])
def test_tiles_that_are_not_needed_are_not_computed(shape: tuple[int, ...]) -> None:
    """Around two voxels everything is as it is without a choice of tiles; what no computed tile reaches is 0."""
    volume, network = made_up(shape), PlaceInTile()
    inference = Inference(any_size(2), (8, 8, 8), 0.25, CPU, flips=2)
    chosen = np.zeros(shape, dtype=bool)
    chosen[4, -1, 20] = chosen[2, 3, 5] = True
    grid = inference.grid(shape, (8, 8, 8))
    windows = [window for window in map(grid.window, grid.corners) if chosen[window].any()]
    reached = np.zeros(shape, dtype=bool)
    for window in windows:
        reached[window] = True
    seen: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    messages: list[str] = []
    found = assembled(
        network, volume, inference, needed=lambda window: bool(chosen[window].any()), progress=messages.append
    )
    assert len(seen) == 2 * len(windows) < 2 * grid.count
    assert messages == [f"{len(windows)} of {grid.count} tiles are computed"]
    whole = predict(network, volume, inference)
    np.testing.assert_array_equal(found[:, chosen], whole[:, chosen])
    assert not found[:, ~reached].any()
    assert whole[:, ~reached].any()
    assert not assembled(network, volume, inference, needed=lambda _: False).any()


@pytest.fixture(scope="module")
def local() -> nn.Module:
    """A network with statistics of a training, whose answer depends on nothing beyond three voxels."""
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU()]
    layers += [nn.Conv3d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, 4, 3, padding=1)]
    network = nn.Sequential(*layers)
    with torch.no_grad():
        for _ in range(5):
            network(torch.randn(2, 1, 12, 12, 12))
        network[-1].weight.mul_(5)
    return network.eval()


class Unrounded(Readout):
    """Probabilities as they are."""

    kind = torch.float32

    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        return torch.softmax(outputs, dim=0)[1:]

    def stored(self, values: torch.Tensor) -> torch.Tensor:
        return values


def test_tiled_is_as_the_whole_where_tiles_hold_what_the_network_looks_at(local: nn.Module) -> None:
    """To 1e-3, but for a margin at the ends of a tile: there the network sees its padding. Neighbours outweigh it by
    their Gaussians the more the farther it is from their own ends."""
    volume = made_up((20, 77, 90))
    whole = predict(local, volume, Inference(any_size(1), volume.shape, 0.5, CPU, readout=Unrounded()))
    found = predict(local, volume, Inference(any_size(1), (48, 48, 48), 0.5, CPU, readout=Unrounded()))
    difference = abs(found - whole)
    assert np.ptp(whole) > 0.5
    assert difference.max() < 1e-3


def test_there_is_no_seam_between_tiles(local: nn.Module) -> None:
    shape, margin = (30, 41, 52), 4
    slow = np.sin(np.indices(shape).sum(axis=0) / 9).astype(np.float32)
    inference = Inference(any_size(1), (24, 24, 24), 0.5, CPU, readout=Unrounded())
    # At the ends of the volume the network sees its padding.
    found = predict(local, slow, inference)[(slice(None), *[slice(margin, -margin)] * 3)]
    grid = inference.grid(shape, inference.tile)
    for axis, (starts, length) in enumerate(zip(grid.starts, grid.lengths, strict=True)):
        jumps = abs(np.diff(found, axis=axis + 1)).max(axis=tuple({0, 1, 2, 3} - {axis + 1}))
        ends = {edge - margin - 1 for start in starts for edge in (start, start + length)} - {-margin - 1}
        borders = sorted(ends & set(range(len(jumps))))
        assert borders
        assert jumps[borders].max() <= np.delete(jumps, borders).max()


def test_certainty_is_quantised_to_the_ends() -> None:
    volume = np.where(made_up((5, 5, 5)) > 0, 100, -100).astype(np.float32)
    network = nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1))
        network.bias.zero_()
    found = predict(network, volume, Inference(any_size(1), (4, 4, 4), 0.25, CPU))
    np.testing.assert_array_equal(found[0], np.where(volume > 0, 255, 0))


class Watching(nn.Module):
    """A network that takes no other sizes than it says it does."""

    def __init__(self, sizes: InputSizes) -> None:
        super().__init__()
        self.network = voxel_by_voxel()
        self.sizes = sizes
        self.seen: set[tuple[int, ...]] = set()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for size, step, smallest in zip(inputs.shape[2:], *self.sizes, strict=True):
            assert size % step == 0
            assert size >= smallest
        self.seen.add(tuple(inputs.shape[2:]))
        return self.network(inputs)


@pytest.mark.parametrize("shape", [(1, 40, 40), (3, 5, 40), (1, 1, 1), (2, 64, 3), (17, 33, 70)])
@pytest.mark.parametrize(
    "sizes",
    [
        InputSizes((8, 8, 8), (8, 8, 8)),
        InputSizes((8, 8, 8), (16, 16, 16)),
        InputSizes((1, 16, 4), (2, 32, 40)),
        InputSizes((8, 8, 8), (40, 40, 40)),
    ],
)
def test_thin_volumes_are_padded_to_what_the_network_takes(shape: tuple[int, ...], sizes: InputSizes) -> None:
    volume, network = made_up(shape), Watching(sizes)
    found = predict(network, volume, Inference(sizes, (32, 32, 32), 0.25, CPU))
    assert abs(found - at_once(voxel_by_voxel(), volume)).max() <= 0.502
    assert len(network.seen) == 1


def test_padding_repeats_the_volume_rather_than_adding_an_edge() -> None:
    seen = []

    class Keeping(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(inputs[0, 0].clone())
            return torch.cat([inputs, inputs], dim=1)

    volume = made_up((6, 3, 1))
    predict(Keeping(), volume, Inference(any_size(4), (16, 16, 16), 0.25, CPU))
    assert set(seen[0].unique().tolist()) == set(volume.ravel().tolist())


def test_networks_are_applied_without_dropout() -> None:
    network, volume = nn.Sequential(nn.Dropout(0.9), voxel_by_voxel()).train(), made_up((8, 8, 8))
    found = predict(network, volume, Inference(any_size(1), (8, 8, 8), 0.25, CPU))
    assert abs(found - at_once(voxel_by_voxel(), volume)).max() <= 0.502


def test_tiles_are_made_smaller_where_memory_runs_out() -> None:
    volume, messages = made_up((10, 24, 30)), []
    network = Limited(voxel_by_voxel(), 8 * 8 * 8)
    inference = Inference(any_size(2), (64, 32, 32), 0.25, CPU, flips=2)
    found = assembled(network, volume, inference, progress=messages.append)
    assert abs(found - at_once(voxel_by_voxel(), volume)).max() <= 0.502
    assert len(messages) == len(network.refused) > 2
    assert all("out of memory" in message for message in messages)
    # Each attempt is smaller than the one before: nothing is tried twice.
    voxels = [np.prod(tile) for tile in network.refused]
    assert all(after < before for before, after in itertools.pairwise(voxels))


@pytest.mark.parametrize(
    ("smallest", "voxels", "last"),
    [
        # Half of a side is less than the network takes, but the smallest fits.
        ((20, 20, 20), 20**3, (20, 20, 20)),
        # The longest side can be no shorter, the others can.
        ((4, 4, 32), 4 * 4 * 32, (4, 4, 32)),
        ((32, 4, 4), 32 * 8 * 8, (32, 8, 8)),
    ],
)
def test_tiles_go_down_to_the_smallest(smallest: tuple[int, ...], voxels: int, last: tuple[int, ...]) -> None:
    volume, sizes = made_up((32, 32, 32)), InputSizes((4, 4, 4), smallest)
    watching = Watching(sizes)
    network = Limited(watching, voxels)
    found = predict(network, volume, Inference(sizes, (32, 32, 32), 0.25, CPU))
    assert abs(found - at_once(voxel_by_voxel(), volume)).max() <= 0.502
    assert watching.seen == {last}
    with pytest.raises(TomoscoutError, match="not enough memory on cpu even for tiles of"):
        predict(Limited(watching, np.prod(smallest) - 1), volume, Inference(sizes, (32, 32, 32), 0.25, CPU))


def test_too_little_memory_for_any_tile_is_an_error() -> None:
    network = Limited(voxel_by_voxel(), 20)
    with pytest.raises(TomoscoutError, match="not enough memory on cpu even for tiles of"):
        predict(network, made_up((16, 16, 16)), Inference(any_size(4), (16, 16, 16), 0.25, CPU))
    assert np.prod(network.refused[-1]) == 4**3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_ensemble_gives_the_mean_of_probabilities(count: int) -> None:
    volume = made_up((10, 12, 14))
    networks = []
    for number in range(count):
        network = voxel_by_voxel()
        with torch.no_grad():
            network[0].weight.mul_(number + 0.5)
        networks.append(network)
    found = predict(Ensemble(networks).train(), volume, Inference(any_size(2), (8, 8, 8), 0.25, CPU, flips=3))
    expected = np.mean([at_once(network, volume) for network in networks], axis=0)
    assert abs(found - expected).max() <= 0.502
    assert not any(network.training for network in networks)
    with torch.inference_mode():
        inputs = torch.from_numpy(volume)[None, None]
        logits = Ensemble(networks)(inputs)
        mean = sum(torch.softmax(network(inputs), dim=1) for network in networks) / count
    torch.testing.assert_close(torch.softmax(logits, dim=1), mean)


def test_an_ensemble_of_networks_that_are_certain() -> None:
    class Certain(nn.Module):
        def __init__(self, label: int) -> None:
            super().__init__()
            self.label = label

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            logits = torch.full((len(inputs), 3, *inputs.shape[2:]), -1e4)
            logits[:, self.label] = 1e4
            return logits

    probabilities = torch.softmax(Ensemble([Certain(1), Certain(2)])(torch.zeros(1, 1, 2, 2, 2)), dim=1)
    torch.testing.assert_close(probabilities[0, :, 0, 0, 0], torch.tensor([0.0, 0.5, 0.5]))


@pytest.mark.gpu
@pytest.mark.parametrize("flips", [1, 8])
def test_a_gpu_predicts_what_a_cpu_predicts(flips: int) -> None:
    torch.manual_seed(0)
    network, volume = build_network(parse_network({"channels": [4, 8], "strides": [2]}), 7), made_up((40, 90, 70))
    options = {"sizes": any_size(2), "tile": (32, 32, 32), "overlap": 0.25, "flips": flips}
    expected = predict(network, volume, Inference(device=CPU, **options)).astype(int)
    found = predict(network.cuda(), volume, Inference(device=torch.device("cuda"), **options)).astype(int)
    # Convolutions in TF32, and sums in half precision.
    assert abs(found - expected).max() <= 4
    assert abs(found - expected).mean() < 0.2
