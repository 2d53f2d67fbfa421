"""Random changes to a batch of crops, on the device the crops are on, decided by (seed, step) alone."""

from __future__ import annotations

import numpy as np
import torch

from tomoscout.config import Augmentation


def augment(
    intensities: torch.Tensor, labels: torch.Tensor, options: Augmentation, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change intensities (batch, 1, z, y, x) and labels (batch, z, y, x) of each crop.

    Labels are only ever moved whole voxels, never interpolated.
    """
    random = np.random.default_rng([seed, step, 1])
    moved = [_move(image, label, options, random) for image, label in zip(intensities, labels, strict=True)]
    images = torch.stack([image for image, _ in moved])
    batch = len(images)
    device = images.device

    def uniform(width: float, centre: float) -> torch.Tensor:
        values = random.uniform(centre - width, centre + width, size=(batch, 1, 1, 1, 1))
        return torch.from_numpy(values).to(device, images.dtype)

    images = images * uniform(options.intensity_scale, 1.0) + uniform(options.intensity_shift, 0.0)
    if options.noise:
        generator = torch.Generator(device).manual_seed(int(random.integers(2**62)))
        noise = torch.randn(images.shape, generator=generator, device=device, dtype=images.dtype)
        images = images + noise * uniform(options.noise / 2, options.noise / 2)
    return images, torch.stack([label for _, label in moved])


def _move(
    image: torch.Tensor, label: torch.Tensor, options: Augmentation, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    if options.flip:
        axes = [axis for axis in (-3, -2, -1) if random.random() < 0.5]
        image, label = image.flip(axes), label.flip(axes)
    if options.rotate90:
        turns = int(random.integers(4))
        image, label = image.rot90(turns, (-2, -1)), label.rot90(turns, (-2, -1))
    return image, label
