"""Several runs in one job, each with a manifest of its own: what is done stays done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tomoscout.config import Config
from tomoscout.errors import TomoscoutError
from tomoscout.files import digest, read_json, write_json
from tomoscout.inventory import RunRecord
from tomoscout.project import Project


class Batch:
    """The runs of one job. Beside the job's output every run has a manifest, `project/run.json`, that holds the
    digest of what it was made from under "inputs": a job that is run again does only what is not there yet."""

    def __init__(self, config: Config, records: Iterable[RunRecord], number: int, output: Path) -> None:
        """`records`: the runs of the stage, of all batches."""
        self.output = output
        self.number = number
        self.records = [record for record in records if record.batch == number]
        self._paths = config.projects
        self._projects: dict[str, Project] = {}
        self._done: dict[str, str] = {}

    def project(self, record: RunRecord) -> Project:
        """The project of a run."""
        if record.project not in self._projects:
            self._projects[record.project] = Project(record.project, Path(self._paths[record.project]))
        return self._projects[record.project]

    def manifest_path(self, record: RunRecord) -> Path:
        """Where the manifest of a run lies."""
        return _manifest_path(self.output.parent, record)

    def is_done(self, record: RunRecord, inputs: str, is_there: Callable[[RunRecord], bool]) -> bool:
        """Whether a run was made from the same inputs before and its data is there.

        If not, the inputs are struck out of its manifest: a job killed between data and manifest must not count as
        done once the old inputs come back. The rest of it stays, for a job that fails leaves the old data as it was.
        """
        path = self.manifest_path(record)
        if not path.exists():
            return False
        manifest = read_json(path, project=str, run=str)
        if manifest.get("inputs") == inputs and is_there(record):
            self._done[record.key] = digest(manifest)
            print(f"{record.key}: up to date", file=sys.stderr)
            return True
        write_json(path, {**manifest, "inputs": None})
        return False

    def finish(self, record: RunRecord, manifest: dict[str, Any]) -> None:
        """Write the manifest of a run whose data is complete."""
        manifest = {"project": record.project, "run": record.run, **manifest}
        write_json(self.manifest_path(record), manifest)
        self._done[record.key] = digest(manifest)

    def write(self) -> None:
        """Write the job's output: every run with the digest of its manifest."""
        write_json(self.output, {"batch": self.number, "runs": self._done})


def read_manifest(folder: Path, record: RunRecord) -> dict[str, Any]:
    """The manifest of a run in the folder of a stage.

    Raises:
        TomoscoutError: the stage has not been run for it.
    """
    path = _manifest_path(folder, record)
    if not path.exists():
        raise TomoscoutError(f"{path}: no manifest; {record.key} has not been through this stage")
    manifest: dict[str, Any] = read_json(path, project=str, run=str)
    return manifest


def _manifest_path(folder: Path, record: RunRecord) -> Path:
    return folder / record.project / f"{record.run}.json"
