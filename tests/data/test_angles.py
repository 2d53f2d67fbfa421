"""Angles of other programs against their own formulas, and there and back for any rotation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.formats import turned_by
from tomoscout.data.angles import DYNAMO, MOTIVELIST, RELION, Convention, are_rotations

checked = settings(deadline=None, max_examples=200, derandomize=True)
degrees = st.one_of(st.floats(-360, 360), st.sampled_from([0.0, 90.0, 180.0, -180.0, 1e-7, 180 - 1e-7]))
angles = st.lists(st.tuples(degrees, degrees, degrees), min_size=1, max_size=5).map(np.array)


def about(axis: str, angle: float) -> np.ndarray:
    """The rotation of a vector about an axis by the right hand, as textbooks write it."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return {
        "x": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


def relion_matrix(rot: float, tilt: float, psi: float) -> np.ndarray:
    """The nine elements as RELION computes them from the sines and cosines of its three angles."""
    a, b, g = np.radians([rot, tilt, psi])
    ca, cb, cg, sa, sb, sg = np.cos(a), np.cos(b), np.cos(g), np.sin(a), np.sin(b), np.sin(g)
    cc, cs, sc, ss = cb * ca, cb * sa, sb * ca, sb * sa
    return np.array(
        [
            [cg * cc - sg * sa, cg * cs + sg * ca, -cg * sb],
            [-sg * cc - cg * sa, -sg * cs + cg * ca, sg * sb],
            [sc, ss, cb],
        ]
    )


@checked
@given(angles)
def test_relion(given_angles: np.ndarray) -> None:
    expected = np.array([relion_matrix(*three) for three in given_angles])
    np.testing.assert_allclose(RELION.rotations(given_angles), expected, atol=1e-9)


@checked
@given(angles)
def test_motive_lists_turn_a_reference_by_phi_then_theta_then_psi(given_angles: np.ndarray) -> None:
    expected = np.array([about("z", psi) @ about("x", theta) @ about("z", phi) for phi, theta, psi in given_angles])
    np.testing.assert_allclose(MOTIVELIST.rotations(given_angles), expected, atol=1e-9)


@checked
@given(angles)
def test_dynamo_turns_a_particle_onto_the_template(given_angles: np.ndarray) -> None:
    expected = np.array([(about("z", n) @ about("x", t) @ about("z", d)).T for d, t, n in given_angles])
    np.testing.assert_allclose(DYNAMO.rotations(given_angles), expected, atol=1e-9)


@pytest.mark.parametrize("convention", [RELION, DYNAMO, MOTIVELIST], ids=lambda c: c.names)
@checked
@given(angles)
def test_there_and_back(convention: Convention, given_angles: np.ndarray) -> None:
    rotations = convention.rotations(given_angles)
    again = convention.rotations(convention.angles(rotations))
    assert turned_by(rotations, again).max() < 1e-4


def test_no_orientation_is_three_times_zero() -> None:
    for convention in (RELION, DYNAMO, MOTIVELIST):
        np.testing.assert_allclose(convention.angles(np.eye(3)[None]), 0, atol=1e-12)
        assert convention.angles(np.zeros((0, 3, 3))).shape == (0, 3)
        assert convention.rotations(np.zeros((0, 3))).shape == (0, 3, 3)


@pytest.mark.parametrize("matrix", [np.diag([1, 1, -1]), np.eye(3) * 2, np.zeros((3, 3))], ids=["mirror", "twice", "0"])
def test_what_is_no_rotation(matrix: np.ndarray) -> None:
    assert are_rotations(np.stack([np.eye(3), about("x", 40)]))
    assert not are_rotations(np.stack([np.eye(3), matrix]))
