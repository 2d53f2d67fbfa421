"""Made-up annotations: reproducible, in the layout of an export, and true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label

from tomoscout.tasks.instances.annotation_options import Annotations
from tomoscout.tasks.instances.annotations import find_annotations
from tomoscout.tasks.instances.made_up import CHANNELS, make_annotations, make_image


@pytest.mark.parametrize("shape", [(96, 112), (20, 48, 48)])
def test_equal_seeds_give_equal_files(tmp_path: Path, shape: tuple[int, ...]) -> None:
    for folder, seed in (("one", 3), ("same", 3), ("other", 4)):
        make_annotations(tmp_path / folder, 3, shape, seed, cells=6, radius=6)
    one, same, other = (
        {path.relative_to(tmp_path / folder): path.read_bytes() for path in (tmp_path / folder).rglob("*.*")}
        for folder in ("one", "same", "other")
    )
    assert one == same
    assert one.keys() == other.keys()
    assert one != other


def test_more_images_change_none_of_the_first(tmp_path: Path) -> None:
    for folder, count in (("few", 2), ("more", 4)):
        make_annotations(tmp_path / folder, count, (64, 64), 0, cells=4, radius=6)
    for path in (tmp_path / "few").iterdir():
        assert path.read_bytes() == (tmp_path / "more" / path.name).read_bytes()


def test_images_are_written_as_an_export_writes_them(tmp_path: Path) -> None:
    make_annotations(tmp_path, 7, (64, 80), 0, cells=4, radius=6, empty=2)
    names = sorted(path.stem for path in tmp_path.glob("*.json"))
    assert len(names) == 7
    assert all(re.fullmatch(r"demo_W\d_\d{4}(_roi(_\d+){4})?", name) for name in names)
    assert any("_roi_" in name for name in names)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}{end}" for name in names for end in (".tif", "_labelled.tif", ".json")
    }
    assert json.loads((tmp_path / f"{names[0]}.json").read_text()) == {
        "channels": CHANNELS,
        "spatial_calibration": 0.65,
        "frame": 0,
        "well": "W1",
    }
    found = find_annotations(Annotations(annotations={"cells": str(tmp_path)}, channels=CHANNELS))
    assert [entry.group for entry in found] == ["demo_W1"] * 3 + ["demo_W2"] * 3 + ["demo_W3"]
    assert found[0].read_image().shape == (2, 64, 80)
    assert [bool(entry.read_labels().any()) for entry in found] == [True] * 5 + [False] * 2


def test_volumes_are_written_into_plain_folders(tmp_path: Path) -> None:
    make_annotations(tmp_path, 2, (16, 40, 48), 0, cells=4, radius=6)
    source = {"folder": str(tmp_path), "calibration": 0.65}
    found = find_annotations(Annotations(annotations={"cells": source}, dimensions=3))
    assert [(entry.name, entry.shape, entry.group) for entry in found] == [
        ("000", (16, 40, 48), "000"),
        ("001", (16, 40, 48), "001"),
    ]


@pytest.mark.parametrize("shape", [(128, 128), (24, 48, 48)])
@pytest.mark.parametrize("seed", range(3))
def test_every_cell_is_one_piece_and_brighter_than_the_background(shape: tuple[int, ...], seed: int) -> None:
    image, labels = make_image(shape, np.random.default_rng(seed), cells=20, radius=7)
    numbers = range(1, labels.max() + 1)
    assert sorted(np.unique(labels)) == [0, *numbers]
    assert len(numbers) > 5
    for number in numbers:
        assert label(labels == number)[1] == 1
    background = np.median(image[0][labels == 0])
    assert sum(np.median(image[0][labels == number]) > 1.2 * background for number in numbers) == len(numbers)


def test_some_cells_touch() -> None:
    labels = make_image((192, 192), np.random.default_rng(0), cells=60, radius=9).labels
    assert ((labels[1:] != labels[:-1]) & (labels[1:] > 0) & (labels[:-1] > 0)).any()
