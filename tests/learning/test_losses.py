"""Every loss against its formula, voxel by voxel, and its gradient against finite differences."""

from __future__ import annotations

import math

import monai.losses
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tomoscout.learning.losses import LOSSES
from tomoscout.learning.losses.base import LossTerm
from tomoscout.learning.losses.combined import MarginalLoss, OwnLoss, build_loss
from tomoscout.learning.losses.cross_entropy import CrossEntropy
from tomoscout.learning.losses.cross_entropy_tversky import CrossEntropyTversky
from tomoscout.learning.losses.dice import Dice
from tomoscout.learning.losses.focal import Focal
from tomoscout.learning.losses.focal_tversky import FocalTversky
from tomoscout.learning.losses.generalised_dice import GeneralisedDice
from tomoscout.learning.losses.octopi import FocalTverskyLoss, WeightedFocalTverskyLoss
from tomoscout.learning.losses.tversky import Tversky
from tomoscout.learning.losses.weighted_focal_tversky import WeightedFocalTversky
from tomoscout.machine.errors import TomoscoutError
from tomoscout.tasks.picking.options import Train

torch.set_num_threads(1)
checked = settings(deadline=None, max_examples=25, derandomize=True)
IGNORE = 255
CLASSES = 4
TERMS = [
    CrossEntropy(),
    CrossEntropyTversky(),
    CrossEntropyTversky(weight=0.6, weight_tversky=1.7, alpha=0.6, beta=0.9),
    Dice(weight=0.7),
    GeneralisedDice(),
    Focal(),
    Focal(gamma=0.5),
    Tversky(weight=2),
    Tversky(alpha=1, beta=0),
    FocalTversky(),
    FocalTversky(alpha=0.6, beta=0.9, gamma=0.75),
    WeightedFocalTversky(weight_tversky=0.8, weight_focal=0.3, weight=1.5),
    WeightedFocalTversky(weight_tversky=0, gamma=0.1),
    WeightedFocalTversky(weight_focal=0),
]
SPACES = [(3, 4), (2, 3, 4)]
every_term = pytest.mark.parametrize("term", TERMS, ids=lambda term: repr(term).replace(" ", ""))
every_space = pytest.mark.parametrize("space", SPACES, ids=["2D", "3D"])


