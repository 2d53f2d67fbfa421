"""Preparing tomograms for a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.errors import TomoscoutError
from tomoscout.volumes import labelled_volume, standardise, storage_device

torch.set_num_threads(1)
checked = settings(deadline=None, max_examples=30, derandomize=True)
CPU = torch.device("cpu")


def made_up(shape: tuple[int, ...] = (16, 24, 20), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(st.floats(0.01, 1e4), st.floats(-10, 10), st.integers(0, 100))
@checked
def test_scale_and_offset_do_not_matter(scale: float, offset: float, seed: int) -> None:
    volume = made_up((8, 9, 10), seed)
    changed = volume * np.float32(scale) + np.float32(offset * scale)
    np.testing.assert_allclose(standardise(changed), standardise(volume), atol=1e-4)


def test_mean_is_zero_and_deviation_one() -> None:
    volume = made_up() * 40 - 7
    before = volume.copy()
    prepared = standardise(volume)
    assert prepared.dtype == np.float32
    assert abs(prepared.mean(dtype=np.float64)) < 1e-5
    assert abs(prepared.std(dtype=np.float64) - 1) < 1e-5
    np.testing.assert_array_equal(volume, before)


def test_against_double_precision() -> None:
    volume = made_up() * 3 + 100
    values = volume.astype(np.float64)
    limited = np.clip(values, *np.percentile(values, [0.1, 99.9]))
    np.testing.assert_allclose(standardise(volume), (limited - limited.mean()) / limited.std(), atol=1e-4)


def test_gold_beads_do_not_set_the_scale() -> None:
    volume = made_up()
    beaded = volume.copy()
    beads = np.random.default_rng(1).choice(volume.size, volume.size // 2000, replace=False)
    beaded.ravel()[beads] = -1e6
    others = np.setdiff1d(np.arange(volume.size), beads)
    prepared = standardise(beaded)
    assert abs(prepared.ravel()[others] - standardise(volume).ravel()[others]).max() < 0.15
    assert abs(prepared).max() < 10


def test_percentiles_of_a_large_volume_are_taken_from_a_part_of_it() -> None:
    volume = made_up((162, 162, 162))
    limits = np.percentile(volume, [0.1, 99.9])
    prepared = standardise(volume)
    assert abs(prepared.mean(dtype=np.float64)) < 1e-5
    assert abs(prepared.std(dtype=np.float64) - 1) < 1e-5
    scale = np.clip(volume, *limits).std(dtype=np.float64)
    np.testing.assert_allclose([prepared.min(), prepared.max()], limits / scale, atol=0.06)


def test_a_constant_volume_becomes_zero() -> None:
    assert not standardise(np.full((4, 4, 4), 3, dtype=np.float32)).any()


def test_a_volume_smaller_than_the_patch_is_padded_at_its_far_ends() -> None:
    tomogram, labels = made_up((5, 20, 9)), np.random.default_rng(1).integers(0, 3, (5, 20, 9)).astype(np.uint8)
    volume = labelled_volume("a run", tomogram, labels, (8, 16, 12), CPU)
    assert volume.intensities.shape == volume.labels.shape == (8, 20, 12)
    assert volume.intensities.dtype == torch.float32
    assert volume.labels.dtype == torch.uint8
    inner = (slice(5), slice(20), slice(9))
    np.testing.assert_array_equal(volume.intensities.numpy()[inner], standardise(tomogram))
    np.testing.assert_array_equal(volume.labels.numpy()[inner], labels)
    outside = np.ones((8, 20, 12), dtype=bool)
    outside[inner] = False
    assert (volume.labels.numpy()[outside] == volume.ignore).all()
    assert not volume.intensities.numpy()[outside].any()


def test_a_volume_that_holds_the_patch_is_not_padded() -> None:
    volume = labelled_volume("a run", made_up((8, 8, 8)), np.zeros((8, 8, 8), dtype=np.uint8), (8, 4, 8), CPU)
    assert volume.labels.shape == (8, 8, 8)
    assert not (volume.labels == volume.ignore).any()


@pytest.mark.parametrize(("kind", "label"), [(np.uint8, 255), (np.uint16, 255), (np.uint16, 300), (np.int64, 3)])
def test_the_ignored_label_is_no_label(kind: type, label: int) -> None:
    labels = np.zeros((4, 4, 4), dtype=kind)
    labels[1, 2, 3] = label
    volume = labelled_volume("a run", made_up((4, 4, 4)), labels, (6, 4, 4), CPU)
    assert int(volume.labels[1, 2, 3]) == label != volume.ignore
    assert int((volume.labels == volume.ignore).sum()) == 2 * 4 * 4


def test_a_target_of_another_shape_is_refused() -> None:
    with pytest.raises(TomoscoutError, match=r"run-7.*\(4, 4, 4\).*\(4, 4, 5\)"):
        labelled_volume("run-7", made_up((4, 4, 4)), np.zeros((4, 4, 5), dtype=np.uint8), (4, 4, 4), CPU)


def test_without_a_gpu_voxels_live_in_main_memory() -> None:
    assert storage_device(10**12, CPU) == CPU
