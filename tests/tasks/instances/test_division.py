"""The division of annotated images: by groups, seeded, and never without validation or training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.machine.errors import TomoscoutError
from tomoscout.tasks.instances.annotated_images import AnnotatedImage
from tomoscout.tasks.instances.annotation import Annotation
from tomoscout.tasks.instances.annotation_options import Annotations, Division
from tomoscout.tasks.instances.annotations import find_annotations
from tomoscout.tasks.instances.division import annotations_of, divide, read_division, write_division
from tomoscout.tasks.instances.made_up import make_annotations

checked = settings(deadline=None, max_examples=60, derandomize=True)
sizes = st.lists(st.integers(1, 12), min_size=2, max_size=25)
divisions = st.builds(Division, validate=st.floats(0.01, 0.5), test=st.floats(0, 0.45), seed=st.integers(0, 1000))


def images(sizes: list[int]) -> list[Annotation]:
    """Images of groups of these sizes."""
    return [
        AnnotatedImage("s", f"{group}-{n}", ("1",), 1.0, f"exp_W{group}", (8, 8), "uint16", Path(), Path())
        for group, size in enumerate(sizes)
        for n in range(size)
    ]


@given(sizes, divisions)
@checked
def test_groups_are_whole_every_image_is_in_one_part_and_none_is_empty(sizes: list[int], options: Division) -> None:
    found = images(sizes)
    parts = divide(found, options)
    assert sorted(name for names in parts.values() for name in names) == sorted((e.source, e.name) for e in found)
    part_of = {name: part for part, names in parts.items() for name in names}
    assert len({(entry.group, part_of[entry.source, entry.name]) for entry in found}) == len(sizes)
    assert parts["train"] and parts["validate"]
    assert bool(parts["test"]) or not options.test or len(sizes) < 3


@given(sizes, divisions, st.randoms(use_true_random=False))
@checked
def test_the_order_of_the_images_does_not_matter(sizes: list[int], options: Division, random: object) -> None:
    found = images(sizes)
    shuffled = sorted(found, key=lambda _: random.random())  # type: ignore[attr-defined]
    assert divide(shuffled, options) == divide(found, options)


@given(st.integers(6, 40), st.integers(1, 4), st.integers(0, 1000))
@checked
def test_a_new_group_moves_at_most_two_others(count: int, size: int, seed: int) -> None:
    before, after = (
        {entry: part for part, names in divide(images([size] * n), Division(seed=seed)).items() for entry in names}
        for n in (count, count + 1)
    )
    assert sum(after[name] != part for name, part in before.items()) <= 2 * size


def test_parts_are_as_large_as_asked() -> None:
    parts = divide(images([3] * 100), Division(validate=0.2, test=0.1))
    assert {part: len(names) for part, names in parts.items()} == {"train": 210, "validate": 60, "test": 30}


def test_a_group_that_holds_most_images_trains() -> None:
    for seed in range(20):
        parts = divide(images([90, 2, 2, 2]), Division(seed=seed))
        assert ("s", "0-0") in parts["train"]


def test_the_seed_decides() -> None:
    found = images([1] * 30)
    assert divide(found, Division(seed=1)) == divide(found, Division(seed=1))
    assert divide(found, Division(seed=1)) != divide(found, Division(seed=2))


def test_frames_and_regions_of_a_position_do_not_straddle(tmp_path: Path) -> None:
    make_annotations(tmp_path, 12, (32, 32), 0, cells=2, radius=5, empty=3)
    found = find_annotations(Annotations(annotations={"cells": str(tmp_path)}, channels=["nuclei"]))
    parts = divide(found, Division())
    # Those without cells stay as negatives.
    assert sum(map(len, parts.values())) == 12
    wells = [{name.split("_")[1] for _, name in names} for names in parts.values()]
    assert set.union(*wells) == {"W1", "W2", "W3", "W4"}
    assert sum(map(len, wells)) == 4


def test_equal_groups_of_two_sources_are_two_groups() -> None:
    found = [*images([2]), *(replace(entry, source="t") for entry in images([2]))]
    parts = divide(found, Division())
    assert sorted({source for source, _ in parts[part]} for part in ("train", "validate")) in (
        [{"s"}, {"t"}],
        [{"t"}, {"s"}],
    )


def test_a_single_group_is_refused() -> None:
    with pytest.raises(TomoscoutError, match=r"all images are of one group \(s/exp_W0\), expected two at least"):
        divide(images([5]), Division())


def test_the_manifest_is_read_back_and_finds_changed_images(tmp_path: Path) -> None:
    make_annotations(tmp_path / "cells", 6, (32, 32), 0, cells=2, radius=5)
    found = find_annotations(Annotations(annotations={"cells": str(tmp_path / "cells")}, channels=["nuclei"]))
    division = divide(found, Division())
    write_division(tmp_path / "division.json", division, found)
    read = read_division(tmp_path / "division.json")
    assert {part: [(m.source, m.name) for m in members] for part, members in read.items()} == division
    assert [entry.name for entry in annotations_of(read["train"], found)] == [name for _, name in division["train"]]
    with pytest.raises(TomoscoutError, match="no such image; divide the annotations again"):
        annotations_of(read["train"], [])
    changed = [replace(entry, calibration=9.0) for entry in found]
    with pytest.raises(TomoscoutError, match="it or its labels have changed"):
        annotations_of(read["validate"], changed)


def test_another_file_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "division.json").write_text('{"train": []}')
    with pytest.raises(TomoscoutError, match=r"not a division of annotated images \(test, validate missing\)|missing"):
        read_division(tmp_path / "division.json")
