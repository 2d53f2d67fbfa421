"""Random changes to crops: labels and intensities move together, and nothing else happens to labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from tomoscout.learning.augmentations import CHANGES, Augmentation, search_space
from tomoscout.learning.augmentations.base import Change
from tomoscout.learning.augmentations.batch import augment
from tomoscout.learning.augmentations.mixup import MIXUP_ALPHA
from tomoscout.learning.augmentations.turn import resample
from tomoscout.machine.errors import TomoscoutError

torch.set_num_threads(1)
checked = settings(deadline=None, max_examples=40, derandomize=True)
EVERYTHING_OFF = dict.fromkeys(Augmentation.model_fields, 0) | {"probability": 1}
EVERYTHING_ON = {
    "rotate90": True,
    "rotate": 30,
    "tilt": 10,
    "zoom": 0.2,
    "contrast": 0.3,
    "blur": 1,
    "mixup": 0.5,
}
SIDE = 6


def only(**options: float) -> Augmentation:
    """These options, all others off."""
    return Augmentation(**(EVERYTHING_OFF | options))


def random_labels(batch: int = 3, shape: tuple[int, ...] = (SIDE, SIDE, SIDE), seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 7, (batch, *shape)))


def random_images(batch: int = 3, shape: tuple[int, ...] = (SIDE, SIDE, SIDE), seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, 1, *shape)).astype(np.float32))


def changed(images: torch.Tensor, options: Augmentation, step: int, seed: int = 0) -> torch.Tensor:
    """The intensities alone."""
    return augment(images, torch.zeros(images[:, 0].shape, dtype=torch.int64), options, seed, step)[0]


def coordinates(batch: int) -> torch.Tensor:
    """A batch of crops in which a voxel's label says where it was: 100 z + 10 y + x."""
    z, y, x = np.ogrid[:SIDE, :SIDE, :SIDE]
    return torch.from_numpy(np.broadcast_to(100 * z + 10 * y + x, (batch, SIDE, SIDE, SIDE)).copy())


def steps_between_neighbours(labels: torch.Tensor) -> list[int]:
    """By how much `coordinates` change along z, y and x, whichever way."""
    return [int(abs(labels.diff(dim=axis)).unique().item()) for axis in (-3, -2, -1)]


