"""Which crops are drawn, and how they are cut."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.sampling import Centres, Crop, CropSampler, cut, largest_jitter
from tomoscout.volumes import LabelledVolume

torch.set_num_threads(1)
checked = settings(deadline=None, max_examples=60, derandomize=True)
STILL = np.zeros(3, dtype=np.int64)


def centres(*places: tuple[int, int, int, int], jitter: np.ndarray = STILL) -> Centres:
    return Centres(np.array(places, dtype=np.int64).reshape(-1, 4), jitter)


def sampler(
    shapes: list[tuple[int, ...]],
    classes: list[Centres],
    patch: tuple[int, ...] = (4, 4, 4),
    batch_size: int = 8,
    background_fraction: float = 0.0,
    seed: int = 0,
) -> CropSampler:
    return CropSampler(
        shapes, classes, patch, batch_size=batch_size, background_fraction=background_fraction, seed=seed
    )


def drawn(source: CropSampler, steps: int) -> list[Crop]:
    return [crop for step in range(steps) for crop in source.crops(step)]


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


def test_background_fraction() -> None:
    shapes = [(40, 40, 40), (40, 40, 20)]
    classes = [centres((0, 10, 10, 10), (1, 10, 10, 10))]
    crops = drawn(sampler(shapes, classes, background_fraction=0.3), 500)
    at_picks = sum(crop.start == (8, 8, 8) for crop in crops)
    assert abs(at_picks / len(crops) - 0.7) < 0.03
    background = drawn(sampler(shapes, classes, background_fraction=1.0), 500)
    assert abs(sum(crop.volume == 0 for crop in background) / len(background) - 2 / 3) < 0.03
    assert {crop.start[0] for crop in background} == set(range(37))


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


def test_cut() -> None:
    random = np.random.default_rng(0)
    volumes = [
        LabelledVolume(
            "a run",
            torch.from_numpy(random.normal(size=shape).astype(np.float32)),
            torch.from_numpy(random.integers(0, 4, shape).astype(np.uint8)),
            255,
        )
        for shape in ((10, 12, 14), (9, 9, 9))
    ]
    crops = [Crop(0, (1, 2, 3)), Crop(1, (5, 0, 4)), Crop(0, (6, 9, 9))]
    intensities, labels = cut(volumes, crops, (4, 3, 5), torch.device("cpu"))
    assert (intensities.shape, intensities.dtype) == ((3, 1, 4, 3, 5), torch.float32)
    assert (labels.shape, labels.dtype) == ((3, 4, 3, 5), torch.int64)
    for index, crop in enumerate(crops):
        volume = volumes[crop.volume]
        for z, y, x in np.ndindex(4, 3, 5):
            place = (crop.start[0] + z, crop.start[1] + y, crop.start[2] + x)
            assert intensities[index, 0, z, y, x] == volume.intensities[place]
            assert labels[index, z, y, x] == volume.labels[place]
