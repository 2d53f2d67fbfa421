"""The inventory: a table with a row per run, the workflow's only view of the data. Read without copick.

The main Snakemake process brings `results/inventory.tsv` up to date (`inventory_refresh`) before it builds its graph.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tomoscout.data.geometry import Shape
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.names import Source

COLUMNS = ["project", "run", "batch", "tomograms", "picks", "segmentations", "unreadable", "doubtful", "signature"]


class PickCount(NamedTuple):
    """The number of picks of a source in a run, and the digest of their points."""

    total: int
    digest: str


@dataclass(frozen=True)
class RunRecord:
    """A run of a project.

    `batch`: the batch (job) it belongs to. `tomograms`: URI → shape (z, y, x). `picks`: source → number and digest.
    `segmentations`: segmentation → digest of its content. `signature`: that of its folders when they were read.
    `contents`: tomogram URI → digest of its content. `unreadable`: what cannot be used (the URI of a tomogram, a source
    of picks, a file) → the reason. `doubtful`: picks that probably have another unit → the reason.
    """

    project: str
    run: str
    batch: int
    tomograms: dict[str, Shape]
    picks: dict[Source, PickCount]
    segmentations: dict[str, str]
    signature: str
    contents: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    doubtful: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`project/run`, unique over all projects."""
        return f"{self.project}/{self.run}"

    def to_row(self) -> dict[str, object]:
        """The row of the table."""
        return {
            "project": self.project,
            "run": self.run,
            "batch": self.batch,
            "tomograms": " ".join(
                f"{uri}={'x'.join(map(str, shape))}#{self.contents.get(uri, '')}"
                for uri, shape in self.tomograms.items()
            ),
            "picks": " ".join(f"{source}={picks.total}#{picks.digest}" for source, picks in self.picks.items()),
            "segmentations": " ".join(f"{uri}#{value}" for uri, value in self.segmentations.items()),
            "unreadable": json.dumps(self.unreadable) if self.unreadable else "",
            "doubtful": json.dumps(self.doubtful) if self.doubtful else "",
            "signature": self.signature,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> RunRecord:
        """Read a row back.

        Not with pydantic: it takes 1.3 times as long for 10,000 rows, and needs the same parsers of the cells.
        """
        picks = (cell.rsplit("=", 1) for cell in row["picks"].split())
        tomograms = [_halves(cell, "#") for cell in row["tomograms"].split()]
        shapes = [_halves(cell, "=") for cell, _ in tomograms]
        return cls(
            row["project"],
            row["run"],
            int(row["batch"]),
            {uri: _shape(text) for uri, text in shapes},
            {_source(source): _pick_count(text) for source, text in picks},
            dict(_halves(cell, "#") for cell in row["segmentations"].split()),
            row["signature"],
            {uri: value for (uri, _), (_, value) in zip(shapes, tomograms, strict=True) if value},
            json.loads(row["unreadable"] or "{}"),
            json.loads(row["doubtful"] or "{}"),
        )


_source = cache(Source.parse)
"""Runs share their sources: each is parsed once."""


def _halves(text: str, mark: str) -> tuple[str, str]:
    left, _, right = text.rpartition(mark)
    return left, right


def _shape(text: str) -> Shape:
    z, y, x = text.split("x")
    return int(z), int(y), int(x)


def _pick_count(text: str) -> PickCount:
    count, value = _halves(text, "#")
    return PickCount(int(count), value)


def read_inventory(path: Path) -> list[RunRecord]:
    """Read the inventory.

    Raises:
        TomoscoutError: the file is missing, has other columns, or a row cannot be parsed.
    """
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            rows = csv.DictReader(handle, delimiter="\t")
            if rows.fieldnames != COLUMNS:
                raise TomoscoutError(f"{path}: expected the columns {', '.join(COLUMNS)}, found {rows.fieldnames}")
            return [RunRecord.from_row(row) for row in rows]
    except FileNotFoundError:
        raise TomoscoutError(f"{path}: no inventory; run `tomoscout inventory` or snakemake first") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise TomoscoutError(f"{path}: a row cannot be read ({error})") from None


def find_runs(records: list[RunRecord], names: list[str], where: str) -> list[RunRecord]:
    """The records that `names` (`run` or `project/run`) refer to, in that order; `where` names the option.

    Raises:
        TomoscoutError: a name is unknown, or two projects have such a run.
    """
    by_name: dict[str, list[RunRecord]] = {}
    for record in records if names else ():
        by_name.setdefault(record.key, []).append(record)
        by_name.setdefault(record.run, []).append(record)
    found = []
    for name in names:
        matches = by_name.get(name, [])
        if len(matches) > 1:
            raise TomoscoutError(
                f"{where}: run '{name}' is in several projects; write {' or '.join(r.key for r in matches)}"
            )
        if not matches:
            some = ", ".join(record.run for record in records[:5])
            raise TomoscoutError(
                f"{where}: no run '{name}' in the projects; there are {len(records)} runs, such as {some}"
            )
        found.append(matches[0])
    return found


def tomograms_of(record: RunRecord) -> str:
    """The tomograms of a run for messages, those that cannot be read with the reason."""
    found = [*record.tomograms, *(f"{uri} (unreadable: {why})" for uri, why in record.unreadable.items() if "@" in uri)]
    return f"found: {'; '.join(found) or 'none'}"
