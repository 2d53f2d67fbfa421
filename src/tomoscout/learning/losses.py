"""Losses between logits and labels, for any number of spatial dimensions.

There are two sorts. *Voxel losses* (cross-entropy, focal) are means over voxels. *Region losses* (Dice, Tversky and
their kin) ask of each class how much of its region is found. `build_loss` makes the losses of a training; it sums the
regions of all crops of a batch before it compares them, since a crop holds few objects, and two voxels of one at its
border would count as much as all others together. A class that no voxel of the batch belongs to is left out of the
mean over classes: there is nothing to find, and what is taken for it is missing from the region of its true class,
background included, and counts there.

`FocalTverskyLoss` and `WeightedFocalTverskyLoss` are for those who used octopi's losses of these names: they give the
same values. There every crop is compared for itself and a class that is not in it counts like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from tomoscout.learning.options import (
    CrossEntropy,
    Dice,
    Focal,
    FocalTversky,
    GeneralisedDice,
    LossTerm,
    Tversky,
    WeightedFocalTversky,
)
from tomoscout.machine.errors import TomoscoutError

_SMOOTH = 1e-5
# Below this, a Tversky loss is rounding, and its power would have a slope without bound.
_FLAT = 1e-6
# The label to ignore where none is.
_NOTHING = -100
# A logit of what has no probability.
_NEVER = -1e4


def build_loss(
    terms: Sequence[LossTerm], voxel_weights: torch.Tensor, class_weights: torch.Tensor, ignore: int
) -> nn.Module:
    """The sum of the terms, each times its weight: see `Loss.forward` for what it takes.

    `voxel_weights` (C+1): how much a voxel counts by its class, in voxel losses. `class_weights` (C+1): how much a
    class counts, in region losses. Voxels labelled `ignore` do not count anywhere.
    """
    return Loss(terms, voxel_weights, class_weights, ignore)


class Loss(nn.Module):
    """A sum of losses, made by `build_loss`.

    - CrossEntropy: −log p of the voxel's class, averaged by voxel_weights of that class.
    - Focal: the same with each voxel times (1 − p)^gamma (Lin et al. 2017). The average is by the weights alone.
    - Dice: 1 − 2 TP / (2 TP + FP + FN) of each class, averaged by class_weights; TP, FP and FN are sums of
      probabilities without squares (Drozdzal et al. 2016).
    - Tversky: 1 − TP / (TP + alpha FP + beta FN), so averaged (Salehi et al. 2017).
    - FocalTversky: that to the power 1/gamma, before the average (Abraham & Khan 2019).
    - GeneralisedDice: 1 − 2 Σ w TP / Σ w (2 TP + FP + FN) over the classes (Sudre et al. 2017), where w is the
      class weight over the square of the true volume, at least one voxel.
    - WeightedFocalTversky: weight_tversky × Tversky + weight_focal × Focal.
    """

    voxel_weights: torch.Tensor
    class_weights: torch.Tensor

    def __init__(
        self, terms: Sequence[LossTerm], voxel_weights: torch.Tensor, class_weights: torch.Tensor, ignore: int
    ) -> None:
        super().__init__()
        parts = [part for term in terms for part in _parts(term)]
        self.voxel_parts = [(weight, part) for weight, part in parts if isinstance(part, Focal)]
        self.region_parts = [(weight, part) for weight, part in parts if not isinstance(part, Focal)]
        self.register_buffer("voxel_weights", voxel_weights)
        self.register_buffer("class_weights", class_weights)
        self.ignore = ignore

    def forward(
        self,
        outputs: torch.Tensor | Sequence[torch.Tensor],
        labels: torch.Tensor,
        other_labels: torch.Tensor | None = None,
        share: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss: a scalar in float32, also under autocast (in float64 for logits in float64). 0 where every voxel
        is ignored.

        Logits (batch, C+1, *space), labels int64 (batch, *space). A list of logits is deep supervision: they count
        1, ½, ¼ … over the sum of these, against the labels brought to their size by nearest neighbour.

        `other_labels` (batch, *space) and `share` (batch) are mixup (Zhang et al. 2018): a voxel is `share` of the one
        label and 1 − `share` of the other, an ignored label no part of anything. Every sum over voxels, and the count
        of what it is divided by, is taken over both label volumes, times these shares. So all losses are those of the
        soft label: the same labels twice are as good as once, and a share of 1 is no mixup.

        Raises:
            ValueError: other_labels come without share, or share without them.
        """
        if (other_labels is None) != (share is None):
            raise ValueError("mixup needs both other_labels and share")
        volumes = [labels] if other_labels is None else [labels, other_labels]
        shares = None if share is None else torch.stack([share, 1 - share])
        return _over_levels(outputs, volumes, lambda logits, sized: self._at_one_size(logits, sized, shares))

    def _at_one_size(
        self, logits: torch.Tensor, volumes: Sequence[torch.Tensor], shares: torch.Tensor | None
    ) -> torch.Tensor:
        """The loss for label volumes of the logits' size, with their shares (volumes, batch)."""
        if shares is None:
            shares = logits.new_ones(len(volumes), len(logits))
        log_probabilities = functional.log_softmax(logits, dim=1)
        total = logits.new_zeros(())
        if self.voxel_parts:
            surprise = torch.stack([_surprise(log_probabilities, labels, self.ignore) for labels in volumes])
            weights = torch.stack(
                [_per_voxel(self.voxel_weights.to(logits), labels, self.ignore) for labels in volumes]
            )
            weights = weights * shares.to(logits)[:, :, None]
            for weight, focal in self.voxel_parts:
                total = total + weight * _mean(_focused(surprise, focal.gamma), weights)
        if self.region_parts:
            probabilities = log_probabilities.exp()
            regions = _Regions.total([_regions(probabilities, labels, self.ignore) for labels in volumes], shares)
            for weight, part in self.region_parts:
                total = total + weight * _region_loss(part, regions, self.class_weights.to(logits))
        return total