class Scene:
    """Random logits, two label volumes with ignored voxels, shares and weights; class 3 is in neither volume."""

    def __init__(self, seed: int, space: tuple[int, ...] = (2, 3, 4), crops: int = 3) -> None:
        random = np.random.default_rng(seed)
        self.logits = torch.from_numpy(random.normal(scale=3, size=(crops, CLASSES, *space)))
        self.labels, self.other = (self._labels(random, (crops, *space)) for _ in range(2))
        self.share = torch.from_numpy(random.uniform(0, 1, crops))
        self.voxel_weights = torch.from_numpy(random.uniform(0.1, 9, CLASSES))
        self.class_weights = torch.from_numpy(random.uniform(0.1, 9, CLASSES))

    @staticmethod
    def _labels(random: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
        labels = random.integers(0, CLASSES - 1, shape)
        labels[random.random(shape) < 0.3] = IGNORE
        return torch.from_numpy(labels)

    def loss(self, *terms: LossTerm) -> torch.nn.Module:
        return build_loss(terms, self.voxel_weights, self.class_weights, IGNORE)

    def slow(self, term: LossTerm, *, mixed: bool = False) -> float:
        volumes = [(self.labels, self.share), (self.other, 1 - self.share)]
        whole = [(self.labels, torch.ones(len(self.labels)))]
        return slow_loss(term, self.logits, volumes if mixed else whole, self.voxel_weights, self.class_weights)


def slow_softmax(values: list[float]) -> tuple[list[float], list[float]]:
    """Probabilities and their logarithms."""
    highest = max(values)
    normaliser = highest + math.log(sum(math.exp(value - highest) for value in values))
    return [math.exp(value - normaliser) for value in values], [value - normaliser for value in values]


def slow_loss(
    term: LossTerm,
    logits: torch.Tensor,
    volumes: list[tuple[torch.Tensor, torch.Tensor]],
    voxel_weights: torch.Tensor,
    class_weights: torch.Tensor,
) -> float:
    """A term for label volumes with a share per crop, from its formula."""
    parts: list[tuple[float, LossTerm]] = []
    if isinstance(term, CrossEntropyTversky):
        parts = [(1.0, CrossEntropy()), (term.weight_tversky, Tversky(alpha=term.alpha, beta=term.beta))]
    if isinstance(term, WeightedFocalTversky):
        parts = [
            (term.weight_tversky, Tversky(alpha=term.alpha, beta=term.beta)),
            (term.weight_focal, Focal(gamma=term.gamma)),
        ]
    if parts:
        return term.weight * sum(
            weight * slow_loss(part, logits, volumes, voxel_weights, class_weights) for weight, part in parts
        )
    gamma = term.gamma if isinstance(term, Focal) else 0
    voxel_sum = voxel_count = 0.0
    found, predicted, true = ([0.0] * CLASSES for _ in range(3))
    for labels, shares in volumes:
        for crop, *place in np.ndindex(*labels.shape):
            label = int(labels[(crop, *place)])
            if label == IGNORE:
                continue
            share = float(shares[crop])
            p, log_p = slow_softmax([float(value) for value in logits[(crop, slice(None), *place)]])
            counts = share * float(voxel_weights[label])
            voxel_count += counts
            voxel_sum += counts * (1 - p[label]) ** gamma * -log_p[label]
            found[label] += share * p[label]
            true[label] += share
            for number in range(CLASSES):
                predicted[number] += share * p[number]
    if isinstance(term, CrossEntropy | Focal):
        return term.weight * voxel_sum / voxel_count
    present = [number for number in range(CLASSES) if true[number]]
    weights = {number: float(class_weights[number]) for number in present}
    if isinstance(term, GeneralisedDice):
        weights = {number: weight / max(true[number], 1) ** 2 for number, weight in weights.items()}
        both = sum(weight * found[number] for number, weight in weights.items())
        either = sum(weight * (true[number] + predicted[number]) for number, weight in weights.items())
        return term.weight * (1 - 2 * both / either)
    alpha, beta = (0.5, 0.5) if isinstance(term, Dice) else (term.alpha, term.beta)
    root = term.gamma if isinstance(term, FocalTversky) else 1
    mean = 0.0
    for number, weight in weights.items():
        tp, fp, fn = found[number], predicted[number] - found[number], true[number] - found[number]
        mean += weight * (1 - (tp + 1e-5) / (tp + alpha * fp + beta * fn + 1e-5)) ** (1 / root)
    return term.weight * mean / sum(weights.values())


def test_every_loss_is_tested() -> None:
    assert {type(term) for term in TERMS} == set(LOSSES.values())


@every_term
@given(st.integers(0, 10_000), st.sampled_from(SPACES), st.booleans())
@settings(checked, max_examples=10)
def test_against_a_slow_reference(term: LossTerm, seed: int, space: tuple[int, ...], mixed: bool) -> None:
    scene = Scene(seed, space)
    mixup = (scene.other, scene.share) if mixed else ()
    expected = scene.slow(term, mixed=mixed)
    in_double = scene.loss(term)(scene.logits, scene.labels, *mixup)
    assert in_double.dtype == torch.float64
    assert float(in_double) == pytest.approx(expected, rel=1e-9)
    in_single = scene.loss(term)(scene.logits.float(), scene.labels, *mixup)
    assert in_single.dtype == torch.float32
    assert float(in_single) == pytest.approx(expected, rel=1e-5)


@every_term
@every_space
@pytest.mark.parametrize("mixed", [False, True], ids=["whole", "mixed"])
def test_gradient(term: LossTerm, space: tuple[int, ...], mixed: bool) -> None:
    scene = Scene(5, space, crops=2)
    mixup = (scene.other, scene.share) if mixed else ()
    loss = scene.loss(term)
    assert torch.autograd.gradcheck(
        lambda logits: loss(logits, scene.labels, *mixup), scene.logits.requires_grad_(), atol=1e-7
    )


@every_term
def test_ignored_voxels_have_no_influence(term: LossTerm) -> None:
    scene = Scene(1)
    ignored = (scene.labels == IGNORE)[:, None].expand_as(scene.logits)
    logits = scene.logits.float().requires_grad_()
    value = scene.loss(term)(logits, scene.labels)
    value.backward()
    assert not logits.grad[ignored].any()
    assert logits.grad[~ignored].any()
    others = torch.where(ignored, 1e4 * torch.randn(logits.shape, generator=torch.manual_seed(0)), logits)
    torch.testing.assert_close(scene.loss(term)(others, scene.labels), value)


@every_term
@pytest.mark.parametrize("mixed", [False, True], ids=["whole", "mixed"])
def test_nothing_but_ignored_voxels_is_a_loss_of_zero(term: LossTerm, mixed: bool) -> None:
    scene = Scene(2)
    nothing = torch.full_like(scene.labels, IGNORE)
    logits = scene.logits.float().requires_grad_()
    value = scene.loss(term)(logits, nothing, *((nothing, scene.share.float()) if mixed else ()))
    value.backward()
    assert value == 0
    assert not logits.grad.any()


def test_a_class_that_is_absent_leaves_the_mean_to_the_others() -> None:
    """A region loss of two classes, of which one is found and the other half found, whatever channels there are."""
    labels = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]]])
    for channels in (2, 3, 9):
        probabilities = torch.full((1, channels, 1, 8), 1e-9)
        for place, label in enumerate([0, 0, 0, 0, 1, 1, 0, 0]):
            probabilities[0, label, 0, place] = 1
        ones = torch.ones(channels)
        value = build_loss([Dice()], ones, ones, IGNORE)(probabilities.log(), labels)
        assert float(value) == pytest.approx(((1 - 8 / 10) + (1 - 4 / 6)) / 2, rel=1e-4)


