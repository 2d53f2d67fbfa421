"""Signatures of local projects: a scan of their folders that tells which runs have changed, without copick."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tomoscout.data.copick_config import local_roots
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, digest_file


def read_signatures(projects: Mapping[str, str]) -> dict[str, str]:
    """Scan local projects: `project/run` → signature of its folders (names, sizes and modification times). A project in
    remote storage has the one entry `project/`, the digest of its config.

    Raises:
        TomoscoutError: a copick config is missing or broken, a project's folder is missing or holds no run, or two
            projects or two runs share a folder.
    """
    found: dict[str, str] = {}
    owners: dict[Path, str] = {}
    for project, config in projects.items():
        roots = local_roots(Path(config))
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
    """Note `name` as the owner of `paths`; refuse a path that has another owner."""
    for path in paths:
        owner = owners.setdefault(path.resolve(), name)
        if owner != name:
            raise TomoscoutError(
                f"{what} {owner} and {name} share {path.resolve()}: the same data would be in two parts of a split"
            )


def _folders(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if entry.is_dir() and is_run_name(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return


def is_run_name(name: str) -> bool:
    """Whether a folder may be a run: its name is printable text, which file systems do not require."""
    return not name.startswith(".") and name.isprintable()


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # Not readable, or gone.
        return []


def _look_at_run(run: str) -> object:
    seen: list[list[object]] = []
    for part in _entries(run):
        # Tomograms lie one level below their voxel spacing, picks and segmentations directly in their folder.
        if not (part.name in ("Picks", "Segmentations") or part.name.startswith("VoxelSpacing")) or not part.is_dir():
            continue
        for entry in _entries(part.path):
            # Probabilities are not inputs, and are written often.
            if entry.name.startswith(".") or entry.name.endswith("_features.zarr"):
                continue
            try:
                facts = entry.stat()
            except OSError:  # A broken symbolic link.
                continue
            seen.append([part.name, entry.name, facts.st_size, facts.st_mtime_ns])
            if entry.name.endswith(".zarr"):
                seen[-1] += _look_at_volume(entry.path)
    return sorted(seen, key=lambda line: line[:2])


def _look_at_volume(folder: str) -> Iterator[int]:
    """Sizes and times of the metadata and the first chunk of an image: programs that write in place do not change the
    folder's time."""
    for name in ("0/.zarray", "0/0/0/0", "0/0.0.0"):
        try:
            facts = os.stat(f"{folder}/{name}")  # noqa: PTH116 paths cost more than the look itself
        except OSError:
            continue
        yield facts.st_size
        yield facts.st_mtime_ns
