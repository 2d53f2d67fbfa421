"""The export stage: writes picks in the formats of other programs."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tomoscout.data.angles import Convention, are_rotations
from tomoscout.data.copick_config import read_objects
from tomoscout.data.formats import FORMATS
from tomoscout.data.formats.base import Format, Frame, Grid, PickSet
from tomoscout.data.formats.star import read_tilt_series, write_import_list
from tomoscout.data.inventory import RunRecord
from tomoscout.data.project import Project
from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.machine.files import digest_file, write_json
from tomoscout.machine.messages import note, say, warn
from tomoscout.options.config import Config
from tomoscout.options.forms import read_form
from tomoscout.options.names import Source
from tomoscout.plan.exchange import exported_reads, grid_of
from tomoscout.plan.paths import read_manifest
from tomoscout.plan.plan import Plan
from tomoscout.plan.predictions import predicted_picks

WRITTEN = ".written.json"
"""The list of the files that the last export wrote, or was to write, into a folder."""
ALL = "picks"
"""The name of a file with all objects."""


class Exported(NamedTuple):
    """The picks of an object in a run, and how many were left out below the threshold."""

    record: RunRecord
    picks: PickSet
    below: int


def run_export(plan: Plan, name: str, localized: Path | None, output: Path) -> None:
    """Write picks in the format `name` into the folder of `output`, and last `output` itself: what the coordinates
    refer to, counts and digests. Files of an earlier export that are not written again are removed. `localized`: folder
    of the manifests of the localize stage, where its picks are exported.

    Raises:
        TomoscoutError: picks are missing or not those that the localize stage wrote, or the format needs something that
            is not given.
    """
    kind, config = FORMATS[name], plan.config
    _check_objects(config)
    records = plan.exported
    grids = _grids(config, records)
    numbered = {number: record.run for number, record in enumerate(records, 1)}
    frame = Frame(_finder(grids), config.export.pixel_size, config.export.origin, numbered)
    if kind.centred and config.export.tomograms_star is None:
        warn(
            f"export.tomograms_star is not given: {name} counts from the centre, for which half of the size of "
            f"{_tomogram(config)} is taken; RELION's is another where the binning does not divide the unbinned size"
        )
    found = [entry for record in records for entry in _read(kind, config, record, localized)]
    files = _write(kind, found, frame, output.parent, per_run=kind.one_run or config.export.per_run)
    counts = _counts(found)
    facts = {
        **_frame_of(kind, name, config, frame),
        "runs": {r.key: {**_size_of(kind, r, grids, frame), "picks": counts.get(r.key, {})} for r in records},
        "files": {str(file.relative_to(output.parent)): digest_file(file) for file in sorted(files)},
    }
    write_json(output, facts)
    total = sum(len(entry.picks.picks) for entry in found)
    if not total:
        note(f"{name}: no pick to export")
    say(f"{name}: {total} picks of {len(records)} runs in {output.parent}")


def _check_objects(config: Config) -> None:
    limits = config.export.threshold
    named = {"objects": config.export.objects or [], "threshold": limits if isinstance(limits, dict) else {}}
    known = {name for path in config.projects.values() for name in read_objects(Path(path))}
    for option, names in named.items():
        if unknown := [name for name in names if name not in known]:
            raise TomoscoutError(
                f"export.{option}: no project has an object '{unknown[0]}'; objects: {cut(', '.join(sorted(known)))}"
            )


def _tomogram(config: Config) -> str:
    return config.export.tomogram or config.segment_tomogram


def _grids(config: Config, records: Sequence[RunRecord]) -> dict[str, Grid]:
    """Run → its tomogram."""
    path = config.export.tomograms_star
    series = {} if path is None else read_tilt_series(Path(path))
    unknown = [record.run for record in records if record.run not in series]
    if path is not None and unknown:
        raise TomoscoutError(
            f"export.tomograms_star: {path} has no {cut(', '.join(unknown))}; it has {cut(', '.join(series))}; its "
            "tomograms must have the names of the runs"
        )
    return {r.run: grid_of(r, _tomogram(config), series.get(r.run), "export.tomogram") for r in records}


def _finder(grids: Mapping[str, Grid]) -> Any:
    return lambda names: {name: grids[name] for name in names}


def _read(kind: Format, config: Config, record: RunRecord, localized: Path | None) -> Iterator[Exported]:
    """The picks of a run by object."""
    project = Project(record.project, Path(config.projects[record.project]))
    objects, limits = read_objects(project.config), config.export.threshold
    by_object: dict[str, Source] = {}
    for source in _sources(config, project, record, localized):
        if (other := by_object.setdefault(source.name, source)) != source:
            raise TomoscoutError(f"export.picks: {record.key} has {other} and {source}; name one of them")
    for name, source in by_object.items():
        picks = project.read_picks(record.run, source)
        limit = limits.get(name) if isinstance(limits, dict) else limits
        kept = picks if limit is None else picks[picks.scores >= limit]
        if isinstance(kind.angles, Convention) and not are_rotations(kept.rotations):
            raise TomoscoutError(f"{record.key}: picks {source}: a transform mirrors or stretches; it has no angles")
        radius = objects[name].radius if name in objects else None
        yield Exported(record, PickSet(record.run, name, kept, radius), len(picks) - len(kept))


def _sources(config: Config, project: Project, record: RunRecord, localized: Path | None) -> list[Source]:
    """The picks of a run that are named, else those that the localize stage has written."""
    if config.export.picks is not None:
        there = project.pick_sources(record.run)
        return [source for read in exported_reads(config) for source in there if read.takes(source)]
    if localized is None:
        raise TomoscoutError("export.picks: not given, and neither is the folder of the localize stage (--localized)")
    manifest, wanted = read_manifest(localized, record, picks=dict), config.export.objects
    sources = [predicted_picks(config, name) for name in manifest["picks"] if wanted is None or name in wanted]
    for source in sources:
        project.require(record.run, source, str(manifest.get("inputs")), "localize")
    return sources


def _write(kind: Format, found: Sequence[Exported], frame: Frame, folder: Path, *, per_run: bool) -> list[Path]:
    """Remove the files of earlier exports that are not written again, and write; returns the files. Where nothing was
    picked there is no file."""
    parts: dict[Path, list[PickSet]] = {}
    for entry in found:
        if len(entry.picks.picks):
            parts.setdefault(folder / _place(kind, entry.picks, per_run=per_run), []).append(entry.picks)
    lists: dict[Path, dict[str, Path]] = {}
    if per_run and kind.lists_files:
        for path, sets in parts.items():
            lists.setdefault(folder / f"{path.parent.name}-import{kind.suffix}", {})[sets[0].run] = path
    files = [*(file for path in parts for file in kind.files(path)), *lists]
    _tidy(folder, files)
    for path, sets in parts.items():
        kind.write(path, sets, frame)
    for path, of_runs in lists.items():
        write_import_list(path, of_runs)
    return files


def _place(kind: Format, entry: PickSet, *, per_run: bool) -> Path:
    """The file of a set of picks, in the folder of the format."""
    if kind.objects:
        return Path(f"{entry.run if per_run else ALL}{kind.suffix}")
    return Path(entry.name, f"{entry.run}{kind.suffix}") if per_run else Path(f"{entry.name}{kind.suffix}")


def _tidy(folder: Path, files: Collection[Path]) -> None:
    """Remove the files of earlier exports but these, and note these, before they are written: so the next export knows
    them after a kill, too."""
    names, path = sorted(str(file.relative_to(folder)) for file in files), folder / WRITTEN
    earlier = read_form(list[str], path, "a list of exported files") if path.exists() else []
    for name in {*earlier} - {*names}:
        (folder / name).unlink(missing_ok=True)
        if (folder / name).parent != folder:
            with contextlib.suppress(OSError):  # Other files are in it.
                (folder / name).parent.rmdir()
    write_json(path, names)


def _frame_of(kind: Format, name: str, config: Config, frame: Frame) -> dict[str, Any]:
    """What the numbers in the files mean."""
    options = config.export
    return {
        "format": name,
        "coordinates": kind.coordinates,
        "unit": "pixels" if kind.in_pixels else "Å",
        "first_voxel": kind.origin(frame),
        "angles": None if kind.angles is None else str(kind.angles),
        "score": kind.score,
        "instance": kind.instance,
        "tomogram": _tomogram(config),
        "tomograms_star": options.tomograms_star,
        "picks": options.picks or f"{config.localize.user}/{config.session}",
        "threshold": options.threshold,
    }


def _size_of(kind: Format, record: RunRecord, grids: Mapping[str, Grid], frame: Frame) -> dict[str, Any]:
    """The pixel size of the coordinates of a run, and the point that centred ones are counted from."""
    grid = grids[record.run]
    size = kind.pixel_size(grid, frame)
    centre = {"centre": [round(float(value), 6) for value in grid.centre]} if kind.centred else {}
    return ({} if size is None else {"pixel_size": size}) | centre


def _counts(found: Sequence[Exported]) -> dict[str, dict[str, dict[str, int]]]:
    """Run → object → how many picks were written, and how many were not, being below the threshold."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for record, entry, below in found:
        counts.setdefault(record.key, {})[entry.name] = {"written": len(entry.picks), "below_threshold": below}
    return counts