@pytest.mark.parametrize("term", [Dice(), GeneralisedDice(), Tversky(), FocalTversky()], ids=lambda term: term.name)
def test_what_is_taken_for_an_absent_class_costs(term: LossTerm) -> None:
    """It is missing from its true class."""
    scene = Scene(3)
    known = scene.labels != IGNORE
    shown = scene.labels.where(known, 0)
    logits = (4.0 * torch.nn.functional.one_hot(shown, CLASSES).movedim(-1, 1)).requires_grad_()
    scene.loss(term)(logits, scene.labels).backward()
    assert (logits.grad[:, CLASSES - 1][known] > 0).all()


@every_term
def test_a_batch_of_background_alone(term: LossTerm) -> None:
    scene = Scene(4)
    logits = scene.logits.float().requires_grad_()
    value = scene.loss(term)(logits, torch.zeros_like(scene.labels))
    value.backward()
    assert value > 0 or getattr(term, "beta", 1) == 0
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 0] <= 0).all()


@every_term
@pytest.mark.parametrize("size", [30.0, 1e4])
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_extreme_logits(term: LossTerm, size: float, right: bool) -> None:
    scene = Scene(6)
    shown = scene.labels.where(scene.labels != IGNORE, 0)
    shown = shown if right else (shown + 1) % CLASSES
    logits = (2 * torch.nn.functional.one_hot(shown, CLASSES).movedim(-1, 1) - 1.0) * size
    value = scene.loss(term)(logits.requires_grad_(), scene.labels)
    value.backward()
    assert logits.grad.isfinite().all()
    if right:
        assert abs(value.item()) < 1e-4
    else:
        assert value.item() > 0.05


@every_term
def test_mixup(term: LossTerm) -> None:
    scene = Scene(7)
    loss, logits = scene.loss(term), scene.logits
    plain = loss(logits, scene.labels)
    ones = torch.ones_like(scene.share)
    torch.testing.assert_close(loss(logits, scene.labels, scene.labels, scene.share), plain)
    torch.testing.assert_close(loss(logits, scene.labels, scene.other, ones), plain)
    torch.testing.assert_close(loss(logits, scene.other, scene.labels, 0 * ones), plain)
    torch.testing.assert_close(
        loss(logits, scene.labels, scene.other, scene.share), loss(logits, scene.other, scene.labels, 1 - scene.share)
    )


