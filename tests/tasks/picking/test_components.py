"""Connected components by runs, against SciPy's of one label after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tomoscout.tasks.picking.components import Components, read_runs, spans

checked = settings(deadline=None, max_examples=60, derandomize=True)
LABELS = (1, 2, 3)


def patchwork(seed: int) -> np.ndarray:
    """A small volume of four labels, in voxels or in coarser patches."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, random.integers(1, 8, 3)).astype(np.uint8)
    return labels if seed % 2 else np.kron(labels, np.ones(random.integers(1, 4, 3), dtype=np.uint8))


def one_by_one(labels: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Label and mask of every component, in the order of their first voxels."""
    found = []
    for value in LABELS:
        numbered, count = ndimage.label(labels == value)
        found += [(value, numbered == number) for number in range(1, count + 1)]
    return sorted(found, key=lambda entry: int(np.flatnonzero(entry[1])[0]))


@given(st.integers(0, 10_000))
@checked
def test_components_are_those_of_each_label_alone(seed: int) -> None:
    labels = patchwork(seed)
    values = np.random.default_rng(seed).integers(0, 256, labels.shape).astype(np.uint8)
    components, expected = Components(read_runs([labels], LABELS)), one_by_one(labels)
    assert components.labels.tolist() == [value for value, _ in expected]
    assert components.voxels.tolist() == [mask.sum() for _, mask in expected]
    found = components.regions(np.arange(len(expected)), values)
    assert found.components.tolist() == list(range(1, len(expected) + 1))
    for number, (_, mask) in enumerate(expected):
        np.testing.assert_allclose(found.centres[number], ndimage.center_of_mass(mask))
        np.testing.assert_allclose(found.means[number], values[mask].mean())
        box, inside = components.mask(number)
        again = np.zeros_like(mask)
        again[box] = inside
        np.testing.assert_array_equal(again, mask)
        assert ndimage.find_objects(mask.astype(int)) == [box]


@given(st.integers(0, 10_000), st.integers(1, 5))
@checked
def test_slabs_make_no_difference(seed: int, planes: int) -> None:
    labels = patchwork(seed)
    whole = read_runs([labels], LABELS)
    parts = read_runs((labels[start : start + planes] for start in range(0, len(labels), planes)), LABELS)
    assert parts.shape == whole.shape == labels.shape
    for name in ("starts", "lengths", "labels"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_the_last_row_of_a_plane_does_not_touch_the_first_of_the_next() -> None:
    labels = np.zeros((2, 3, 4), dtype=np.uint8)
    labels[0, 2, 1] = labels[1, 0, 1] = 1
    assert Components(read_runs([labels], [1])).voxels.tolist() == [1, 1]
    # Nor the end of a row the start of the next.
    labels = np.zeros((1, 2, 3), dtype=np.uint8)
    labels[0, 0, 2] = labels[0, 1, 0] = 1
    assert Components(read_runs([labels], [1])).voxels.tolist() == [1, 1]


def test_labels_that_are_not_wanted_are_left_out() -> None:
    labels = np.array([[[7, 7, 0, 300, 300, 300, 9]]], dtype=np.uint16)
    components = Components(read_runs([labels], [300, 7]))
    assert components.labels.tolist() == [7, 300]
    assert components.centres.tolist() == [[0, 0, 0.5], [0, 0, 4]]


def test_nothing_has_no_components() -> None:
    components = Components(read_runs([np.zeros((3, 4, 5), dtype=np.uint8)], LABELS))
    assert components.runs.shape == (3, 4, 5)
    assert len(components.voxels) == len(components.labels) == len(components.scatter) == 0
    assert components.centres.shape == (0, 3)
    none = components.regions(np.zeros(0, dtype=np.int64), np.zeros((3, 4, 5), dtype=np.uint8))
    assert [len(column) for column in none] == [0, 0, 0, 0]


@given(st.integers(0, 10_000))
@checked
def test_scatter_is_that_of_points_within_the_voxels(seed: int) -> None:
    """Of every voxel 4³ points are taken; the squared distance of points on a grid of step s within a voxel is smaller
    than that of all points by 3 · s² / 12."""
    labels = patchwork(seed)[:3, :4, :5]
    offsets = (np.indices((4, 4, 4)).reshape(3, -1).T + 0.5) / 4 - 0.5
    for scatter, (_, mask) in zip(Components(read_runs([labels], LABELS)).scatter, one_by_one(labels), strict=True):
        points = (np.argwhere(mask)[:, None] + offsets).reshape(-1, 3)
        squared = ((points - points.mean(axis=0)) ** 2).sum(axis=1).mean() + 3 / 12 / 16
        of_ball = 3 / 5 * (3 * mask.sum() / (4 * np.pi)) ** (2 / 3)
        assert scatter == pytest.approx(squared / of_ball)
        assert scatter >= 1


def test_a_ball_scatters_like_a_ball() -> None:
    distance = np.linalg.norm(np.stack(np.indices((41, 41, 41)), axis=-1) - [20.3, 19.8, 20.1], axis=-1)
    [scatter] = Components(read_runs([(distance <= 15).astype(np.uint8)], [1])).scatter
    assert scatter == pytest.approx(1, abs=0.005)


def test_spans() -> None:
    assert spans(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert len(spans(np.zeros(0, dtype=int), np.zeros(0, dtype=int))) == 0
