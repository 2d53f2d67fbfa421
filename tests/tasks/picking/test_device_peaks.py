"""Peaks found with PyTorch are those that NumPy and SciPy find."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support.spheres import spheres
from tomoscout.learning.step_memory import _LiveBytes
from tomoscout.tasks.picking import device_peaks, peaks

torch.set_num_threads(1)
checked = settings(deadline=None, max_examples=60, derandomize=True)
CPU = torch.device("cpu")


def assert_same(
    probability: np.ndarray, radius: float, device: torch.device = CPU, *, binned: bool = False, **options: float
) -> int:
    """Compare the peaks, whatever the order of those with equal scores; returns their number. `binned`: with those of
    large objects as the other finds them by default."""
    found, scores = device_peaks.find_peaks(probability, radius, device=device, **options)
    with pytest.MonkeyPatch.context() as patch:
        if not binned:
            patch.setattr(peaks, "NARROWEST", 1e6)
        expected, expected_scores = peaks.find_peaks(probability, radius, **options)
    assert found.shape == expected.shape
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=2e-6)
    distances = np.linalg.norm(found[:, None] - expected[None], axis=2)
    nearest = distances.argmin(axis=1) if len(found) else np.zeros(0, dtype=int)
    assert len(set(nearest.tolist())) == len(found)
    assert (distances[np.arange(len(found)), nearest] < 1e-3).all()
    np.testing.assert_allclose(scores, expected_scores[nearest], rtol=0, atol=1e-5)
    return len(found)


@given(
    st.integers(0, 10_000),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sampled_from([0.0, 0.05, 0.4, 0.8]),
    st.sampled_from([1e-9, 2.0]),
    st.sampled_from([1, 200, 2**25]),
)
@checked
def test_every_peak_of_noise(seed: int, shape: tuple[int, ...], smoothing: float, apart: float, slab: int) -> None:
    # Few distinct values: many equal neighbours. Slabs of a single plane, of some, and of all.
    probability = (np.random.default_rng(seed).integers(0, 6, shape) * 51).astype(np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_peaks, "SLAB", slab)
        for threshold in (0.0, 0.35, 0.6):
            assert_same(probability, 2.0, smoothing=smoothing, separation=apart, threshold=threshold)


@pytest.mark.parametrize("slab", [20_000, 2**25])
@pytest.mark.parametrize("smoothing", [0.0, 0.4, 0.6, 1.5])
@pytest.mark.parametrize("radius", [2.0, 5.2, 9.3, 14.0])
def test_spheres_wherever_they_lie(radius: float, smoothing: float, slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart, overlapping, and cut by the border."""
    monkeypatch.setattr(device_peaks, "SLAB", slab)
    random = np.random.default_rng(int(radius))
    shape = (40, 52, 60)
    centres = np.concatenate([random.uniform(0, shape, (12, 3)), [[0, 0, 0], [39, 51, 59], [20, 0, 59]]])
    probability = spheres(shape, centres, radius, random.uniform(0.2, 1, len(centres)))
    options = {"smoothing": smoothing, "separation": 1.5 * radius}
    numbers = [assert_same(probability, radius, threshold=threshold, **options) for threshold in (0.03, 0.3, 0.7)]
    assert numbers[0] > 1
    assert numbers == sorted(numbers, reverse=True)


@pytest.mark.parametrize("smoothing", [0.4, 0.6])
@pytest.mark.parametrize("radius", [9.3, 14.0, 26.0])
def test_large_spheres_that_the_other_searches_for_on_a_binned_grid(radius: float, smoothing: float) -> None:
    shape = tuple((radius * np.array([3.5, 8, 8])).astype(int))
    lattice = radius * np.array([[1.7, y, x] for y in (0, 3, 6) for x in (0, 3, 6)])
    centres = lattice + np.random.default_rng(1).uniform(0, 0.4, lattice.shape) * radius
    probability = spheres(shape, centres, radius, np.linspace(0.3, 1, len(centres)))
    options = {"smoothing": smoothing, "separation": 2 * radius, "threshold": 0.1}
    assert assert_same(probability, radius, binned=True, **options) == len(centres)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 1), (2, 2, 2), (1, 3, 4), (3, 3, 3), (14, 15, 16)])
@pytest.mark.parametrize("smoothing", [0.0, 0.23, 0.4, 1.0])
def test_a_plateau_is_one_peak(size: tuple[int, ...], smoothing: float) -> None:
    probability = np.zeros((14, 15, 16), dtype=np.uint8)
    probability[tuple(slice(0, n) if n > 4 else slice(6, 6 + n) for n in size)] = 255
    assert assert_same(probability, 2.5, smoothing=smoothing, separation=1e-9, threshold=0.003) == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("radius", [2.0, 9.0])
def test_certainty_reaches_the_highest_threshold(radius: float, smoothing: float) -> None:
    certain = np.full((30, 30, 30), 255, dtype=np.uint8)
    options = {"smoothing": smoothing, "separation": 200.0}
    assert assert_same(certain, radius, threshold=1.0, **options) == 1
    assert assert_same(certain - 1, radius, threshold=1.0, **options) == 0
    assert assert_same(np.zeros_like(certain), radius, threshold=0.0, **options) == 0


def test_memory_is_that_of_a_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    probability = np.random.default_rng(0).integers(0, 255, (300, 40, 40)).astype(np.uint8)
    monkeypatch.setattr(device_peaks, "SLAB", 60 * 40 * 40)
    with _LiveBytes([]) as live:
        device_peaks.find_peaks(probability, 8.0, smoothing=1.0, separation=8.0, threshold=0.6, device=CPU)
    # The planes of the slab alone lie on this device already.
    assert 8 < (live.most - probability.nbytes) / device_peaks.SLAB <= 17


class Limited(TorchDispatchMode):
    """Memory for tensors of so many bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.refused = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        if any(isinstance(tensor, torch.Tensor) and tensor.nbytes > self.size for tensor in tree_leaves(results)):
            self.refused += 1
            raise torch.OutOfMemoryError("out of memory")
        return results


def test_a_device_without_enough_memory_leaves_it_to_the_cpu() -> None:
    probability = spheres((20, 24, 28), np.array([[10.0, 12, 14]]), 4.0, np.ones(1))
    with Limited(2 * probability.nbytes) as limited:
        assert assert_same(probability, 4.0, smoothing=0.6, separation=6.0, threshold=0.3) == 1
    assert limited.refused == 1


@pytest.mark.gpu
@pytest.mark.parametrize("radius", [2.0, 9.3])
def test_peaks_on_a_gpu(radius: float) -> None:
    random = np.random.default_rng(3)
    shape = (40, 90, 100)
    probability = spheres(shape, random.uniform(0, shape, (20, 3)), radius, random.uniform(0.2, 1, 20))
    options = {"smoothing": 0.6, "separation": 1.5 * radius, "threshold": 0.03}
    assert assert_same(probability, radius, torch.device("cuda"), **options) > 5
