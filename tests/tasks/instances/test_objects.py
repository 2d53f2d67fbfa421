"""The table of objects: what a plain count over their voxels gives."""

from __future__ import annotations

import numpy as np
import pytest

from tomoscout.tasks.instances.objects import object_table

random = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(20, 30), (6, 14, 15)])
@pytest.mark.parametrize("calibration", [None, 0.5])
def test_it_is_what_counting_gives(shape: tuple[int, ...], calibration: float | None) -> None:
    labels = random.integers(0, 6, shape).astype(np.int32)
    image = random.integers(0, 60_000, (2, *shape)).astype(np.uint16)
    columns, rows = object_table(labels, image, ["dapi", "GFP 2"], calibration)
    size = {2: "area_um2", 3: "volume_um3"}[len(shape)]
    axes = "zyx"[-len(shape) :]
    assert columns == ["label", *axes, "voxels", *([size] if calibration else []), "mean_dapi", "mean_GFP 2"]
    assert [row["label"] for row in rows] == [1, 2, 3, 4, 5]
    for row in rows:
        assert set(row) == set(columns)
        places = [tuple(place) for place in np.argwhere(labels == row["label"]).tolist()]
        assert row["voxels"] == len(places)
        for number, axis in enumerate(axes):
            assert row[axis] == pytest.approx(sum(p[number] for p in places) / len(places), abs=0.006)
        for channel, name in zip(image.astype(float), ("dapi", "GFP 2"), strict=True):
            assert row[f"mean_{name}"] == pytest.approx(sum(channel[p] for p in places) / len(places), rel=1e-5)
        if calibration:
            assert row[size] == pytest.approx(len(places) * calibration ** len(shape))


@pytest.mark.parametrize("shape", [(8, 9), (3, 8, 9)])
def test_without_objects_it_has_columns_alone(shape: tuple[int, ...]) -> None:
    columns, rows = object_table(np.zeros(shape, np.int32), np.ones((1, *shape)), ["1"], 1.0)
    assert columns[0] == "label" and columns[-1] == "mean_1"
    assert rows == []


def test_small_sizes_and_intensities_do_not_become_zero() -> None:
    labels = np.zeros((10, 10, 10), np.int32)
    labels[2:5, 2:5, 2:5] = 1
    # A vesicle in a tomogram, at 10 Å.
    (row,) = object_table(labels, np.full((1, 10, 10, 10), 2.5e-7), ["1"], 0.001)[1]
    assert row["volume_um3"] == pytest.approx(2.7e-8)
    assert row["mean_1"] == pytest.approx(2.5e-7)


def test_values_are_plain_numbers() -> None:
    labels = np.zeros((10, 10), np.int32)
    labels[2:5, 2:5] = 1
    (row,) = object_table(labels, np.ones((1, 10, 10), np.float32), ["1"], 0.5)[1]
    assert {type(value) for value in row.values()} <= {int, float}
