"""What the copick projects hold: one row per run, the workflow's only view of the data.

The main Snakemake process keeps `results/inventory.tsv` fresh before it builds its graph. A cheap look at the
folders decides which runs must be read again, so nothing here imports copick unless something changed.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import Shape
from tomoscout.data.project import Project, read_copick_config
from tomoscout.machine.errors import TomoscoutError, shown
from tomoscout.machine.files import digest, digest_file, write_table
from tomoscout.options.config import Config
from tomoscout.options.names import Source, TomogramUri

COLUMNS = ["project", "run", "batch", "tomograms", "picks", "segmentations", "unreadable", "doubtful", "signature"]


LEAST_CHANCE = 1e-4
"""Picks whose places are this unlikely, were they spread evenly, are doubted."""


class PickCount(NamedTuple):
    """How many picks a source has in a run, and the digest of their points."""

    total: int
    digest: str


@dataclass(frozen=True)
class RunRecord:
    """One run: tomogram URI → shape; source → picks; segmentation → digest of its content; the batch (job) it belongs
    to; and the signature of its folders when it was read.

    `contents`: tomogram URI → digest of its content. `unreadable`: what cannot be used (the URI of a tomogram, a source
    of picks, a file) and why. `doubtful`: what may mean something else than it says, and why.
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
        """Read a row back."""
        picks = (cell.rsplit("=", 1) for cell in row["picks"].split())
        tomograms = [_halves(cell, "#") for cell in row["tomograms"].split()]
        shapes = [_halves(cell, "=") for cell, _ in tomograms]
        return cls(
            row["project"],
            row["run"],
            int(row["batch"]),
            {uri: _shape(text) for uri, text in shapes},
            {Source.parse(source): _pick_count(text) for source, text in picks},
            dict(_halves(cell, "#") for cell in row["segmentations"].split()),
            row["signature"],
            {uri: value for (uri, _), (_, value) in zip(shapes, tomograms, strict=True) if value},
            json.loads(row["unreadable"] or "{}"),
            json.loads(row["doubtful"] or "{}"),
        )


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
        TomoscoutError: the file is missing or has other columns.
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


def look(projects: Mapping[str, str]) -> dict[str, str]:
    """A cheap look at local projects: `project/run` → signature of its folders (names, sizes and modification
    times). A project kept elsewhere has the one entry `project/`, the digest of its config.

    Raises:
        TomoscoutError: a copick config is missing or broken, a project's folder is not there or holds no run, or one
            folder stands for two projects or two runs.
    """
    found: dict[str, str] = {}
    owners: dict[Path, str] = {}
    for project, config in projects.items():
        roots = _local_roots(Path(config))
        _refuse_twice(owners, project, [Path(config), *(roots or ())], "projects")
        if roots is None:
            found[f"{project}/"] = digest_file(Path(config))
            continue
        looks: dict[str, list[object]] = {}
        folders: dict[Path, str] = {}
        for root in roots:
            runs = sorted(_folders(root / "ExperimentRuns"), key=lambda run: run.is_symlink())
            if runs and runs[-1].is_symlink():
                for run in runs:
                    _refuse_twice(folders, run.name, [Path(run.path)], f"project {project}: runs")
            for run in runs:
                looks.setdefault(run.name, []).append(_look_at_run(run.path))
        if not looks:
            where = " or ".join(str(root / "ExperimentRuns") for root in roots)
            raise TomoscoutError(f"project {project} ({config}): holds no run: no folder in {where}")
        found |= {f"{project}/{run}": digest(value) for run, value in looks.items()}
    return found


def _refuse_twice(owners: dict[Path, str], name: str, paths: Iterable[Path], what: str) -> None:
    """Note whose the places of `paths` are; refuse one that is another's already."""
    for path in paths:
        owner = owners.setdefault(path.resolve(), name)
        if owner != name:
            raise TomoscoutError(
                f"{what} {owner} and {name} share {path.resolve()}: the same data would be in two parts of a split"
            )


def _local_roots(config: Path) -> list[Path] | None:
    values = read_copick_config(config)
    if values.get("config_type", "filesystem") != "filesystem":
        return None
    roots = []
    for key in ("static_root", "overlay_root"):
        location = values.get(key)
        if location is None:
            continue
        if not isinstance(location, str):
            raise TomoscoutError(f"{config}: {key} is {shown(location)}, expected a path")
        protocol, mark, path = location.rpartition("://")
        if mark and protocol not in ("local", "file"):
            return None
        roots.append(Path(path))
        # The overlay is made by the first result, unless it is all there is.
        if (key == "static_root" or len(roots) == 1) and not roots[-1].is_dir():
            raise TomoscoutError(f"{config}: {key}: no folder {path}; is its disk mounted, and the path right?")
    return sorted(set(roots))