def drawn_matrices(options: Augmentation, steps: int, shape: tuple[int, ...] = (9, 9, 9), batch: int = 8) -> np.ndarray:
    """The matrices that crops are resampled with (crops, axis moved from, axis), read off the slopes of ramps."""
    ramps = np.indices(shape, dtype=np.float64)
    middle = tuple(size // 2 for size in shape)
    found = []
    for step in range(steps):
        slopes = []
        for ramp in ramps:
            image = changed(torch.from_numpy(ramp).expand(batch, 1, *shape), options, step)[:, 0].numpy()
            # Linear interpolation is exact on a ramp, and the middle is far from the mirrored borders.
            beside = [(slice(None), *np.add(middle, unit)) for unit in np.eye(len(shape), dtype=int)]
            slopes.append([image[place] - image[:, *middle] for place in beside])
        found.append(np.moveaxis(np.array(slopes), -1, 0))
    return np.concatenate(found)


def mirrored(place: int, size: int) -> int:
    """The voxel that a voxel beyond the border is the mirror image of."""
    while size > 1 and not 0 <= place < size:
        place = -place if place < 0 else 2 * (size - 1) - place
    return place if size > 1 else 0


def resampled_slowly(image: np.ndarray, labels: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxel by voxel, corner by corner."""
    shape = image.shape
    centre = (np.array(shape) - 1) / 2
    images, moved = np.zeros(shape), np.zeros_like(labels)
    for index in np.ndindex(shape):
        place = centre + matrix @ (np.array(index) - centre)
        low = np.floor(place).astype(int)
        for corner in np.ndindex((2,) * len(shape)):
            weight = np.prod(np.where(corner, place - low, 1 - (place - low)))
            images[index] += weight * image[tuple(map(mirrored, low + corner, shape))]
        moved[index] = labels[tuple(map(mirrored, np.round(place).astype(int), shape))]
    return images, moved


@given(st.integers(0, 1000), st.integers(0, 1000), st.booleans(), st.booleans(), st.sampled_from([2, 3]))
@checked
def test_labels_move_exactly_as_intensities_do(
    seed: int, step: int, flip: bool, rotate90: bool, dimensions: int
) -> None:
    labels = random_labels(shape=(SIDE,) * dimensions, seed=seed)
    images, (moved,) = augment(labels[:, None].float(), labels, only(flip=flip, rotate90=rotate90), seed, step)
    assert torch.equal(images[:, 0], moved.float())
    for before, after in zip(labels, moved, strict=True):
        assert torch.equal(before.flatten().bincount(minlength=7), after.flatten().bincount(minlength=7))


@given(st.data(), st.integers(0, 1000), st.sampled_from([2, 3]), st.floats(0, 1))
@checked
def test_all_changes_together_invent_no_label(data, step: int, dimensions: int, probability: float) -> None:
    side = data.draw(st.integers(1, 9))
    shape = (*(data.draw(st.integers(1, 9)) for _ in range(dimensions - 2)), side, side)
    # Labels far apart, so that any mean of two would show; padding is not representable in float32.
    values = torch.tensor([0, 3, 1000, 2**31 - 1])
    labels = values[random_labels(shape=shape, seed=step) % 4]
    images = random_images(shape=shape, seed=step)
    options = Augmentation(**(EVERYTHING_ON | {"tilt": 10 * (dimensions == 3), "probability": probability}))
    kept = images.clone(), labels.clone()
    after, (first, second, share) = augment(images, labels, options, 0, step)
    assert after.shape == images.shape
    assert after.dtype == torch.float32
    assert after.isfinite().all()
    assert first.dtype == second.dtype == torch.int64
    for row in range(3):
        assert set(first[row].unique().tolist()) <= set(labels[row].unique().tolist())
        assert any(torch.equal(second[row], other) for other in first)
    assert ((share >= 0.5) & (share <= 1)).all()
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])


def test_decided_by_seed_and_step_alone() -> None:
    labels, images = random_labels(), random_images()
    options = Augmentation(**EVERYTHING_ON)

    def flat(seed: int, step: int) -> list[torch.Tensor]:
        inputs, targets = augment(images, labels, options, seed, step)
        return [inputs, *targets]

    expected = flat(5, 9)
    flat(5, 10)
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(expected, flat(5, 9), strict=True))
    for other in ((5, 10), (6, 9)):
        assert not torch.equal(flat(*other)[0], expected[0])


@pytest.mark.parametrize("option", ["rotate", "tilt", "zoom", "contrast", "noise", "blur", "intensity_shift"])
def test_an_option_leaves_what_others_draw_as_it_was(option: str) -> None:
    labels = coordinates(4)
    images = random_images(4)
    quiet, options = only(flip=True, mixup=0.5), only(flip=True, mixup=0.5, **{option: 1e-6})
    for step in range(5):
        before, after = augment(images, labels, quiet, 0, step), augment(images, labels, options, 0, step)
        torch.testing.assert_close(before[0], after[0], atol=1e-4, rtol=0)
        assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))


def test_everything_off_gives_back_what_was_given() -> None:
    labels, images = random_labels(shape=(4, 6, 8)), random_images(shape=(4, 6, 8))
    for step in range(10):
        same, (alike,) = augment(images, labels, only(), 0, step)
        assert same is images
        assert alike is labels


def test_defaults_but_for_turns_never_exchange_axes() -> None:
    labels = coordinates(4)
    options = Augmentation(rotate=0, tilt=0)
    for step in range(60):
        _, (moved,) = augment(labels[:, None].float(), labels, options, 1, step)
        assert [steps_between_neighbours(crop) for crop in moved] == [[100, 10, 1]] * 4


def wedge(side: int) -> np.ndarray:
    """Which frequencies a tilt series of ± 60° about y does not see."""
    z, _, x = np.meshgrid(*[np.fft.fftfreq(side)] * 3, indexing="ij")
    return abs(z) > np.tan(np.deg2rad(60)) * abs(x)


def share_in_wedge(images: torch.Tensor) -> np.ndarray:
    """The share of each crop's variance at frequencies in the wedge."""
    power = abs(np.fft.fftn(images[:, 0].double().numpy(), axes=(1, 2, 3))) ** 2
    power[:, 0, 0, 0] = 0
    return power[:, wedge(images.shape[-1])].sum(axis=1) / power.sum(axis=(1, 2, 3))


def wedge_filtered(side: int) -> torch.Tensor:
    noise = np.fft.fftn(np.random.default_rng(0).normal(size=(8, side, side, side)), axes=(1, 2, 3))
    return torch.from_numpy(np.fft.ifftn(noise * ~wedge(side), axes=(1, 2, 3)).real[:, None])


def test_defaults_but_for_turns_keep_the_missing_wedge_where_it_is() -> None:
    images = wedge_filtered(24)
    assert share_in_wedge(images).max() < 1e-12
    for step in range(10):
        assert share_in_wedge(changed(images, Augmentation(rotate=0, tilt=0, noise=0), step)).max() < 1e-12
        # Noise is white: it fills the wedge with what it has of it itself, and no more.
        assert share_in_wedge(changed(images, Augmentation(rotate=0, tilt=0), step)).max() < 0.1**2
    # Those that are off by default do carry it to another axis.
    assert share_in_wedge(changed(images, only(rotate90=True), 0)).max() > 0.2
    assert share_in_wedge(changed(images, only(rotate=90), 0)).max() > 0.1
    assert share_in_wedge(changed(images, only(tilt=45), 0)).max() > 0.1


def test_default_turns_lean_the_missing_wedge_and_no_more() -> None:
    """What the default turns bring into the wedge's middle is little beside what a quarter turn does."""
    images = wedge_filtered(24)
    z, y, x = np.meshgrid(*[np.fft.fftfreq(24)] * 3, indexing="ij")
    # Ten degrees about the beam and five about y and x, each way: what is left empty of the wedge at any of them.
    middle = abs(z) > np.tan(np.deg2rad(60 + 5)) * (abs(x) + np.tan(np.deg2rad(10 + 5)) * abs(y))
    middle &= np.sqrt(x**2 + y**2 + z**2) < 0.25

    def share(changed_images: torch.Tensor) -> float:
        power = abs(np.fft.fftn(changed_images[:, 0].double().numpy(), axes=(1, 2, 3))) ** 2
        power[:, 0, 0, 0] = 0
        return float(power[:, middle].mean() / power[:, np.sqrt(x**2 + y**2 + z**2) < 0.25].mean())

    assert share(images) < 1e-12
    turned = np.mean([share(changed(images, Augmentation(noise=0), step)) for step in range(10)])
    # Not nothing, for what is turned in from beyond the crop is a mirror image.
    assert turned < 0.1
    assert turned < 0.4 * share(changed(images, only(rotate90=True), 0))


def test_quarter_turns_keep_the_beam_axis() -> None:
    labels = coordinates(4)
    seen = set()
    for step in range(60):
        _, (moved,) = augment(labels[:, None].float(), labels, only(flip=True, rotate90=True), 1, step)
        seen |= {tuple(steps_between_neighbours(crop)) for crop in moved}
    assert seen == {(100, 10, 1), (100, 1, 10)}


def test_all_orientations_occur_and_crops_are_moved_one_by_one() -> None:
    labels = coordinates(4)
    flipped, turned, alike = set(), set(), 0
    for step in range(120):
        _, (moved,) = augment(labels[:, None].float(), labels, only(flip=True), 2, step)
        flipped |= {int(crop[0, 0, 0]) for crop in moved}
        alike += all(torch.equal(crop, moved[0]) for crop in moved)
        _, (moved,) = augment(labels[:, None].float(), labels, only(flip=True, rotate90=True), 2, step)
        turned |= {(int(crop[0, 0, 0]), int(crop[0, 0, 1])) for crop in moved}
    # Eight mirror images; sixteen orientations with the beam along z.
    assert len(flipped) == 8
    assert len(turned) == 16
    assert alike < 5


def random_matrix(seed: int, dimensions: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.normal(size=(dimensions, dimensions)))
    return rotation * random.uniform(0.7, 1.4)


@pytest.mark.parametrize("shape", [(5, 7, 6), (1, 8, 8), (2, 3, 9), (9, 8)])
def test_resampling_agrees_with_a_slow_reference(shape: tuple[int, ...]) -> None:
    images, labels = random_images(2, shape).double(), random_labels(2, shape)
    matrices = np.stack([random_matrix(seed, len(shape)) for seed in range(2)])
    sampled, moved = resample(images, labels, matrices)
    for row in range(2):
        image, label = resampled_slowly(images[row, 0].numpy(), labels[row].numpy(), matrices[row])
        np.testing.assert_allclose(sampled[row, 0], image, atol=1e-12)
        np.testing.assert_array_equal(moved[row], label)


def test_a_rotated_crop_is_resampled_once_with_its_label() -> None:
    shape = (6, 8, 7)
    images, labels = random_images(2, shape).double(), random_labels(2, shape)
    options = only(rotate=40, tilt=15, zoom=0.2)
    matrices = drawn_matrices(options, 1, batch=2)
    sampled, (moved,) = augment(images, labels, options, 0, 0)
    for row in range(2):
        image, label = resampled_slowly(images[row, 0].numpy(), labels[row].numpy(), matrices[row])
        np.testing.assert_allclose(sampled[row, 0], image, atol=1e-10)
        np.testing.assert_array_equal(moved[row], label)


def test_rotation_is_about_the_beam_within_bounds() -> None:
    for shape in ((3, 9, 9), (9, 9)):
        matrices = drawn_matrices(only(rotate=50), 30, shape)
        if len(shape) == 3:
            np.testing.assert_allclose(matrices[:, 0], [[1, 0, 0]] * 240, atol=1e-9)
            matrices = matrices[:, 1:, 1:]
        angles = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
        np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), [np.eye(2)] * 240, atol=1e-9)
        assert -50 <= angles.min() < -48
        assert 48 < angles.max() <= 50
        assert abs(angles.mean()) < 5


