"""The field towards the middles of objects, against a fast-marching solver and shortest paths in plain Python."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from tomoscout.tasks.instances.flow import FlowHead
from tomoscout.tasks.instances.flow_field import flow_field

torch.set_num_threads(1)
Voxel = tuple[int, ...]


def field_of(*images: NDArray[np.integer]) -> NDArray[np.float32]:
    return flow_field(torch.from_numpy(np.stack(images).astype(np.int64))).numpy()


def disc(shape: Sequence[int], centre: Sequence[float], radius: float) -> NDArray[np.bool_]:
    squares = sum((grid - middle) ** 2 for grid, middle in zip(np.indices(shape), centre, strict=True))
    return np.asarray(squares <= radius**2)


def blobs(shape: Sequence[int], seed: int) -> NDArray[np.int64]:
    """Objects of odd shapes, some of which touch, with holes; numbers with gaps."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(size=shape), 1.5)
    cells = ndimage.distance_transform_edt(random.random(shape) > 12 / np.prod(shape), return_indices=True)[1]
    numbers = np.ravel_multi_index(tuple(cells), tuple(shape)) + 5
    return np.where(smooth > -0.02, numbers, 0).astype(np.int64)


def ustring() -> NDArray[np.int64]:
    """A U: arms of 6 voxels, 30 long, with 8 voxels between them."""
    image = np.zeros((40, 32), np.int64)
    image[4:36, 6:26] = 3
    image[4:30, 12:20] = 0
    return image


def neighbours(voxel: Voxel) -> list[list[Voxel]]:
    return [[(*voxel[:a], voxel[a] + move, *voxel[a + 1 :]) for move in (-1, 1)] for a in range(len(voxel))]


def middles(voxels: list[Voxel]) -> list[Voxel]:
    centroid = [sum(axis) / len(voxels) for axis in zip(*voxels, strict=True)]
    distances = {voxel: sum((a - b) ** 2 for a, b in zip(voxel, centroid, strict=True)) for voxel in voxels}
    nearest = [voxel for voxel in voxels if distances[voxel] < min(distances.values()) + 1e-6]
    return [voxel for voxel in nearest if max(abs(a - b) for a, b in zip(voxel, nearest[0], strict=True)) <= 1]


def solve(known: list[float]) -> float:
    """The larger root of sum (T − known)² = 1, over as many of the smallest as are below it."""
    known = sorted(known)
    for count in range(len(known), 0, -1):
        some = known[:count]
        mean, square = sum(some) / count, sum(value**2 for value in some) / count
        inner = mean**2 - square + 1 / count
        if inner >= 0 and (found := mean + math.sqrt(inner)) > some[-1]:
            return found
    raise AssertionError


def fast_marching(voxels: list[Voxel]) -> dict[Voxel, float]:
    """Path lengths by Sethian's fast marching; pieces that cannot be reached start from middles of their own."""
    there, final = set(voxels), dict[Voxel, float]()
    while len(final) < len(voxels):
        left = [voxel for voxel in voxels if voxel not in final]
        heap = [(0.0, voxel) for voxel in middles(left)]
        while heap:
            length, voxel = heapq.heappop(heap)
            if voxel in final:
                continue
            final[voxel] = length
            for other in itertools.chain(*neighbours(voxel)):
                if other in there and other not in final:
                    sides = [min(final.get(side, math.inf) for side in pair) for pair in neighbours(other)]
                    heapq.heappush(heap, (solve([side for side in sides if side < math.inf]), other))
    return final


def reference(image: NDArray[np.int64]) -> NDArray[np.float64]:
    field = np.zeros((image.ndim, *image.shape))
    for number in np.unique(image[image > 0]):
        voxels = [tuple(place) for place in np.argwhere(image == number).tolist()]
        lengths = fast_marching(voxels)
        for voxel in voxels:
            falls = []
            for before, after in neighbours(voxel):
                left, right = lengths.get(before, math.inf), lengths.get(after, math.inf)
                fall = max(lengths[voxel] - min(left, right), 0.0)
                falls.append(-fall if left <= right else fall)
            norm = math.hypot(*falls)
            field[(slice(None), *voxel)] = np.array(falls) / norm if norm else 0.0
    return field


def geodesics(mask: NDArray[np.bool_], source: Voxel, reach: int = 6) -> dict[Voxel, float]:
    """Dijkstra over straight moves of up to `reach` voxels that stay within the mask: within 1 % of the true length."""
    moves = [move for move in itertools.product(range(-reach, reach + 1), repeat=2) if math.gcd(*move) == 1]
    final, heap = dict[Voxel, float](), [(0.0, source)]
    while heap:
        length, voxel = heapq.heappop(heap)
        if voxel in final:
            continue
        final[voxel] = length
        for move in moves:
            way = [tuple(round(a + part * b / 8) for a, b in zip(voxel, move, strict=True)) for part in range(1, 9)]
            if all(all(0 <= a < size for a, size in zip(p, mask.shape, strict=True)) and mask[p] for p in way):
                heapq.heappush(heap, (length + math.hypot(*move), (voxel[0] + move[0], voxel[1] + move[1])))
    return final


def walk(field: NDArray[np.float32], start: Voxel, step: float = 0.25) -> tuple[float, list[Voxel]]:
    """Length of the way along the field to where it is 0, and the voxels on it."""
    place, voxels = np.array(start, float), [start]
    for number in range(1000):
        vector = field[(slice(None), *voxels[-1])]
        if not vector.any():
            return number * step, voxels
        place = np.clip(place + step * vector, 0, np.array(field.shape[1:]) - 1)
        voxels.append(tuple(np.rint(place).astype(int).tolist()))
    return 1000 * step, voxels


