"""Surfaces against shapes whose nearest points are known, or found by trying all."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import KDTree

from tomoscout.data.geometry import to_voxels
from tomoscout.phantom.placement import vesicles
from tomoscout.tasks.picking.extraction.sheets import middle
from tomoscout.tasks.picking.extraction.surfaces import Nearest, boundary

Array = NDArray[np.float64]
SPACING = 10.0
SMOOTHING = 30.0


def directions(count: int, seed: int = 0) -> Array:
    drawn = np.random.default_rng(seed).normal(size=(count, 3))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def angles(found: Array, expected: Array) -> Array:
    """In degrees."""
    return np.degrees(np.arccos(np.clip(np.einsum("ni,ni->n", found, expected), -1, 1)))


def ball(radius: float, centre: Array) -> NDArray[np.bool_]:
    """A mask (z, y, x); radius and centre (x, y, z) are in voxels."""
    x, y, z = centre
    size = int(max(centre) + radius + 8)
    grid_z, grid_y, grid_x = np.ogrid[:size, :size, :size]
    return (grid_x - x) ** 2 + (grid_y - y) ** 2 + (grid_z - z) ** 2 <= radius**2


@pytest.mark.parametrize("radius", [8.0, 14.0, 25.0])
@pytest.mark.parametrize("beyond", [-3.0, -0.6, 0.6, 4.0, 40.0])
def test_a_ball_has_the_distances_and_normals_of_a_sphere(radius: float, beyond: float) -> None:
    centre = radius + np.array([5.3, 6.7, 7.1])
    out = directions(300)
    found = boundary(ball(radius, centre), SPACING, SMOOTHING).nearest((centre + (radius + beyond) * out) * SPACING)
    assert np.abs(found.distances / SPACING - beyond).max() < 0.45
    assert abs(found.distances.mean() / SPACING - beyond) < 0.1
    assert np.median(angles(found.normals, out)) < 2
    surface = np.linalg.norm(found.points / SPACING - centre, axis=1)
    assert np.abs(surface - radius).max() < 0.45


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_flat_wall_faces_along_each_axis(axis: int, sign: float) -> None:
    """`axis`: of x, y, z."""
    mask = np.zeros((30, 32, 34), dtype=bool)
    index = [slice(None)] * 3
    index[2 - axis] = slice(0, 12) if sign > 0 else slice(12, None)
    mask[tuple(index)] = True
    position = np.full((1, 3), 150.0)
    position[0, axis] = 117.0 + sign * 42.0
    wall = 115.0
    found = boundary(mask, SPACING, SMOOTHING).nearest(position)
    expected = np.zeros(3)
    expected[axis] = sign
    assert found.normals[0] == pytest.approx(expected, abs=1e-6)
    assert found.distances[0] == pytest.approx(sign * (position[0, axis] - wall), abs=1e-6)
    foot = position[0].copy()
    foot[axis] = wall
    assert found.points[0] == pytest.approx(foot, abs=1e-6)


def test_odd_shapes_have_the_distance_of_the_nearest_of_all_faces() -> None:
    """Balls that overlap, with edges where they meet: the faces of all voxels are tried, one by one."""
    rng = np.random.default_rng(3)
    mask = np.zeros((40, 44, 48), dtype=bool)
    grid = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), axis=-1)
    for centre, radius in zip(rng.uniform(12, 30, (5, 3)), rng.uniform(5, 9, 5), strict=True):
        mask |= ((grid - centre) ** 2).sum(-1) <= radius**2
    positions = rng.uniform(20, 400, (200, 3))
    faces = [
        (place + other) / 2
        for place in np.argwhere(mask)
        for step in np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
        if not mask[tuple(other := place + step)]
    ]
    indices = to_voxels(positions, SPACING)
    nearest = np.array([min(np.linalg.norm(np.array(faces) - index, axis=1)) for index in indices])
    nearest_voxel = np.minimum(np.floor(indices + 0.5).astype(int), np.array(mask.shape) - 1)
    expected = np.where(mask[tuple(nearest_voxel.T)], -nearest, nearest)
    found = boundary(mask, SPACING, SMOOTHING).nearest(positions).distances / SPACING
    # A surface through steps of voxels lies up to 0.7 beside the middle of a face.
    assert np.abs(found - expected).max() < 1.2
    assert np.abs(found - expected).mean() < 0.25
    far = nearest > 1.2
    assert (np.sign(found[far]) == np.sign(expected[far])).all()


def test_a_mask_goes_on_beyond_the_volume() -> None:
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[:, :, :10] = True
    points = boundary(mask, SPACING, SMOOTHING).points
    assert (points[:, 0] == 95.0).all()


def test_a_sheet_of_one_voxel_has_a_boundary_on_both_sides() -> None:
    mask = np.zeros((30, 30, 30), dtype=bool)
    mask[15] = True
    found = boundary(mask, SPACING, SMOOTHING).nearest(np.array([[145.0, 145.0, 200.0], [145.0, 145.0, 100.0]]))
    assert found.normals == pytest.approx(np.array([[0, 0, 1], [0, 0, -1]]), abs=1e-6)
    assert found.distances == pytest.approx(np.array([45.0, 45.0]), abs=1e-6)


@pytest.mark.parametrize("find", [boundary, middle])
def test_without_voxels_there_is_no_surface(find) -> None:
    found = find(np.zeros((8, 8, 8), dtype=bool), SPACING, SMOOTHING).nearest(np.zeros((2, 3)))
    assert np.isinf(found.distances).all() and np.isnan(found.normals).all()


# Membranes


def ellipsoid(centre: Array, semi_axes: Array, count: int = 500) -> tuple[Array, Array]:
    """Points (N, 3) all over an ellipsoid, and outward normals, from its equation."""
    polar, around = np.meshgrid(
        np.linspace(0, np.pi, count), np.linspace(0, 2 * np.pi, 2 * count, endpoint=False), indexing="ij"
    )
    unit = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], axis=-1).reshape(
        -1, 3
    )
    normals = unit / semi_axes
    return centre + unit * semi_axes, normals / np.linalg.norm(normals, axis=1, keepdims=True)


def around_membranes(seed: int, count: int = 400) -> tuple[Nearest, Array, Array]:
    """What is found of positions beside the membranes of a phantom, and the distances and normals there are."""
    made = vesicles(2, (64, 96, 96), SPACING, np.random.default_rng(seed))
    points, normals = (
        np.concatenate(part)
        for part in zip(*(ellipsoid(*each) for each in zip(made.centres, made.semi_axes, strict=True)), strict=True)
    )
    rng = np.random.default_rng([seed, 1])
    chosen = rng.integers(0, len(points), count)
    positions = points[chosen] + rng.uniform(-80, 150, (count, 1)) * normals[chosen]
    distances, nearest = KDTree(points).query(positions)
    signs = np.sign(np.einsum("ni,ni->n", positions - points[nearest], normals[nearest]))
    return middle(made.mask, SPACING, SMOOTHING).nearest(positions), signs * distances, normals[nearest]


@pytest.mark.parametrize("seed", range(4))
def test_membranes_of_a_phantom_have_normals_and_sides(seed: int) -> None:
    found, distances, normals = around_membranes(seed)
    beside = np.abs(distances) > SPACING
    assert np.median(angles(found.normals, normals)) < 2
    assert np.mean(angles(found.normals, normals) < 5) > 0.9
    assert ((found.distances > 0) == (distances > 0))[beside].mean() > 0.995
    assert np.median(np.abs(found.distances - distances)) < 0.1 * SPACING


def shell(shape: tuple[int, int, int], centre: Array, radius: float, half: float = 2.0) -> NDArray[np.bool_]:
    """A spherical membrane (z, y, x); all in voxels, the centre as x, y, z."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    away = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
    return np.abs(away - radius) <= half


