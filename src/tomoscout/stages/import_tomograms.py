"""The import stage of tomograms: brings files of other programs into the projects, at their own voxel spacing and at
coarser ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.formats.options import ImportedTomograms
from tomoscout.data.formats.tables import read_pairs
from tomoscout.data.open_tomogram import check_values
from tomoscout.data.project import Project
from tomoscout.data.streams import Window, pieces
from tomoscout.data.volume_files import VolumeFile, open_volume_file
from tomoscout.data.zarr_files import digest_samples
from tomoscout.learning.resampling import needed, resampled_size, resampling_matrix
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, read_json, write_json
from tomoscout.machine.messages import say, times
from tomoscout.machine.progress import Progress
from tomoscout.options.config import Config
from tomoscout.plan.exchange import files_of_import, forms_of, receiving_project


def run_import_tomograms(config: Config, name: str, output: Path) -> None:
    """Bring the tomograms of an import into a project. Those that are there already are left alone.

    Raises:
        TomoscoutError: files cannot be read, do not say their voxel spacing, or have one run; or tomograms of others
            are there.
    """
    entry, where = config.import_tomograms[name], f"import_tomograms.{name}"
    receiving = receiving_project(config, entry.project, where)
    project = Project(receiving, Path(config.projects[receiving]))
    runs = _runs(files_of_import(entry, where), entry, where)
    importer = _Importer(project, entry, where, output.parent)
    progress, failures, done = Progress(len(runs)), [], {}
    for number, (run, path) in enumerate(runs.items(), 1):
        try:
            done[f"{project.name}/{run}"] = importer.bring(run, path)
        except TomoscoutError as error:
            failures.append(str(error))
            say(f"failed: {error}")
        progress.show(number, f"{run}: {number} of {len(runs)}")
    if failures:
        others = "; the others are done" if done else ""
        raise TomoscoutError(f"{len(failures)} of {len(runs)} tomograms failed{others}: {'; '.join(failures)}")
    write_json(output, {"runs": done})


def _runs(files: Sequence[Path], entry: ImportedTomograms, where: str) -> dict[str, Path]:
    """Run → file."""
    table = read_pairs(Path(entry.runs)) if entry.runs else {}
    found: dict[str, Path] = {}
    for path in files:
        forms = forms_of(str(path))
        known = [table[form] for form in forms if form in table]
        if entry.runs and not known:
            raise TomoscoutError(f"{entry.runs}: no run for {path}")
        run = known[0] if known else re.sub(r"[\s:]", "-", forms[-1])
        if run in found:
            raise TomoscoutError(f"{where}: {found[run]} and {path} would both be run {run}; give a table as `runs`")
        found[run] = path
    return found


class _Importer:
    """Brings files into a project. Each run has a manifest: from what its tomograms were made, and their digests.

    Its entry "claims" names the tomograms that this import has begun to write: those of a job that was killed are its
    own, too.
    """

    def __init__(self, project: Project, entry: ImportedTomograms, where: str, folder: Path) -> None:
        self.project, self.entry, self.where, self.folder = project, entry, where, folder

    def bring(self, run: str, path: Path) -> str:
        """Bring a file into a run. Returns the digest of the manifest.

        Raises:
            TomoscoutError: as for `run_import_tomograms`.
        """
        file = open_volume_file(path, self.entry.format)
        spacing = self._voxel_spacing(file, path)
        manifest_path = self.folder / self.project.name / f"{run}.json"
        manifest: dict[str, Any] = read_json(manifest_path) if manifest_path.exists() else {}
        inputs = digest([digest_samples(path), spacing, self.entry.also_at])
        uris = {f"{self.entry.algorithm}@{size}": size for size in (spacing, *self.entry.also_at)}
        there = self._there(run)
        if manifest.get("inputs") == inputs and manifest["tomograms"] == {uri: there.get(uri) for uri in uris}:
            say(f"{self.project.name}/{run}: up to date")
            return digest(manifest)
        claims = manifest.get("claims", [])
        for uri in uris:
            if uri in there and uri not in claims:
                raise TomoscoutError(
                    f"{self.project.name}/{run}: tomogram {uri}: there already, and not of this import; it is not "
                    f"written over: choose another {self.where}.algorithm, or remove it"
                )
        claimed = {"project": self.project.name, "run": run, "claims": sorted({*claims, *uris})}
        write_json(manifest_path, {**claimed, "inputs": None})
        for uri, size in uris.items():
            self._write(run, uri, file, spacing / size, path)
        there = self._there(run)
        facts = {"file": str(path), "inputs": inputs, "tomograms": {uri: there[uri] for uri in uris}}
        write_json(manifest_path, {**claimed, **facts})
        say(f"{self.project.name}/{run}: {path}, {times(file.shape)} voxels, as {', '.join(uris)}")
        return digest({**claimed, **facts})

    def _voxel_spacing(self, file: VolumeFile, path: Path) -> float:
        spacing = self.entry.voxel_spacing or file.voxel_spacing
        if spacing is None:
            raise TomoscoutError(f"{path}: {file.fault or 'says no voxel size'}; give {self.where}.voxel_spacing")
        # copick names voxel spacings with three decimals.
        spacing = round(spacing, 3)
        for other in self.entry.also_at:
            if other <= spacing:
                raise TomoscoutError(
                    f"{self.where}.also_at: {other:g} Å is not coarser than {path}, which has {spacing:g} Å"
                )
        return spacing

    def _there(self, run: str) -> dict[str, str]:
        """The tomograms of a run, with digests of their content."""
        if run not in self.project.run_names():
            return {}
        return {uri: found.digest for uri, found in self.project.tomograms(run).items()}

    def _write(self, run: str, uri: str, file: VolumeFile, ratio: float, path: Path) -> None:
        shape = file.shape if ratio == 1 else tuple(resampled_size(size, ratio) for size in file.shape)
        z, y, x = shape
        example = file.read((slice(0, 1),) * 3)
        kind = example.dtype.newbyteorder("=") if ratio == 1 else np.dtype(np.float32)
        low, high = np.inf, -np.inf
        with self.project.writing_tomogram(run, uri, (z, y, x), kind) as array:
            for window in pieces(shape, array.chunks):
                values = _values(file, window, ratio)
                low, high = min(low, float(values.min())), max(high, float(values.max()))
                if not np.isfinite(values).all():
                    low = np.nan
                    break
                array[window] = values
            check_values(low, high, f"{path}: it")


def _values(file: VolumeFile, window: Window, ratio: float) -> NDArray[Any]:
    """Values of a file on a grid with `ratio` voxels per voxel."""
    if ratio == 1:
        return file.read(window)
    region = [range(part.start, part.stop) for part in window]
    old = [needed(part, size, ratio) for part, size in zip(region, file.shape, strict=True)]
    values = file.read(tuple(slice(part.start, part.stop) for part in old)).astype(np.float32)
    for axis, (part, known, size) in enumerate(zip(region, old, file.shape, strict=True)):
        matrix = resampling_matrix(part, size, ratio)[:, known.start : known.stop]
        values = np.moveaxis(np.tensordot(values, matrix, axes=(axis, 1)), -1, axis)
    return values
