"""Targets against a reference that goes voxel by voxel, and every way to say what they are made of."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import copick
import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from support.project import RADII, SHAPE, SmallProject, error_of, succeeded
from tomoscout.data.labels import label_type
from tomoscout.machine.files import digest_folder
from tomoscout.tasks.picking.spheres import Spheres, rasterise
from tomoscout.tasks.picking.targets import align, resample

Sphere = tuple[tuple[float, float, float], float, int]
"""Centre z, y, x and radius in voxels; label."""

checked = settings(deadline=None, derandomize=True)


# The reference


def relative_distance(voxel: tuple[int, ...], sphere: Sphere) -> float:
    (z, y, x), radius, _ = sphere
    return ((voxel[0] - z) ** 2 + (voxel[1] - y) ** 2 + (voxel[2] - x) ** 2) / radius**2


def slow_labels(shape: tuple[int, ...], spheres: Sequence[Sphere], masks: Sequence[tuple[int, np.ndarray]]):
    """Labels; how many voxels every sphere got; which spheres share a voxel with one of another label."""
    labels = np.zeros(shape, dtype=int)
    voxels, met = [0] * len(spheres), [False] * len(spheres)
    for voxel in np.ndindex(*shape):
        for label, mask in masks:
            if mask[voxel] and not labels[voxel]:
                labels[voxel] = label
        distances = [relative_distance(voxel, sphere) for sphere in spheres]
        there = [number for number, distance in enumerate(distances) if distance <= 1]
        if there:
            winner = min(there, key=lambda number: distances[number])
            labels[voxel] = spheres[winner][2]
            voxels[winner] += 1
            for number in there:
                met[number] |= any(spheres[other][2] != spheres[number][2] for other in there)
    return labels, voxels, met


def as_spheres(spheres: Sequence[Sphere]) -> Spheres:
    return Spheres(
        np.array([centre for centre, _, _ in spheres], dtype=float).reshape(-1, 3),
        np.array([radius for _, radius, _ in spheres], dtype=float),
        np.array([label for _, _, label in spheres], dtype=np.int64),
    )


# Quarter voxels make ties; other numbers make rounding matter; the range reaches beyond every volume.
coordinates = st.integers(-16, 56).map(lambda quarter: quarter / 4) | st.floats(-4, 14).map(lambda v: round(v, 1))
centres = st.tuples(coordinates, coordinates, coordinates)
radii = st.sampled_from([0.4, 1.0, 1.5, 2.0, 2.3, 3.0, 4.1, 5.0])


@st.composite
def sphere_lists(draw: st.DrawFn) -> list[Sphere]:
    """Up to seven spheres, some of them at the centre of another."""
    places = draw(st.lists(centres, min_size=1, max_size=5))
    chosen = draw(st.lists(st.sampled_from(places), max_size=7))
    return [(centre, draw(radii), draw(st.integers(1, 3))) for centre in chosen]


@given(st.tuples(*[st.integers(3, 9)] * 3), sphere_lists(), st.integers(0, 2**16))
# The first and the last meet only where the second, of the first's label, is nearer than both.
@example((1, 1, 9), [((0.0, 0.0, 0.0), 3.0, 1), ((0.0, 0.0, 3.0), 3.0, 1), ((0.0, 0.0, 5.0), 3.0, 2)], 0)
@settings(checked, max_examples=150)
def test_spheres_equal_the_reference(shape: tuple[int, int, int], spheres: list[Sphere], seed: int) -> None:
    below = np.random.default_rng(seed).integers(0, 3, size=shape, dtype=np.uint8) * 100
    labels = below.copy()
    voxels, met = rasterise(labels, as_spheres(spheres))
    expected, expected_voxels, expected_met = slow_labels(shape, spheres, [(100, below == 100), (200, below == 200)])
    np.testing.assert_array_equal(labels, expected)
    assert voxels.tolist() == expected_voxels
    assert met.tolist() == expected_met


@pytest.mark.parametrize(
    ("first", "second"),
    # Centre and radius along x. Each pair touches in one voxel, and centres lie further apart than the radii add up to
    # in floating point.
    [((-1.3, 2.3), (1.8, 0.8)), ((1.7, 5.3), (11.4, 4.4)), ((-1.6, 4.6), (4.8, 1.8)), ((-0.39, 5.39), (8.67, 3.67))],
)
def test_rounding_does_not_part_spheres_that_touch(first: tuple[float, float], second: tuple[float, float]) -> None:
    for pair in ((first, second), (second, first)):
        spheres: list[Sphere] = [((0, 0, centre), radius, label) for label, (centre, radius) in enumerate(pair, 1)]
        labels = np.zeros((1, 1, 12), dtype=np.uint8)
        voxels, met = rasterise(labels, as_spheres(spheres))
        expected, expected_voxels, expected_met = slow_labels(labels.shape, spheres, [])
        np.testing.assert_array_equal(labels, expected)
        assert voxels.tolist() == expected_voxels
        assert met.tolist() == expected_met == [True, True]


@st.composite
def pick_sets(draw: st.DrawFn) -> dict[str, list[tuple[float, float, float]]]:
    """Picks x, y, z in Å by object, most of them inside the volume, some beyond its faces."""
    place = st.tuples(*[st.integers(-30, 10 * size + 30).map(float) for size in reversed(SHAPE)])
    return {name: draw(st.lists(place, max_size=4)) for name in RADII}


def inside(position: Sequence[float], spacing: float = 10.0) -> bool:
    """Whether the nearest voxel is one of the volume's."""
    ends = [10 * size - spacing / 2 for size in reversed(SHAPE)]
    return all(-spacing / 2 <= value < end for value, end in zip(position, ends, strict=True))


