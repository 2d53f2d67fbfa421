"""The particles of a phantom: densities in the particle's own frame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import to_voxels
from tomoscout.phantom.placement import box_around

Array = NDArray[np.floating]
# The density at x, y, z in Å, with soft edges of the given width in Å.
Form = Callable[[Array, Array, Array, float], Array]

# Densities are sampled this many times finer than the tomogram, so that linear interpolation hardly blurs them.
OVERSAMPLING = 2


@dataclass(frozen=True)
class Kind:
    """A kind of particle.

    `density` is a cube (z, y, x) sampled every `step` Å whose middle voxel is the centre of mass; protein is about
    1, solvent 0. `radius` in Å is that of the smallest sphere around the centre of mass that holds all of it.
    """

    name: str
    density: NDArray[np.float32]
    step: float
    radius: float

    @property
    def reach(self) -> float:
        """Half the side of the cube in Å."""
        return float(self.density.shape[0] // 2 * self.step)


def built_in(voxel_spacing: float) -> list[Kind]:
    """The built-in kinds, for tomograms of this voxel spacing (Å): schematic, but of five sizes and shapes."""
    return [_sample(name, form, reach, voxel_spacing) for name, (form, reach) in _FORMS.items()]


def bounding_radius(density: NDArray[Any], step: float) -> float:
    """Distance in Å from the middle voxel of a cube to the furthest voxel above one half."""
    offsets = np.argwhere(density > 0.5) - density.shape[0] // 2
    return float(np.linalg.norm(offsets, axis=1).max()) * step


def grid(half: int, step: float) -> tuple[Array, Array, Array]:
    """Coordinates x, y, z in Å of a (z, y, x) cube of 2 × half + 1 samples, zero in the middle; they broadcast."""
    axis = np.arange(-half, half + 1) * step
    return axis[None, None, :], axis[None, :, None], axis[:, None, None]


def render(kind: Kind, positions: Array, rotations: Array, volume: NDArray[np.float32], voxel_spacing: float) -> None:
    """Add particles of one kind to `volume` (z, y, x).

    Positions (N, 3) are x, y, z in Å; rotations (N, 3, 3) turn x, y, z of the kind's own frame into those of the
    tomogram. The density is interpolated linearly.
    """
    from scipy.ndimage import affine_transform

    middle = kind.density.shape[0] // 2
    for position, rotation in zip(positions, rotations, strict=True):
        box = box_around(position, kind.reach, volume.shape, voxel_spacing)
        start = np.array([side.start for side in box]) - to_voxels(position, voxel_spacing)[0]
        # From the tomogram back into the particle: the inverse (transposed) rotation, its axes as z, y, x.
        back = rotation.T[::-1, ::-1] * (voxel_spacing / kind.step)
        part = volume[box]
        part += affine_transform(kind.density, back, middle + back @ start, part.shape, order=1)


def _sample(name: str, form: Form, reach: float, voxel_spacing: float) -> Kind:
    """Sample a form that lies within `reach` Å of its origin, moved so that the centre of mass is in the middle."""
    step = voxel_spacing / OVERSAMPLING
    x, y, z = grid(math.ceil((reach + voxel_spacing) / step), step)
    density = form(x, y, z, voxel_spacing)
    centre = [float((density * axis).sum() / density.sum()) for axis in (x, y, z)]
    density = form(x + centre[0], y + centre[1], z + centre[2], voxel_spacing)
    return Kind(name, density.astype(np.float32), step, bounding_radius(density, step))


def _fill(depth: Array, edge: float) -> Array:
    """1 inside (depth > 0), 0 outside, a ramp of width `edge` in between."""
    return np.asarray(np.clip(0.5 + depth / edge, 0, 1))


def _distance(x: Array, y: Array, z: Array, centre: Array) -> Array:
    return np.asarray(np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2))


def _balls(x: Array, y: Array, z: Array, edge: float, centres: Array, radii: Array, weights: Array) -> Array:
    """Balls of given centres (N, 3), radii and densities (N,), the maximum where they overlap."""
    density = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape))
    for centre, radius, weight in zip(centres, radii, weights, strict=True):
        reach = np.array([-1, 1]) * (radius + edge)
        i, j, k = (slice(*np.searchsorted(a.ravel(), c + reach)) for a, c in zip((x, y, z), centre, strict=True))
        part = density[k, j, i]
        depth = radius - _distance(x[:, :, i], y[:, j], z[k], centre)
        np.maximum(part, weight * _fill(depth, edge), out=part)
    return density


def _virus_like_particle(x: Array, y: Array, z: Array, edge: float) -> Array:
    """A shell with a knob on each of the twelve vertices of an icosahedron, empty inside."""
    golden = (1 + math.sqrt(5)) / 2
    vertices = [np.roll([0, a, b * golden], turn) for turn in range(3) for a in (-1, 1) for b in (-1, 1)]
    knobs = np.array(vertices) * (115 / math.hypot(1, golden))
    r = _distance(x, y, z, np.zeros(3))
    return np.maximum(
        _fill(np.minimum(120 - r, r - 95), edge), _balls(x, y, z, edge, knobs, np.full(12, 20.0), np.ones(12))
    )


def _ribosome(x: Array, y: Array, z: Array, edge: float) -> Array:
    """An irregular body of two unequal lobes, each an aggregate of balls of differing density."""
    random = np.random.default_rng(70)
    lobes = [((0.0, 0.0, -29.0), 83.0, 80), ((21.0, 5.0, 75.0), 59.0, 44)]
    centres = []
    for middle, spread, count in lobes:
        directions = random.standard_normal((count, 3)) * [1.0, 0.8, 0.6]
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        centres.append(middle + spread * random.random((count, 1)) ** (1 / 3) * directions)
    balls = np.concatenate(centres)
    return _balls(x, y, z, edge, balls, random.uniform(20, 38, len(balls)), random.uniform(0.8, 1.5, len(balls)))


def _proteasome(x: Array, y: Array, z: Array, edge: float) -> Array:
    """A barrel of four rings around a channel, with a cap beside the axis at one end."""
    axial = np.hypot(x, y)
    barrel = np.minimum(np.minimum(52 + 6 * np.cos(2 * np.pi * z / 37.5) - axial, axial - 14), 75 - np.abs(z))
    cap = 40 - _distance(x, y, z, np.array([14.0, 0.0, 100.0]))
    return _fill(np.maximum(barrel, cap), edge)


def _apo_ferritin(x: Array, y: Array, z: Array, edge: float) -> Array:
    """A hollow ball."""
    r = _distance(x, y, z, np.zeros(3))
    return _fill(np.minimum(60 - r, r - 38), edge)


def _hemoglobin(x: Array, y: Array, z: Array, edge: float) -> Array:
    """Four balls in a tetrahedron."""
    corners = np.array([c for c in itertools.product((-9.0, 9.0), repeat=3) if math.prod(c) > 0])
    return _balls(x, y, z, edge, corners, np.full(4, 17.0), np.ones(4))


# Each with a radius in Å around its origin that contains it, also after recentring.
_FORMS: dict[str, tuple[Form, float]] = {
    "ribosome": (_ribosome, 165),
    "virus-like-particle": (_virus_like_particle, 140),
    "proteasome": (_proteasome, 145),
    "apo-ferritin": (_apo_ferritin, 65),
    "hemoglobin": (_hemoglobin, 40),
}
