"""The import stage of picks: brings picks of other programs into the projects."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tomoscout.data.formats import FORMATS, format_of
from tomoscout.data.formats.base import Frame, Grid, TiltSeries
from tomoscout.data.formats.star import read_tilt_series
from tomoscout.data.formats.tables import read_indices, read_pairs
from tomoscout.data.geometry import inside, to_voxels
from tomoscout.data.inventory import RunRecord, find_runs
from tomoscout.data.picks import Picks
from tomoscout.data.project import Project
from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.machine.files import digest, digest_file
from tomoscout.machine.messages import note, say, times, warn
from tomoscout.options.names import Source, copick_name
from tomoscout.plan.exchange import files_beside, files_of_import, forms_of, grid_of
from tomoscout.plan.paths import manifest_path, read_manifest
from tomoscout.plan.plan import Plan
from tomoscout.stages.batches import Batch

ByRun = dict[str, dict[str, Picks]]
"""Run (`project/run`) → object → picks."""


class Runs:
    """The runs that names in the files of an import mean."""

    def __init__(self, plan: Plan, name: str) -> None:
        self._plan, self._where = plan, f"import_picks.{name}"
        self._entry = plan.config.import_picks[name]
        self._uri = self._entry.tomogram or plan.config.tomograms[0]
        self._table = read_pairs(Path(self._entry.runs)) if self._entry.runs else {}
        star = self._entry.tomograms_star
        self._series = None if star is None else read_tilt_series(Path(star))
        self._by_name: dict[str, list[RunRecord]] = {}
        for record in plan.records:
            self._by_name.setdefault(record.run, []).append(record)
            self._by_name.setdefault(record.key, []).append(record)

    def find(self, names: Collection[str]) -> dict[str, RunRecord]:
        """Name in a file → run.

        Raises:
            TomoscoutError: names mean no run, or one of several projects.
        """
        if self._entry.run is not None:
            [record] = find_runs(list(self._plan.records), [self._entry.run], f"{self._where}.run")
            return dict.fromkeys(names, record)
        found = {name: self._meant(name) for name in names}
        if unknown := sorted(name for name, records in found.items() if not records):
            runs = ", ".join(record.run for record in self._plan.records[:5])
            raise TomoscoutError(
                f"{self._where}: no run for {len(unknown)} of {len(names)} names in the files: "
                f"{cut(', '.join(unknown))}; the projects have {len(self._plan.records)} runs, such as {cut(runs)}; "
                "give a table name → run as `runs`"
            )
        for name, records in found.items():
            if len(records) > 1:
                keys = " or ".join(record.key for record in records)
                raise TomoscoutError(f"{self._where}: '{name}' could be {keys}; give a table name → run as `runs`")
        return {name: records[0] for name, records in found.items()}

    def grids(self, names: Collection[str]) -> Mapping[str, Grid]:
        """Name in a file → tomogram."""
        records = self.find(names)
        series = {name: self._tilt_series(name) for name in names}
        if self._series is not None and (unknown := sorted(name for name, found in series.items() if found is None)):
            raise TomoscoutError(
                f"{self._where}.tomograms_star: no tomogram {cut(', '.join(unknown))}, which the files name; it has "
                f"{cut(', '.join(self._series))}"
            )
        where = f"{self._where}.tomogram"
        return {name: grid_of(record, self._uri, series[name], where) for name, record in records.items()}

    def _tilt_series(self, name: str) -> TiltSeries | None:
        series = self._series or {}
        return next((series[text] for text in forms_of(name) if text in series), None)

    def _meant(self, name: str) -> list[RunRecord]:
        for text in forms_of(name):
            if text in self._table:
                return find_runs(list(self._plan.records), [self._table[text]], f"{self._where}.runs")
        return next((self._by_name[text] for text in forms_of(name) if text in self._by_name), [])


def run_import_picks(plan: Plan, name: str, output: Path) -> None:
    """Bring the picks of an import into the projects. Runs that have them already are left alone; picks that an earlier
    import of this name brought into a run, and that the files no longer have, are replaced by none.

    Raises:
        TomoscoutError: a file cannot be read, names no run or object that there is, or picks of others are there.
    """
    config, entry = plan.config, plan.config.import_picks[name]
    files = files_of_import(entry, f"import_picks.{name}")
    read = [*files, *files_beside(entry, files)]
    inputs = digest([plan.fingerprint("import_picks", name), [digest_file(file) for file in read]])
    found = _read(plan, name, files)
    work = Batch(
        config, [r for r in plan.records if r.key in found or manifest_path(output.parent, r).exists()], None, output
    )
    session = entry.session or name
    for record in work.records:
        with work.attempt(record):
            picks = dict(found.get(record.key, {}))
            for earlier in _earlier(work, record):
                picks.setdefault(earlier, Picks.at(np.zeros((0, 3))))
            sources = {which: Source(which, entry.user, session) for which in sorted(picks)}
            written = list(sources.values())
            if work.is_done(record, inputs, written):
                continue
            work.claim(record, inputs, written, f"import_picks.{name}.session")
            manifest: dict[str, Any] = {"files": [str(file) for file in files], "picks": {}}
            project = work.project(record)
            for which, source in sources.items():
                project.write_picks(record.run, source, picks[which], inputs)
                facts = project.find_picks(record.run, source)
                manifest["picks"][which] = {"source": str(source), "count": facts.total, "digest": facts.digest}
            work.finish(record, inputs, written, manifest)
            counts = ", ".join(f"{facts['count']} {which}" for which, facts in manifest["picks"].items())
            say(f"{record.key}: {counts}")
    work.write()


def _earlier(work: Batch, record: RunRecord) -> list[str]:
    """The objects of which an earlier import has brought picks into a run."""
    path = manifest_path(work.output.parent, record)
    return list(read_manifest(work.output.parent, record).get("picks", {})) if path.exists() else []


def _read(plan: Plan, name: str, files: list[Path]) -> ByRun:
    """The picks in the files.

    Raises:
        TomoscoutError: as for `run_import_picks`.
    """
    config, entry, runs = plan.config, plan.config.import_picks[name], Runs(plan, name)
    indices = read_indices(Path(entry.indices)) if entry.indices else None
    frame = Frame(runs.grids, entry.pixel_size, entry.origin, indices)
    uri = entry.tomogram or config.tomograms[0]
    projects = {key: Project(key, Path(path)) for key, path in config.projects.items()}
    found: ByRun = {}
    for path in files:
        kind = FORMATS[entry.format] if entry.format else format_of(path)
        sets = kind.read(path, frame)
        if kind.first == 1 and entry.origin is None:
            note(f"{path}: voxels are counted from 1, as in MATLAB; import_picks.{name}.origin: 0 if they are not")
        if not any(len(one.picks) for one in sets):
            note(f"{path}: holds no pick")
        records = runs.find({one.run for one in sets})
        for one in sets:
            record = records[one.run]
            which = _object(entry.object, one.name, path, projects[record.project])
            _check_places(one.picks, record, uri, path)
            by_object = found.setdefault(record.key, {})
            by_object[which] = _joined([by_object[which], one.picks]) if which in by_object else one.picks
    return found


def _object(given: str | dict[str, str] | None, named: str, path: Path, project: Project) -> str:
    """The object that picks are of."""
    if isinstance(given, dict):
        if named not in given:
            raise TomoscoutError(
                f"{path}: picks of '{named}', of which `object` says nothing; it has {', '.join(given)}"
            )
        name = given[named]
    else:
        name = given or copick_name(named)
    if not name:
        raise TomoscoutError(f"{path}: says not of which object its picks are; give `object`")
    if name not in project.objects:
        raise TomoscoutError(
            f"{path}: project {project.name} ({project.config}) has no pickable object '{name}'; it has "
            f"{cut(', '.join(project.objects))}; give `object`, or add it there"
        )
    return name


def _check_places(picks: Picks, record: RunRecord, uri: str, path: Path) -> None:
    """Warn of picks outside of the tomogram, as those with another pixel size or centre are."""
    if uri not in record.tomograms:
        return
    grid = grid_of(record, uri, None, "")
    outside = picks.positions[~inside(to_voxels(picks.positions, grid.voxel_spacing), grid.shape)]
    if len(outside):
        place = ", ".join(f"{value:.6g}" for value in outside[0])
        size = times(round(length * grid.voxel_spacing) for length in grid.shape[::-1])
        warn(
            f"{path}: {len(outside)} of {len(picks)} picks lie outside of {record.key} {uri}, such as at {place} Å (x, "
            f"y, z) of {size}: are pixel size (of which binning?) and origin right?"
        )


def _joined(parts: list[Picks]) -> Picks:
    columns = ("positions", "scores", "transforms", "instances")
    return Picks(*(np.concatenate([getattr(part, column) for part in parts]) for column in columns))