def _folders(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if entry.is_dir() and _can_be_written(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return


def _can_be_written(name: str) -> bool:
    """Whether a folder may be a run's. Its name must be text, which the system does not ask for."""
    return not name.startswith(".") and name.isprintable()


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # Not ours to read.
        return []


def _look_at_run(run: str) -> object:
    seen: list[list[object]] = []
    for part in _entries(run):
        # Tomograms lie one level below their voxel spacing, picks and segmentations directly in their folder.
        if not (part.name in ("Picks", "Segmentations") or part.name.startswith("VoxelSpacing")) or not part.is_dir():
            continue
        for entry in _entries(part.path):
            # Probabilities are no input of anything, and are written often.
            if entry.name.startswith(".") or entry.name.endswith("_features.zarr"):
                continue
            try:
                facts = entry.stat()
            except OSError:  # A link to nowhere.
                continue
            seen.append([part.name, entry.name, facts.st_size, facts.st_mtime_ns])
            if entry.name.endswith(".zarr"):
                seen[-1] += _look_at_volume(entry.path)
    return sorted(seen, key=lambda line: line[:2])


def _look_at_volume(folder: str) -> Iterator[int]:
    """Size and time of the metadata and the first chunk of an image: programs write those in place, too."""
    for name in ("0/.zarray", "0/0/0/0", "0/0.0.0"):
        try:
            facts = os.stat(f"{folder}/{name}")  # noqa: PTH116 paths cost more than the look itself
        except OSError:
            continue
        yield facts.st_size
        yield facts.st_mtime_ns


def read_fresh(path: Path, projects: Mapping[str, str]) -> list[RunRecord] | None:
    """The inventory at `path`, if it still describes the projects.

    Raises:
        TomoscoutError: as `look`.
    """
    if not path.exists():
        return None
    seen = look(projects)
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
        # Of another version, or damaged: nobody should have to delete it.
        print(f"warning: {error}; made anew", file=sys.stderr)
        return []


def _signatures(records: list[RunRecord]) -> dict[str, str]:
    # Runs of a project that cannot be looked at cheaply share one signature, under the project's own key.
    return {
        r.key if not r.signature.startswith("config:") else f"{r.project}/": r.signature.removeprefix("config:")
        for r in records
    }


def refresh(path: Path, projects: Mapping[str, str], runs_per_job: int, *, everything: bool = False) -> list[RunRecord]:
    """Bring the inventory at `path` up to date and return it; reads only runs whose folders changed.

    A run keeps its batch for ever; runs not seen before go into new batches of `runs_per_job`.

    Raises:
        TomoscoutError: a project or a picks file cannot be read.
    """
    known = {record.key: record for record in _read_known(path)}
    seen = look(projects)
    records: list[RunRecord] = []
    for name, config in projects.items():
        project = Project(name, Path(config))
        remote = seen.get(f"{name}/")
        found = project.run_names()
        runs = [run for run in found if _can_be_written(run)]
        for run in set(found) - set(runs):
            print(f"warning: {name}: run {run!a} is left out: its name is no text", file=sys.stderr)
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
        print(f"warning: {where}: {name} is left out: {reason}", file=sys.stderr)
    for name, reason in record.doubtful.items():
        print(f"warning: {where}: picks {name}: {reason}", file=sys.stderr)
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
    """Whether all positions (x, y, z) would lie in a tomogram if they were voxels, and so, as Å, in its corner, and
    that is no chance."""
    for uri, shape in tomograms.items():
        chance = TomogramUri.parse(uri).voxel_spacing ** (-3 * len(positions))
        if chance < LEAST_CHANCE and (positions < np.array(shape[::-1])).all():
            return True
    return False


def _can_be_named(parse: Callable[[str], object], name: str, what: str) -> bool:
    """Whether a configuration can name it; what none can name (it holds a space, say) is left out."""
    try:
        parse(name)
    except ValueError as error:
        print(f"warning: {what} is left out: {error}", file=sys.stderr)
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


def find_runs(records: list[RunRecord], names: list[str], where: str) -> list[RunRecord]:
    """The records that `names` (`run` or `project/run`) stand for, in that order; `where` names the option.

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


def excluded_runs(config: Config, records: Sequence[RunRecord]) -> dict[str, str]:
    """The runs (`project/run`) of `split.exclude`, which no stage touches, and why.

    Raises:
        TomoscoutError: there is no such run.
    """
    options = config.split.exclude
    found = find_runs(list(records), list(options), "split.exclude")
    return {record.key: why for record, why in zip(found, options.values(), strict=True)}


def tomograms_of(record: RunRecord) -> str:
    """The tomograms of a run for messages, those that cannot be read with the reason."""
    found = [*record.tomograms, *(f"{uri} (unreadable: {why})" for uri, why in record.unreadable.items() if "@" in uri)]
    return f"found: {'; '.join(found) or 'none'}"