@given(pick_sets(), st.integers(0, 2**16), st.sampled_from([0.5, 0.8, 1.3]))
@settings(checked, max_examples=8)
def test_targets_equal_the_reference_through_copick(picks: dict, seed: int, scale: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small = SmallProject(Path(folder))
        small.add_run("a")
        picks = picks | {"ribosome": [*picks["ribosome"], (100.0, 90.0, 80.0)]}
        for name, positions in picks.items():
            small.add_picks("a", f"{name}:expert/0", positions)
        random = np.random.default_rng(seed)
        masks = {name: random.random(SHAPE) < 0.3 for name in ("membrane", "vesicle")}
        for name, mask in masks.items():
            small.add_segmentation("a", f"{name}:expert/0", mask)
        order = ["proteasome", "ribosome", "ferritin"]
        small.configure(
            targets={
                "picks": [f"{name}:expert/0" for name in order],
                "segmentations": ["membrane:expert/0", "vesicle:expert/0"],
                "radius_scale": scale,
            }
        )
        succeeded(small.make_targets())

        spheres: list[Sphere] = [
            ((z / 10, y / 10, x / 10), RADII[name] * scale / 10, label)
            for label, name in enumerate(order, 1)
            for x, y, z in picks[name]
            if inside((x, y, z))
        ]
        expected, voxels, met = slow_labels(SHAPE, spheres, [(4, masks["membrane"]), (5, masks["vesicle"])])
        np.testing.assert_array_equal(through_copick(small, "a"), expected)

        classes = {facts["name"]: facts for facts in small.target("a")["classes"]}
        for label, name in enumerate(order, 1):
            own = [number for number, sphere in enumerate(spheres) if sphere[2] == label]
            assert classes[name]["voxels"] == sum(voxels[number] for number in own) == np.sum(expected == label)
            assert classes[name]["picks"]["used"] == len(own)
            assert classes[name]["picks"]["outside"] == len(picks[name]) - len(own)
            assert classes[name]["picks"]["overlapping"] == sum(met[number] for number in own)
        first = masks["membrane"]
        for label, name, mask in ((4, "membrane", first), (5, "vesicle", masks["vesicle"] & ~first)):
            assert classes[name]["voxels"] == np.sum(expected == label)
            assert classes[name]["voxels_lost_to_particles"] == mask.sum() - np.sum(expected == label)


def through_copick(small: SmallProject, run: str, spacing: float = 10.0) -> np.ndarray:
    """A target as any other tool reads it, with classes numbered in their order."""
    run_found = copick.from_file(str(small.copick)).get_run(run)
    [segmentation] = run_found.get_segmentations(name="targets", voxel_size=spacing)
    assert segmentation.is_multilabel
    assert (segmentation.user_id, segmentation.session_id) == ("tomoscout", "1")
    classes = dict(zarr.open(segmentation.zarr(), "r").attrs)["tomoscout"]["classes"]
    stored = segmentation.numpy()
    labels = np.zeros_like(stored)
    for entry in classes:
        labels[stored == entry["stored_label"]] = entry["label"]
    assert not (labels[stored > 0] == 0).any()
    return labels


# Labels


def test_labels_are_contiguous_in_the_order_given(small: SmallProject) -> None:
    small.add_run("a")
    for number, name in enumerate(RADII):
        small.add_picks("a", f"{name}:expert/0", [(100.0, 100.0, 60.0 + 60 * number)])
    order = ["ferritin", "ribosome", "proteasome"]
    small.configure(targets={"picks": order, "radius_scale": 0.5})
    succeeded(small.make_targets())
    target = through_copick(small, "a")
    assert target.dtype == np.uint8
    for label, name in enumerate(order, 1):
        assert target[6 + 6 * list(RADII).index(name), 10, 10] == label
    facts = [(c["name"], c["label"], c["radius"], c["target_radius"]) for c in small.target("a")["classes"]]
    assert facts == [("ferritin", 1, 40.0, 20.0), ("ribosome", 2, 60.0, 30.0), ("proteasome", 3, 50.0, 25.0)]
    attributes = copick.from_file(str(small.copick)).get_run("a").segmentations[0].zarr()[".zattrs"]
    assert b'"ferritin:expert/0"' in attributes


def test_more_classes_than_a_byte_holds(small: SmallProject) -> None:
    names = [f"object-{number}" for number in range(300)]
    small.objects = tuple(
        {"name": name, "is_particle": True, "label": number + 1, "radius": 10.0} for number, name in enumerate(names)
    )
    small.write_copick_config()
    small.add_run("a")
    places = [(10.0 * (2 + n % 18 * 2), 10.0 * (2 + n // 18 * 2 % 28), 20.0 + 50 * (n // 252)) for n in range(300)]
    assert len(set(places)) == 300
    for name, place in zip(names, places, strict=True):
        small.add_picks("a", f"{name}:expert/0", [place])
    small.configure(targets={"picks": "expert/0", "radius_scale": 0.5})
    succeeded(small.make_targets())
    target = through_copick(small, "a")
    assert target.dtype == np.uint16
    assert [int(target[int(z) // 10, int(y) // 10, int(x) // 10]) for x, y, z in places] == list(range(1, 301))


def test_label_types() -> None:
    assert [label_type(count) for count in (1, 255, 256, 60_000)] == [np.uint8, np.uint8, np.uint16, np.uint16]


# Sources

HERE, THERE, ELSEWHERE = (100.0, 100.0, 120.0), (300.0, 100.0, 120.0), (200.0, 250.0, 120.0)


def has_particle(target: np.ndarray, position: Sequence[float]) -> bool:
    x, y, z = (round(value / 10) for value in position)
    return bool(target[z, y, x])


@pytest.mark.parametrize(
    "picks",
    [
        ["ribosome:expert/0"],
        ["ribosome,expert,0"],
        "ribosome:expert/0",
        "ribosome,expert,0",
        "expert/0",
    ],
    ids=str,
)
def test_only_the_session_that_is_named_is_used(small: SmallProject, picks: str | list[str]) -> None:
    small.add_run("a")
    small.add_picks("a", "ribosome:expert/0", [HERE])
    small.add_picks("a", "ribosome:expert/1", [THERE])
    small.add_picks("a", "ribosome:student/0", [ELSEWHERE])
    small.configure(targets={"picks": picks})
    succeeded(small.make_targets())
    target = through_copick(small, "a")
    assert [has_particle(target, place) for place in (HERE, THERE, ELSEWHERE)] == [True, False, False]
    assert small.target("a")["classes"][0]["sources"] == ["ribosome:expert/0"]


def test_a_name_alone_is_enough_where_it_is_clear(small: SmallProject) -> None:
    for run, place in (("a", HERE), ("b", THERE)):
        small.add_run(run)
        small.add_picks(run, "ribosome:expert/0", [place])
        small.add_picks(run, "ferritin:expert/0", [ELSEWHERE])
    small.configure(targets={"picks": ["ribosome"]})
    succeeded(small.make_targets())
    assert has_particle(through_copick(small, "b"), THERE)
    assert not has_particle(through_copick(small, "b"), ELSEWHERE)


def test_a_name_that_could_be_several_is_refused(small: SmallProject) -> None:
    small.add_run("a")
    small.add_run("b")
    small.add_picks("a", "ribosome:expert/0", [HERE])
    small.add_picks("b", "ribosome:student/7", [HERE])
    small.configure(targets={"picks": ["ribosome"]})
    message = error_of(small.make_targets())
    assert message.startswith("targets.picks: 'ribosome' could be ribosome:expert/0 or ribosome:student/7")


def test_several_sources_of_one_object_are_one_class(small: SmallProject) -> None:
    small.add_run("a")
    small.add_picks("a", "ribosome:expert/0", [HERE])
    small.add_picks("a", "ribosome:student/7", [THERE])
    small.add_picks("a", "ferritin:expert/0", [ELSEWHERE])
    small.configure(targets={"picks": ["ribosome:student/7", "ferritin", "ribosome,expert,0"]})
    succeeded(small.make_targets())
    target = through_copick(small, "a")
    assert [target[12, 10, 10], target[12, 10, 30], target[12, 25, 20]] == [1, 1, 2]
    assert small.target("a")["classes"][0]["picks"]["used"] == 2


def test_user_and_session_take_every_object_in_the_order_of_the_copick_config(small: SmallProject) -> None:
    small.add_run("a")
    small.add_run("b")
    small.add_picks("a", "proteasome:expert/0", [HERE])
    small.add_picks("b", "ribosome:expert/0", [HERE])
    small.add_picks("b", "ferritin:student/0", [HERE])
    small.configure(targets={"picks": "expert/0"})
    succeeded(small.make_targets())
    for run in ("a", "b"):
        assert [facts["name"] for facts in small.target(run)["classes"]] == ["ribosome", "proteasome"]
    assert through_copick(small, "a")[12, 10, 10] == 2
    assert through_copick(small, "b")[12, 10, 10] == 1


def test_a_segmentation_named_alone(small: SmallProject) -> None:
    small.add_run("a")
    mask = np.zeros(SHAPE, dtype=bool)
    mask[5:10] = True
    small.add_segmentation("a", "membrane:expert/0", mask)
    small.configure(targets={"segmentations": ["membrane"]})
    succeeded(small.make_targets())
    np.testing.assert_array_equal(through_copick(small, "a"), mask)
    small.add_segmentation("a", "membrane:student/0", mask)
    message = error_of(small.make_targets())
    assert "'membrane' could be membrane:expert/0 or membrane:student/0" in message


def test_the_shift_of_a_transform_is_added(small: SmallProject) -> None:
    small.add_run("a")
    small.add_picks("a", "ribosome:expert/0", [HERE], shifts=[(40.0, -20.0, 10.0)])
    small.configure(targets={"picks": ["ribosome"], "radius_scale": 0.1})
    succeeded(small.make_targets())
    assert np.argwhere(through_copick(small, "a")).tolist() == [[13, 8, 14]]


def test_radius_scale(small: SmallProject) -> None:
    small.add_run("a")
    small.add_picks("a", "ribosome:expert/0", [(200.0, 160.0, 120.0)])
    for scale in (0.5, 1.0):
        small.configure(targets={"picks": ["ribosome"], "radius_scale": scale})
        succeeded(small.make_targets())
        z, y, x = np.nonzero(through_copick(small, "a"))
        assert np.ptp(z) == np.ptp(y) == np.ptp(x) == 2 * 6 * scale


# Runs


def test_a_run_with_no_picks_in_its_file_gets_an_empty_target(small: SmallProject) -> None:
    for run, positions in (("a", [HERE]), ("b", [])):
        small.add_run(run)
        small.add_picks(run, "ribosome:expert/0", positions)
    small.add_run("c")
    succeeded(small.make_targets())
    assert not through_copick(small, "b").any()
    assert through_copick(small, "b").shape == SHAPE
    assert small.target("b")["classes"][0]["picks"]["used"] == 0
    assert not small.target_folder("c").exists()


def test_a_run_whose_annotations_vanish_loses_its_target(small: SmallProject) -> None:
    for run in ("a", "b"):
        small.add_run(run)
        picks = small.add_picks(run, "ribosome:expert/0", [HERE])
    succeeded(small.make_targets())
    assert small.target_folder("b").exists()
    picks.unlink()
    result = succeeded(small.make_targets())
    assert "demo/b: targets:tomoscout/1@10.0?multilabel=true is not wanted any more, removed" in result.stderr
    assert not small.target_folder("b").exists()
    assert not (small.targets / "demo" / "b.json").exists()
    assert small.target_folder("a").exists()


def test_a_run_whose_picks_are_deleted_one_by_one_gets_an_empty_target(small: SmallProject) -> None:
    for run in ("a", "b"):
        small.add_run(run)
        small.add_picks(run, "ribosome:expert/0", [HERE])
    succeeded(small.make_targets())
    small.add_picks("b", "ribosome:expert/0", [])
    succeeded(small.make_targets())
    assert not through_copick(small, "b").any()
    assert through_copick(small, "a").any()


def test_chosen_runs_alone(small: SmallProject) -> None:
    for run in ("a", "b", "c"):
        small.add_run(run)
    for run in ("a", "b"):
        small.add_picks(run, "ribosome:expert/0", [HERE])
    small.configure(targets={"picks": ["ribosome"], "runs": ["b", "demo/c"]})
    succeeded(small.make_targets())
    assert [small.target_folder(run).exists() for run in "abc"] == [False, True, True]
    assert not through_copick(small, "c").any()


def test_negatives_get_an_empty_target(small: SmallProject) -> None:
    for run in ("a", "b"):
        small.add_run(run)
    small.add_picks("a", "ribosome:expert/0", [HERE])
    small.configure(split={"negatives": ["b"]})
    succeeded(small.make_targets())
    assert not through_copick(small, "b").any()


def stamp(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_only_the_run_that_changed_is_made_again(small: SmallProject) -> None:
    for run in ("a", "b"):
        small.add_run(run)
        small.add_picks(run, "ribosome:expert/0", [HERE])
    succeeded(small.make_targets())
    digest, before = small.target("b")["digest"], {run: stamp(small.target_folder(run)) for run in "ab"}
    batch = (small.targets / "batch-0000.json").read_bytes()

    result = succeeded(small.make_targets())
    assert "demo/a: up to date" in result.stderr
    assert {run: stamp(small.target_folder(run)) for run in "ab"} == before
    assert (small.targets / "batch-0000.json").read_bytes() == batch

    small.add_picks("b", "ribosome:expert/0", [HERE, THERE])
    result = succeeded(small.make_targets())
    assert "demo/a: up to date" in result.stderr
    assert stamp(small.target_folder("a")) == before["a"]
    assert stamp(small.target_folder("b")) != before["b"]
    assert small.target("b")["digest"] != digest
    assert (small.targets / "batch-0000.json").read_bytes() != batch


def test_a_target_that_was_deleted_is_made_again(small: SmallProject) -> None:
    small.add_run("a")
    small.add_picks("a", "ribosome:expert/0", [HERE])
    succeeded(small.make_targets())
    expected = digest_folder(small.target_folder("a"))
    small.project().delete("a", small.project().segmentations("a")[0])
    assert not small.target_folder("a").exists()
    succeeded(small.make_targets())
    assert digest_folder(small.target_folder("a")) == expected == small.target("a")["digest"]


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    digests = []
    for number in range(2):
        (folder := tmp_path / str(number)).mkdir()
        small = SmallProject(folder)
        small.add_run("a")
        small.add_picks("a", "ribosome:expert/0", [HERE, THERE])
        succeeded(small.make_targets())
        digests.append((digest_folder(small.targets), digest_folder(small.target_folder("a"))))
    assert digests[0] == digests[1]


def test_a_read_only_project_is_left_as_it_is(tmp_path: Path) -> None:
    small = SmallProject(tmp_path, static=True)
    small.add_run("a")
    small.add_picks("a", "ribosome:expert/0", [HERE])
    small.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE))
    before = stamp(small.static)
    small.configure(targets={"picks": ["ribosome"], "segmentations": ["membrane"]})
    succeeded(small.make_targets())
    assert stamp(small.static) == before
    target = through_copick(small, "a")
    assert target[12, 10, 10] == 1
    assert target[0, 0, 0] == 2


def test_runs_of_the_same_name_in_two_projects(tmp_path: Path) -> None:
    first, second = SmallProject(tmp_path, "first"), SmallProject(tmp_path, "second")
    for small, place in ((first, HERE), (second, THERE)):
        small.add_run("a")
        small.add_picks("a", "ribosome:expert/0", [place])
    first.configure(projects={"first": str(first.copick), "second": str(second.copick)})
    succeeded(first.make_targets())
    assert has_particle(through_copick(first, "a"), HERE)
    assert has_particle(through_copick(second, "a"), THERE)
    assert first.target("a")["digest"] != second.target("a")["digest"]


# Several voxel spacings

HALF = (12, 16, 20)
"""The shape at 20 Å of what is `SHAPE` at 10 Å."""


def nearest(size: int, voxel_spacing: str, wanted: str) -> list[int]:
    """For every voxel at the wanted spacing the nearest of `size` at the other, the former of two, as long as it lies
    within half of one of them."""
    there, here = Fraction(voxel_spacing), Fraction(wanted)
    found = []
    for index in range(10 * size):
        distances = [abs(other * there - index * here) for other in range(size)]
        if min(distances) > there / 2:
            break
        found.append(distances.index(min(distances)))
    return found


def slow_resample(mask: np.ndarray, voxel_spacing: str, wanted: str, shape: tuple[int, ...]) -> np.ndarray:
    """A volume at another voxel spacing, voxel by voxel, with background beyond its end."""
    axes = [nearest(size, voxel_spacing, wanted) for size in mask.shape]
    found = np.zeros(shape, dtype=mask.dtype)
    for voxel in np.ndindex(*shape):
        if all(index < len(axis) for index, axis in zip(voxel, axes, strict=True)):
            found[voxel] = mask[tuple(axis[index] for index, axis in zip(voxel, axes, strict=True))]
    return found


spacings = st.sampled_from(["4.99", "5", "6.74", "7.5", "7.84", "10", "10.012", "13.48", "15", "20", "26.96", "30"])


@given(st.tuples(*[st.integers(1, 12)] * 3), spacings, spacings, st.integers(0, 2**16))
@example((5, 6, 7), "20", "10", 0)
@example((5, 6, 7), "10", "20", 0)
@example((9, 11, 12), "13.48", "6.74", 0)
@settings(checked, max_examples=40)
def test_a_volume_at_another_voxel_spacing_equals_the_reference(
    shape: tuple[int, int, int], voxel_spacing: str, wanted: str, seed: int
) -> None:
    mask = np.random.default_rng(seed).integers(0, 5, shape)
    found = resample(mask, float(voxel_spacing), float(wanted))
    assert found.shape == tuple(len(nearest(size, voxel_spacing, wanted)) for size in shape)
    np.testing.assert_array_equal(found, slow_resample(mask, voxel_spacing, wanted, found.shape))


def test_a_voxel_twice_as_large_covers_two() -> None:
    mask = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    twice = mask.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(resample(mask, 20.0, 10.0), twice)
    np.testing.assert_array_equal(resample(twice, 10.0, 20.0), mask)
    np.testing.assert_array_equal(resample(mask, 10.0, 10.0), mask)


def two_spacings(small: SmallProject, run: str) -> None:
    """Tomograms of one run: two algorithms at 10 Å, one of them a voxel larger, and one at 20 Å."""
    small.add_run(run)
    small.add_run(run, uri="denoised@10.0", shape=(25, 32, 40))
    small.add_run(run, uri="wbp@20.0", shape=HALF)


@given(pick_sets(), st.integers(0, 2**16), st.sampled_from([0.5, 1.3]))
@settings(checked, max_examples=5)
def test_targets_at_two_voxel_spacings_equal_the_reference(picks: dict, seed: int, scale: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        small = SmallProject(Path(folder))
        two_spacings(small, "a")
        picks = picks | {"ribosome": [*picks["ribosome"], (100.0, 90.0, 80.0)]}
        for name, positions in picks.items():
            small.add_picks("a", f"{name}:expert/0", positions)
        random = np.random.default_rng(seed)
        fine, coarse, vesicle = (random.random(shape) < 0.3 for shape in (SHAPE, HALF, SHAPE))
        small.add_segmentation("a", "membrane:expert/0", fine)
        small.add_segmentation("a", "membrane:expert/0", coarse, spacing=20.0)
        small.add_segmentation("a", "vesicle:expert/0", vesicle)
        small.configure(
            tomograms=["wbp@10.0", "denoised@10.0", "wbp@20.0"],
            targets={
                "picks": [f"{name}:expert/0" for name in RADII],
                "segmentations": ["membrane", "vesicle"],
                "radius_scale": scale,
            },
        )
        succeeded(small.make_targets())

        assert [target["tomogram"] for target in small.manifest("a")["targets"]] == ["wbp@10.0", "wbp@20.0"]
        for spacing, shape, masks in (
            (10.0, SHAPE, [(4, fine), (5, vesicle)]),
            (20.0, HALF, [(4, coarse), (5, slow_resample(vesicle, "10", "20", HALF))]),
        ):
            spheres: list[Sphere] = [
                ((z / spacing, y / spacing, x / spacing), RADII[name] * scale / spacing, label)
                for label, name in enumerate(RADII, 1)
                for x, y, z in picks[name]
                if inside((x, y, z), spacing)
            ]
            expected, voxels, met = slow_labels(shape, spheres, masks)
            np.testing.assert_array_equal(through_copick(small, "a", spacing), expected)
            facts = small.target("a", spacing)
            assert facts["shape"] == list(shape)
            assert facts["digest"] == digest_folder(small.target_folder("a", spacing))
            for entry in facts["classes"][:3]:
                own = [number for number, sphere in enumerate(spheres) if sphere[2] == entry["label"]]
                assert entry["voxels"] == sum(voxels[number] for number in own)
                assert entry["picks"]["used"] == len(own)
                assert entry["picks"]["outside"] == len(picks[entry["name"]]) - len(own)
                assert entry["picks"]["overlapping"] == sum(met[number] for number in own)
                assert entry["picks"]["without_voxels"] == sum(voxels[number] == 0 for number in own)
            drawn = [entry["segmentation"] for entry in facts["classes"][3:]]
            assert drawn == [f"membrane:expert/0@{spacing}", "vesicle:expert/0@10.0"]


def test_a_run_has_targets_for_the_voxel_spacings_of_its_tomograms(small: SmallProject) -> None:
    two_spacings(small, "a")
    small.add_run("b", uri="wbp@20.0", shape=HALF)
    small.add_run("c", uri="denoised@10.0", shape=(25, 32, 40))
    small.add_run("d", uri="wbp@5.0")
    for run in "abcd":
        small.add_picks(run, "ribosome:expert/0", [HERE])
    small.configure(tomograms=["wbp@10.0", "denoised@10.0", "wbp@20.0"])
    result = succeeded(small.make_targets())
    made = {run: [target["tomogram"] for target in small.manifest(run)["targets"]] for run in "abc"}
    assert made == {"a": ["wbp@10.0", "wbp@20.0"], "b": ["wbp@20.0"], "c": ["denoised@10.0"]}
    assert "demo/a: 1 picks in wbp@10.0; 1 picks in wbp@20.0\n" in result.stderr
    assert through_copick(small, "b", 20.0)[6, 5, 5] == 1
    assert through_copick(small, "c").shape == (25, 32, 40)
    assert not small.target_folder("b").exists()
    assert not small.target_folder("c", 20.0).exists()
    assert not (small.targets / "demo" / "d.json").exists()


def test_the_tomogram_that_is_segmented_has_a_target_too(small: SmallProject) -> None:
    small.add_run("a", uri="wbp@20.0", shape=HALF)
    small.add_run("a", uri="denoised@10.0")
    small.add_picks("a", "ribosome:expert/0", [HERE])
    small.configure(tomograms=["wbp@20.0", "wbp@10.0"], segment={"tomogram": "denoised@10.0"})
    succeeded(small.make_targets())
    assert [target["tomogram"] for target in small.manifest("a")["targets"]] == ["wbp@20.0", "denoised@10.0"]


@pytest.mark.parametrize(
    ("there", "drawn"),
    [([10.0, 5.0, 20.0], 10.0), ([20.0], 20.0), ([20.0, 40.0], 20.0), ([20.0, 5.0], 5.0), ([5.0, 7.5], 5.0)],
    ids=str,
)
def test_a_segmentation_is_brought_over_from_the_finest(small: SmallProject, there: list[float], drawn: float) -> None:
    small.add_run("a")
    masks = {}
    for number, spacing in enumerate(there):
        shape = tuple(round(size * 10 / spacing) for size in SHAPE)
        masks[spacing] = np.random.default_rng(number).random(shape) < 0.5
        small.add_segmentation("a", "membrane:expert/0", masks[spacing], spacing)
    small.configure(targets={"segmentations": ["membrane:expert/0"]})
    result = succeeded(small.make_targets())
    expected = slow_resample(masks[drawn], str(drawn), "10", SHAPE)
    np.testing.assert_array_equal(through_copick(small, "a"), expected)
    [entry] = small.target("a")["classes"]
    assert entry["segmentation"] == f"membrane:expert/0@{drawn}"
    assert entry["voxels"] == expected.sum()
    note = f"demo/a: segmentation membrane:expert/0@{drawn} brought to 10.0 Å, where there is none"
    assert (note in result.stderr) == (drawn != 10.0)


def test_a_run_without_the_segmentation_says_so(small: SmallProject) -> None:
    for run in ("a", "b"):
        small.add_run(run)
        small.add_picks(run, "ribosome:expert/0", [HERE])
    small.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE))
    small.configure(targets={"picks": ["ribosome"], "segmentations": ["membrane"]})
    succeeded(small.make_targets())
    found = [small.target(run)["classes"][1] for run in ("a", "b")]
    assert [entry["segmentation"] for entry in found] == ["membrane:expert/0@10.0", None]
    assert [entry["voxels"] > 0 for entry in found] == [True, False]


def test_a_segmentation_at_a_listed_voxel_spacing_is_meant_before_others(small: SmallProject) -> None:
    small.add_run("a")
    mask = np.zeros(SHAPE, dtype=bool)
    mask[5:10] = True
    small.add_segmentation("a", "membrane:expert/0", mask)
    small.add_segmentation("a", "membrane:student/0", mask, spacing=5.0)
    small.configure(targets={"segmentations": ["membrane"]})
    succeeded(small.make_targets())
    assert small.target("a")["classes"][0]["sources"] == ["membrane:expert/0"]


def test_a_pick_between_the_edges_of_two_voxel_spacings(small: SmallProject) -> None:
    """Its nearest voxel lies outside at 10 Å and inside at 20 Å."""
    two_spacings(small, "a")
    small.add_picks("a", "ribosome:expert/0", [HERE, (-6.0, 100.0, 100.0)])
    small.configure(tomograms=["wbp@10.0", "wbp@20.0"])
    result = succeeded(small.make_targets())
    counts = [small.target("a", spacing)["classes"][0]["picks"] for spacing in (10.0, 20.0)]
    assert [(facts["used"], facts["outside"]) for facts in counts] == [(1, 1), (2, 0)]
    assert "1 picks of ribosome:expert/0 lie outside the tomogram wbp@10.0 and are left out" in result.stderr
    assert "outside the tomogram wbp@20.0" not in result.stderr


def test_spheres_smaller_than_a_voxel_are_warned_of(small: SmallProject) -> None:
    two_spacings(small, "a")
    # The second lies between voxels at 20 Å, the third beyond the tomogram.
    small.add_picks("a", "ribosome:expert/0", [HERE, (110.0, 130.0, 90.0), (1e4, 0.0, 0.0)])
    small.configure(tomograms=["wbp@10.0", "wbp@20.0"], targets={"picks": ["ribosome"], "radius_scale": 0.2})
    result = succeeded(small.make_targets())
    fine, coarse = (small.target("a", spacing)["classes"][0] for spacing in (10.0, 20.0))
    assert (fine["picks"]["without_voxels"], coarse["picks"]["without_voxels"]) == (0, 1)
    assert "warning" not in fine
    assert coarse["warning"] == ("the target radius of 12 Å is less than a voxel of 20 Å; 1 of 2 picks got no voxel")
    assert f"warning: demo/a: ribosome: {coarse['warning']}\n" in result.stderr
    assert np.argwhere(through_copick(small, "a", 20.0)).tolist() == [[6, 5, 5]]


def test_a_voxel_spacing_more_leaves_runs_without_it_alone(small: SmallProject) -> None:
    two_spacings(small, "a")
    small.add_run("b")
    for run in ("a", "b"):
        small.add_picks(run, "ribosome:expert/0", [HERE])
    succeeded(small.make_targets())
    fine, untouched = digest_folder(small.target_folder("a") / "0"), stamp(small.target_folder("b"))

    small.configure(tomograms=["wbp@10.0", "wbp@20.0"])
    result = succeeded(small.make_targets())
    assert "demo/b: up to date" in result.stderr
    assert stamp(small.target_folder("b")) == untouched
    assert digest_folder(small.target_folder("a") / "0") == fine
    assert small.target_folder("a", 20.0).exists()
    assert "demo/a: up to date" in succeeded(small.make_targets()).stderr

    small.configure()
    result = succeeded(small.make_targets())
    assert "demo/a: targets:tomoscout/1@20.0?multilabel=true is not wanted any more, removed" in result.stderr
    assert not small.target_folder("a", 20.0).exists()
    assert digest_folder(small.target_folder("a") / "0") == fine
    assert len(small.manifest("a")["targets"]) == 1


@pytest.mark.parametrize("spacing", [10.0, 20.0])
def test_one_target_that_was_deleted_is_made_again(small: SmallProject, spacing: float) -> None:
    two_spacings(small, "a")
    small.add_picks("a", "ribosome:expert/0", [HERE])
    small.configure(tomograms=["wbp@10.0", "wbp@20.0"])
    succeeded(small.make_targets())
    before = {at: digest_folder(small.target_folder("a", at)) for at in (10.0, 20.0)}
    shutil.rmtree(small.target_folder("a", spacing))
    succeeded(small.make_targets())
    assert {at: digest_folder(small.target_folder("a", at)) for at in (10.0, 20.0)} == before


def test_every_source_of_every_voxel_spacing_is_looked_at(small: SmallProject) -> None:
    two_spacings(small, "a")
    mask = np.zeros(SHAPE)
    small.add_segmentation("a", "membrane:expert/0", mask)
    small.configure(tomograms=["wbp@10.0", "wbp@20.0"], targets={"segmentations": ["membrane"]})
    succeeded(small.make_targets())
    assert not through_copick(small, "a", 20.0).any()
    small.add_segmentation("a", "membrane:expert/0", np.ones(HALF), spacing=20.0)
    succeeded(small.make_targets())
    assert through_copick(small, "a", 20.0).all()
    assert not through_copick(small, "a").any()
    # One that no target is drawn from changes nothing.
    small.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE), spacing=5.0)
    assert "demo/a: up to date" in succeeded(small.make_targets()).stderr


def test_a_broken_source_of_one_voxel_spacing_leaves_both_targets(small: SmallProject) -> None:
    two_spacings(small, "a")
    small.add_segmentation("a", "membrane:expert/0", np.zeros(SHAPE))
    small.configure(tomograms=["wbp@10.0", "wbp@20.0"], targets={"segmentations": ["membrane"]})
    succeeded(small.make_targets())
    before = [digest_folder(small.target_folder("a", at)) for at in (10.0, 20.0)]
    small.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE))
    folder = small.add_segmentation("a", "membrane:expert/0", np.ones(HALF), spacing=20.0)
    (folder / "0" / "0" / "0" / "0").unlink()
    assert error_of(small.make_targets()).startswith("demo/a: segmentation membrane:expert/0@20.0: truncated")
    assert [digest_folder(small.target_folder("a", at)) for at in (10.0, 20.0)] == before
    assert [small.target("a", at)["digest"] for at in (10.0, 20.0)] == before


def test_a_run_that_loses_its_annotations_loses_every_target(small: SmallProject) -> None:
    for run in ("a", "b"):
        two_spacings(small, run)
        picks = small.add_picks(run, "ribosome:expert/0", [HERE])
    small.configure(tomograms=["wbp@10.0", "wbp@20.0"])
    succeeded(small.make_targets())
    picks.unlink()
    succeeded(small.make_targets())
    there = [small.target_folder(run, at).exists() for run in ("a", "b") for at in (10.0, 20.0)]
    assert there == [True, True, False, False]


def test_targets_of_another_session_stay(small: SmallProject) -> None:
    two_spacings(small, "a")
    small.add_picks("a", "ribosome:expert/0", [HERE])
    small.configure(tomograms=["wbp@10.0", "wbp@20.0"])
    succeeded(small.make_targets())
    small.configure(targets={"picks": ["ribosome"], "session": "2"})
    succeeded(small.make_targets())
    there = {str(entry).partition("?")[0] for entry in small.project().segmentations("a")}
    assert there == {"targets:tomoscout/1@10.0", "targets:tomoscout/1@20.0", "targets:tomoscout/2@10.0"}


def test_the_picture_shows_the_first_voxel_spacing(small: SmallProject) -> None:
    two_spacings(small, "a")
    small.add_picks("a", "ribosome:expert/0", [HERE])
    widths = []
    for tomograms in (["wbp@10.0", "wbp@20.0"], ["wbp@20.0", "wbp@10.0"], ["denoised@10.0"]):
        small.configure(tomograms=tomograms)
        succeeded(small.make_targets())
        output = small.targets / "pictures" / "batch-0000.json"
        succeeded(small.command("overlays", "--targets", small.targets, "--batch", "0", "--output", output))
        widths.append(Image.open(output.parent / "demo" / "a.png").width)
    # Six pixels for a voxel: the slice across z, a gap, and on the right the one across x.
    assert widths == [6 * (x + z) + 4 for z, x in ((24, 40), (12, 20), (25, 40))]


# What does not fit


@pytest.mark.parametrize("difference", [(4, -4, 3), (-4, 1, 0), (0, 0, 4)], ids=str)
def test_segmentations_a_little_off_share_the_origin(small: SmallProject, difference: tuple[int, ...]) -> None:
    small.add_run("a")
    shape = tuple(size + change for size, change in zip(SHAPE, difference, strict=True))
    mask = np.random.default_rng(0).random(shape) < 0.5
    small.add_segmentation("a", "membrane:expert/0", mask)
    small.configure(targets={"segmentations": ["membrane"]})
    succeeded(small.make_targets())
    target = through_copick(small, "a")
    assert target.shape == SHAPE
    for voxel in np.ndindex(*SHAPE):
        within = all(index < size for index, size in zip(voxel, shape, strict=True))
        assert target[voxel] == (within and mask[voxel])


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("difference", [5, -5])
def test_segmentations_far_off_are_refused(small: SmallProject, axis: int, difference: int) -> None:
    small.add_run("a")
    shape = list(SHAPE)
    shape[axis] += difference
    small.add_segmentation("a", "membrane:expert/0", np.ones(shape))
    small.configure(targets={"segmentations": ["membrane"]})
    message = error_of(small.make_targets())
    assert message.startswith("demo/a: segmentation membrane:expert/0@10.0: shape ")
    assert str(tuple(shape)) in message
    assert str(SHAPE) in message


def test_align_keeps_what_fits() -> None:
    volume = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    np.testing.assert_array_equal(align(volume, (3, 4, 5), "it"), volume)
    np.testing.assert_array_equal(align(volume, (2, 6, 5), "it")[:, :4], volume[:2])
    assert not align(volume, (2, 6, 5), "it")[:, 4:].any()


def test_picks_outside_are_counted_and_named(small: SmallProject) -> None:
    small.add_run("a")
    beyond = [(-5.1, 10.0, 10.0), (10.0, 315.0, 10.0), (1e6, 10.0, 10.0)]
    just_inside = [(-5.0, 10.0, 10.0), (10.0, 314.9, 10.0)]
    small.add_picks("a", "ribosome:expert/0", [*beyond, *just_inside])
    result = succeeded(small.make_targets())
    assert "warning: demo/a: 3 picks of ribosome:expert/0 lie outside the tomogram wbp@10.0 and" in result.stderr
    assert "-5, 10, 10; 10, 315, 10; 1000000, 10, 10" in result.stderr
    facts = small.target("a")["classes"][0]["picks"]
    assert facts["used"] == 2
    assert facts["outside"] == 3
    assert facts["outside_at"] == [["ribosome:expert/0", *place] for place in beyond]


# Segmentations of fractions


@pytest.mark.parametrize(("threshold", "expected"), [(None, 0.5), (0.2, 0.2)])
def test_a_segmentation_of_fractions_is_cut_and_told(
    small: SmallProject, threshold: float | None, expected: float
) -> None:
    small.add_run("a")
    values = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    folder = small.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE))
    zarr.open_group(str(folder), mode="w").create_dataset("0", data=values, dimension_separator="/")
    options = {} if threshold is None else {"segmentation_threshold": threshold}
    small.configure(targets={"segmentations": ["membrane"], **options})
    result = succeeded(small.make_targets())
    np.testing.assert_array_equal(through_copick(small, "a") > 0, values >= expected)
    assert (
        "warning: demo/a: segmentation membrane:expert/0@10.0 holds fractions; voxels from "
        f"{expected:g} on belong to it (targets.segmentation_threshold)"
    ) in result.stderr


