"""The loss of a training, between logits and labels, for any number of spatial dimensions.

There are two kinds. *Voxel losses* (cross-entropy, focal) are means over voxels. *Region losses* (Dice, Tversky and
their variants) compare the predicted region of each class with the true one. In the loss that `build_loss` makes,
regions are summed over all crops of a batch before they are compared: a crop holds few objects, and in a single crop
two voxels of an object at the border would count as much as all other objects together. A class without a voxel in the
batch is left out of the mean over classes. Voxels that are falsely assigned to it still count: they are missing from
the region of their true class, background included.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from tomoscout.learning.losses.base import LossTerm, RegionLoss, VoxelLoss, weighted_mean
from tomoscout.learning.losses.regions import Regions
from tomoscout.machine.errors import TomoscoutError

# A finite logit for a probability of 0.
_NEVER = -1e4


def build_loss(
    terms: Sequence[LossTerm], voxel_weights: torch.Tensor, class_weights: torch.Tensor, ignore: int
) -> nn.Module:
    """The sum of the terms, each times its weight: see `BatchLoss.forward` for what it takes.

    `voxel_weights` (C+1): weight of a voxel by its class, in voxel losses. `class_weights` (C+1): weight of a class, in
    region losses. Voxels with the label `ignore` do not count.
    """
    return Loss(terms, voxel_weights, class_weights, ignore)


class BatchLoss(nn.Module):
    """A loss of a batch, with deep supervision and with labels that mixup has blended."""

    def forward(
        self,
        outputs: torch.Tensor | Sequence[torch.Tensor],
        labels: torch.Tensor,
        other_labels: torch.Tensor | None = None,
        share: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss: a scalar in float32, also under autocast (in float64 for logits in float64).

        Logits (batch, C+1, *space), labels int64 (batch, *space). A list of logits is deep supervision: level i has the
        weight 2⁻ⁱ, divided by the sum of these weights, and is compared with the labels resized by nearest neighbour.

        `other_labels` (batch, *space) and `share` (batch) are for mixup (Zhang et al. 2018): the target of a voxel is
        `share` × its label + (1 − `share`) × its other label.

        Raises:
            ValueError: other_labels are given without share, or share without them.
            TomoscoutError: a loss module of the user does not return a single number.
        """
        if (other_labels is None) != (share is None):
            raise ValueError("mixup needs both other_labels and share")
        volumes = [labels] if other_labels is None else [labels, other_labels]
        levels = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        total = torch.zeros((), device=labels.device)
        with torch.autocast(labels.device.type, enabled=False):
            for level, logits in enumerate(levels):
                sized = [_resize(volume, logits.shape[2:]) for volume in volumes]
                total = total + 0.5**level * self.at_one_size(single_or_double(logits), sized, share)
        return total / sum(0.5**level for level in range(len(levels)))

    @abstractmethod
    def at_one_size(
        self, logits: torch.Tensor, volumes: Sequence[torch.Tensor], share: torch.Tensor | None
    ) -> torch.Tensor:
        """The loss of logits, in float32 or float64, against one or two label volumes of their size."""


class Loss(BatchLoss):
    """A sum of losses, made by `build_loss`; 0 where every voxel is ignored.

    Ignored voxels are left out of all sums. With mixup, every sum over voxels, and every divisor, is taken over both
    label volumes, weighted by their shares. All losses are thus those of the soft label: with the same labels in both
    volumes, or with a share of 1, they equal the loss without mixup.
    """

    voxel_weights: torch.Tensor
    class_weights: torch.Tensor

    def __init__(
        self, terms: Sequence[LossTerm], voxel_weights: torch.Tensor, class_weights: torch.Tensor, ignore: int
    ) -> None:
        super().__init__()
        parts = [part for term in terms for part in term.parts()]
        self.voxel_losses = [part for part in parts if isinstance(part, VoxelLoss)]
        self.region_losses = [part for part in parts if isinstance(part, RegionLoss)]
        self.register_buffer("voxel_weights", voxel_weights)
        self.register_buffer("class_weights", class_weights)
        self.ignore = ignore

    def at_one_size(
        self, logits: torch.Tensor, volumes: Sequence[torch.Tensor], share: torch.Tensor | None
    ) -> torch.Tensor:
        """The sum of the losses, each times its weight."""
        # The share of each label volume in each crop: (volumes, batch).
        shares = logits.new_ones(1, len(logits)) if share is None else torch.stack([share, 1 - share])
        log_probabilities = functional.log_softmax(logits, dim=1)
        total = logits.new_zeros(())
        if self.voxel_losses:
            likelihoods = torch.stack(
                [negative_log_likelihood(log_probabilities, labels, self.ignore) for labels in volumes]
            )
            by_class = self.voxel_weights.to(logits)
            weights = torch.stack([_weight_per_voxel(by_class, labels, self.ignore) for labels in volumes])
            weights = weights * shares.to(logits)[:, :, None]
            for voxel_loss in self.voxel_losses:
                total = total + voxel_loss.weight * weighted_mean(voxel_loss.values(likelihoods), weights)
        if self.region_losses:
            probabilities = log_probabilities.exp()
            regions = Regions.total([Regions.of(probabilities, labels) for labels in volumes], shares)
            weights = self.class_weights.to(logits) * (regions.true > 0)
            for region_loss in self.region_losses:
                total = total + region_loss.weight * region_loss.value(regions, weights)
        return total


