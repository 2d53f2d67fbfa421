"""Errors of pairs against each pair looked at alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tomoscout.data.picks import Picks
from tomoscout.tasks.picking.matching import count_matches
from tomoscout.tasks.picking.pair_errors import median, pair_errors


def test_errors_are_those_of_each_pair() -> None:
    rng = np.random.default_rng(0)
    truth = Picks.at(rng.uniform(0, 500, (40, 3)), rotations=Rotation.random(40, random_state=1).as_matrix())
    order = rng.permutation(40)[:30]
    turns = Rotation.from_rotvec(rng.normal(0, 0.5, (30, 3)))
    moved = truth.positions[order] + rng.normal(0, 4, (30, 3))
    guesses = Picks.at(moved, rng.random(30), rotations=turns.as_matrix() @ truth.rotations[order])
    matches = count_matches(guesses.positions, guesses.scores, truth.positions, 20)
    found = pair_errors(guesses, truth, matches)
    rows = []
    for index, partner in enumerate(matches.partners.tolist()):
        if partner >= 0:
            turn = Rotation.from_matrix(guesses.rotations[index]) * Rotation.from_matrix(truth.rotations[partner]).inv()
            axes = guesses.rotations[index] @ [0, 0, 1], truth.rotations[partner] @ [0, 0, 1]
            rows.append(
                (
                    math.dist(guesses.positions[index], truth.positions[partner]),
                    math.degrees(turn.magnitude()),
                    math.degrees(math.atan2(np.linalg.norm(np.cross(*axes)), np.dot(*axes))),
                )
            )
    assert len(rows) > 20
    for values, expected in zip((found.distances, found.angles, found.tilts), zip(*rows, strict=True), strict=True):
        assert values.tolist() == pytest.approx(expected, abs=1e-5)
    assert median([found.distances]) == pytest.approx(np.median([row[0] for row in rows]))


@pytest.mark.parametrize("turned", ["neither", "predictions", "references"])
def test_without_orientations_on_both_sides_there_are_no_angles(turned: str) -> None:
    places, rotations = np.array([[0.0, 0, 0], [90, 0, 0]]), Rotation.random(2, random_state=3).as_matrix()
    guesses = Picks.at(places, rotations=rotations if turned == "predictions" else None)
    truth = Picks.at(places + 1, rotations=rotations if turned == "references" else None)
    found = pair_errors(guesses, truth, count_matches(guesses.positions, guesses.scores, truth.positions, 9))
    assert found.distances == pytest.approx(np.full(2, math.sqrt(3)))
    assert len(found.angles) == len(found.tilts) == 0 and median([found.angles]) is None
