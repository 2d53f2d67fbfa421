"""The download stage: brings what is asked for out of another copick project, such as one of the CryoET data portal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from tomoscout.data.formats.options import Download
from tomoscout.data.inventory import RunRecord
from tomoscout.data.ome_zarr import VolumeError
from tomoscout.data.open_tomogram import check_values
from tomoscout.data.project import Project
from tomoscout.data.streams import Window, pieces
from tomoscout.data.written import Segmentation
from tomoscout.data.zarr_files import Volume
from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.machine.files import digest
from tomoscout.machine.messages import say
from tomoscout.machine.progress import Progress
from tomoscout.options.config import Config
from tomoscout.options.names import Source, TomogramUri
from tomoscout.plan.exchange import receiving_project
from tomoscout.stages.batches import Batch

AT_ONCE = 8
"""Parts of a volume that are read at the same time: each waits for the network for most of its time."""

Wanted = Source | Segmentation | TomogramUri


def run_download(config: Config, name: str, output: Path) -> None:
    """Bring what a download asks for into a project. What is there already is not read again.

    Raises:
        TomoscoutError: the other project cannot be read, has no such runs or nothing that is asked for, or what others
            have made is there.
    """
    entry, where = config.download[name], f"download.{name}"
    receiving = receiving_project(config, entry.project, where)
    source = Project(name, Path(entry.source))
    runs = _chosen_runs(source, entry, where)
    work = Batch(config, [RunRecord(receiving, run, 0, {}, {}, {}, "") for run in runs], None, output)
    progress, brought = Progress(len(runs)), 0
    for number, record in enumerate(work.records, 1):
        with work.attempt(record):
            brought += _bring_run(work, record, source, entry, where)
        progress.show(number, f"{record.run}: {number} of {len(runs)} runs")
    # This first: where runs failed, that is the reason.
    work.write()
    if not brought:
        output.unlink()
        raise TomoscoutError(f"{where}: {_nothing(source, runs)}")


def _chosen_runs(source: Project, entry: Download, where: str) -> list[str]:
    names = source.run_names()
    if entry.runs is None:
        return names
    for pattern in entry.runs:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise TomoscoutError(
                f"{where}.runs: no run '{pattern}' in {source.config}; it has {len(names)}, such as "
                f"{cut(', '.join(names[:5]))}"
            )
    return [name for name in names if _is_asked_for(name, entry.runs)]


def _nothing(source: Project, runs: Sequence[str]) -> str:
    """That no run has what is asked for, with what the first one has."""
    there: list[object] = [*source.tomograms(runs[0]), *source.pick_sources(runs[0]), *source.segmentations(runs[0])]
    return (
        f"nothing that is asked for is in {len(runs)} runs of {source.config}; {runs[0]} has "
        f"{cut(', '.join(map(str, there))) or 'nothing'}"
    )


def _is_asked_for(name: object, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(str(name), pattern) for pattern in patterns)


def _bring_run(work: Batch, record: RunRecord, source: Project, entry: Download, where: str) -> int:
    """Bring what is asked for of a run. Returns how many volumes and sets of picks that is."""
    asked = {what: digest([str(what), content]) for what, content in _asked_for(source, record.run, entry)}
    project = work.project(record)
    if asked:
        project.create_run(record.run)
    for what, inputs in asked.items():
        if project.made_from(record.run, what) == inputs:
            say(f"{record.key}: {what} is there already")
            continue
        work.claim(record, inputs, [what], f"{where}.project")
        _bring(source, project, record.run, what, inputs)
        say(f"{record.key}: {what}")
    claims = {str(what): [inputs] for what, inputs in asked.items()}
    work.finish(record, digest(claims), [], {"source": entry.source, "claims": claims})
    return len(asked)


def _asked_for(source: Project, run: str, entry: Download) -> Iterator[tuple[Wanted, str]]:
    """What is asked for of a run, each with a digest of its content."""
    if entry.tomograms:
        for uri, found in source.tomograms(run).items():
            if _is_asked_for(uri, entry.tomograms):
                if found.shape is None:
                    raise TomoscoutError(f"{source.config}: {run}: tomogram {uri}: {found.problem}")
                yield TomogramUri.parse(uri), found.digest
    for picks in source.pick_sources(run):
        if _is_asked_for(picks, entry.picks):
            yield picks, source.find_picks(run, picks).digest
    for segmentation in source.segmentations(run):
        if _is_asked_for(segmentation, entry.segmentations):
            yield segmentation, source.digest_segmentation(run, segmentation)


def _bring(source: Project, project: Project, run: str, what: Wanted, inputs: str) -> None:
    if isinstance(what, Source):
        project.write_picks(run, what, source.read_picks(run, what), inputs)
        return
    volume = source.open_volume(run, what)
    z, y, x = volume.shape
    kind, attributes = volume.array.dtype.newbyteorder("="), {"inputs": inputs}
    if isinstance(what, Segmentation):
        with project.writing(run, what, (z, y, x), kind, attributes) as array:
            _copy(volume, array, f"{source.config}: {run}: segmentation {what}")
    else:
        named = f"{source.config}: {run}: tomogram {what}"
        with project.writing_tomogram(run, str(what), (z, y, x), kind, attributes) as array:
            check_values(*_copy(volume, array, named), named)


def _copy(volume: Volume, array: Any, what: str) -> tuple[float, float]:
    """Copy the voxels of a volume, in parts that are whole chunks of the new one. Returns the lowest and the highest
    value, NaN where one is NaN."""

    def copy_part(window: Window) -> tuple[float, float]:
        values = volume.read(window, allow_missing_chunks=True)
        array[window] = values
        return float(values.min()), float(values.max())

    # Parts at least as large as the chunks that are read, so that few of these are read twice.
    stored = volume.array.chunks[-len(volume.shape) :]
    lengths = [new * -(-old // new) for old, new in zip(stored, array.chunks, strict=True)]
    windows = list(pieces(volume.shape, lengths))
    progress, extremes = Progress(len(windows)), []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for number, found in enumerate(pool.map(copy_part, windows), 1):
                extremes.append(found)
                progress.show(number, f"{what}: {number} of {len(windows)} parts")
        except VolumeError as error:
            pool.shutdown(wait=False, cancel_futures=True)
            raise TomoscoutError(f"{what}: {error}") from None
    return float(np.min(extremes)), float(np.max(extremes))