def test_a_segmentation_of_negative_values_is_refused(small: SmallProject) -> None:
    small.add_run("a")
    folder = small.add_segmentation("a", "membrane:expert/0", np.ones(SHAPE))
    values = np.where(np.random.default_rng(0).random(SHAPE) < 0.5, 0, -1).astype(np.int16)
    zarr.open_group(str(folder), mode="w").create_dataset("0", data=values, dimension_separator="/")
    small.configure(targets={"segmentations": ["membrane"]})
    assert error_of(small.make_targets()).startswith(
        "demo/a: segmentation membrane:expert/0@10.0: holds negative values, expected"
    )


def test_many_picks_at_one_place_are_one_sphere(small: SmallProject) -> None:
    places = [(100.0, 100.0, 100.0)] * 2000
    spheres = Spheres(np.array(places)[:, ::-1] / 10, np.full(2000, 4.0), np.ones(2000, dtype=np.int64))
    labels, alone = np.zeros((2, *SHAPE), dtype=np.uint8)
    voxels, met = rasterise(labels, spheres)
    expected, _ = rasterise(alone, Spheres(spheres.centres[:1], spheres.radii[:1], spheres.labels[:1]))
    np.testing.assert_array_equal(labels, alone)
    assert voxels.tolist() == [expected[0], *[0] * 1999]
    assert not met.any()


def test_a_float_segmentation_of_zeros_and_ones_is_a_mask(small: SmallProject) -> None:
    small.add_run("a")
    mask = np.random.default_rng(0).random(SHAPE) < 0.5
    folder = small.add_segmentation("a", "membrane:expert/0", mask)
    zarr.open_group(str(folder), mode="w").create_dataset("0", data=mask.astype(float), dimension_separator="/")
    small.configure(targets={"segmentations": ["membrane"], "segmentation_threshold": 0.9})
    assert "fractions" not in succeeded(small.make_targets()).stderr
    np.testing.assert_array_equal(through_copick(small, "a") > 0, mask)
