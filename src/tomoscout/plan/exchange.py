"""Which picks are handed to other programs, and which files are read of them. Uses only the inventory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tomoscout.data.formats.base import Grid, TiltSeries
from tomoscout.data.formats.options import ImportedPicks, ImportedTomograms
from tomoscout.data.inventory import RunRecord, find_runs, tomograms_of
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import Config
from tomoscout.options.names import Source, TomogramUri
from tomoscout.plan.annotations import refuse_unreadable
from tomoscout.plan.extractions import Read, contents, foreign, picks_read, runs_that_have

if TYPE_CHECKING:
    from tomoscout.plan.plan import Plan


def exported_runs(plan: Plan) -> list[RunRecord]:
    """The runs whose picks are exported.

    Raises:
        TomoscoutError: a run of `export.runs` does not exist, none is left, two have one name, or picks cannot be read.
    """
    config, options, reads = plan.config, plan.config.export, exported_reads(plan.config)
    if options.runs is not None:
        chosen = find_runs(list(plan.records), options.runs, "export.runs")
    elif options.picks is None:
        chosen = plan.localized
    else:
        chosen = runs_that_have(plan, reads)
    if not chosen:
        raise TomoscoutError(f"export.picks: no run has picks of {options.picks or 'localize'}")
    by_name: dict[str, str] = {}
    for record in chosen:
        if (other := by_name.setdefault(record.run, record.key)) != record.key:
            raise TomoscoutError(
                f"export.runs: {other} and {record.key} have one name; export them one after the other"
            )
    there = (name for record in chosen for read in foreign(config, reads) for name in contents(record, read))
    refuse_unreadable(chosen, map(Source.parse, there), "export.picks")
    return chosen


def exported_reads(config: Config) -> list[Read]:
    """The picks that `export.picks` names. Without it the localize stage says which there are."""
    picks, objects = config.export.picks, config.export.objects
    reads = [] if picks is None else picks_read("export.picks", picks)
    return [
        read if objects is None else read._replace(names=tuple(n for n in read.names or objects if n in objects))
        for read in reads
    ]


def grid_of(record: RunRecord, uri: str, tilt_series: TiltSeries | None, option: str) -> Grid:
    """The tomogram of a run that coordinates refer to. `option` names it in messages.

    Raises:
        TomoscoutError: the run has none of this kind.
    """
    if uri not in record.tomograms:
        raise TomoscoutError(f"{option}: {record.key} has no tomogram {uri}; {tomograms_of(record)}")
    return Grid(record.tomograms[uri], TomogramUri.parse(uri).voxel_spacing, tilt_series)


ENDINGS = r"(?i)(\.tomostar|\.mrcs?|\.rec|\.hdf|\.st|\.map|\.em|\.tiff?|\.ome|\.zarr|\.gz|\.bz2)$"
"""Endings of the names of tomograms; Warp's also have their pixel size."""
WARP_SIZE = r"_\d+\.\d+Apx$"


def forms_of(name: str) -> list[str]:
    """A name of a tomogram, and what is left of it without folder, endings and pixel size, shortest last."""
    last = stem = name.rpartition("/")[2]
    while (shorter := re.sub(ENDINGS, "", stem)) != stem:
        stem = shorter
    return list(dict.fromkeys([name, last, stem, re.sub(WARP_SIZE, "", stem)]))


def receiving_project(config: Config, name: str | None, where: str) -> str:
    """The project that something is brought into: the one named, else the only one. `where`: the key of the import.

    Raises:
        TomoscoutError: there are several and none is named, or none has this name.
    """
    names = list(config.projects)
    if name is None and len(names) > 1:
        raise TomoscoutError(f"{where}.project: there are several projects: {', '.join(names)}; name one")
    if name is not None and name not in names:
        raise TomoscoutError(f"{where}.project: no project '{name}'; there are {', '.join(names)}")
    return name or names[0]


def files_of_import(entry: ImportedPicks | ImportedTomograms, where: str) -> list[Path]:
    """The files of an import, sorted. `where`: its key in the configuration.

    Raises:
        TomoscoutError: one does not exist.
    """
    found: dict[Path, None] = {}
    for text in entry.files:
        path = Path(text)
        paths = [path] if path.exists() or not re.search(r"[*?\[]", text) else _matching(path)
        if not paths or not all(path.exists() for path in paths):
            raise TomoscoutError(f"{where}.files: {text}: no such file")
        found |= dict.fromkeys(paths)
    return list(found)


def _matching(pattern: Path) -> list[Path]:
    return sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))


def files_beside(entry: ImportedPicks, files: Sequence[Path]) -> list[Path]:
    """The other files that an import reads: tables, tomograms.star, and what names numbered tomograms."""
    given = [Path(path) for path in (entry.runs, entry.indices, entry.tomograms_star) if path is not None]
    return given + [beside for file in files if (beside := file.with_suffix(".doc")).exists()]
