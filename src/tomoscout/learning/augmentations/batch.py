"""Random changes to a batch of crops, on the device of the crops. They depend on (seed, step) alone.

Parameters are drawn with NumPy, so they are the same on every device; only the noise itself comes from a generator of
the device. Every parameter is drawn whether its option is on or off: turning one on does not change the others.
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

    Labels, of any integer type, are moved, never interpolated: no crop gets a label that it did not contain. They are
    returned as int64. If every option is off, the tensors are returned as they are.

    `absent` (batch, classes): which classes are not annotated in a crop.

    Returns:
        Intensities, and the targets: (labels,), or with mixup (labels, other labels, share). The loss of a crop is then
        share × the loss against its labels + (1 − share) × the loss against the other labels; share (batch,) is 1 for
        crops that were not blended. If `absent` is given, it is the first target; for a blended crop it holds the
        classes that are absent in either of its two crops.

    Raises:
        TomoscoutError: an option does not fit the shape of the crops.
    """
    draws = Draws(len(labels), options.probability, np.random.default_rng([seed, step, 1]))
    for change in CHANGES:
        intensities, labels = change.apply(options, intensities, labels, draws)
    # Labels have their stored dtype up to here: uint8 takes an eighth of the memory of int64.
    return options.mix(intensities, labels.long(), draws, absent)
