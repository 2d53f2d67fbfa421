"""Touching particles are parted, single ones are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tomoscout.tasks.picking import watershed
from tomoscout.tasks.picking.components import Components, read_runs
from tomoscout.tasks.picking.watershed import BALL, DIP, part, parted

SIDE = 44
MIDDLE = np.full(3, SIDE / 2) - 0.3


def distances(centre: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.stack(np.indices((SIDE, SIDE, SIDE)), axis=-1) - centre, axis=-1)


def direction(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=3)
    return vector / np.linalg.norm(vector)


def pair(radius: float, apart: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two balls whose middles are `apart` radii apart, and their middles."""
    centres = MIDDLE + np.outer([-0.5, 0.5], direction(seed)) * apart * radius
    return np.min([distances(centre) for centre in centres], axis=0) <= radius, centres


def rough(distance: np.ndarray, radius: float, seed: int) -> np.ndarray:
    """What lies within a radius that varies smoothly by a tenth of it."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=distance.shape), 1.5)
    labels, _ = ndimage.label(distance + 0.1 * radius * noise / noise.std() <= radius)
    return labels == np.bincount(labels[labels > 0]).argmax()


def single(kind: str, seed: int) -> np.ndarray:
    """A shape that is one particle, in any direction."""
    axis = direction(seed)
    places = np.stack(np.indices((SIDE, SIDE, SIDE)), axis=-1) - MIDDLE
    along = places @ axis
    across = np.sqrt(np.maximum((places**2).sum(axis=-1) - along**2, 0))
    shapes = {
        "ellipsoid": (along / 12) ** 2 + (across / 6) ** 2 <= 1,
        "rod": (abs(along) <= 12) & (across <= 4),
        "half a ball": (along >= 0) & (along**2 + across**2 <= 81),
        "rough ball": rough(np.hypot(along, across), 8, seed),
        "rough ellipsoid": rough(np.hypot(along / 1.5, across), 7, seed),
    }
    return shapes[kind]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("radius", "apart"), [(3, 2.0), (5, 1.75), (5, 2.0), (8, 1.5), (8, 2.0)])
def test_touching_balls_are_parted(radius: float, apart: float, seed: int) -> None:
    mask, centres = pair(radius, apart, seed)
    components = Components(read_runs([mask.view(np.uint8)], [1]))
    assert len(components.voxels) == 1
    assert components.scatter[0] > BALL
    found = parted(components, np.array([0]), separation=radius)
    assert found.components.tolist() == [1, 1]
    assert found.voxels.sum() == mask.sum()
    apart_by = np.linalg.norm(found.centres[:, None] - centres[None], axis=2)
    # Balls that overlap lose a cap to each other, which moves their centres of mass.
    assert apart_by.min(axis=0).max() < 0.5 + 0.2 * (2 - apart) * radius
    assert sorted(apart_by.argmin(axis=0).tolist()) == [0, 1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["ellipsoid", "rod", "half a ball", "rough ball", "rough ellipsoid"])
def test_single_particles_are_not_parted(kind: str, seed: int) -> None:
    mask = single(kind, seed)
    assert part(mask, separation=5).max() == 1
    np.testing.assert_array_equal(part(mask, separation=5) > 0, mask)


def test_a_row_of_particles_has_one_component_and_its_number() -> None:
    centres = np.array([[8.0, 10, 8 + 11 * n] for n in range(4)])
    grid = np.stack(np.indices((17, 21, 50)), axis=-1)
    mask = np.min([np.linalg.norm(grid - centre, axis=-1) for centre in centres], axis=0) <= 6
    mask[:, 19:21, :5] = True
    labels = mask.astype(np.uint8)
    components = Components(read_runs([labels], [1]))
    assert len(components.voxels) == 2
    values = (grid[..., 2] * 5).astype(np.uint8)
    found = parted(components, np.array([0, 1]), separation=6, values=values)
    row = found.components == components.regions(np.array([components.voxels.argmax()])).components[0]
    order = np.argsort(found.centres[row][:, 2])
    np.testing.assert_allclose(found.centres[row][order], centres, atol=0.6)
    np.testing.assert_allclose(found.means[row][order], 5 * found.centres[row][order][:, 2], atol=1e-6)


def test_parts_are_no_nearer_than_the_separation() -> None:
    mask, _ = pair(8, 1.5, 0)
    assert part(mask, separation=11).max() == 2
    assert part(mask, separation=14).max() == 1


def test_a_component_like_a_ball_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, _ = pair(8, 0.0, 0)
    components = Components(read_runs([mask.view(np.uint8)], [1]))
    expected = parted(components, np.array([0]), separation=1)
    monkeypatch.setattr(watershed, "BALL", 0.0)
    looked_at = parted(components, np.array([0]), separation=1)
    for one, other in zip(expected, looked_at, strict=True):
        np.testing.assert_allclose(one, other)


@pytest.mark.parametrize("radius", [3, 6, 10])
def test_balls_a_radius_apart_are_looked_at(radius: float) -> None:
    for seed in range(3):
        mask, _ = pair(radius, 1.0, seed)
        assert Components(read_runs([mask.view(np.uint8)], [1])).scatter[0] > BALL


def summits(depth: np.ndarray) -> int:
    """How many maxima there are from which the depth falls by more than DIP on every way to a deeper one. Slow: of
    every voxel, what can be reached without falling so far."""
    found = set()
    for place in zip(*np.nonzero(depth), strict=True):
        reached, _ = ndimage.label(depth > depth[place] - DIP, structure=np.ones((3, 3, 3)))
        within = reached == reached[place]
        if depth[within].max() == depth[place]:
            found.add(int(np.flatnonzero(within)[0]))
    return len(found)


@pytest.mark.parametrize("seed", range(6))
def test_tops_are_those_of_a_slow_search(seed: int) -> None:
    random = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(random.normal(size=(14, 15, 16)), 1.6)
    labels, _ = ndimage.label(noise > 0)
    mask = labels == np.bincount(labels[labels > 0]).argmax()
    depth = ndimage.distance_transform_edt(np.pad(mask, 1)).astype(np.float32)
    tops = watershed._tops(depth, separation=1e-9)
    assert len(tops) == summits(depth)
    assert (np.diff(depth[tuple(tops.T)]) <= 0).all()
