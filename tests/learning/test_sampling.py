"""Which crops are drawn, and how they are cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.learning.sampling import Centres, Crop, CropSampler, cut, largest_jitter
from tomoscout.learning.volumes import LabelledVolume
from tomoscout.machine.errors import TomoscoutError

torch.set_num_threads(1)
checked = settings(deadline=None, max_examples=60, derandomize=True)
STILL = np.zeros(3, dtype=np.int64)


def centres(*places: tuple[int, int, int, int], jitter: np.ndarray = STILL) -> Centres:
    return Centres(np.array(places, dtype=np.int64).reshape(-1, 4), jitter)


def sampler(
    shapes: list[tuple[int, ...]],
    classes: list[Centres],
    patch: tuple[int, ...] = (4, 4, 4),
    shares: Sequence[float] | None = None,
    batch_size: int = 8,
    background_fraction: float = 0.0,
    seed: int = 0,
    harder_classes: float = 0.0,
) -> CropSampler:
    return CropSampler(
        shapes,
        classes,
        patch,
        shares=[1.0] * len(classes) if shares is None else shares,
        batch_size=batch_size,
        background_fraction=background_fraction,
        seed=seed,
        harder_classes=harder_classes,
    )


def drawn(source: CropSampler, steps: int, scores: Sequence[float | None] | None = None) -> list[Crop]:
    return [crop for step in range(steps) for crop in source.crops(step, scores)]


def places_in_rows(count: int) -> list[Centres]:
    """Classes of one place each in a volume of 8 × 8 × (8 × count), told apart by where a crop starts along x."""
    return [centres((0, 4, 4, 8 * number + 4)) for number in range(count)]


def fractions(crops: Sequence[Crop], count: int) -> list[float]:
    """How often each class of `places_in_rows` was drawn."""
    found = Counter(crop.start[-1] // 8 for crop in crops)
    return [found[number] / len(crops) for number in range(count)]


def test_a_step_has_its_crops_whenever_it_is_asked_for() -> None:
    shapes = [(20, 30, 40), (25, 25, 25)]
    classes = [centres((0, 5, 6, 7), (1, 10, 10, 10), jitter=np.array([1, 2, 2]))]
    first = sampler(shapes, classes, background_fraction=0.5)
    forwards = [first.crops(step) for step in range(20)]
    second = sampler(shapes, classes, background_fraction=0.5)
    backwards = [second.crops(step) for step in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert first.crops(3) == forwards[3]
    assert len({tuple(crops) for crops in forwards}) == 20
    assert sampler(shapes, classes, background_fraction=0.5, seed=1).crops(0) != forwards[0]


def test_a_step_without_scores_does_not_depend_on_earlier_ones() -> None:
    source = sampler([(8, 8, 24)], places_in_rows(3), harder_classes=0.8)
    expected = source.crops(7)
    source.crops(7, [1.0, 0.2, None])
    assert source.crops(7) == expected


sides = st.tuples(*[st.integers(1, 30)] * 3)


@given(st.data(), st.lists(sides, min_size=1, max_size=3), st.tuples(*[st.integers(1, 12)] * 3), st.floats(0, 1))
@checked
def test_crops_lie_inside_their_volume(data, shapes, patch, background_fraction) -> None:
    places = [(number, *(data.draw(st.integers(0, size - 1)) for size in shape)) for number, shape in enumerate(shapes)]
    source = sampler(
        shapes, [centres(*places, jitter=np.array([9, 0, 3]))], patch, background_fraction=background_fraction
    )
    for crop in drawn(source, 4):
        for start, size, have in zip(crop.start, patch, shapes[crop.volume], strict=True):
            # A volume thinner than the patch is padded to hold exactly one crop along that axis.
            assert 0 <= start <= max(have - size, 0)


@given(st.data(), sides, st.tuples(*[st.integers(1, 16)] * 3), st.sampled_from([0.0, 1.0, 2.0]) | st.floats(0, 6))
@checked
def test_a_particle_stays_inside_its_crop(data, shape, patch, reach) -> None:
    place = np.array([data.draw(st.integers(0, size - 1)) for size in shape])
    jitter = largest_jitter(patch, reach)
    source = sampler([shape], [centres((0, *place.tolist()), jitter=jitter)], patch)
    for crop in drawn(source, 30):
        start, end = np.array(crop.start), np.array(crop.start) + patch
        assert (start <= place).all()
        assert (place < end).all()
        # Where the patch can hold it at all, so does the crop the whole particle, as far as the volume goes.
        wide = np.array(patch) >= 2 * np.ceil(reach) + 1
        low, high = np.maximum(place - np.floor(reach), 0), np.minimum(place + np.floor(reach), np.array(shape) - 1)
        assert (start <= low)[wide].all()
        assert (high < end)[wide].all()


@given(st.data(), st.integers(2, 3))
@checked
def test_windows_lie_within_the_volume_as_near_the_place_as_can_be(data, dimensions) -> None:
    shape = tuple(data.draw(st.integers(1, 30)) for _ in range(dimensions))
    patch = tuple(data.draw(st.integers(1, 12)) for _ in range(dimensions))
    place = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    classes = [Centres(np.array([(0, *place)]), np.zeros(dimensions, dtype=np.int64))]
    for crop in drawn(sampler([shape], classes, patch), 2):
        for start, centre, size, length in zip(crop.start, place, patch, shape, strict=True):
            possible = range(max(length - size, 0) + 1)
            assert start == min(possible, key=lambda other: abs(other - (centre - size // 2)))
        assert all(type(number) is int for number in (crop.volume, *crop.start))


def test_crops_are_moved_as_far_as_the_particle_allows() -> None:
    np.testing.assert_array_equal(largest_jitter((16, 17, 4), 2.5), [4, 5, 0])
    source = sampler([(64, 64, 64)], [centres((0, 32, 32, 32), jitter=largest_jitter((16, 17, 4), 2.5))], (16, 17, 4))
    offsets = np.array([crop.start for crop in drawn(source, 100)]) + np.array([16, 17, 4]) // 2 - 32
    np.testing.assert_array_equal(offsets.min(axis=0), [-4, -5, 0])
    np.testing.assert_array_equal(offsets.max(axis=0), [4, 5, 0])


def test_every_class_is_drawn_as_often_however_many_picks_it_has() -> None:
    rare = centres((0, 8, 8, 8))
    common = centres(*[(0, 40, y, x) for y in range(8, 60, 2) for x in range(8, 60, 2)])
    none = centres()
    source = sampler([(64, 64, 64)], [rare, none, common])
    found = Counter(crop.start[0] for crop in drawn(source, 500))
    assert set(found) == {6, 38}
    assert abs(found[6] / 4000 - 0.5) < 0.03


def test_picks_of_a_class_are_drawn_as_often_as_each_other() -> None:
    places = [(0, 10, 10, x) for x in range(4, 60, 7)]
    found = Counter(crop.start for crop in drawn(sampler([(20, 20, 64)], [centres(*places)]), 1000))
    assert len(found) == len(places)
    assert max(abs(count / 8000 - 1 / len(places)) for count in found.values()) < 0.02


def test_picks_are_drawn_as_often_as_each_other_whichever_tomogram_they_are_in() -> None:
    many = [(0, 10, 10, x) for x in range(4, 64)]
    crops = drawn(sampler([(20, 20, 68), (20, 20, 20)], [centres(*many, (1, 10, 10, 10))]), 2000)
    found = Counter((crop.volume, crop.start) for crop in crops)
    assert len(found) == 61
    expected = len(crops) / 61
    assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in found.values())


def test_classes_are_drawn_by_their_shares() -> None:
    shares = [1.0, 0.0, 2.5, 0.5, 1.0]
    classes = [*places_in_rows(4), centres()]
    found = fractions(drawn(sampler([(8, 8, 32)], classes, shares=shares), 1500), 4)
    assert found[1] == 0
    np.testing.assert_allclose(found, np.array(shares[:4]) / 4, atol=0.02)


@pytest.mark.parametrize(
    ("harder", "scores", "expected"),
    [
        (0.0, [0.9, 0.1, None], [2, 1, 1]),
        (0.5, [1.0, 0.0, None], [1, 1, 1]),
        (1.0, [0.75, 0.5, None], [0.5, 0.5, 1]),
        (1.0, [1.0, 1.0, 0.0], [0, 0, 1]),
        # Where nothing is left to do, the shares alone.
        (1.0, [1.0, 1.0, 1.0], [2, 1, 1]),
        (1.0, None, [2, 1, 1]),
    ],
)
def test_harder_classes_are_drawn_more_often(harder: float, scores: list[float | None], expected: list[float]) -> None:
    source = sampler([(8, 8, 24)], places_in_rows(3), shares=[2, 1, 1], harder_classes=harder)
    found = fractions(drawn(source, 1500, scores), 3)
    np.testing.assert_allclose(found, np.array(expected) / np.sum(expected), atol=0.02)
    assert [share == 0 for share in found] == [weight == 0 for weight in expected]


def test_scores_do_not_bring_back_a_class_without_a_place() -> None:
    classes = [*places_in_rows(2), centres()]
    source = sampler([(8, 8, 16)], classes, harder_classes=1.0)
    found = fractions(drawn(source, 500, [1.0, 0.5, None]), 2)
    assert found == [0, 1]


def test_harder_classes_leave_the_background_as_it_is() -> None:
    shapes, classes = [(40, 40, 40)], [centres((0, 10, 10, 10)), centres((0, 30, 30, 30))]
    for scores in (None, [0.9, 0.1], [1.0, 1.0]):
        crops = drawn(sampler(shapes, classes, background_fraction=0.3, harder_classes=1.0), 300, scores)
        at_picks = sum(crop.start in ((8, 8, 8), (28, 28, 28)) for crop in crops)
        assert abs(at_picks / len(crops) - 0.7) < 0.03


def test_shares_that_leave_nothing_to_draw_are_refused() -> None:
    classes = [*places_in_rows(1), centres()]
    message = "train.class_sampling: 0 for every class that the training runs hold; give one of them more than 0"
    with pytest.raises(TomoscoutError) as error:
        sampler([(8, 8, 8)], classes, shares=[0, 1])
    assert str(error.value) == message
    # Nobody asks for the classes where all crops are background.
    assert len(drawn(sampler([(8, 8, 8)], classes, shares=[0, 1], background_fraction=1), 3)) == 24
    with pytest.raises(TomoscoutError, match="training: no tomogram to draw crops from"):
        sampler([], [])


def test_a_class_that_one_volume_lacks_is_drawn_from_the_others() -> None:
    classes = [centres((0, 10, 10, 10), (1, 10, 10, 10)), centres((1, 5, 5, 5))]
    crops = drawn(sampler([(20, 20, 20), (20, 20, 20)], classes), 500)
    found = Counter((crop.volume, crop.start[0]) for crop in crops)
    assert set(found) == {(0, 8), (1, 8), (1, 3)}
    assert abs(found[1, 3] / len(crops) - 0.5) < 0.03


def test_background_fraction() -> None:
    shapes = [(40, 40, 40), (40, 40, 20)]
    classes = [centres((0, 10, 10, 10), (1, 10, 10, 10))]
    crops = drawn(sampler(shapes, classes, background_fraction=0.3), 500)
    at_picks = sum(crop.start == (8, 8, 8) for crop in crops)
    assert abs(at_picks / len(crops) - 0.7) < 0.03
    background = drawn(sampler(shapes, classes, background_fraction=1.0), 500)
    assert abs(sum(crop.volume == 0 for crop in background) / len(background) - 2 / 3) < 0.03
    assert {crop.start[0] for crop in background} == set(range(37))


def test_background_is_drawn_from_volumes_without_a_particle_too() -> None:
    shapes = [(20, 20, 20), (20, 20, 60), (40, 20, 20)]
    crops = drawn(sampler(shapes, [centres((0, 10, 10, 10))], background_fraction=0.5), 1000)
    found = Counter(crop.volume for crop in crops)
    np.testing.assert_allclose([found[number] / len(crops) for number in (1, 2)], [3 / 12, 2 / 12], atol=0.01)


def test_every_voxel_is_as_likely_the_centre_of_a_background_crop() -> None:
    crops = drawn(sampler([(9, 3)], [], (1, 1)), 3000)
    found = Counter(crop.start for crop in crops)
    assert len(found) == 27
    expected = len(crops) / 27
    assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in found.values())


def test_without_any_pick_all_crops_are_background() -> None:
    crops = drawn(sampler([(30, 30, 30)], [centres(), centres()]), 50)
    assert len({crop.start for crop in crops}) > 300


def test_batches_mix_tomograms() -> None:
    classes = [centres(*[(volume, 10, 10, 10) for volume in range(5)])]
    source = sampler([(20, 20, 20)] * 5, classes, batch_size=6)
    batches = [source.crops(step) for step in range(300)]
    assert all(len({crop.volume for crop in batch}) > 1 for batch in batches)
    each = Counter(crop.volume for batch in batches for crop in batch)
    assert max(abs(each[volume] / 1800 - 0.2) for volume in range(5)) < 0.03


def labelled(shape: tuple[int, ...], kind: type = np.float32, stored: type = np.uint8, seed: int = 0) -> LabelledVolume:
    random = np.random.default_rng(seed)
    labels = random.choice([0, 1, 2, np.iinfo(stored).max], shape).astype(stored)
    intensities = random.normal(size=shape).astype(kind)
    return LabelledVolume(
        "a run", torch.from_numpy(intensities)[None], torch.from_numpy(labels), int(np.iinfo(stored).max)
    )


def check_cut(volumes: Sequence[LabelledVolume], crops: Sequence[Crop], patch: tuple[int, ...]) -> None:
    intensities, labels = cut(volumes, crops, patch, torch.device("cpu"))
    assert (intensities.shape, intensities.dtype) == ((len(crops), 1, *patch), torch.float32)
    assert (labels.shape, labels.dtype) == ((len(crops), *patch), torch.int64)
    for index, crop in enumerate(crops):
        volume = volumes[crop.volume]
        for place in np.ndindex(patch):
            source = tuple(np.add(crop.start, place))
            assert intensities[index, 0][place] == volume.intensities[0][source]
            assert labels[index][place] == volume.labels[source]


def test_cut() -> None:
    volumes = [labelled((10, 12, 14)), labelled((9, 9, 9), seed=1)]
    check_cut(volumes, [Crop(0, (1, 2, 3)), Crop(1, (5, 0, 4)), Crop(0, (6, 9, 9))], (4, 3, 5))
    check_cut([labelled((10, 12))], [Crop(0, (6, 1)), Crop(0, (0, 0))], (4, 3))


def test_cut_from_volumes_stored_in_different_ways(tmp_path: Path) -> None:
    mapped = labelled((8, 7, 6), np.float16)
    arrays = []
    for name, values in (("intensities", mapped.intensities.numpy()), ("labels", mapped.labels.numpy())):
        values.tofile(tmp_path / name)
        arrays.append(torch.from_numpy(np.memmap(tmp_path / name, values.dtype, "r+", shape=values.shape)))
    volumes = [
        LabelledVolume("on disk", arrays[0], arrays[1], mapped.ignore),
        labelled((6, 6, 6), np.float16),
        labelled((6, 6, 6), stored=np.int32),
    ]
    check_cut(volumes, [Crop(0, (4, 3, 1)), Crop(1, (0, 2, 0)), Crop(2, (1, 0, 2)), Crop(0, (0, 0, 0))], (4, 4, 4))


def test_cutting_leaves_volumes_alone() -> None:
    volume = labelled((4, 4, 4))
    kept = volume.intensities.clone(), volume.labels.clone()
    for cropped in cut([volume], [Crop(0, (0, 0, 0))], (4, 4, 4), torch.device("cpu")):
        cropped.zero_()
    assert torch.equal(volume.intensities, kept[0])
    assert torch.equal(volume.labels, kept[1])


@pytest.mark.gpu
def test_cut_onto_a_gpu_from_anywhere() -> None:
    here = [labelled((9, 9, 9), np.float16), labelled((9, 9, 9), stored=np.int32, seed=1)]
    there = LabelledVolume("there", here[0].intensities.cuda(), here[0].labels.cuda(), here[0].ignore)
    crops = [Crop(0, (1, 2, 3)), Crop(1, (5, 0, 4)), Crop(0, (0, 0, 0))]
    expected = cut(here, crops, (4, 4, 4), torch.device("cpu"))
    for volumes in (here, [there, here[1]]):
        found = cut(volumes, crops, (4, 4, 4), torch.device("cuda"))
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
