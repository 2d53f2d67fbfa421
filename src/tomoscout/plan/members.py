"""The models that one configuration trains on different runs of its split: their names, runs and seeds.

They are the single model, those of a cross-validation, and those of a learning curve.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest
from tomoscout.plan.folds import Fold
from tomoscout.plan.options import LearningCurve


class Member(NamedTuple):
    """The runs that a model trains on: of a fold, `percent` of the training runs, in the order of a draw.

    `fold`: number of the fold, or None for that of `split.fold`. By default a member is the single model, which trains
    on all training runs.
    """

    fold: int | None = None
    percent: int = 100
    draw: int = 0

    def name(self, model: str) -> str:
        """The name of the member's model. `model`: that of the single model."""
        fold = "" if self.fold is None else f"-fold-{self.fold}"
        part = "" if (self.percent, self.draw) == (SINGLE.percent, SINGLE.draw) else f"-part-{self.percent}-{self.draw}"
        return f"{model}{fold}{part}"

    def count(self, runs: int) -> int:
        """How many of `runs` training runs the member trains on: its share, rounded up."""
        return -(-self.percent * runs // 100)

    def runs(self, fold: Fold) -> Fold:
        """The runs of the member within its fold. The order of a draw depends on the names of the runs alone: within a
        draw fewer runs lie in more, and runs that are added change few places. Validation and test runs stay."""
        drawn = sorted(fold.train, key=lambda run: digest([self.draw, run]))
        return replace(fold, train=tuple(sorted(drawn[: self.count(len(fold.train))])))

    def seed(self, seed: int) -> int:
        """The seed of the member's training, another one for each draw. `seed`: that of the single model."""
        return (seed + self.draw) % 2**32


SINGLE = Member()
"""The single model."""


def member_names(model: str) -> str:
    """The regular expression of the names of all members of a model."""
    return rf"{re.escape(model)}(?:-fold-(\d+))?(?:-part-([1-9]\d?|100)-(\d+))?"


def member_of(name: str, model: str) -> Member:
    """The member of `model` with a name.

    Raises:
        TomoscoutError: no member has this name.
    """
    if match := re.fullmatch(member_names(model), name):
        fold, percent, draw = (None if number is None else int(number) for number in match.groups())
        member = Member(fold) if percent is None or draw is None else Member(fold, percent, draw)
        if member.name(model) == name:
            return member
    raise TomoscoutError(f"{name}: not the name of a model that is trained here; expected {model}, {model}-fold-N, …")


def curve_members(options: LearningCurve, runs: int) -> list[Member]:
    """The members of a learning curve over `runs` training runs, by fraction and then by draw. Of fractions that are
    equally many runs the largest alone is there: the others would train the same again."""
    by_count = {Member(percent=percent).count(runs): percent for percent in options.percents}
    return [Member(percent=percent, draw=draw) for percent in by_count.values() for draw in range(options.draws)]
