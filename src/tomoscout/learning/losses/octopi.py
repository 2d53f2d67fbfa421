"""octopi's losses, with the same values, to be passed to `tomoscout.api.train`.

Regions are compared in each crop separately, and a class that is not in a crop counts like any other. They differ from
the losses with similar names in a configuration.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tomoscout.learning.losses.combined import negative_log_likelihood, single_or_double
from tomoscout.learning.losses.focal import focal_values
from tomoscout.learning.losses.focal_tversky import root
from tomoscout.learning.losses.regions import SMOOTH, Regions

# The label to ignore, which no voxel has.
_NOTHING = -100


class FocalTverskyLoss(nn.Module):
    """octopi's loss of this name, after Abraham & Khan 2019: (the mean Tversky loss)^(1/gamma).

    The Tversky losses, 1 − (TP + smooth) / (TP + alpha FP + beta FN + smooth), are computed for each crop and class
    separately, absent classes included, and the power is taken of their mean. The FocalTversky of a configuration
    differs: regions are summed over the batch, and the power is taken for each class.
    """

    def __init__(self, alpha: float = 0.7, beta: float = 0.3, gamma: float = 1.0, smooth: float = SMOOTH) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.smooth = smooth

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (batch, C+1, *space), labels (batch, *space) or (batch, 1, *space) → a scalar in float32."""
        with torch.autocast(labels.device.type, enabled=False):
            return root(_tversky_by_crop(outputs, labels, self.alpha, self.beta, self.smooth), self.gamma)


class WeightedFocalTverskyLoss(nn.Module):
    """octopi's loss of this name: weight_tversky × the mean of the Tversky losses of all crops and classes +
    weight_focal × the focal loss (Lin et al. 2017). The focal loss is a mean over voxels and classes: the mean over
    voxels, divided by C+1.

    The WeightedFocalTversky of a configuration differs: regions are summed over the batch, and the focal loss is the
    mean over voxels.
    """

    def __init__(
        self,
        gamma: float = 1.0,
        alpha: float = 0.7,
        beta: float = 0.3,
        weight_tversky: float = 0.5,
        weight_focal: float = 0.5,
        smooth: float = SMOOTH,
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha
        self.beta = beta
        self.weight_tversky = weight_tversky
        self.weight_focal = weight_focal
        self.smooth = smooth

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (batch, C+1, *space), labels (batch, *space) or (batch, 1, *space) → a scalar in float32."""
        with torch.autocast(labels.device.type, enabled=False):
            tversky = _tversky_by_crop(outputs, labels, self.alpha, self.beta, self.smooth)
            log_probabilities = functional.log_softmax(single_or_double(outputs), dim=1)
            likelihoods = negative_log_likelihood(log_probabilities, _without_channel(labels, outputs), _NOTHING)
            focal = focal_values(likelihoods, self.gamma).mean() / outputs.shape[1]
        return self.weight_tversky * tversky + self.weight_focal * focal


def _tversky_by_crop(
    logits: torch.Tensor, labels: torch.Tensor, alpha: float, beta: float, smooth: float
) -> torch.Tensor:
    probabilities = functional.softmax(single_or_double(logits), dim=1)
    regions = Regions.of(probabilities, _without_channel(labels, logits))
    return regions.tversky_losses(alpha, beta, smooth).mean()


def _without_channel(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Labels (batch, *space) from labels of any type, (batch, *space) or, as in MONAI, (batch, 1, *space)."""
    return (labels.squeeze(1) if labels.ndim == logits.ndim else labels).long()
