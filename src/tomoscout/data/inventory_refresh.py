"""Update of the inventory: reads the runs whose folders have changed, and assigns new runs to batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import Shape
from tomoscout.data.inventory import COLUMNS, PickCount, RunRecord, read_inventory
from tomoscout.data.project import Project
from tomoscout.data.signatures import is_run_name, read_signatures
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import write_table
from tomoscout.machine.messages import warn
from tomoscout.options.names import Source, TomogramUri

LEAST_CHANCE = 1e-4
"""Picks are doubtful if positions like theirs are less probable than this under a uniform distribution."""


def read_fresh(path: Path, projects: Mapping[str, str]) -> list[RunRecord] | None:
    """The inventory at `path`, if it still describes the projects.

    Raises:
        TomoscoutError: as `read_signatures`.
    """
    if not path.exists():
        return None
    seen = read_signatures(projects)
    try:
        records = read_inventory(path)
    except TomoscoutError:
        return None
    return records if seen == _signatures(records) else None


def _read_known(path: Path) -> list[RunRecord]:
    if not path.exists():
        return []
    try:
        return read_inventory(path)
    except TomoscoutError as error:
        # An inventory of another version, or a damaged one, is replaced.
        warn(f"{error}; made anew")
        return []


def _signatures(records: list[RunRecord]) -> dict[str, str]:
    # Runs of a project in remote storage share one signature, under the project's own key.
    return {
        r.key if not r.signature.startswith("config:") else f"{r.project}/": r.signature.removeprefix("config:")
        for r in records
    }


def refresh(path: Path, projects: Mapping[str, str], runs_per_job: int, *, everything: bool = False) -> list[RunRecord]:
    """Bring the inventory at `path` up to date and return it; reads only runs whose folders changed.

    A run keeps its batch; new runs go into new batches of `runs_per_job`.

    Raises:
        TomoscoutError: a project or a picks file cannot be read.
    """
    known = {record.key: record for record in _read_known(path)}
    seen = read_signatures(projects)
    records: list[RunRecord] = []
    for name, config in projects.items():
        project = Project(name, Path(config))
        remote = seen.get(f"{name}/")
        found = project.run_names()
        runs = [run for run in found if is_run_name(run)]
        for run in set(found) - set(runs):
            warn(f"{name}: run {run!a} is left out: its name is no text")
        for number, run in enumerate(runs, 1):
            signature = f"config:{remote}" if remote else seen.get(f"{name}/{run}", "")
            old = known.get(f"{name}/{run}")
            if old and old.signature == signature and not everything:
                records.append(old)
            else:
                records.append(_read_run(project, run, old.batch if old else -1, signature))
            if sys.stderr.isatty() and number % 100 == 0:
                print(f"\rinventory: {name}, {number} of {len(runs)} runs", end="", file=sys.stderr, flush=True)
    records = _assign_batches(records, known, runs_per_job)
    write_table(path, COLUMNS, (record.to_row() for record in records))
    return records


def _read_run(project: Project, run: str, batch: int, signature: str) -> RunRecord:
    where = f"{project.name}/{run}"
    record = RunRecord(project.name, run, batch, {}, {}, {}, signature)
    record.unreadable.update(dict.fromkeys(project.passed_over(run), "a name that copick cannot read"))
    for uri, found in sorted(project.tomograms(run).items()):
        if found.shape is None:
            record.unreadable[uri] = found.problem or ""
        elif _can_be_named(TomogramUri.parse, uri, f"{where}: tomogram {uri}"):
            record.tomograms[uri], record.contents[uri] = found.shape, found.digest
    for source in project.pick_sources(run):
        if _can_be_named(Source.parse, str(source), f"{where}: picks {source}"):
            _add_picks(project, record, source)
    for entry in sorted(project.segmentations(run), key=str):
        if _can_be_named(Source.parse, str(entry).partition("@")[0], f"{where}: segmentation {entry}"):
            try:
                record.segmentations[str(entry)] = project.digest_segmentation(run, entry)
            except TomoscoutError as error:
                record.unreadable[str(entry)] = str(error)
    for name, reason in record.unreadable.items():
        warn(f"{where}: {name} is left out: {reason}")
    for name, reason in record.doubtful.items():
        warn(f"{where}: picks {name}: {reason}")
    return record


def _add_picks(project: Project, record: RunRecord, source: Source) -> None:
    try:
        found = project.find_picks(record.run, source)
    except TomoscoutError as error:
        record.unreadable[str(source)] = str(error)
        return
    record.picks[source] = PickCount(found.total, found.digest)
    if _in_corner(found.positions, record.tomograms):
        record.doubtful[str(source)] = (
            f"all {found.total} lie in one corner of the tomogram, within as many Å as it has voxels: are they in "
            "voxels? Copick's programs take every position as Å"
        )


def _in_corner(positions: NDArray[np.float64], tomograms: Mapping[str, Shape]) -> bool:
    """Whether all positions (x, y, z in Å) lie in the corner of a tomogram that they would fill if they were in voxels,
    and the probability of this by chance is below `LEAST_CHANCE`."""
    for uri, shape in tomograms.items():
        chance = TomogramUri.parse(uri).voxel_spacing ** (-3 * len(positions))
        if chance < LEAST_CHANCE and (positions < np.array(shape[::-1])).all():
            return True
    return False


def _can_be_named(parse: Callable[[str], object], name: str, what: str) -> bool:
    """Whether a configuration can refer to something by its name; if not, as with a space in the name, this is
    reported."""
    try:
        parse(name)
    except ValueError as error:
        warn(f"{what} is left out: {error}")
        return False
    return True


def _assign_batches(records: list[RunRecord], known: Mapping[str, RunRecord], runs_per_job: int) -> list[RunRecord]:
    following = max((record.batch for record in known.values()), default=-1) + 1
    new = iter([record for record in records if record.batch < 0])
    assigned: dict[str, int] = {}
    while group := list(islice(new, runs_per_job)):
        assigned |= {record.key: following for record in group}
        following += 1
    return [record if record.batch >= 0 else replace(record, batch=assigned[record.key]) for record in records]
