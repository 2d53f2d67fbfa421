"""Angles of other programs: three rotations about axes that mean the rotation of a particle, object → tomogram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Convention:
    """Three angles in degrees, for a rotation object → tomogram.

    `names`: what the program calls them, in order. `sequence`: their axes as SciPy has them, capitals for axes that
    turn with the object. `inverse`: whether they are the angles of the rotation tomogram → object.
    """

    names: str
    sequence: str
    inverse: bool

    def angles(self, rotations: NDArray[np.floating]) -> NDArray[np.float64]:
        """Rotations (N, 3, 3) → angles (N, 3). Where two of them turn about one axis, the third is 0."""
        from scipy.spatial.transform import Rotation

        if not len(rotations):
            return np.zeros((0, 3))
        turned = self._own(Rotation.from_matrix(np.asarray(rotations, dtype=np.float64)))
        angles: NDArray[np.float64] = turned.as_euler(self.sequence, degrees=True, suppress_warnings=True)
        return angles

    def rotations(self, angles: NDArray[np.floating]) -> NDArray[np.float64]:
        """Angles (N, 3) → rotations (N, 3, 3)."""
        from scipy.spatial.transform import Rotation

        if not len(angles):
            return np.zeros((0, 3, 3))
        turned = Rotation.from_euler(self.sequence, np.asarray(angles, dtype=np.float64), degrees=True)
        matrices: NDArray[np.float64] = self._own(turned).as_matrix()
        return matrices

    def _own(self, rotation: Any) -> Any:
        return rotation.inv() if self.inverse else rotation

    def __str__(self) -> str:
        which = "tomogram → object" if self.inverse else "object → tomogram"
        axes = "turning with the object" if self.sequence.isupper() else "fixed"
        return f"{self.names} in degrees: {self.sequence.lower()} about {axes} axes, {which}"


RELION = Convention("rot, tilt, psi", "ZYZ", inverse=True)
"""RELION's Euler angles (`Euler_angles2matrix` in its src/euler.cpp); Warp has the same."""

DYNAMO = Convention("tdrot, tilt, narot", "zxz", inverse=True)
"""Dynamo's angles (its wiki, "Euler angles")."""

MOTIVELIST = Convention("phi, theta, psi", "zxz", inverse=False)
"""The TOM toolbox's angles (`tom_rotate`), as motive lists of AV3, Artiatomi and ArtiaX have them."""


def are_rotations(matrices: NDArray[np.floating]) -> bool:
    """Whether all matrices (N, 3, 3) are rotations, which neither mirror nor stretch."""
    products = matrices @ matrices.transpose(0, 2, 1)
    return bool((np.abs(products - np.eye(3)) < 1e-3).all() and (np.linalg.det(matrices) > 0).all())