def test_a_vesicle_that_the_volume_cuts_open_has_an_inside() -> None:
    """Above and below, where the missing wedge often hides the membrane, there is none; and one lies at the side."""
    mask = shell((24, 60, 60), np.array([30.0, 30.0, 12.0]), 22.0)
    found = middle(mask, SPACING, SMOOTHING).nearest(np.array([[300.0, 300, 120], [300.0, 560, 120], [20.0, 300, 120]]))
    assert (found.distances > 0).tolist() == [False, True, True]
    assert np.abs(found.distances[1:] - [40.0, 60.0]).max() < 5
    cut = shell((40, 40, 40), np.array([0.0, 20.0, 20.0]), 15.0)
    found = middle(cut, SPACING, SMOOTHING).nearest(np.array([[20.0, 200, 200], [250.0, 200, 200]]))
    assert np.abs(found.distances - [-130.0, 100.0]).max() < 5


def test_a_cap_is_bent_towards_its_inside() -> None:
    mask = shell((50, 50, 50), np.array([25.0, 25.0, 25.0]), 18.0)
    mask[:33] = False
    found = middle(mask, SPACING, SMOOTHING).nearest(np.array([[250.0, 250.0, 400.0], [250.0, 250.0, 480.0]]))
    assert np.abs(found.distances - [-30.0, 50.0]).max() < 5


@pytest.mark.parametrize("normal", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0.6, 0, 0.8), (-0.48, 0.6, 0.64)])
@pytest.mark.parametrize("half", [0.6, 2.0, 3.5])
def test_a_flat_sheet_has_two_sides(normal: tuple[float, float, float], half: float) -> None:
    """Outwards is towards larger z."""
    z, y, x = np.meshgrid(*[np.arange(48.0)] * 3, indexing="ij")
    height = (x - 24) * normal[0] + (y - 24) * normal[1] + (z - 24) * normal[2]
    mask = (np.abs(height) <= half) & ((x - 24) ** 2 + (y - 24) ** 2 + (z - 24) ** 2 < 400)
    above = 240 + np.array([[80.0], [-60.0]]) * np.array(normal)
    found = middle(mask, SPACING, SMOOTHING).nearest(above)
    assert np.abs(found.distances - [80, -60]).max() < 0.3 * SPACING
    assert angles(found.normals, np.tile(normal, (2, 1))).max() < 2


def test_two_sheets_each_have_a_sign_of_their_own() -> None:
    """A vesicle within another one, near it: what lies between is outside of one and inside of the other."""
    centre = np.array([32.0, 32.0, 32.0])
    mask = shell((64, 64, 64), centre, 26.0, 1.5) | shell((64, 64, 64), centre, 16.0, 1.5)
    surface = middle(mask, SPACING, SMOOTHING)
    out = directions(100)
    for radius, expected in ((14.0, -20.0), (19.0, 30.0), (23.0, -30.0), (29.0, 30.0)):
        found = surface.nearest((centre + radius * out) * SPACING)
        assert np.abs(found.distances - expected).max() < 0.6 * SPACING


def test_a_sheet_is_equally_deep_all_over() -> None:
    """The middle is found between two surfaces, not where the smoothed mask is highest."""
    centre = np.array([20.0, 20.0, 20.0])
    points = middle(shell((40, 40, 40), centre, 10.0, 3.0), SPACING, SMOOTHING).points
    away = np.linalg.norm(points / SPACING - centre, axis=1)
    assert abs(away.mean() - 10) < 0.15 and away.std() < 0.25