def test_a_trace_of_a_class_does_not_dominate_generalised_dice() -> None:
    """A thousandth of a voxel would weigh a million times as much as a voxel."""
    scene = Scene(8, (8, 8), crops=1)
    labels = torch.zeros_like(scene.labels)
    trace = labels.clone()
    trace[0, 0, 0] = 1
    loss = scene.loss(GeneralisedDice())
    mixed = float(loss(scene.logits, labels, trace, torch.full_like(scene.share, 0.999)))
    one = float(loss(scene.logits, trace))
    assert mixed == pytest.approx(
        slow_loss(
            GeneralisedDice(),
            scene.logits,
            [(labels, torch.tensor([0.999])), (trace, torch.tensor([0.001]))],
            scene.voxel_weights,
            scene.class_weights,
        ),
        rel=1e-5,
    )
    assert mixed != pytest.approx(one, rel=1e-3)


@every_space
@pytest.mark.parametrize("mixed", [False, True], ids=["whole", "mixed"])
def test_deep_supervision(space: tuple[int, ...], mixed: bool) -> None:
    full = tuple(4 * size + 1 for size in space)
    scene = Scene(9, full)
    volumes = (scene.labels, scene.other) if mixed else (scene.labels,)
    loss = scene.loss(CrossEntropy(), Tversky())
    total, outputs = 0.0, []
    for level in range(3):
        size = tuple(-(-side // 2**level) for side in full)
        logits = Scene(level, size).logits
        small = [torch.zeros((len(logits), *size), dtype=torch.int64) for _ in volumes]
        for source, target in zip(volumes, small, strict=True):
            for crop, *place in np.ndindex(*target.shape):
                nearest = [math.floor(i * old / new) for i, old, new in zip(place, full, size, strict=True)]
                target[(crop, *place)] = source[(crop, *nearest)]
        mixup = (small[1], scene.share) if mixed else ()
        total += float(loss(logits, small[0], *mixup)) * [4 / 7, 2 / 7, 1 / 7][level]
        outputs.append(logits)
    mixup = (scene.other, scene.share) if mixed else ()
    assert float(loss(outputs, scene.labels, *mixup)) == pytest.approx(total, rel=1e-9)
    assert float(loss(outputs[:1], scene.labels)) == float(loss(outputs[0], scene.labels))


def test_losses_are_added_up() -> None:
    scene = Scene(10)
    whole = scene.loss(*TERMS)(scene.logits, scene.labels)
    torch.testing.assert_close(whole, sum(scene.loss(term)(scene.logits, scene.labels) for term in TERMS))


@every_term
def test_half_precision_logits_are_scored_in_single_precision(term: LossTerm) -> None:
    scene = Scene(11)
    rounded = scene.logits.to(torch.bfloat16).requires_grad_()
    expected = scene.loss(term)(rounded.detach().float(), scene.labels)
    with torch.autocast("cpu", torch.bfloat16):
        value = scene.loss(term)(rounded, scene.labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    value.backward()
    assert rounded.grad.dtype == torch.bfloat16
    assert rounded.grad.isfinite().all()


def test_weights_move_with_the_module() -> None:
    scene = Scene(12)
    loss = scene.loss(CrossEntropy()).to("meta")
    assert {name: buffer.device.type for name, buffer in loss.named_buffers()} == {
        "voxel_weights": "meta",
        "class_weights": "meta",
    }


def test_refusals() -> None:
    scene = Scene(13)
    with pytest.raises(ValueError, match="both 0"):
        scene.loss(WeightedFocalTversky(weight_tversky=0, weight_focal=0))
    with pytest.raises(ValueError, match="mixup needs both"):
        scene.loss(CrossEntropy())(scene.logits, scene.labels, scene.other)


# octopi's losses: every crop and class apart.


def slow_tversky_of_crops(
    logits: torch.Tensor, labels: torch.Tensor, alpha: float, beta: float, smooth: float
) -> float:
    losses = []
    for crop in range(len(labels)):
        for number in range(CLASSES):
            tp = fp = fn = 0.0
            for place in np.ndindex(*labels.shape[1:]):
                p = slow_softmax([float(value) for value in logits[(crop, slice(None), *place)]])[0][number]
                true = int(labels[(crop, *place)]) == number
                tp, fp, fn = tp + p * true, fp + p * (not true), fn + (1 - p) * true
            losses.append(1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth))
    return float(np.mean(losses))


def slow_focal_of_classes(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> float:
    losses = []
    for crop, *place in np.ndindex(*labels.shape):
        p, log_p = slow_softmax([float(value) for value in logits[(crop, slice(None), *place)]])
        for number in range(CLASSES):
            true = int(labels[(crop, *place)]) == number
            losses.append(true * (1 - p[number]) ** gamma * -log_p[number])
    return float(np.mean(losses))


weights_of_errors = st.floats(0.05, 1)


@given(st.integers(0, 10_000), st.sampled_from(SPACES), weights_of_errors, weights_of_errors, st.floats(0.2, 3))
@checked
def test_octopis_losses_against_a_slow_reference(seed, space, alpha, beta, gamma) -> None:
    scene = Scene(seed, space, crops=2)
    labels = scene.labels.where(scene.labels != IGNORE, 0)
    tversky = slow_tversky_of_crops(scene.logits, labels, alpha, beta, 1e-5)
    focal = slow_focal_of_classes(scene.logits, labels, gamma)
    expected = [
        (FocalTverskyLoss(alpha, beta, gamma), tversky ** (1 / gamma)),
        (WeightedFocalTverskyLoss(gamma, alpha, beta, 0.3, 0.9), 0.3 * tversky + 0.9 * focal),
    ]
    for loss, value in expected:
        assert float(loss(scene.logits, labels)) == pytest.approx(value, rel=1e-9)
        with_channel = loss(scene.logits.float(), labels[:, None].float())
        assert with_channel.dtype == torch.float32
        assert float(with_channel) == pytest.approx(value, rel=1e-5)


@every_space
def test_octopis_losses_against_monais(space: tuple[int, ...]) -> None:
    """octopi makes them of these."""
    scene = Scene(14, space)
    logits, labels = scene.logits.float(), scene.labels.where(scene.labels != IGNORE, 0)[:, None]
    tversky = monai.losses.TverskyLoss(
        alpha=0.7, beta=0.3, to_onehot_y=True, softmax=True, smooth_nr=1e-3, smooth_dr=1e-3
    )(logits, labels)
    focal = monai.losses.FocalLoss(to_onehot_y=True, use_softmax=True, gamma=1.0)(logits, labels)
    torch.testing.assert_close(FocalTverskyLoss(smooth=1e-3)(logits, labels), tversky)
    torch.testing.assert_close(WeightedFocalTverskyLoss(smooth=1e-3)(logits, labels), (tversky + focal) / 2)


@pytest.mark.parametrize("loss", [FocalTverskyLoss(gamma=2.0), WeightedFocalTverskyLoss(gamma=0.1)], ids=repr)
@pytest.mark.parametrize("size", [1.0, 1e4, -1e4])
def test_gradient_of_octopis_losses(loss: torch.nn.Module, size: float) -> None:
    labels = torch.tensor([[[0, 1, 2], [3, 1, 0]]])
    logits = size * (2 * torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1) - 1.0)
    loss(logits.requires_grad_(), labels).backward()
    assert logits.grad.isfinite().all()
    if abs(size) == 1:
        assert torch.autograd.gradcheck(lambda values: loss(values, labels), logits.detach().double().requires_grad_())


def test_octopis_losses_in_half_precision() -> None:
    scene = Scene(15)
    labels = scene.labels.where(scene.labels != IGNORE, 0)
    for loss in (FocalTverskyLoss(), WeightedFocalTverskyLoss()):
        rounded = scene.logits.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(rounded, labels)
        torch.testing.assert_close(value, loss(rounded.float(), labels))


# Losses of the user, and classes that are not annotated.


def crops(batch: int = 3, classes: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and two label volumes, with some padding."""
    generator = torch.Generator().manual_seed(batch)
    logits = torch.randn(batch, classes + 1, 4, 5, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes + 1, (2, batch, 4, 5, 6), generator=generator)
    return logits.requires_grad_(), labels[0], labels[1]


def test_a_loss_of_the_user_is_called_with_logits_and_labels() -> None:
    logits, labels, _ = crops()
    assert OwnLoss(nn.CrossEntropyLoss(), IGNORE)(logits, labels) == nn.functional.cross_entropy(logits, labels)
    # octopi's losses, given as its guide gives them, are what they are alone.
    theirs = FocalTverskyLoss(gamma=1.3)
    assert OwnLoss(theirs, IGNORE)(logits, labels) == theirs(logits, labels)
    levels = [logits, logits[..., ::2]]
    whole, half = nn.functional.cross_entropy(logits, labels), nn.functional.cross_entropy(levels[1], labels[..., ::2])
    found = OwnLoss(nn.CrossEntropyLoss(), IGNORE)(levels, labels)
    assert found.item() == pytest.approx(((whole + half / 2) / 1.5).item())


@pytest.mark.parametrize("inner", [False, True])
def test_losses_of_monai_that_make_one_hot_labels(inner: bool) -> None:
    logits, labels, _ = crops()
    loss = (monai.losses.DiceCELoss if inner else monai.losses.TverskyLoss)(to_onehot_y=True, softmax=True)
    assert OwnLoss(loss, IGNORE)(logits, labels) == loss(logits, labels[:, None])


def test_padding_teaches_a_loss_of_the_user_nothing() -> None:
    logits, labels, _ = crops()
    padded = labels.clone()
    padded[:, 2:] = IGNORE
    value = OwnLoss(nn.CrossEntropyLoss(reduction="sum"), IGNORE)(logits, padded)
    expected = nn.functional.cross_entropy(logits[:, :, :2], labels[:, :2], reduction="sum")
    assert value.item() == pytest.approx(expected.item())
    value.backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, 2:].any()
    assert logits.grad[:, :, :2].all()


def test_mixup_blends_the_values_of_a_loss_of_the_user() -> None:
    logits, labels, others = crops()
    share = torch.tensor([1.0, 0.75, 0.5])
    loss = FocalTverskyLoss(gamma=1.5)
    expected = [
        part * loss(logits[row : row + 1], labels[row : row + 1])
        + (1 - part) * loss(logits[row : row + 1], others[row : row + 1])
        for row, part in enumerate(share.double())
    ]
    found = OwnLoss(loss, IGNORE)(logits, labels, others, share)
    assert found.item() == pytest.approx(torch.stack(expected).mean().item())


def test_a_loss_of_the_user_must_give_one_number() -> None:
    logits, labels, _ = crops()
    with pytest.raises(TomoscoutError, match=r"^loss CrossEntropyLoss: expected one number .* found \(3, 4, 5, 6\)$"):
        OwnLoss(nn.CrossEntropyLoss(reduction="none"), IGNORE)(logits, labels)


@pytest.mark.parametrize("name", ["CrossEntropy", "Tversky", "GeneralisedDice", "WeightedFocalTversky"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_class_that_is_not_annotated_counts_as_background(name: str, mixed: bool) -> None:
    """As a network would be trained that had one output for both."""
    logits, labels, others = crops()
    absent = torch.tensor([[False, False, True]]).expand(3, 3)
    labels = labels.masked_fill(labels == 2, 0)
    mix = (others, torch.tensor([1.0, 0.75, 0.5])) if mixed else ()
    terms = Train(loss=name).loss
    loss = build_loss(terms, torch.ones(3), torch.ones(3), IGNORE)
    found = MarginalLoss(loss)(logits, absent, labels, *mix)
    together = torch.stack([torch.logsumexp(logits[:, ::2], dim=1), logits[:, 1]], dim=1)
    # What is labelled with it in the other crop counts as background, too.
    mix = (others.masked_fill(others == 2, 0), *mix[1:]) if mixed else ()
    expected = build_loss(terms, torch.ones(2), torch.ones(2), IGNORE)(together, labels, *mix)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)
    # Padding stays padding, and where nothing is absent nothing changes.
    labels[:, 3:] = IGNORE
    none = torch.zeros(3, 3, dtype=torch.bool)
    assert MarginalLoss(loss)([logits], none, labels) == loss([logits], labels)
    assert torch.isfinite(MarginalLoss(loss)([logits, logits[..., ::2]], absent, labels))
