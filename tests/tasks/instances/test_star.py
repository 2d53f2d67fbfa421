"""The star head: targets against plain walks along rays, decoding of perfect predictions, the loss."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.ndimage import label

from support.instances import best_iou, ellipses
from tomoscout.tasks.instances.made_up import make_image
from tomoscout.tasks.instances.star import SCALE, StarHead, _folded, _unfolded

torch.set_num_threads(1)
IGNORE = 2**31 - 1
EVERY = StarHead.every
DEFAULT = {"probability": 0.5, "overlap": 0.4}


def rays_of(dimensions: int) -> int:
    return {2: 32, 3: 64}[dimensions]


def head_for(image: NDArray[np.integer]) -> StarHead:
    return StarHead(rays_of(image.ndim), image.ndim)


def targets_of(image: NDArray[np.integer]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probability, what lies inside, and distances."""
    probability, inside, distances = head_for(image).targets(torch.from_numpy(image.astype(np.int64))[None], IGNORE)
    return probability, inside, distances


def logits_of(image: NDArray[np.integer]) -> torch.Tensor:
    """Outputs (1, channels, *space) of a network that knows the truth; distances between are those of the nearest."""
    probability, inside, distances = targets_of(image)
    for axis in range(2, 2 + image.ndim):
        distances = distances.repeat_interleave(EVERY, axis).narrow(axis, 0, image.shape[axis - 2])
    softplus = torch.where(distances > 1e-3, distances / SCALE, 1e-3)
    certain = [torch.logit(values.clamp(1e-4, 1 - 1e-4))[:, None] for values in (probability, inside)]
    return torch.cat([*certain, torch.expm1(softplus).log()], 1)


def decoded(image: NDArray[np.integer], **thresholds: float) -> NDArray[np.int32]:
    head = head_for(image)
    prediction = head.read_out(logits_of(image)[0]).to(torch.float16).numpy()
    return head.decode(prediction, image.shape, {**DEFAULT, **thresholds})


TOUCHING = ellipses((64, 64), ((30, 18), (14, 11)), ((30, 41), (12, 13)), ((50, 30), (9, 9)))
IMAGES = {
    "touching": TOUCHING,
    "thin": ellipses((64, 64), ((20, 32), (5, 24)), ((45, 30), (16, 6))),
    "touching the border": ellipses((60, 70), ((2, 20), (14, 12)), ((40, 69), (12, 14)), ((59, 2), (15, 15))),
    "many": make_image((160, 160), np.random.default_rng(0), cells=60, radius=8).labels,
    "volume": ellipses((30, 40, 44), ((14, 14, 14), (9, 10, 11)), ((15, 26, 30), (10, 9, 11))),
    "volume at the border": ellipses((24, 36, 40), ((12, 0, 20), (10, 11, 11)), ((11, 33, 22), (10, 12, 11))),
}


@pytest.mark.parametrize("name", IMAGES)
def test_the_truth_decodes_to_the_same_objects(name: str) -> None:
    truth = IMAGES[name]
    found = decoded(truth)
    assert found.dtype == np.int32
    assert found.max() == len(np.unique(truth)) - 1
    # A polyhedron of 64 rays cuts off the edges of half an ellipsoid.
    assert min(best_iou(truth, found)) > (0.75 if name == "volume at the border" else 0.9)


