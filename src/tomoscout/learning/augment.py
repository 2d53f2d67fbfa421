"""Random changes to a batch of crops, on the device the crops are on, decided by (seed, step) alone.

Parameters are drawn with NumPy, so they are the same on every device; only the noise itself comes from a generator of
the device. Every parameter is drawn whether its option is on or not: turning one on leaves the others as they were.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.learning.options import Augmentation
from tomoscout.machine.errors import TomoscoutError

# Axes between which crops turn: about the beam, then tilted about y and about x.
BEAM, TILT_Y, TILT_X = (-2, -1), (-3, -1), (-3, -2)

MIXUP_ALPHA = 0.2
"""Of the Beta distribution of mixup's shares: 0.1 to 0.4 did best, more underfits (Zhang et al. 2018, section 3.1)."""


def augment(
    intensities: torch.Tensor,
    labels: torch.Tensor,
    options: Augmentation,
    seed: int,
    step: int,
    absent: torch.Tensor | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Change intensities (batch, 1, *space) and labels (batch, *space) of each crop; space is (z, y, x) or (y, x).

    Labels, of any integer type, are moved, never interpolated: no crop gets a label that it did not hold. They come
    back as int64. With every option off, the tensors given come back.

    `absent` (batch, classes): which classes are not annotated in a crop.

    Returns:
        Intensities, and the targets: (labels,), or with mixup (labels, other labels, share), where the loss of a crop
        is share × that against its labels + (1 − share) × that against the other labels, and share (batch,) is 1 for
        crops that were not blended. Before them `absent`, if given, of a blended crop for both that it is made of.

    Raises:
        TomoscoutError: an option does not fit the shape of the crops.
    """
    _check_shape(tuple(labels.shape[1:]), options)
    draws = _Draws(len(labels), options.probability, np.random.default_rng([seed, step, 1]))
    intensities, labels = _mirror(intensities, labels, options, draws)
    intensities, labels = _turn_and_zoom(intensities, labels, options, draws)
    intensities = _blur(intensities, options, draws)
    intensities = _change_intensities(intensities, options, draws)
    intensities = _add_noise(intensities, options, draws)
    # As they are stored until here: eight times less to move.
    return _mix(intensities, labels.long(), options, draws, absent)


def _check_shape(space: tuple[int, ...], options: Augmentation) -> None:
    if options.tilt and len(space) < 3:
        raise TomoscoutError(f"augmentation.tilt needs crops of three dimensions, found {space}")
    if options.rotate90 and space[-1] != space[-2]:
        raise TomoscoutError(f"augmentation.rotate90 needs crops as wide as they are high, found {space}")


class _Draws:
    """Numbers for each crop of a batch."""

    def __init__(self, batch: int, probability: float, random: np.random.Generator) -> None:
        self.batch = batch
        self.probability = probability
        self.random = random

    def between(self, low: float, high: float) -> NDArray[np.float64]:
        """Uniform numbers (batch,)."""
        return low + (high - low) * self.random.random(self.batch)

    def chosen(self) -> NDArray[np.bool_]:
        """Which crops (batch,) an option is applied to."""
        return self.random.random(self.batch) < self.probability


def _to(like: torch.Tensor, values: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(values).to(like.device, like.dtype, non_blocking=True)


def _per_crop(like: torch.Tensor, values: NDArray[np.float64]) -> torch.Tensor:
    """A number for each crop (batch,) in a shape that multiplies crops."""
    return _to(like, values).view(-1, *[1] * (like.ndim - 1))


def _rows(like: torch.Tensor, chosen: NDArray[np.bool_]) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(chosen)).to(like.device, non_blocking=True)


def _mirror(
    intensities: torch.Tensor, labels: torch.Tensor, options: Augmentation, draws: _Draws
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirror along each axis, and turn by quarters about the beam."""
    flips = draws.random.random((draws.batch, 3)) < 0.5
    turns = draws.random.integers(4, size=draws.batch)
    if not (options.flip or options.rotate90):
        return intensities, labels
    space = range(-1, -labels.ndim, -1)
    moved = torch.empty_like(intensities), torch.empty_like(labels)
    for row in range(draws.batch):
        axes = [axis for axis in space if options.flip and flips[row, axis]]
        quarters = int(turns[row]) if options.rotate90 else 0
        for before, after in zip((intensities, labels), moved, strict=True):
            crop = before[row].rot90(quarters, BEAM) if quarters else before[row]
            after[row] = crop.flip(axes) if axes else crop
    return moved


def _turn_and_zoom(
    intensities: torch.Tensor, labels: torch.Tensor, options: Augmentation, draws: _Draws
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate, tilt and zoom, in one go; crops that draw neither are left as they are."""
    turned, zoomed = draws.chosen(), draws.chosen()
    angles = [draws.between(-limit, limit) * turned for limit in (options.rotate, options.tilt, options.tilt)]
    factors = np.where(zoomed, draws.between(1 - options.zoom, 1 + options.zoom), 1.0)
    changed = (turned & (options.rotate + options.tilt > 0)) | (zoomed & (options.zoom > 0))
    if not changed.any():
        return intensities, labels
    dimensions = labels.ndim - 1
    matrices = np.eye(dimensions) / factors[:, None, None]
    for plane, degrees in zip((BEAM, TILT_Y, TILT_X)[: 3 if dimensions == 3 else 1], angles, strict=False):
        matrices = matrices @ _turn(np.deg2rad(degrees), plane, dimensions)
    rows = _rows(labels, changed)
    sampled = resample(intensities[rows], labels[rows], matrices[changed])
    return intensities.index_copy(0, rows, sampled[0]), labels.index_copy(0, rows, sampled[1])


def _turn(angles: NDArray[np.float64], plane: tuple[int, int], dimensions: int) -> NDArray[np.float64]:
    """Rotation matrices (batch, dimensions, dimensions) by angles in radians between two axes."""
    first, second = plane
    matrices = np.tile(np.eye(dimensions), (len(angles), 1, 1))
    matrices[:, first, first] = matrices[:, second, second] = np.cos(angles)
    matrices[:, first, second], matrices[:, second, first] = -np.sin(angles), np.sin(angles)
    return matrices


def resample(
    intensities: torch.Tensor, labels: torch.Tensor, matrices: NDArray[np.float64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops whose voxel i holds what was at centre + matrix (i − centre), in voxels in the order of the axes.

    Intensities (batch, 1, *space) are interpolated linearly; labels (batch, *space) are those of the nearest voxel.
    Beyond the outermost voxels both go on as their mirror image. Matrices are (batch, dimensions, dimensions).
    """
    space = labels.shape[1:]
    dimensions = len(space)
    rows = _to(intensities, matrices)
    kind, device = rows.dtype, rows.device
    # Whole numbers up to the size of a crop are exact in this type, and quicker to compute with than integers.
    exact = kind if labels[0].numel() < 2**24 else torch.float64
    nearest = torch.zeros(labels.shape, dtype=exact, device=device)
    grid = torch.empty([*labels.shape, dimensions], dtype=kind, device=device)
    half = (np.array(space) - 1) / 2
    reach = abs(matrices).max(axis=0) @ half
    for number, size in enumerate(space):
        span = size - 1
        place = torch.full([1], span / 2, dtype=kind, device=device)
        for axis, other in enumerate(space):
            offsets = torch.arange(other, dtype=kind, device=device) - (other - 1) / 2
            entries = rows[:, number, axis].view(-1, *[1] * dimensions)
            place = place + entries * offsets.view(-1, *[1] * (dimensions - 1 - axis))
        _reflect(place, span, float(reach[number]))
        nearest.mul_(size).add_(place.round())
        torch.mul(place, 2 / max(span, 1), out=grid[..., dimensions - 1 - number]).sub_(1)
    images = torch.nn.functional.grid_sample(
        intensities, grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return images, labels.flatten(1).gather(1, nearest.flatten(1).long()).view_as(labels)


def _reflect(places: torch.Tensor, span: int, reach: float) -> None:
    """Bring places, up to `reach` from the middle of 0…span, into that range as in a mirror at both ends, in place."""
    if span and reach > span / 2:
        # Each round folds two spans off either end.
        for _ in range(math.ceil((reach + span / 2) / (2 * span))):
            places.abs_().neg_().add_(span).abs_().neg_().add_(span)
    places.clamp_(0, span)


def _blur(intensities: torch.Tensor, options: Augmentation, draws: _Draws) -> torch.Tensor:
    """Blur with a Gaussian along every axis; at the borders its weights are those that lie inside, made to sum to 1.

    A product with a matrix of weights: on a CPU many times faster than a convolution per crop.
    """
    chosen, widths = draws.chosen() & (options.blur > 0), draws.between(0, options.blur)
    if not chosen.any():
        return intensities
    rows = _rows(intensities, chosen)
    images, widths = intensities[rows], np.maximum(widths[chosen], 1e-3)
    for axis in range(2, images.ndim):
        places = np.arange(images.shape[axis])
        weights = np.exp(-0.5 * ((places[:, None] - places) / widths[:, None, None]) ** 2)
        weights[weights < 1e-6] = 0  # Numbers too small for float32 make the product twenty times slower.
        columns = _to(images, weights / weights.sum(axis=1, keepdims=True))
        lines = images.movedim(axis, -1)
        images = (lines.flatten(1, -2) @ columns).view(lines.shape).movedim(-1, axis)
    return intensities.index_copy(0, rows, images)


def _change_intensities(intensities: torch.Tensor, options: Augmentation, draws: _Draws) -> torch.Tensor:
    """Contrast, scale and offset."""
    chosen = draws.chosen()
    powers = draws.between(1 - options.contrast, 1 + options.contrast)
    factors = draws.between(1 - options.intensity_scale, 1 + options.intensity_scale)
    shifts = draws.between(-options.intensity_shift, options.intensity_shift)
    if options.contrast and chosen.any():
        rows = _rows(intensities, chosen)
        images = _raise(intensities[rows], _per_crop(intensities, powers[chosen]))
        intensities = intensities.index_copy(0, rows, images)
    if options.intensity_scale or options.intensity_shift:
        factors, shifts = np.where(chosen, factors, 1.0), np.where(chosen, shifts, 0.0)
        intensities = torch.addcmul(_per_crop(intensities, shifts), intensities, _per_crop(intensities, factors))
    return intensities


def _raise(images: torch.Tensor, powers: torch.Tensor) -> torch.Tensor:
    """Raise crops, scaled to 0…1, to a power, and give them back the mean and deviation they had (as nnU-Net does,
    Isensee et al. 2021): what is bright stays bright, and only the steps between change."""
    within = tuple(range(1, images.ndim))
    tiny = torch.finfo(images.dtype).tiny
    low, high = images.amin(within, keepdim=True), images.amax(within, keepdim=True)
    raised = ((images - low) / (high - low).clamp(min=tiny)).pow(powers)
    deviation, mean = torch.std_mean(images, within, correction=0, keepdim=True)
    other_deviation, other_mean = torch.std_mean(raised, within, correction=0, keepdim=True)
    return (raised - other_mean) * (deviation / other_deviation.clamp(min=tiny)) + mean


def _add_noise(intensities: torch.Tensor, options: Augmentation, draws: _Draws) -> torch.Tensor:
    deviations = draws.between(0, options.noise) * draws.chosen()
    seed = int(draws.random.integers(2**62))
    if not options.noise:
        return intensities
    chosen = deviations > 0
    if not chosen.any():
        return intensities
    device, rows = intensities.device, _rows(intensities, chosen)
    generator = torch.Generator(device).manual_seed(seed)
    shape = (len(rows), *intensities.shape[1:])
    noise = torch.randn(shape, generator=generator, device=device, dtype=intensities.dtype)
    return intensities.index_add(0, rows, noise.mul_(_per_crop(intensities, deviations[chosen])))


def _mix(
    intensities: torch.Tensor,
    labels: torch.Tensor,
    options: Augmentation,
    draws: _Draws,
    absent: torch.Tensor | None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Blend crops with another of the batch (mixup, Zhang et al. 2018).

    A crop keeps the larger share (as in MixMatch, Berthelot et al. 2019), so that none becomes nearly its partner,
    which the batch holds already.
    """
    if not options.mixup:
        return intensities, (labels,) if absent is None else (absent, labels)
    blended = (draws.random.random(draws.batch) < options.mixup) & (draws.batch > 1)
    partners = np.arange(draws.batch)
    partners = np.where(
        blended, (partners + draws.random.integers(1, max(draws.batch, 2), draws.batch)) % draws.batch, partners
    )
    shares = draws.random.beta(MIXUP_ALPHA, MIXUP_ALPHA, draws.batch)
    shares = np.where(blended, np.maximum(shares, 1 - shares), 1.0)
    others = torch.from_numpy(partners).to(labels.device, non_blocking=True)
    mixed = torch.lerp(intensities[others], intensities, _per_crop(intensities, shares))
    share = torch.from_numpy(shares).to(labels.device, torch.float32, non_blocking=True)
    targets = labels, labels[others], share
    return mixed, targets if absent is None else (absent | absent[others], *targets)
