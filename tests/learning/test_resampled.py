"""Networks applied at another voxel spacing than their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tomoscout.learning.resampled import Resampled, resample
from tomoscout.learning.resampling import needed, resampled_size, resampling_matrix
from tomoscout.learning.tiles import InputSizes


def waves(shape: tuple[int, ...], spacing: float, period: float) -> np.ndarray:
    """The sum of a wave along each axis, of voxels of this spacing."""
    places = [np.arange(n) * spacing for n in shape]
    return sum(np.cos(2 * np.pi * grid / period) for grid in np.meshgrid(*places, indexing="ij"))


@pytest.mark.parametrize("ratio", [0.5, 0.37, 1.0, 1.6, 2.0])
def test_slow_waves_stay_as_they_are(ratio: float) -> None:
    shape = (40, 33, 50)
    new_shape = [resampled_size(n, ratio) for n in shape]
    given = torch.from_numpy(waves(shape, 1.0, 17.0).astype(np.float32))[None, None]
    found = resample(given, new_shape, ratio)[0, 0].numpy()
    expected = waves(tuple(new_shape), 1 / ratio, 17.0)
    # Beyond the ends, values are repeated in place of the wave.
    edge = int(np.ceil(4 * max(1.0, ratio)))
    inner = (slice(edge, -edge),) * 3
    assert abs(found - expected)[inner].max() < 0.03


def test_waves_that_a_coarser_grid_cannot_hold_vanish() -> None:
    given = torch.from_numpy(waves((64, 64, 64), 1.0, 2.7).astype(np.float32))[None, None]
    coarse = resample(given, (32, 32, 32), 0.5)[0, 0].numpy()
    assert abs(coarse[4:-4, 4:-4, 4:-4]).max() < 0.1
    # Every second voxel would have them as slow ones.
    assert abs(given[0, 0, ::2, ::2, ::2]).max() > 2


@pytest.mark.parametrize(("size", "new_size", "ratio"), [(7, 4, 0.5), (5, 5, 1.0), (1, 3, 3.0), (30, 11, 0.35)])
def test_constants_stay(size: int, new_size: int, ratio: float) -> None:
    matrix = resampling_matrix(range(new_size), size, ratio)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    if ratio == 1:
        np.testing.assert_allclose(matrix, np.eye(size), atol=1e-6)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 1.0, 1.7])
def test_a_part_needs_some_voxels_alone(ratio: float) -> None:
    size = 60
    whole = resampling_matrix(range(resampled_size(size, ratio)), size, ratio)
    for start in range(0, len(whole), 7):
        new = range(start, min(start + 7, len(whole)))
        old = needed(new, size, ratio)
        outside = np.setdiff1d(np.arange(size), old)
        assert not whole[new.start : new.stop, outside].any()
        np.testing.assert_array_equal(resampling_matrix(new, size, ratio), whole[new.start : new.stop])


class Doubling(nn.Module):
    """A network that takes multiples of four and says twice what it sees."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert all(size % 4 == 0 for size in inputs.shape[2:])
        self.seen = inputs.shape[2:]
        return torch.cat([inputs, 2 * inputs], dim=1)


@pytest.mark.parametrize("ratio", [0.5, 0.7, 2.0])
def test_a_network_sees_its_own_spacing_and_answers_at_that_of_the_volume(ratio: float) -> None:
    network = Doubling()
    resampled = Resampled(network, ratio, InputSizes((4, 4, 4), (8, 8, 8)))
    assert resampled.sizes == InputSizes((1, 1, 1), (int(np.ceil(7 / ratio)) + 1,) * 3)
    assert resampled_size(resampled.sizes.smallest[0], ratio) >= 8
    volume = torch.from_numpy(waves((26, 40, 31), 1.0, 19.0).astype(np.float32))
    with torch.no_grad():
        logits = resampled(volume[None, None])
    assert logits.shape == (1, 2, 26, 40, 31)
    assert tuple(network.seen) == tuple(int(np.ceil(resampled_size(n, ratio) / 4)) * 4 for n in volume.shape)
    edge = 8
    inner = (slice(edge, -edge),) * 3
    assert abs(logits[0, 0] - volume)[inner].max() < 0.1
    torch.testing.assert_close(logits[0, 1], 2 * logits[0, 0])


def test_intensities_are_those_at_its_own_spacing() -> None:
    """A coarser grid has less noise: the network sees it with a standard deviation of 1 all the same."""
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(48, 48, 48)).astype(np.float32))
    resampled = Resampled(nn.Identity(), 0.5, InputSizes((1, 1, 1), (1, 1, 1)))
    assert float(resampled.at_own_spacing(noise[None, None]).std()) < 0.5
    resampled.measure([noise[:24], noise[24:]])
    seen = []
    resampled.network = nn.Sequential()
    resampled.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    resampled(noise[None, None])
    assert float(seen[0].mean()) == pytest.approx(0.0, abs=0.05)
    assert float(seen[0].std()) == pytest.approx(1.0, abs=0.05)