@pytest.mark.parametrize("shape", [(30, 34), (12, 13, 14), (1, 25), (40, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_fast_marching_gives(shape: tuple[int, ...], seed: int) -> None:
    image = blobs(shape, seed)
    np.testing.assert_allclose(field_of(image)[0], reference(image), atol=2e-3)


def test_vectors_are_of_length_one_within_objects_and_zero_elsewhere() -> None:
    image = blobs((40, 50), 7)
    length = np.linalg.norm(field_of(image)[0], axis=0)
    assert not length[image == 0].any()
    inside = length[image > 0]
    assert np.all((abs(inside - 1) < 1e-4) | (inside == 0))
    # Only middles have none: one to four voxels of each piece.
    pieces = sum(ndimage.label(image == number)[1] for number in np.unique(image[image > 0]))
    assert pieces <= (inside == 0).sum() <= 4 * pieces


@pytest.mark.parametrize("centre", [(24, 26), (24.5, 26.5)])
def test_in_a_disc_they_point_straight_to_its_middle(centre: tuple[float, float]) -> None:
    mask = disc((50, 52), centre, 18)
    straight = np.stack([middle - grid for middle, grid in zip(centre, np.indices(mask.shape), strict=True)])
    length = np.linalg.norm(straight, axis=0)
    cosines = (field_of(mask)[0] * straight).sum(0) / np.maximum(length, 1e-6)
    # The upwind scheme is of first order: it is out by some degrees near the middle, less farther away.
    assert cosines[mask & (length > 3)].min() > math.cos(math.radians(15))
    assert cosines[mask & (length > 3)].mean() > math.cos(math.radians(6))


def test_in_a_ball_they_point_straight_to_its_middle() -> None:
    mask = disc((25, 26, 27), (12, 13, 13), 10)
    straight = np.stack([middle - grid for middle, grid in zip((12, 13, 13), np.indices(mask.shape), strict=True)])
    length = np.linalg.norm(straight, axis=0)
    cosines = (field_of(mask)[0] * straight).sum(0) / np.maximum(length, 1e-6)
    assert cosines[mask & (length > 3)].mean() > math.cos(math.radians(10))


def test_in_a_u_they_lead_along_the_shortest_path_within_it() -> None:
    image = ustring()
    field = field_of(image)[0]
    (source, *_) = middles([tuple(place) for place in np.argwhere(image).tolist()])
    lengths = geodesics(image > 0, source)
    for start in itertools.islice(lengths, 0, None, 7):
        length, way = walk(field, start)
        assert all(image[voxel] for voxel in way), start
        assert abs(length - lengths[start]) < 0.06 * lengths[start] + 2, start


def test_touching_objects_do_not_see_each_other() -> None:
    one, other = np.zeros((2, 24, 30), np.int64)
    one[4:20, 3:15], other[4:20, 15:28] = 2, 9
    apart, together = field_of(one, other), field_of(one + other)
    np.testing.assert_array_equal(together[0], apart.sum(0))


def test_equal_numbers_in_two_images_are_two_objects() -> None:
    one, other = np.zeros((2, 30, 30), np.int64)
    one[2:12, 3:9], other[15:28, 10:29] = 1, 1
    both = field_of(one, other)
    np.testing.assert_array_equal(both, np.concatenate([field_of(one), field_of(other)]))


def test_numbers_say_nothing() -> None:
    image = blobs((30, 30), 4)
    others = np.where(image > 0, 2**31 - 2 - image, 0)
    np.testing.assert_array_equal(field_of(image), field_of(others))


@pytest.mark.parametrize("shape", [(8, 9), (4, 5, 6)])
def test_background_negative_numbers_and_single_voxels_have_no_direction(shape: tuple[int, ...]) -> None:
    image = np.zeros(shape, np.int64)
    assert field_of(image).shape == (1, len(shape), *shape)
    assert not field_of(image).any()
    assert not field_of(image - 1).any()
    image.flat[17] = 4
    assert not field_of(image).any()


@pytest.mark.parametrize("size", [30, 31])
def test_a_ring_has_one_middle(size: int) -> None:
    centre = ((size - 1) / 2,) * 2
    ring = disc((size, size), centre, 13) & ~disc((size, size), centre, 8)
    field = field_of(ring)[0]
    still = ring & ~field.any(axis=0)
    assert ndimage.label(still, np.ones((3, 3)))[1] == 1


def test_a_piece_that_cannot_reach_the_middle_has_one_of_its_own() -> None:
    image = np.zeros((20, 50), np.int64)
    image[3:14, 4:16] = image[5:16, 30:49] = 6
    apart = np.where(np.arange(50) < 20, image, 0)
    np.testing.assert_allclose(field_of(image)[0][:, :, :25], field_of(apart)[0][:, :, :25], atol=1e-5)
    still = (image > 0) & ~field_of(image)[0].any(axis=0)
    assert ndimage.label(still)[1] == 2


def test_what_is_not_known_is_background_for_the_field_and_marked_for_the_loss() -> None:
    ignore = 2**31 - 1
    image = np.zeros((24, 24), np.int64)
    image[5:20, 5:20] = 1
    inside_alone, alone = FlowHead(2).targets(torch.from_numpy(image[None]), ignore)
    image[:, 20:] = ignore
    inside, field = FlowHead(2).targets(torch.from_numpy(image[None]), ignore)
    assert torch.equal(field, alone)
    assert (inside[0, :, 20:] == -1).all()
    assert torch.equal(inside[..., :20], inside_alone[..., :20])