def test_tilt_is_about_y_and_x_within_bounds() -> None:
    matrices = drawn_matrices(only(tilt=20), 30)
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), [np.eye(3)] * 240, atol=1e-9)
    # One turn about y after one about x, and none about z.
    np.testing.assert_allclose(matrices[:, 1, 2], 0, atol=1e-9)
    about_x = np.rad2deg(np.arctan2(matrices[:, 1, 0], matrices[:, 1, 1]))
    about_y = np.rad2deg(np.arctan2(-matrices[:, 0, 2], matrices[:, 2, 2]))
    for angles in (about_x, about_y):
        assert -20 <= angles.min() < -19
        assert 19 < angles.max() <= 20
    assert abs(np.corrcoef(about_x, about_y)[0, 1]) < 0.2


def test_zoom_is_within_bounds() -> None:
    factors = 1 / drawn_matrices(only(zoom=0.3), 30)[:, [0, 1, 2], [0, 1, 2]]
    np.testing.assert_allclose(factors, factors[:, [0]].repeat(3, axis=1), atol=1e-9)
    assert 0.7 <= factors.min() < 0.71
    assert 1.29 < factors.max() <= 1.3
    # A factor above 1 magnifies: an object covers more voxels.
    ball = torch.zeros(1, 1, 15, 15, 15)
    ball[..., 5:10, 5:10, 5:10] = 1
    for step in range(5):
        larger = changed(ball, only(zoom=0.3), step).sum() > ball.sum()
        assert larger == (drawn_matrices(only(zoom=0.3), step + 1, batch=1)[step, 0, 0] < 1)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((8, 8), {"tilt": 5}, "augmentation.tilt needs crops of three dimensions, found (8, 8)"),
        ((8, 8, 6), {"rotate90": True}, "augmentation.rotate90 needs crops as wide as they are high, found (8, 8, 6)"),
    ],
)
def test_what_does_not_fit_the_crops_is_refused(shape: tuple[int, ...], options: dict, message: str) -> None:
    with pytest.raises(TomoscoutError) as error:
        augment(random_images(shape=shape), random_labels(shape=shape), only(**options), 0, 0)
    assert str(error.value) == message