def _over_levels(
    outputs: torch.Tensor | Sequence[torch.Tensor],
    volumes: Sequence[torch.Tensor],
    at_one_size: Callable[[torch.Tensor, list[torch.Tensor]], torch.Tensor],
) -> torch.Tensor:
    """The mean of a loss over the levels of deep supervision: they count 1, ½, ¼ … and get label volumes of their size.
    Logits come in float32, or float64 as they are."""
    levels = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    device = volumes[0].device
    total = torch.zeros((), device=device)
    with torch.autocast(device.type, enabled=False):
        for level, logits in enumerate(levels):
            sized = [_resize(volume, logits.shape[2:]) for volume in volumes]
            total = total + 0.5**level * at_one_size(_single_or_double(logits), sized)
    return total / sum(0.5**level for level in range(len(levels)))


class OwnLoss(nn.Module):
    """A loss of the user, called as module(logits (B, C+1, *space) in float32, labels int64 (B, *space)).

    Where the module, or one within it, has `to_onehot_y` set, as MONAI's losses do, labels are (B, 1, *space). Padding,
    labelled `ignore`, is shown as background that was found with certainty. With mixup the module is called for each
    crop apart, once with either labels: its values for them are blended. Deep supervision is as in `Loss`.
    """

    def __init__(self, module: nn.Module, ignore: int) -> None:
        super().__init__()
        self.module = module
        self.ignore = ignore
        self.with_channel = any(getattr(part, "to_onehot_y", False) for part in module.modules())

    def forward(
        self,
        outputs: torch.Tensor | Sequence[torch.Tensor],
        labels: torch.Tensor,
        other_labels: torch.Tensor | None = None,
        share: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss, a scalar, of what `Loss.forward` takes.

        Raises:
            TomoscoutError: the module returns something else.
        """
        if other_labels is None or share is None:
            return _over_levels(outputs, [labels], lambda logits, sized: self._value(logits, *sized))
        return _over_levels(outputs, [labels, other_labels], lambda logits, sized: self._mixed(logits, sized, share))

    def _mixed(self, logits: torch.Tensor, volumes: Sequence[torch.Tensor], share: torch.Tensor) -> torch.Tensor:
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
    """Any loss, where not every class is annotated in every crop (the marginal loss of Shi et al. 2021): what may be an
    object that is not annotated counts as background there, with the sum of both probabilities."""

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
        """The loss of what `Loss.forward` takes. `absent` (B, C+1): classes that are not annotated in a crop, or, with
        mixup, in either that it is made of."""
        levels = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        with torch.autocast(labels.device.type, enabled=False):
            merged = [_merged(_single_or_double(logits), absent) for logits in levels]
        volumes = [_without(labels, absent), *(_without(other, absent) for other in others[:1])]
        value: torch.Tensor = self.loss(merged, *volumes, *others[1:])
        return value


def _merged(logits: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
    """Logits whose background has the probability of the absent classes, too, and these have none."""
    absent = absent.view(*absent.shape, *[1] * (logits.ndim - 2))
    together = absent.clone()
    together[:, 0] = True
    background = torch.logsumexp(logits.masked_fill(~together, -torch.inf), dim=1, keepdim=True)
    return torch.cat([background, logits[:, 1:].masked_fill(absent[:, 1:], _NEVER)], dim=1)


def _without(labels: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
    """Labels (B, *space) with those of absent classes, of the other crop in mixup, turned to background."""
    highest = absent.shape[1] - 1
    is_absent = absent.gather(1, labels.clamp(max=highest).flatten(1)).view_as(labels)
    return labels.masked_fill(is_absent & (labels <= highest), 0)


def _parts(term: LossTerm) -> Iterator[tuple[float, Focal | FocalTversky | GeneralisedDice]]:
    """A term as losses of three kinds, with their weights: cross-entropy is a focal loss of gamma 0, Dice and Tversky
    are focal Tversky losses of gamma 1."""
    if isinstance(term, CrossEntropy):
        yield term.weight, Focal(gamma=0)
    elif isinstance(term, Dice):
        yield term.weight, FocalTversky(alpha=0.5, beta=0.5, gamma=1)
    elif isinstance(term, Tversky):
        yield term.weight, FocalTversky(alpha=term.alpha, beta=term.beta, gamma=1)
    elif isinstance(term, WeightedFocalTversky):
        if term.weight_tversky:
            yield term.weight * term.weight_tversky, FocalTversky(alpha=term.alpha, beta=term.beta, gamma=1)
        if term.weight_focal:
            yield term.weight * term.weight_focal, Focal(gamma=term.gamma)
    elif isinstance(term, Focal | FocalTversky | GeneralisedDice):
        yield term.weight, term
    else:
        raise TypeError(f"no loss for {type(term).__name__}")


def _single_or_double(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _resize(labels: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Labels (batch, *space) at another size, by nearest neighbour: voxel i is voxel ⌊i · old / new⌋, the one that a
    strided convolution is centred on."""
    for axis, size in enumerate(shape, start=1):
        old = labels.shape[axis]
        if size != old:
            labels = labels.index_select(axis, torch.arange(size, device=labels.device) * old // size)
    return labels


# Voxel losses. Voxels are in one row per crop: (batch, voxels).


def _surprise(log_probabilities: torch.Tensor, labels: torch.Tensor, ignore: int) -> torch.Tensor:
    """−log p of each voxel's label; 0 where it is ignored."""
    return functional.nll_loss(log_probabilities, labels, ignore_index=ignore, reduction="none").flatten(1)


def _per_voxel(weights: torch.Tensor, labels: torch.Tensor, ignore: int) -> torch.Tensor:
    """The weight of each voxel's label; 0 where it is ignored."""
    labels = labels.flatten(1)
    return functional.pad(weights, (0, 1))[labels.where(labels != ignore, len(weights))]


def _focused(surprise: torch.Tensor, gamma: float) -> torch.Tensor:
    """(1 − p)^gamma · −log p. The floor changes no value, but for gamma < 1 the slope at p = 1 has no bound."""
    if gamma == 0:
        return surprise
    return (-torch.expm1(-surprise)).clamp(min=1e-8) ** gamma * surprise


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean; 0 where there is no weight."""
    return (values * weights).sum() / _above_zero(weights.sum())


def _above_zero(value: torch.Tensor) -> torch.Tensor:
    """The value, or where it is 0 the smallest number that may be divided by."""
    return value.clamp(min=torch.finfo(value.dtype).tiny)


# Region losses.


@dataclass(frozen=True)
class _Regions:
    """Of each class: its true volume, the predicted one, and what they share, in voxels; (batch, C+1), or (C+1) for all
    crops together."""

    both: torch.Tensor
    predicted: torch.Tensor
    true: torch.Tensor

    @classmethod
    def total(cls, regions: Sequence[_Regions], shares: torch.Tensor) -> _Regions:
        """Over all crops of several label volumes, with their shares (volumes, batch)."""

        def add(name: str) -> torch.Tensor:
            parts = torch.stack([getattr(region, name) for region in regions])
            return (parts * shares.to(parts)[:, :, None]).sum((0, 1))

        return cls(add("both"), add("predicted"), add("true"))

    def tversky_loss(self, alpha: float, beta: float, smooth: float) -> torch.Tensor:
        """1 − TP / (TP + alpha FP + beta FN), `smooth` added on either side of the fraction (Salehi et al. 2017)."""
        false_positive, false_negative = self.predicted - self.both, self.true - self.both
        return 1 - (self.both + smooth) / (self.both + alpha * false_positive + beta * false_negative + smooth)


def _regions(probabilities: torch.Tensor, labels: torch.Tensor, ignore: int) -> _Regions:
    labels = labels.flatten(1)[:, None]
    classes = torch.arange(probabilities.shape[1], device=labels.device)[:, None]
    # Masks in the type of what they are multiplied with: several times as fast on a CPU.
    inside, known = (labels == classes).to(probabilities), (labels != ignore).to(probabilities)
    probabilities = probabilities.flatten(2) * known
    return _Regions((probabilities * inside).sum(2), probabilities.sum(2), inside.sum(2))


def _region_loss(part: FocalTversky | GeneralisedDice, regions: _Regions, class_weights: torch.Tensor) -> torch.Tensor:
    """Over the classes that are in the batch; 0 where there are none."""
    weights = class_weights * (regions.true > 0)
    if isinstance(part, FocalTversky):
        return _mean(_root(regions.tversky_loss(part.alpha, part.beta, _SMOOTH), part.gamma), weights)
    weights = weights / regions.true.clamp(min=1) ** 2
    volumes = regions.true + regions.predicted
    return (weights * (volumes - 2 * regions.both)).sum() / _above_zero((weights * volumes).sum())


def _root(values: torch.Tensor, gamma: float) -> torch.Tensor:
    """values^(1/gamma) with a bounded slope: a straight line below _FLAT."""
    if gamma == 1:
        return values
    return torch.where(values > _FLAT, values.clamp(min=_FLAT) ** (1 / gamma), values * _FLAT ** (1 / gamma - 1))


# octopi's.


class FocalTverskyLoss(nn.Module):
    """octopi's loss of this name, after Abraham & Khan 2019: (the mean Tversky loss)^(1/gamma).

    The Tversky losses, 1 − (TP + smooth) / (TP + alpha FP + beta FN + smooth), are those of every crop and class apart,
    absent classes included, and the power is taken of their mean. The FocalTversky of a configuration differs: regions
    are those of the batch, and the power is taken class by class.
    """

    def __init__(self, alpha: float = 0.7, beta: float = 0.3, gamma: float = 1.0, smooth: float = _SMOOTH) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.smooth = smooth

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (batch, C+1, *space), labels (batch, *space) or (batch, 1, *space) → a scalar in float32."""
        with torch.autocast(labels.device.type, enabled=False):
            return _root(_tversky_by_crop(outputs, labels, self.alpha, self.beta, self.smooth), self.gamma)


class WeightedFocalTverskyLoss(nn.Module):
    """octopi's loss of this name: weight_tversky × the mean Tversky loss of every crop and class apart + weight_focal ×
    the focal loss (Lin et al. 2017), which is a mean over voxels and classes, so that of the voxels over C+1.

    The WeightedFocalTversky of a configuration differs: regions are those of the batch, and the focal loss is the mean
    over the voxels alone.
    """

    def __init__(
        self,
        gamma: float = 1.0,
        alpha: float = 0.7,
        beta: float = 0.3,
        weight_tversky: float = 0.5,
        weight_focal: float = 0.5,
        smooth: float = _SMOOTH,
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
            log_probabilities = functional.log_softmax(_single_or_double(outputs), dim=1)
            surprise = _surprise(log_probabilities, _without_channel(labels, outputs), _NOTHING)
            focal = _focused(surprise, self.gamma).mean() / outputs.shape[1]
        return self.weight_tversky * tversky + self.weight_focal * focal


def _tversky_by_crop(
    logits: torch.Tensor, labels: torch.Tensor, alpha: float, beta: float, smooth: float
) -> torch.Tensor:
    probabilities = functional.softmax(_single_or_double(logits), dim=1)
    regions = _regions(probabilities, _without_channel(labels, logits), _NOTHING)
    return regions.tversky_loss(alpha, beta, smooth).mean()


def _without_channel(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Labels (batch, *space) of any type, from these or from (batch, 1, *space), as MONAI has them."""
    return (labels.squeeze(1) if labels.ndim == logits.ndim else labels).long()
