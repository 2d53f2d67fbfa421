"""Folds of a split, and their training tomograms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tomoscout.data.inventory import RunRecord
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import Config
from tomoscout.plan.options import Split

PARTS = ("train", "validate", "test")


@dataclass(frozen=True)
class Fold:
    """A division of the runs (`project/run`) into training, validation and test runs."""

    train: tuple[str, ...]
    validate: tuple[str, ...]
    test: tuple[str, ...]

    def part(self, name: str) -> tuple[str, ...]:
        """The runs of `train`, `validate`, `test`, or `all` three together."""
        if name == "all":
            return self.train + self.validate + self.test
        runs: tuple[str, ...] = getattr(self, name)
        return runs

    def to_json(self) -> dict[str, list[str]]:
        """The fold as written into the split file."""
        return {part: list(self.part(part)) for part in PARTS}


def check_folds(options: Split) -> None:
    """Raise an error if a cross-validation is asked for and the split has no folds.

    Raises:
        TomoscoutError: the split has no folds.
    """
    if not (options.folds or options.leave_one_out):
        raise TomoscoutError("cross-validation needs split.folds (such as 5) or split.leave_one_out: true")


def training_tomograms(config: Config, records: Iterable[RunRecord], fold: Fold) -> list[tuple[RunRecord, str]]:
    """The training tomograms of a fold: run and URI of every kind of tomogram that each training run has."""
    by_key = {record.key: record for record in records}
    return [(by_key[key], uri) for key in fold.train for uri in config.tomograms if uri in by_key[key].tomograms]