@pytest.mark.parametrize("name", ["touching", "many"])
def test_distances_are_those_of_walks_along_the_rays(name: str) -> None:
    image = IMAGES[name]
    distances = targets_of(image)[2]
    assert distances.shape == (1, 32, *(-(-size // EVERY) for size in image.shape))
    coarse = image[::EVERY, ::EVERY]
    random = np.random.default_rng(0)
    errors = []
    for y, x in random.permutation(np.argwhere(coarse))[:60]:
        for number in range(0, 32, 3):
            angle = 2 * np.pi * number / 32
            step, place = 0, np.array([y, x]) * EVERY
            while True:
                at = np.rint(place + 0.1 * step * np.array([np.sin(angle), np.cos(angle)])).astype(int)
                if (at < 0).any() or (at >= image.shape).any() or image[tuple(at)] != coarse[y, x]:
                    break
                step += 1
            errors.append(abs(float(distances[0, number, y, x]) - 0.1 * step))
    # stardist goes in steps of a pixel: along a border it leaves an object earlier or later.
    assert np.mean(errors) < 0.5
    assert np.mean(np.array(errors) < 1) > 0.95
    assert not distances[0][:, coarse == 0].any()


def test_the_probability_is_highest_in_the_middle_of_each_object_alone() -> None:
    probability = targets_of(TOUCHING)[0][0].numpy()
    assert not probability[TOUCHING == 0].any()
    for number in (1, 2, 3):
        mask = number == TOUCHING
        # Distance to what is not this object, by brute force; the border of the image is none.
        inside, outside = np.argwhere(mask), np.argwhere(~mask)
        distance = np.sqrt(((inside[:, None] - outside[None]) ** 2).sum(-1).min(1))
        np.testing.assert_allclose(probability[mask], distance / distance.max(), atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 6), (4, 6, 10)])
def test_what_lies_inside_is_folded_and_unfolded(shape: tuple[int, ...]) -> None:
    values = torch.arange(float(np.prod(shape))).reshape(shape)
    folded = _folded(values, 2)
    assert folded.shape == (2 ** len(shape), *(size // 2 for size in shape))
    assert torch.equal(folded[0], values[(slice(None, None, 2),) * len(shape)])
    np.testing.assert_array_equal(_unfolded(folded.numpy(), 2), values.numpy())


def test_borders_are_those_of_what_lies_inside() -> None:
    image = IMAGES["touching"]
    head, larger = head_for(image), ndimage.grey_dilation(image, 3)
    logits = logits_of(image)[0]
    logits[1] = logits_of(larger)[0][1]
    found = head.decode(head.read_out(logits).numpy(), image.shape, DEFAULT)
    np.testing.assert_array_equal(found > 0, larger > 0)
    assert min(best_iou(larger, found)) > 0.9


def test_large_numbers_and_gaps_change_nothing() -> None:
    large = np.where(TOUCHING > 0, 2**31 - 1 - 70_000 * TOUCHING.astype(np.int64), 0)
    for ours, theirs in zip(targets_of(TOUCHING), targets_of(large), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_images_of_a_batch_are_apart() -> None:
    other = TOUCHING[::-1, ::-1].copy()
    batch = torch.from_numpy(np.stack([TOUCHING, np.zeros_like(TOUCHING), other]).astype(np.int64))
    found = StarHead(32, 2).targets(batch, IGNORE)
    for number, image in enumerate(batch.numpy()):
        alone = targets_of(image)
        for together, values in zip(found, alone, strict=True):
            torch.testing.assert_close(together[number], values[0])


@pytest.mark.parametrize("shape", [(20, 26), (13, 17), (8, 10, 12)])
def test_an_empty_prediction_decodes_to_nothing(shape: tuple[int, ...]) -> None:
    head = StarHead(rays_of(len(shape)), len(shape))
    for value in (0.0, 0.5):
        coarse = [-(-size // EVERY) for size in shape]
        found = head.decode(np.full((head.values, *coarse), value, np.float16), shape, DEFAULT)
        assert found.shape == shape and found.dtype == np.int32
        assert not found.any()


def test_labels_have_no_gaps_though_some_are_covered() -> None:
    found = decoded(IMAGES["many"], overlap=0.9, probability=0.2)
    assert np.array_equal(np.unique(found), np.arange(found.max() + 1))
    assert found.max() > 20


def test_a_higher_threshold_of_the_probability_finds_fewer_objects() -> None:
    head, image = StarHead(32, 2), IMAGES["touching"]
    logits = logits_of(image)[0]
    # The third object is uncertain: no more than 0.55.
    logits[0][torch.from_numpy(image == 3)] = logits[0][torch.from_numpy(image == 3)].clamp_max(0.2)
    decode = head.decoder(head.read_out(logits).numpy(), image.shape)
    assert [decode({**DEFAULT, "probability": value}).max() for value in (0.3, 0.5, 0.7)] == [3, 3, 2]


def test_a_lower_threshold_of_the_overlap_leaves_out_the_less_probable() -> None:
    # Two discs whose predictions overlap by about half, as if neither hid the other.
    head, shape = StarHead(32, 2), (40, 60)
    parts = [ellipses(shape, ((20, 22), (12, 12))), ellipses(shape, ((20, 34), (12, 12)))]
    both = [head.read_out(logits_of(part)[0]).numpy() for part in parts]
    both[1][0] *= 0.9
    merged = np.where(both[0][0] >= both[1][0], *both)
    merged[1:5] = np.maximum(both[0][1:5], both[1][1:5])
    found = [head.decode(merged, shape, {"probability": 0.5, "overlap": value}).max() for value in (0.1, 0.8)]
    assert found == [1, 2]


def test_the_loss_is_least_at_the_truth() -> None:
    image = IMAGES["touching"]
    loss, targets, truth = StarHead(32, 2).loss(), targets_of(image), logits_of(image)
    least = loss(truth, *targets)
    probability = targets[0].clamp(1e-4, 1 - 1e-4)
    entropy = -(probability * probability.log() + (1 - probability) * (1 - probability).log()).mean()
    # Cross-entropy with probabilities between 0 and 1 is no less than their entropy.
    assert least.item() == pytest.approx(entropy.item(), abs=0.01)
    torch.manual_seed(0)
    for size in (0.3, 1.0, 3.0):
        assert loss(truth + size * torch.randn_like(truth), *targets) > least


@pytest.mark.parametrize("name", ["touching", "volume"])
def test_the_loss_falls_with_steps_along_its_gradient(name: str) -> None:
    image = IMAGES[name]
    head, targets = head_for(image), targets_of(image)
    loss = head.loss()
    logits = torch.zeros((1, 2 + head.rays, *image.shape), requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.2)
    values = []
    for _ in range(40):
        optimiser.zero_grad()
        value = loss(logits, *targets)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.4 * values[0]
    assert all(later < earlier for earlier, later in pairwise(values[:20]))


def test_what_is_not_known_gives_no_gradient() -> None:
    image = IMAGES["touching"].astype(np.int64)
    image[:, 40:] = IGNORE
    targets = targets_of(image)
    assert (targets[0][..., 40:] == -1).all()
    logits = torch.randn((1, 34, *image.shape), requires_grad=True)
    StarHead(32, 2).loss()(logits, *targets).backward()
    assert logits.grad is not None
    assert not logits.grad[..., 40:].any()
    assert logits.grad[..., :40].any()


def test_crops_that_nothing_is_known_of_give_no_loss() -> None:
    targets = targets_of(np.full((16, 16), IGNORE, np.int64))
    logits = torch.randn((1, 34, 16, 16), requires_grad=True)
    value = StarHead(32, 2).loss()(logits, *targets)
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_of_outputs_of_several_resolutions_the_finest_counts() -> None:
    targets, truth = targets_of(TOUCHING), logits_of(TOUCHING)
    loss = StarHead(32, 2).loss()
    assert loss([truth, truth[..., ::2, ::2]], *targets) == loss(truth, *targets)


def test_objects_are_whole() -> None:
    found = decoded(IMAGES["many"])
    # A polygon that another one covers in part can leave slivers, no more.
    for number in range(1, found.max() + 1):
        pieces = np.bincount(label(found == number)[0].ravel())[1:]
        assert pieces.max() > 0.9 * pieces.sum()
