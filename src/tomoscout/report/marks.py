"""Marks on pictures, as paths of SVG: circles, signs, and arrows along the axes of particles.

Coordinates are those of a slice in voxels: voxel (y, x) is the square from (x, y) to (x + 1, y + 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import to_voxels
from tomoscout.data.picks import Picks
from tomoscout.report.colours import Mark, Shape

_SHORTEST = 0.1
"""An arrow that is shorter, in radii, is left out."""

_HEAD = np.array([[-0.26, -0.15], [-0.26, 0.15]])
"""The ends of an arrow's head from its tip, along the arrow and across, in lengths of the arrow."""


class Spheres(NamedTuple):
    """Particles: centres (N, 3) as fractional indices z, y, x; radii (N,) in voxels; axes (N, 3), the z axes of the
    particles as z, y, x."""

    centres: NDArray[np.floating]
    radii: NDArray[np.floating]
    axes: NDArray[np.floating]

    @classmethod
    def of(cls, parts: Iterable[tuple[Picks, float]], voxel_spacing: float) -> Spheres:
        """Picks with the radius of their object in Å. copick's transforms lead from the object to the tomogram: the z
        axis of the object becomes their third column."""
        empty = np.zeros((0, 3))
        centres, radii, axes = [empty], [empty[:, 0]], [empty]
        for picks, radius in parts:
            centres.append(to_voxels(picks.positions, voxel_spacing))
            radii.append(np.full(len(picks), radius / voxel_spacing))
            axes.append(picks.rotations[:, ::-1, 2])
        return cls(np.concatenate(centres), np.concatenate(radii), np.concatenate(axes))

    def cut(self, z: float, box: tuple[float, float, float, float] | None = None) -> Spheres:
        """Those that slice `z` cuts, with the radii of the cuts, and axes as long as their own radii. With a box (x, y,
        width, height) those whose centres it holds."""
        squared = self.radii**2 - (self.centres[:, 0] - z) ** 2
        kept = squared > 0
        if box is not None:
            x, y, width, height = box
            from_corner = self.centres[:, 1:] + 0.5 - (y, x)
            kept &= ((from_corner >= 0) & (from_corner <= (height, width))).all(axis=1)
        return Spheres(self.centres[kept], np.sqrt(squared[kept]), self.axes[kept] * self.radii[kept, None])


def marks_path(cut: Spheres, shape: Shape, size: float) -> str:
    """The marks of particles that a slice cuts, and their arrows. `size`: half that of a sign."""
    parts = []
    for (_, y, x), radius, (_, down, across) in zip(cut.centres + 0.5, cut.radii, cut.axes, strict=True):
        parts.append(_mark(x, y, shape, radius, size))
        parts.append(_arrow(x, y, across, down, _SHORTEST * radius))
    return "".join(parts)


def icon(mark: Mark) -> str:
    """The path of a mark in a legend, 16 × 16."""
    return _mark(8, 8, mark.shape, 6, 5)


def _mark(x: float, y: float, shape: Shape, radius: float, size: float) -> str:
    left, top, half, whole = f"{x - size:.1f}", f"{y - size:.1f}", f"{size:.4g}", f"{2 * size:.4g}"
    if shape == "plus":
        return f"M{left} {y:.1f}h{whole}M{x:.1f} {top}v{whole}"
    if shape == "cross":
        return f"M{left} {top}l{whole} {whole}m-{whole} 0l{whole} -{whole}"
    if shape == "diamond":
        return f"M{x:.1f} {top}l{half} {half}l-{half} {half}l-{half} -{half}z"
    if shape in ("square", "outline"):
        return f"M{left} {top}h{whole}v{whole}h-{whole}z"
    arc = f"a{radius:.4g} {radius:.4g} 0 1 0"
    return f"M{x - radius:.1f} {y:.1f}{arc} {2 * radius:.4g} 0{arc} {-2 * radius:.4g} 0"


def _arrow(x: float, y: float, across: float, down: float, shortest: float) -> str:
    """An arrow from (x, y); empty where it is shorter than `shortest`."""
    if np.hypot(across, down) < shortest:
        return ""
    turned = np.array([[across, down], [-down, across]])
    (left_x, left_y), (right_x, right_y) = _HEAD @ turned
    tip = f"{x + across:.1f} {y + down:.1f}"
    return f"M{x:.1f} {y:.1f}L{tip}l{left_x:.1f} {left_y:.1f}M{tip}l{right_x:.1f} {right_y:.1f}"
