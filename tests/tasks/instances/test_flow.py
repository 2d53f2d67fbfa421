"""The flow head: decoding of perfect predictions, thresholds, following a field, the loss."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import label

from support.instances import best_iou, ellipses
from tomoscout.tasks.instances.flow import SCALE, FlowHead, follow
from tomoscout.tasks.instances.flow_field import flow_field
from tomoscout.tasks.instances.made_up import make_image

torch.set_num_threads(1)
CPU = torch.device("cpu")
IGNORE = 2**31 - 1
DEFAULT = {"probability": 0.5, "agreement": 0.0}


def targets_of(image: NDArray[np.integer]) -> tuple[torch.Tensor, ...]:
    return FlowHead(image.ndim).targets(torch.from_numpy(image.astype(np.int64))[None], IGNORE)


def logits_of(image: NDArray[np.integer], certain: float = 6.0) -> torch.Tensor:
    """Outputs (1, channels, *space) of a network that knows the truth."""
    inside, field = targets_of(image)
    return torch.cat([certain * (2 * inside[:, None] - 1), SCALE * field], 1)


def prediction_of(image: NDArray[np.integer]) -> NDArray[np.float16]:
    found: NDArray[np.float16] = FlowHead(image.ndim).read_out(logits_of(image)[0]).to(torch.float16).numpy()
    return found


def decoded(image: NDArray[np.integer], **thresholds: float) -> NDArray[np.int32]:
    return FlowHead(image.ndim).decode(prediction_of(image), image.shape, {**DEFAULT, **thresholds})


def odd_shapes() -> NDArray[np.int32]:
    """A U, a snake and a spiral arm that touch."""
    image = np.zeros((64, 72), np.int32)
    image[4:40, 4:30] = 1
    image[4:30, 12:22] = 0
    image[42:50, 4:68] = 2
    image[10:42, 60:68] = 2
    image[4:40, 30:38] = 3
    image[4:12, 30:56] = 3
    return image


def ring(within: float) -> NDArray[np.int32]:
    """A ring with an object of this radius in it."""
    image = ellipses((50, 50), ((24, 24), (20, 20)))
    image[ellipses((50, 50), ((24, 24), (13, 13))) > 0] = 0
    image[ellipses((50, 50), ((24, 24), (within, within))) > 0] = 2
    return image


def stripes() -> NDArray[np.int32]:
    image = np.zeros((40, 60), np.int32)
    for number in range(8):
        image[2 + 4 * number : 5 + 4 * number, 3:57] = number + 1
    return image


IMAGES = {
    "touching": ellipses((64, 64), ((30, 18), (14, 11)), ((30, 41), (12, 13)), ((50, 30), (9, 9))),
    "touching the border": ellipses((60, 70), ((2, 20), (14, 12)), ((40, 69), (12, 14)), ((59, 2), (15, 15))),
    "many": make_image((160, 160), np.random.default_rng(0), cells=60, radius=8).labels,
    "thin": stripes(),
    "odd shapes": odd_shapes(),
    "volume": ellipses((30, 40, 44), ((14, 14, 14), (9, 10, 11)), ((15, 26, 30), (10, 9, 11))),
    "volume at the border": ellipses((24, 36, 40), ((12, 0, 20), (10, 11, 11)), ((11, 33, 22), (10, 12, 11))),
    "one slice": ellipses((1, 40, 44), ((0, 14, 14), (9, 10, 11)), ((0, 26, 30), (10, 9, 11))),
}


@pytest.mark.parametrize("name", IMAGES)
def test_the_truth_decodes_to_the_same_objects(name: str) -> None:
    truth = np.where(IMAGES[name] > 0, IMAGES[name], 0)
    large_enough = [number for number in np.unique(truth[truth > 0]) if (truth == number).sum() >= 9]
    truth = np.where(np.isin(truth, large_enough), truth, 0)
    found = decoded(truth)
    assert found.shape == truth.shape and found.dtype == np.int32
    assert found.max() == len(large_enough)
    assert min(best_iou(truth, found)) > 0.9


@pytest.mark.parametrize("agreement", [0.5, 0.7, 0.8])
def test_objects_that_agree_with_the_field_stay(agreement: float) -> None:
    np.testing.assert_array_equal(decoded(IMAGES["many"], agreement=agreement), decoded(IMAGES["many"]))


def test_the_field_of_the_targets_is_that_of_the_labels() -> None:
    image = IMAGES["many"]
    inside, field = targets_of(image)
    np.testing.assert_array_equal(inside[0].numpy(), image > 0)
    torch.testing.assert_close(field, flow_field(torch.from_numpy(image.astype(np.int64))[None]))


@pytest.mark.parametrize("shape", [(20, 26), (13, 17), (8, 10, 12), (1, 1)])
def test_an_empty_prediction_decodes_to_nothing(shape: tuple[int, ...]) -> None:
    found = FlowHead(len(shape)).decode(np.zeros((1 + len(shape), *shape), np.float16), shape, DEFAULT)
    assert found.shape == shape and found.dtype == np.int32
    assert not found.any()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_predicted_labels_have_no_gaps(seed: int) -> None:
    random = np.random.default_rng(seed)
    prediction = random.normal(0.5, 0.5, (3, 50, 60)).astype(np.float32)
    for agreement in (0.0, 0.5):
        found = FlowHead(2).decode(prediction, prediction.shape[1:], {"probability": 0.5, "agreement": agreement})
        assert np.array_equal(np.unique(found), np.arange(found.max() + 1))


def test_what_is_smaller_than_nine_voxels_is_left_out() -> None:
    image = np.zeros((30, 30), np.int32)
    image[4:6, 4:8], image[15:18, 15:18] = 1, 2
    np.testing.assert_array_equal(decoded(image), image == 2)


def test_holes_are_filled_unless_something_lies_in_them() -> None:
    image = IMAGES["touching"].copy()
    image[28:31, 16:19] = 0
    assert (decoded(image)[28:31, 16:19] > 0).all()
    truth = ring(7)
    found = decoded(truth)
    assert found.max() == 2
    assert min(best_iou(np.where(ellipses((50, 50), ((24, 24), (20, 20))) & (truth == 0), 1, truth), found)) > 0.9


def test_a_higher_threshold_of_the_probability_finds_less() -> None:
    image = IMAGES["touching"]
    prediction = prediction_of(image)
    prediction[0][image == 3] = 0.55
    prediction[0][image == 2] = 0.15
    decode = FlowHead(2).decoder(prediction, prediction.shape[1:], 0.1)
    assert [decode({**DEFAULT, "probability": value}).max() for value in (0.1, 0.3, 0.5, 0.6)] == [3, 2, 2, 1]


def test_decoding_with_one_threshold_after_the_other_is_decoding_with_each() -> None:
    prediction = prediction_of(IMAGES["many"]).astype(np.float32)
    prediction[1:] += np.random.default_rng(0).normal(0, 0.7, prediction[1:].shape)
    decode = FlowHead(2).decoder(prediction, prediction.shape[1:], 0.1)
    for thresholds in ({"probability": 0.3, "agreement": 0.7}, DEFAULT, {"probability": 0.7, "agreement": 0.0}):
        np.testing.assert_array_equal(
            decode(thresholds), FlowHead(2).decode(prediction, prediction.shape[1:], thresholds)
        )


def test_objects_whose_field_is_another_are_left_out() -> None:
    image = ellipses((64, 64), ((20, 18), (12, 10)), ((20, 46), (12, 12)), ((50, 50), (9, 9)))
    prediction = prediction_of(image).astype(np.float32)
    # In the third one all voxels flow to a corner.
    prediction[1:, image == 3] = -(0.5**0.5)
    decode = FlowHead(2).decoder(prediction, prediction.shape[1:], 0.1)
    before, after = decode(DEFAULT), decode({**DEFAULT, "agreement": 0.7})
    assert before.max() > 2
    assert after.max() == 2
    assert not after[image == 3].any()


def test_voxels_end_where_a_plain_walk_ends() -> None:
    image = IMAGES["odd shapes"]
    field = targets_of(image)[1][0].numpy()
    inside = image > 0
    places = np.argwhere(inside)
    ends = follow(field, inside, CPU)
    far = np.array(image.shape) - 1
    for number in range(0, len(places), 97):
        place = places[number].astype(float)
        for _ in range(400):
            low = np.minimum(np.floor(place).astype(int), far - 1)
            rest = place - low
            move = np.zeros(2)
            for y in (0, 1):
                for x in (0, 1):
                    weight = (rest[0] if y else 1 - rest[0]) * (rest[1] if x else 1 - rest[1])
                    move += weight * field[:, low[0] + y, low[1] + x]
            place = np.clip(place + move, 0, far)
        # A step of one voxel goes to and fro around the end.
        assert np.linalg.norm(place - ends[number]) < 2


def test_voxels_stay_within_the_image() -> None:
    field = np.ones((2, 12, 15), np.float32)
    ends = follow(field, np.ones((12, 15), bool), CPU)
    np.testing.assert_allclose(ends, np.tile([11.0, 14.0], (180, 1)), atol=1e-3)


@pytest.mark.parametrize("name", ["touching", "volume"])
def test_the_loss_is_nothing_at_the_truth_and_falls_with_steps_along_its_gradient(name: str) -> None:
    image = IMAGES[name]
    targets, loss = targets_of(image), FlowHead(image.ndim).loss()
    assert loss(logits_of(image, certain=20.0), *targets).item() < 1e-6
    logits = torch.zeros((1, 1 + image.ndim, *image.shape), requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.3)
    values = []
    for _ in range(40):
        optimiser.zero_grad()
        value = loss(logits, *targets)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.1 * values[0]
    assert all(later < earlier for earlier, later in pairwise(values[:15]))


def test_the_loss_is_the_mean_over_known_voxels() -> None:
    image = IMAGES["touching"].astype(np.int64)
    image[:, 40:] = IGNORE
    inside, field = targets_of(image)
    torch.manual_seed(0)
    logits = torch.randn((1, 3, *image.shape))
    total, count = 0.0, 0
    for y, x in np.ndindex(*image.shape):
        if image[y, x] != IGNORE:
            p = 1 / (1 + np.exp(-float(logits[0, 0, y, x])))
            total -= np.log(p if image[y, x] > 0 else 1 - p)
            total += 0.5 * np.mean([(float(logits[0, 1 + a, y, x] - SCALE * field[0, a, y, x])) ** 2 for a in (0, 1)])
            count += 1
    assert FlowHead(2).loss()(logits, inside, field).item() == pytest.approx(total / count, rel=1e-4)


def test_what_is_not_known_gives_no_gradient() -> None:
    image = IMAGES["touching"].astype(np.int64)
    image[:, 40:] = IGNORE
    logits = torch.randn((1, 3, *image.shape), requires_grad=True)
    FlowHead(2).loss()(logits, *targets_of(image)).backward()
    assert logits.grad is not None
    assert not logits.grad[..., 40:].any()
    assert logits.grad[..., :40].any()


def test_crops_that_nothing_is_known_of_give_no_loss() -> None:
    targets = targets_of(np.full((16, 16), IGNORE, np.int64))
    logits = torch.randn((1, 3, 16, 16), requires_grad=True)
    value = FlowHead(2).loss()(logits, *targets)
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_of_outputs_of_several_resolutions_the_finest_counts() -> None:
    image = IMAGES["touching"]
    targets, truth = targets_of(image), logits_of(image)
    loss = FlowHead(2).loss()
    assert loss([truth, truth[..., ::2, ::2]], *targets) == loss(truth, *targets)


@pytest.mark.parametrize("name", ["many", "odd shapes"])
def test_some_noise_in_the_field_changes_little(name: str) -> None:
    truth = IMAGES[name]
    prediction = prediction_of(truth).astype(np.float32)
    prediction[1:] += np.random.default_rng(0).normal(0, 0.3, prediction[1:].shape)
    found = FlowHead(2).decode(prediction, prediction.shape[1:], DEFAULT)
    assert np.mean(np.array(best_iou(truth, found)) > 0.75) > 0.9


def test_objects_of_the_truth_are_one_piece() -> None:
    found = decoded(IMAGES["many"])
    assert all(label(found == number, np.ones((3, 3)))[1] == 1 for number in range(1, found.max() + 1))
