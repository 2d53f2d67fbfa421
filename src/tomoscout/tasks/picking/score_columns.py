"""The columns of the score tables. A column added to `COLUMNS` is computed, written, read back, printed in the terminal
and shown on the report page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.tasks.picking.matching import Matches, f_beta, precision_recall
from tomoscout.tasks.picking.pair_errors import PairErrors, median


@dataclass(frozen=True)
class Pooled:
    """Matches that are counted together, the errors of their pairs, and the beta of the F-score."""

    matches: Sequence[Matches]
    errors: Sequence[PairErrors]
    beta: float

    @property
    def found(self) -> int:
        """References that a prediction matches (true positives)."""
        return sum(match.true_positives for match in self.matches)

    @property
    def false(self) -> int:
        """Predictions that match no reference (false positives)."""
        return sum(match.false_positives for match in self.matches)

    @property
    def missed(self) -> int:
        """References that no prediction matches (false negatives)."""
        return sum(match.false_negatives for match in self.matches)


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Args:
        key: its name in files; the name of the F-score contains beta there (`f_name`).
        heading: on the report page, where ratios stand before counts.
        place: its position on the page, from left to right, among the ratios or among the others.
        value: its value for pooled matches; None if it is not defined.
        is_ratio: whether it lies between 0 and 1 and has a mean over objects.
        unit: of a measure, which is not shown where no object has one. What is neither this nor a ratio is a count.
        has_interval: whether it has an interval of the bootstrap over runs.
        is_printed: whether it is printed in the terminal.
        of_runs: whether it is also computed for every run and for all objects together.
    """

    key: str
    heading: str
    place: int
    value: Callable[[Pooled], float | None]
    is_ratio: bool = False
    unit: str = ""
    has_interval: bool = False
    is_printed: bool = True
    of_runs: bool = True

    def name(self, beta: float) -> str:
        """The name in tables."""
        return f_name(beta) if self.key == "f" else self.key

    def title(self, beta: float) -> str:
        """The heading on the report page."""
        return f_name(beta) if self.key == "f" else self.heading


def _ratio(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None


COLUMNS = (
    Column("references", "Reference picks", 0, lambda these: these.found + these.missed),
    Column("predictions", "Picks", 1, lambda these: these.found + these.false),
    Column("true_positives", "Found", 2, lambda these: these.found, is_printed=False),
    Column("false_positives", "False", 4, lambda these: these.false, is_printed=False),
    Column("false_negatives", "Missed", 3, lambda these: these.missed, is_printed=False),
    Column(
        "precision", "Precision", 1, lambda these: _ratio(these.found, these.false), is_ratio=True, has_interval=True
    ),
    Column("recall", "Recall", 2, lambda these: _ratio(these.found, these.missed), is_ratio=True, has_interval=True),
    Column(
        "f",
        "F",
        0,
        lambda these: f_beta(these.found, these.false, these.missed, these.beta),
        is_ratio=True,
        has_interval=True,
    ),
    Column(
        "average_precision",
        "Average precision",
        3,
        lambda these: precision_recall(these.matches).average_precision,
        is_ratio=True,
        of_runs=False,
    ),
    Column(
        "localisation_error",
        "Localisation error (Å)",
        5,
        lambda these: median([errors.distances for errors in these.errors]),
        unit="Å",
    ),
    Column(
        "angular_error",
        "Angular error (°)",
        6,
        lambda these: median([errors.angles for errors in these.errors]),
        unit="°",
    ),
    Column(
        "tilt_error",
        "Angle between z axes (°)",
        7,
        lambda these: median([errors.tilts for errors in these.errors]),
        unit="°",
    ),
)
"""Columns in the order of the files."""

RUN_COLUMNS = tuple(column for column in COLUMNS if column.of_runs)
MEANS = tuple(column.key for column in COLUMNS if column.is_ratio)
PAGE_COLUMNS = tuple(sorted(COLUMNS, key=lambda column: (not column.is_ratio, column.place)))


INTERVALS = tuple(column.key for column in COLUMNS if column.has_interval)


def numbers(
    matches: Sequence[Matches], errors: Sequence[PairErrors], beta: float, columns: Sequence[Column]
) -> dict[str, Any]:
    """Key of a column → its value for the matches pooled."""
    these = Pooled(matches, errors, beta)
    return {column.key: column.value(these) for column in columns}


def ratios(counts: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """Counts (…, 3) of found, false and missed → scores (…, 3) in the order of `INTERVALS`, NaN where not defined: the
    columns of the same keys, for many counts at once."""
    found, false, missed = np.moveaxis(counts, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        f = (1 + beta**2) * found / ((1 + beta**2) * found + beta**2 * missed + false)
        return np.stack([found / (found + false), found / (found + missed), f], axis=-1)


def shown_columns(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[Column]:
    """The columns without measures that no row has."""
    return [column for column in columns if not column.unit or any(row[column.key] is not None for row in rows)]


def f_name(beta: float) -> str:
    """Name of the F-score, such as `F4` or `F0.5`."""
    return f"F{beta:g}"
