"""Batches of crops: drawn, cut out of volumes and augmented. A batch depends on the seed, the step and the last scores
alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.learning.augmentations.batch import augment
from tomoscout.learning.options import Training
from tomoscout.learning.sampling import Centres, CropSampler, cut
from tomoscout.learning.trainer import Batches
from tomoscout.learning.volumes import LabelledVolume


def crop_batches(
    volumes: Sequence[LabelledVolume],
    centres: Mapping[str, Centres],
    options: Training,
    device: torch.device,
    absent: NDArray[np.bool_] | None = None,
    shares: Mapping[str, float] | None = None,
    harder_classes: float = 0.0,
) -> Batches:
    """The source of batches of augmented crops; see `augment` for what a batch holds.

    Args:
        centres: where crops may be centred, by class.
        absent: which classes (with background) do not count in which volumes (volume, class); None if all count.
        shares: how often crops are centred on a class, against 1 for those that are not named.
        harder_classes: see `CropSampler.crops`.

    Raises:
        TomoscoutError: there is no volume or no class to draw.
    """
    sampler = CropSampler(
        [tuple(volume.labels.shape) for volume in volumes],
        list(centres.values()),
        options.crop,
        shares=[(shares or {}).get(name, 1.0) for name in centres],
        batch_size=options.batch_size,
        background_fraction=options.background_fraction,
        seed=options.seed,
        harder_classes=harder_classes,
    )

    def batches(step: int, scores: Mapping[str, float]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        crops = sampler.crops(step, [scores.get(name) for name in centres])
        of_crops = None if absent is None else torch.from_numpy(absent[[crop.volume for crop in crops]]).to(device)
        drawn = cut(volumes, crops, options.crop, device)
        return augment(*drawn, options.augmentation, options.seed, step, absent=of_crops)

    return batches
