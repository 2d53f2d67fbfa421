"""The worst picks: false ones with the highest scores, and references that are farthest from any pick."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.picks import Picks
from tomoscout.report.pictures import MarkedSlice
from tomoscout.tasks.picking.matching import Matches


class Compared(NamedTuple):
    """The picks of one object in one run, and what they matched. `radius`: of the object, in Å."""

    name: str
    radius: float
    predicted: Picks
    reference: Picks
    matches: Matches

    @property
    def found(self) -> Picks:
        """The references that are found."""
        return self.reference[self.matches.found]

    @property
    def missed(self) -> Picks:
        """The references that are not."""
        return self.reference[~self.matches.found]

    @property
    def false(self) -> Picks:
        """The predicted picks that find no reference."""
        return self.predicted[self.matches.gains == 0]


class Case(NamedTuple):
    """A false pick with its score, or a missed reference with its distance in Å to the nearest pick of the object,
    infinite where the run has none. `position`: x, y, z in Å."""

    run: str
    position: NDArray[np.float64]
    value: float


class Worst(NamedTuple):
    """The cut-outs of one kind of mistake with one object, and how many mistakes there are."""

    name: str
    kind: str
    total: int
    pictures: Sequence[MarkedSlice]


def false_cases(runs: Mapping[str, Compared]) -> list[Case]:
    """All false picks of an object, by run (`project/run`), the highest score first."""
    return _descending(
        Case(run, position, float(score))
        for run, pair in runs.items()
        for position, score in zip(pair.false.positions, pair.false.scores, strict=True)
    )


def missed_cases(runs: Mapping[str, Compared]) -> list[Case]:
    """All missed references of an object, by run (`project/run`), the one farthest from any pick first."""
    from scipy.spatial import KDTree

    cases = []
    for run, pair in runs.items():
        missed = pair.missed.positions
        distances, _ = KDTree(pair.predicted.positions).query(missed)
        cases += [Case(run, *case) for case in zip(missed, distances.tolist(), strict=True)]
    return _descending(cases)


def _descending(cases: Iterable[Case]) -> list[Case]:
    return sorted(cases, key=lambda case: -case.value)


def caption(kind: str, case: Case) -> str:
    """Where a case is, and how bad."""
    x, y, z = case.position
    # Lines do not break inside of a coordinate.
    place = f"{case.run}, x\u00a0{x:.0f}, y\u00a0{y:.0f}, z\u00a0{z:.0f}\u00a0Å"
    if kind == "false":
        return f"{place}: score {case.value:.3f}"
    return f"{place}: " + (f"nearest pick {case.value:.0f} Å away" if np.isfinite(case.value) else "no pick in the run")
