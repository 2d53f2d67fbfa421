"""What the network sees of an image: channels, intensities, size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.tasks.instances.annotation_options import Normalisation
from tomoscout.tasks.instances.prepare import (
    normalise,
    prepare,
    rescale_factor,
    rescale_image,
    rescale_labels,
)

checked = settings(deadline=None, max_examples=40, derandomize=True)
random = np.random.default_rng(0)


def test_inputs_are_the_channels_in_order_and_black_where_there_is_none() -> None:
    image = random.integers(1, 1000, (2, 20, 30)).astype(np.uint16)
    options = [Normalisation(values=[0, 100]), Normalisation(), Normalisation(values=[0, 10])]
    inputs = prepare(image, [1, None, 0], options, 1.0)
    assert inputs.dtype == np.float32
    np.testing.assert_allclose(inputs[0], image[1] / 100, rtol=1e-6)
    assert not inputs[1].any()
    np.testing.assert_allclose(inputs[2], image[0] / 10, rtol=1e-6)


def test_percentiles_count_no_zeros_and_zeros_stay() -> None:
    channel = np.zeros((40, 40), dtype=np.uint16)
    channel[:20] = random.integers(100, 1000, (20, 40))
    result = normalise(channel, Normalisation(percentile=[1, 99]))
    low, high = np.percentile(channel[:20], [1, 99])
    np.testing.assert_allclose(result[:20], (channel[:20] - low) / (high - low), atol=1e-6)
    assert not result[20:].any()


@pytest.mark.parametrize("options", [{"percentile": [20, 80]}, {"values": [300, 600]}])
def test_clipping_is_off_unless_asked(options: dict[str, list[float]]) -> None:
    channel = random.integers(1, 1000, (30, 30))
    free = normalise(channel, Normalisation(**options, clip=False))
    assert free.min() < 0 and free.max() > 1
    np.testing.assert_array_equal(normalise(channel, Normalisation(**options, clip=True)), np.clip(free, 0, 1))


@given(st.floats(-1e6, 1e6, width=32), st.booleans(), st.sampled_from([np.uint8, np.uint16, np.float32]))
@checked
def test_constant_and_black_channels_become_zero(value: float, half: bool, kind: type) -> None:
    channel = np.full((6, 7), abs(value) % 256, dtype=kind)
    channel[:3] *= not half
    assert not normalise(channel, Normalisation()).any()


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 3), st.sampled_from([(17, 23), (6, 11, 9)]))
@checked
def test_rescaled_images_and_labels_fit_and_labels_keep_their_values(
    seed: int, factor: float, shape: tuple[int, ...]
) -> None:
    labels = np.random.default_rng(seed).choice([0, 3, 40_000, 2**31 - 1], shape).astype(np.int32)
    image = np.random.default_rng(seed).random((2, *shape), dtype=np.float32)
    smaller, scaled = rescale_labels(labels, factor), rescale_image(image, factor)
    assert scaled.shape[1:] == smaller.shape == tuple(max(1, round(size * factor)) for size in shape)
    assert smaller.dtype == labels.dtype
    assert {*np.unique(smaller)} <= {*np.unique(labels)}
    assert np.isfinite(scaled).all()
    assert -1e-5 <= scaled.min() <= scaled.max() <= 1 + 1e-5


@pytest.mark.parametrize("factor", [0.4, 0.5, 1.7, 3.0])
def test_objects_stay_where_they_are(factor: float) -> None:
    y, x = np.mgrid[:60, :80]
    disk = (y - 33) ** 2 + (x - 48) ** 2 < 15**2
    image = rescale_image(disk[None].astype(np.float32), factor)[0]
    labels = rescale_labels(disk.astype(np.int32), factor)
    centres = [np.argwhere(values).mean(axis=0) for values in (image > 0.5, labels == 1)]
    for centre in centres:
        np.testing.assert_allclose((centre + 0.5) / factor - 0.5, [33, 48], atol=0.5)
    assert ((image > 0.5) != (labels == 1)).mean() < 0.03


def test_an_image_is_smoothed_before_it_is_made_smaller() -> None:
    stripes = np.tile(np.array([0, 1], dtype=np.float32), (1, 64, 64))
    assert np.ptp(rescale_image(stripes, 0.3)[:, 5:-5, 5:-5]) < 0.25


def test_nothing_is_rescaled_by_one() -> None:
    image, labels = np.ones((1, 4, 5), np.float32), np.ones((4, 5), np.int32)
    assert rescale_image(image, 1.0) is image
    assert rescale_labels(labels, 1.0) is labels


@pytest.mark.parametrize(
    ("calibration", "wanted", "factor"),
    [(0.5, 0.5, 1), (0.52, 0.5, 1), (0.48, 0.5, 1), (0.6, 0.5, 1.2), (0.25, 0.5, 0.5), (None, 0.5, 1), (0.5, None, 1)],
)
def test_the_factor_is_image_over_network_beyond_the_tolerance(
    calibration: float | None, wanted: float | None, factor: float
) -> None:
    assert rescale_factor(calibration, wanted, 0.05) == pytest.approx(factor)