def test_intensities_are_scaled_and_shifted_within_bounds() -> None:
    images = random_images(8, (4, 4, 4)).double()
    options = only(intensity_scale=0.3, intensity_shift=0.2)
    scales, shifts = [], []
    for step in range(50):
        for before, after in zip(images, changed(images, options, step), strict=True):
            scale, shift = np.polyfit(before.flatten(), after.flatten(), 1)
            np.testing.assert_allclose(after, before * scale + shift, atol=1e-9)
            scales.append(scale)
            shifts.append(shift)
    assert 0.7 <= min(scales) < 0.72
    assert 1.28 < max(scales) <= 1.3
    assert -0.2 <= min(shifts) < -0.18
    assert 0.18 < max(shifts) <= 0.2


def test_contrast_is_a_power_that_keeps_mean_and_deviation() -> None:
    images = random_images(8, (5, 5, 5)).double() * 3 + 7
    powers = []
    for step in range(30):
        for before, after in zip(images, changed(images, only(contrast=0.4), step), strict=True):
            relative, raised = ((crop - crop.min()) / (crop.max() - crop.min()) for crop in (before, after))
            inside = (relative > 0) & (relative < 1)
            power = raised[inside].log() / relative[inside].log()
            np.testing.assert_allclose(power, power.median(), atol=1e-6)
            powers.append(float(power.median()))
            np.testing.assert_allclose([after.mean(), after.std()], [before.mean(), before.std()], rtol=1e-9)
    assert 0.6 <= min(powers) < 0.62
    assert 1.38 < max(powers) <= 1.4
    constant = torch.full((2, 1, 4, 4, 4), 3.0)
    assert torch.equal(changed(constant, only(contrast=0.4), 0), constant)


