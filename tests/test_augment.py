"""Random changes to crops: labels and intensities move together, and nothing else happens to labels."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.augment import augment
from tomoscout.config import Augmentation

torch.set_num_threads(1)
checked = settings(deadline=None, max_examples=40, derandomize=True)
OFF = Augmentation(flip=False, rotate90=False, intensity_scale=0, intensity_shift=0, noise=0)
MOVES = OFF.model_copy(update={"flip": True, "rotate90": True})
SIDE = 6


def random_labels(batch: int = 3, shape: tuple[int, ...] = (SIDE, SIDE, SIDE), seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 7, (batch, *shape)))


def coordinates(batch: int) -> torch.Tensor:
    """A batch of crops in which a voxel's label says where it was: 100 z + 10 y + x."""
    z, y, x = np.ogrid[:SIDE, :SIDE, :SIDE]
    return torch.from_numpy(np.broadcast_to(100 * z + 10 * y + x, (batch, SIDE, SIDE, SIDE)).copy())


def steps_between_neighbours(labels: torch.Tensor) -> list[int]:
    """By how much `coordinates` change along z, y and x, whichever way."""
    return [int(abs(labels.diff(dim=axis)).unique().item()) for axis in (-3, -2, -1)]


@given(st.integers(0, 1000), st.integers(0, 1000), st.booleans(), st.booleans())
@checked
def test_labels_move_exactly_as_intensities_do(seed: int, step: int, flip: bool, rotate90: bool) -> None:
    labels = random_labels(seed=seed)
    options = OFF.model_copy(update={"flip": flip, "rotate90": rotate90})
    images, moved = augment(labels[:, None].float(), labels, options, seed, step)
    assert torch.equal(images[:, 0], moved.float())
    for before, after in zip(labels, moved, strict=True):
        assert torch.equal(before.flatten().bincount(minlength=7), after.flatten().bincount(minlength=7))


def test_all_changes_together_leave_labels_whole() -> None:
    labels = random_labels()
    options = Augmentation(rotate90=True)
    for step in range(20):
        images, moved = augment(labels[:, None].float() * 10, labels, options, 0, step)
        assert moved.dtype == labels.dtype
        # Scale, shift and noise are small beside 10 per label, so intensities still say which label they belong to.
        for image, label in zip(images, moved, strict=True):
            values = torch.stack([image[0][label == n].mean() for n in range(7)])
            assert (values.diff() > 5).all()


def test_decided_by_seed_and_step_alone() -> None:
    labels = random_labels()
    images = labels[:, None].float()
    expected = augment(images, labels, Augmentation(), 5, 9)
    augment(images, labels, Augmentation(), 5, 10)
    torch.manual_seed(0)
    again = augment(images, labels, Augmentation(), 5, 9)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    for other in ((5, 10), (6, 9)):
        assert not torch.equal(augment(images, labels, Augmentation(), *other)[0], expected[0])


def test_everything_off_changes_nothing() -> None:
    labels = random_labels(shape=(4, 6, 8))
    images = torch.randn(3, 1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    for step in range(10):
        same = augment(images, labels, OFF, 0, step)
        assert torch.equal(same[0], images)
        assert torch.equal(same[1], labels)


def test_default_never_exchanges_axes() -> None:
    labels = coordinates(4)
    for step in range(60):
        _, moved = augment(labels[:, None].float(), labels, Augmentation(), 1, step)
        assert [steps_between_neighbours(crop) for crop in moved] == [[100, 10, 1]] * 4


def test_quarter_turns_keep_the_beam_axis() -> None:
    labels = coordinates(4)
    seen = set()
    for step in range(60):
        _, moved = augment(labels[:, None].float(), labels, MOVES, 1, step)
        seen |= {tuple(steps_between_neighbours(crop)) for crop in moved}
    assert seen == {(100, 10, 1), (100, 1, 10)}


def test_all_orientations_occur_and_crops_are_moved_one_by_one() -> None:
    labels = coordinates(4)
    flipped, turned, alike = set(), set(), 0
    for step in range(120):
        _, moved = augment(labels[:, None].float(), labels, OFF.model_copy(update={"flip": True}), 2, step)
        flipped |= {int(crop[0, 0, 0]) for crop in moved}
        alike += all(torch.equal(crop, moved[0]) for crop in moved)
        _, moved = augment(labels[:, None].float(), labels, MOVES, 2, step)
        turned |= {(int(crop[0, 0, 0]), int(crop[0, 0, 1])) for crop in moved}
    # Eight mirror images; sixteen orientations with the beam along z.
    assert len(flipped) == 8
    assert len(turned) == 16
    assert alike < 5


def test_intensities_are_scaled_and_shifted_within_bounds() -> None:
    images = torch.randn(8, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.zeros(8, 4, 4, 4, dtype=torch.int64)
    options = OFF.model_copy(update={"intensity_scale": 0.3, "intensity_shift": 0.2})
    scales, shifts = [], []
    for step in range(50):
        changed, _ = augment(images, labels, options, 0, step)
        for before, after in zip(images, changed, strict=True):
            scale, shift = np.polyfit(before.flatten(), after.flatten(), 1)
            np.testing.assert_allclose(after, before * scale + shift, atol=1e-9)
            scales.append(scale)
            shifts.append(shift)
    assert 0.7 <= min(scales) < 0.72
    assert 1.28 < max(scales) <= 1.3
    assert -0.2 <= min(shifts) < -0.18
    assert 0.18 < max(shifts) <= 0.2


def test_noise_is_of_up_to_the_deviation_asked_for() -> None:
    images, labels = torch.zeros(8, 1, 12, 12, 12), torch.zeros(8, 12, 12, 12, dtype=torch.int64)
    options = OFF.model_copy(update={"noise": 0.5})
    noisy = torch.cat([augment(images, labels, options, 0, step)[0] for step in range(10)])
    deviations = noisy.flatten(1).std(dim=1)
    assert deviations.max() < 0.5 * 1.05
    assert deviations.max() > 0.4
    assert deviations.min() < 0.1
    assert abs(noisy.mean()) < 0.005
    assert not torch.equal(noisy[0], noisy[1])