class OwnLoss(BatchLoss):
    """A loss module of the user, called as module(logits (B, C+1, *space) in float32, labels int64 (B, *space)).

    If the module, or one within it, has `to_onehot_y` set, as MONAI's losses do, labels are (B, 1, *space). Padding
    (the label `ignore`) is passed as background that is predicted with a probability of 1. With mixup, the module is
    called separately for each crop and each of its labels, and the values are blended.
    """

    def __init__(self, module: nn.Module, ignore: int) -> None:
        super().__init__()
        self.module = module
        self.ignore = ignore
        self.with_channel = any(getattr(part, "to_onehot_y", False) for part in module.modules())

    def at_one_size(
        self, logits: torch.Tensor, volumes: Sequence[torch.Tensor], share: torch.Tensor | None
    ) -> torch.Tensor:
        """The value of the module; with mixup, the blended values."""
        if share is None:
            return self._value(logits, *volumes)
        values = []
        for row, part in enumerate(share.to(logits)):
            one, other = (self._value(logits[row : row + 1], labels[row : row + 1]) for labels in volumes)
            values.append(part * one + (1 - part) * other)
        return torch.stack(values).mean()

    def _value(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        padding = labels == self.ignore
        certain = logits.new_full((1, logits.shape[1], *[1] * (logits.ndim - 2)), _NEVER)
        certain[:, 0] = 0
        logits = torch.where(padding[:, None], certain, logits)
        labels = labels.masked_fill(padding, 0)
        value: torch.Tensor = self.module(logits, labels[:, None] if self.with_channel else labels)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise TomoscoutError(
                f"loss {type(self.module).__name__}: expected one number for a batch, found "
                f"{tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__}"
            )
        return value.reshape(())


class MarginalLoss(nn.Module):
    """Wraps any loss for crops in which not every class is annotated (the marginal loss of Shi et al. 2021). There, the
    classes that are not annotated are merged with background: its probability is the sum of theirs and its own."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self,
        outputs: torch.Tensor | Sequence[torch.Tensor],
        absent: torch.Tensor,
        labels: torch.Tensor,
        *others: torch.Tensor,
    ) -> torch.Tensor:
        """The loss; arguments as of `BatchLoss.forward`. `absent` (B, C+1): classes that are not annotated in a crop
        or, with mixup, in either of the two crops that it is blended from."""
        levels = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        with torch.autocast(labels.device.type, enabled=False):
            merged = [_merged(single_or_double(logits), absent) for logits in levels]
        volumes = [_without(labels, absent), *(_without(other, absent) for other in others[:1])]
        value: torch.Tensor = self.loss(merged, *volumes, *others[1:])
        return value


def _merged(logits: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
    """Logits in which background also has the probability of the absent classes, and these have none."""
    absent = absent.view(*absent.shape, *[1] * (logits.ndim - 2))
    together = absent.clone()
    together[:, 0] = True
    background = torch.logsumexp(logits.masked_fill(~together, -torch.inf), dim=1, keepdim=True)
    return torch.cat([background, logits[:, 1:].masked_fill(absent[:, 1:], _NEVER)], dim=1)


def _without(labels: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
    """Labels (B, *space) in which absent classes are background. With mixup, a class may be absent in the other crop
    only."""
    highest = absent.shape[1] - 1
    is_absent = absent.gather(1, labels.clamp(max=highest).flatten(1)).view_as(labels)
    return labels.masked_fill(is_absent & (labels <= highest), 0)


def single_or_double(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32, or float64 as they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _resize(labels: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Labels (batch, *space) resized by nearest neighbour: voxel i is voxel ⌊i · old / new⌋, the one that a strided
    convolution is centred on."""
    for axis, size in enumerate(shape, start=1):
        old = labels.shape[axis]
        if size != old:
            labels = labels.index_select(axis, torch.arange(size, device=labels.device) * old // size)
    return labels


def negative_log_likelihood(log_probabilities: torch.Tensor, labels: torch.Tensor, ignore: int) -> torch.Tensor:
    """The negative log-likelihood −log p of each voxel's label, (batch, voxels); 0 for ignored voxels."""
    return functional.nll_loss(log_probabilities, labels, ignore_index=ignore, reduction="none").flatten(1)


def _weight_per_voxel(weights: torch.Tensor, labels: torch.Tensor, ignore: int) -> torch.Tensor:
    """The weight of each voxel's label, (batch, voxels), from those of the classes (C+1); 0 where it is ignored."""
    labels = labels.flatten(1)
    return functional.pad(weights, (0, 1))[labels.where(labels != ignore, len(weights))]