def test_noise_is_of_up_to_the_deviation_asked_for() -> None:
    images = torch.zeros(8, 1, 12, 12, 12)
    noisy = torch.cat([changed(images, only(noise=0.5), step) for step in range(10)])
    deviations = noisy.flatten(1).std(dim=1)
    assert deviations.max() < 0.5 * 1.05
    assert deviations.max() > 0.4
    assert deviations.min() < 0.1
    assert abs(noisy.mean()) < 0.005
    assert not torch.equal(noisy[0], noisy[1])


def test_blur_is_a_gaussian_of_up_to_the_width_asked_for() -> None:
    side, batch = 25, 8
    impulse = torch.zeros(batch, 1, side, side, side)
    impulse[..., side // 2, side // 2, side // 2] = 1
    images = random_images(batch, (side,) * 3)
    widths = []
    for step in range(4):
        blurred, spread = changed(images, only(blur=1.5), step), changed(impulse, only(blur=1.5), step)[:, 0].numpy()
        for row in range(batch):
            profile = spread[row].sum(axis=(1, 2))
            width = np.sqrt(((np.arange(side) - side // 2) ** 2 * profile).sum() / profile.sum())
            widths.append(width)
            expected = ndimage.gaussian_filter(images[row, 0].numpy(), width, truncate=6)
            middle = (slice(8, -8),) * 3
            if width > 0.8:  # Sampled at voxels, a narrower one is not as wide as its formula says.
                np.testing.assert_allclose(blurred[row, 0].numpy()[middle], expected[middle], atol=1e-4)
    assert max(widths) < 1.51
    assert max(widths) > 1.3
    assert min(widths) < 0.4
    constant = torch.full((2, 1, 3, 20, 1), 4.0)
    torch.testing.assert_close(changed(constant, only(blur=5), 0), constant)


@pytest.mark.parametrize("option", ["rotate", "tilt", "zoom", "intensity_scale", "contrast", "noise", "blur"])
def test_probability_is_the_share_of_crops_changed(option: str) -> None:
    images = random_images(50)
    size = {"rotate": 30.0, "tilt": 30.0, "blur": 5.0}.get(option, 0.5)
    count = 0
    for step in range(8):
        after = changed(images, only(probability=0.3, **{option: size}), step)
        count += sum(not torch.equal(a, b) for a, b in zip(images, after, strict=True))
        assert torch.equal(changed(images, only(probability=0, **{option: size}), step), images)
    assert abs(count / 400 - 0.3) < 0.07


def mixed(steps: int, batch: int, mixup: float) -> Iterator[tuple[torch.Tensor, ...]]:
    for step in range(steps):
        images = random_images(batch, (2, 3, 4), step)
        labels = random_labels(batch, (2, 3, 4), step)
        after, targets = augment(images, labels, only(mixup=mixup), 0, step)
        yield (images, labels, after, *targets)


def test_mixup_blends_intensities_and_tells_both_labels_and_the_share() -> None:
    shares = []
    for images, labels, after, first, second, share in mixed(60, 6, 0.4):
        assert torch.equal(first, labels)
        assert (share.shape, share.dtype) == ((6,), torch.float32)
        for row in range(6):
            partner = next(other for other in range(6) if torch.equal(second[row], labels[other]))
            assert (partner == row) == (share[row] == 1) or share[row] > 1 - 1e-6
            expected = share[row] * images[row] + (1 - share[row]) * images[partner]
            torch.testing.assert_close(after[row], expected, atol=1e-6, rtol=0)
            shares.append(np.nan if partner == row else float(share[row]))
    shares = np.array(shares)
    assert abs(np.isfinite(shares).mean() - 0.4) < 0.07
    blended = shares[np.isfinite(shares)]
    assert blended.min() >= 0.5
    expected = stats.beta(MIXUP_ALPHA, MIXUP_ALPHA).expect(lambda value: np.maximum(value, 1 - value))
    assert abs(blended.mean() - expected) < 0.05


def test_mixup_takes_every_other_crop_of_the_batch_as_partner() -> None:
    pairs = set()
    for _, labels, _, _, second, _ in mixed(40, 4, 1.0):
        for row in range(4):
            pairs.add((row, next(other for other in range(4) if torch.equal(second[row], labels[other]))))
    assert pairs == {(row, other) for row in range(4) for other in range(4) if row != other}


def test_a_crop_alone_is_not_blended() -> None:
    for images, labels, after, first, second, share in mixed(5, 1, 1.0):
        assert torch.equal(after, images)
        assert torch.equal(first, labels)
        assert torch.equal(second, labels)
        assert share.tolist() == [1]


@pytest.mark.gpu
def test_a_gpu_draws_what_a_cpu_draws() -> None:
    labels, images = random_labels(6), random_images(6)
    options = Augmentation(**(EVERYTHING_ON | {"noise": 0}))
    for step in range(5):
        on_cpu, targets = augment(images, labels, options, 0, step)
        on_gpu, others = augment(images.cuda(), labels.cuda(), options, 0, step)
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-3, rtol=0)
        # A voxel half way between two may be rounded to either.
        assert all((a == b.cpu()).float().mean() > 0.999 for a, b in zip(targets, others, strict=True))


@pytest.mark.parametrize("space", [(SIDE, SIDE, SIDE), (SIDE, SIDE)], ids=["3D", "2D"])
@pytest.mark.parametrize("seed", range(4))
def test_channels_are_moved_and_scaled_together(space: tuple[int, ...], seed: int) -> None:
    """Each channel of a crop comes out as if it were alone, but for the noise."""
    options = Augmentation(**(EVERYTHING_ON | {"noise": 0, "tilt": 10 if len(space) == 3 else 0}))
    first, second = (random_images(shape=space, seed=number) for number in (seed, seed + 100))
    labels = random_labels(shape=space)
    both, targets = augment(torch.cat([first, 5 * second], 1), labels, options, seed, 3)
    assert both.shape == (3, 2, *space)
    for channel, image in enumerate([first, 5 * second]):
        alone, expected = augment(image, labels, options, seed, 3)
        torch.testing.assert_close(both[:, channel : channel + 1], alone)
        assert all(torch.equal(target, other) for target, other in zip(targets, expected, strict=True))


def test_channels_get_noise_of_their_own() -> None:
    images = torch.zeros(4, 2, SIDE, SIDE)
    noise = augment(images, torch.zeros(4, SIDE, SIDE), only(noise=1.0), 0, 0)[0]
    assert noise.any() and not torch.equal(noise[:, 0], noise[:, 1])


def test_what_is_searched_of_augmentation_is_said_by_each() -> None:
    """In this order: proposals of a study depend on it."""
    assert list(search_space()) == [f"augmentation.{name}" for name in ("probability", "rotate", "tilt", "noise")]
    assert {name.removeprefix("augmentation.") for name in search_space()} <= set(Augmentation.model_fields)


def test_every_augmentation_has_its_place_in_the_order() -> None:
    assert {kind for kind in Augmentation.__mro__ if issubclass(kind, Change)} - {Change, Augmentation} == set(CHANGES)
