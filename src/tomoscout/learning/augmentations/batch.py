"""Random changes to a batch of crops, on the device the crops are on, decided by (seed, step) alone.

Parameters are drawn with NumPy, so they are the same on every device; only the noise itself comes from a generator of
the device. Every parameter is drawn whether its option is on or not: turning one on leaves the others as they were.
"""

from __future__ import annotations

import numpy as np
import torch

from tomoscout.learning.augmentations import CHANGES, Augmentation
from tomoscout.learning.augmentations.base import Draws


def augment(
    intensities: torch.Tensor,
    labels: torch.Tensor,
    options: Augmentation,
    seed: int,
    step: int,
    absent: torch.Tensor | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Change intensities (batch, channels, *space) and labels (batch, *space) of each crop; space is (z, y, x) or
    (y, x).

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
    draws = Draws(len(labels), options.probability, np.random.default_rng([seed, step, 1]))
    for change in CHANGES:
        intensities, labels = change.apply(options, intensities, labels, draws)
    # As they are stored until here: eight times less to move.
    return options.mix(intensities, labels.long(), draws, absent)
