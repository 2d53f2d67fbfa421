"""Images as the network sees them: its channels, normalised and at its calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tomoscout.tasks.instances.annotation_options import Normalisation

_Number = TypeVar("_Number", bound=np.generic)


def prepare(
    image: NDArray[Any], numbers: Sequence[int | None], normalisations: Sequence[Normalisation], factor: float
) -> NDArray[np.float32]:
    """The inputs of the network (inputs, (z,) y, x).

    Args:
        image: intensities (channels, (z,) y, x).
        numbers: for each input the number of its channel, None for black.
        normalisations: that of each input.
        factor: of the rescaling, see `rescale_factor`.
    """
    inputs = np.zeros((len(numbers), *image.shape[1:]), dtype=np.float32)
    for number, normalisation, channel in zip(numbers, normalisations, inputs, strict=True):
        if number is not None:
            channel[:] = normalise(image[number], normalisation)
    return rescale_image(inputs, factor)


def normalise(channel: NDArray[Any], options: Normalisation) -> NDArray[np.float32]:
    """A channel with its intensities brought to about 0…1. Voxels of exactly 0 stay 0 and count in no percentile; a
    channel of one value becomes 0."""
    result = np.zeros(channel.shape, dtype=np.float32)
    measured = channel != 0
    values = channel[measured].astype(np.float32)
    if not values.size:
        return result
    low, high = options.values or np.percentile(values, options.percentile)
    # Two percentiles of one value differ by rounding.
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return result
    scaled = (values - low) / (high - low)
    result[measured] = np.clip(scaled, 0, 1) if options.clip else scaled
    return result


def rescale_factor(calibration: float | None, wanted: float | None, tolerance: float) -> float:
    """The factor by which the sides of an image are multiplied.

    Args:
        calibration: of the image, in µm per voxel; None if it is not known.
        wanted: that of the network.
        tolerance: the factor is 1 where the calibrations differ by no more than this fraction of the network's.
    """
    if calibration is None or wanted is None or abs(calibration - wanted) <= tolerance * wanted:
        return 1.0
    return calibration / wanted


def rescale_image(image: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """An image (channels, (z,) y, x) with sides `factor` times as long, by linear interpolation, smoothed before it is
    made smaller."""
    from scipy.ndimage import gaussian_filter, zoom

    if factor == 1:
        return image
    shape = rescaled_shape(image.shape[1:], factor)
    ratios = [size / wanted for size, wanted in zip(image.shape[1:], shape, strict=True)]
    # The standard deviation that keeps what the coarser grid can show, as scikit-image chooses it.
    image = gaussian_filter(image, [0, *(max(0.0, (ratio - 1) / 2) for ratio in ratios)], mode="nearest")
    scaled: NDArray[np.float32] = zoom(
        image, [1, *(1 / ratio for ratio in ratios)], order=1, mode="nearest", grid_mode=True
    )
    return scaled


def rescale_labels(labels: NDArray[_Number], factor: float) -> NDArray[_Number]:
    """Labels ((z,) y, x) with sides `factor` times as long: of each voxel the nearest label."""
    if factor == 1:
        return labels
    return resize_labels(labels, rescaled_shape(labels.shape, factor))


def resize_labels(labels: NDArray[_Number], shape: Sequence[int]) -> NDArray[_Number]:
    """Labels ((z,) y, x) in another shape: of each voxel the nearest label."""
    nearest = [
        ((np.arange(wanted) + 0.5) * size / wanted).astype(int)
        for size, wanted in zip(labels.shape, shape, strict=True)
    ]
    return labels[np.ix_(*nearest)]


def renumbered(labels: NDArray[Any]) -> NDArray[np.int32]:
    """Labels from 0 on as 1…N without gaps, in the same order; 0 stays."""
    if labels.max(initial=0) > 4 * labels.size:
        # Too large to count each.
        labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape) + (labels.min() != 0)
    there = np.bincount(labels.ravel(), minlength=1) > 0
    there[0] = False
    numbers: NDArray[np.int32] = np.cumsum(there, dtype=np.int32)[labels.astype(np.intp, copy=False)]
    return numbers


def rescaled_shape(shape: Sequence[int], factor: float) -> tuple[int, ...]:
    """The sides of an image after rescaling, at least one voxel each."""
    return tuple(max(1, round(size * factor)) for size in shape)
