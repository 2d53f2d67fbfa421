"""Several runs in one job, each with a manifest of its own: what is done stays done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tomoscout.data.inventory import RunRecord
from tomoscout.data.project import Project
from tomoscout.data.written import DAMAGED, OF_OTHERS, Written, kind_of
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, write_json
from tomoscout.machine.messages import say
from tomoscout.options.config import Config
from tomoscout.options.forms import read_entries
from tomoscout.plan.paths import manifest_path


class Batch:
    """The runs of one job. Beside the job's output every run has a manifest, `project/run.json`, that holds the
    digest of what it was made from under "inputs": a job that is run again does only what is not there yet. Under
    "claims" it has, for everything that was written into the project, the inputs with which it may be found there:
    what is found with others was written by others."""

    def __init__(self, config: Config, records: Iterable[RunRecord], number: int, output: Path) -> None:
        """`records`: the runs of the stage, of all batches."""
        self.output = output
        self.number = number
        self.records = [record for record in records if record.batch == number]
        self._config = config
        self._projects: dict[str, Project] = {}
        self._done: dict[str, str] = {}
        self._failures: list[str] = []

    def project(self, record: RunRecord) -> Project:
        """The project of a run."""
        if record.project not in self._projects:
            self._projects[record.project] = Project(record.project, Path(self._config.projects[record.project]))
        return self._projects[record.project]

    def manifest_path(self, record: RunRecord) -> Path:
        """Where the manifest of a run lies."""
        return manifest_path(self.output.parent, record)

    @contextlib.contextmanager
    def attempt(self, record: RunRecord) -> Iterator[None]:
        """Work on a run. Where it fails the others go on, and `write` ends the job with all that failed."""
        try:
            yield
        except TomoscoutError as error:
            self._failures.append(str(error))
            say(f"failed: {error}")

    def is_done(self, record: RunRecord, inputs: str, written: Sequence[Written | Path]) -> bool:
        """Whether a run was made from the same inputs before and all that was written is there as it was.

        If not, the inputs are struck out of its manifest: a job killed between data and manifest must not count as
        done once the old inputs come back. The rest of it stays, for a job that fails leaves the old data as it was.
        """
        manifest = self._manifest(record)
        if manifest is None:
            return False
        if manifest.get("inputs") == inputs and all(self._is_there(record, inputs, what) for what in written):
            self._done[record.key] = digest(manifest)
            say(f"{record.key}: up to date")
            return True
        write_json(self.manifest_path(record), {**manifest, "inputs": None})
        return False

    def _is_there(self, record: RunRecord, inputs: str, what: Written | Path) -> bool:
        if isinstance(what, Path):
            return what.exists()
        return self.project(record).made_from(record.run, what) == inputs

    def _manifest(self, record: RunRecord) -> dict[str, Any] | None:
        path = self.manifest_path(record)
        return read_entries(path, "a manifest", project=str, run=str) if path.exists() else None

    def claim(self, record: RunRecord, inputs: str, written: Sequence[Written], option: str) -> None:
        """Say what is about to be written into a project, so that a job that is killed finds it to be its own.

        Raises:
            TomoscoutError: it would be written over something that these results have not made. `option` gives it
                another name.
        """
        manifest = self._manifest(record) or {}
        claims = dict(manifest.get("claims", {}))
        for what in written:
            found = self.project(record).made_from(record.run, what)
            known = [*claims.get(str(what), ()), inputs]
            if found not in (None, *known) and not (found == DAMAGED and str(what) in claims):
                self._refuse_writing_over(record, what, found, option)
            claims[str(what)] = list(dict.fromkeys(known))
        facts = {"project": record.project, "run": record.run, **manifest, "inputs": None, "claims": claims}
        write_json(self.manifest_path(record), facts)

    def _refuse_writing_over(self, record: RunRecord, what: Written, found: str | None, option: str) -> None:
        whose = f"{record.key}: {kind_of(what)} {what}"
        if found in (OF_OTHERS, DAMAGED):
            raise TomoscoutError(
                f"{whose}: there already, and not written by tomoscout, or changed since; it is not written over: "
                f"choose another {option}, or rename or remove it"
            )
        if not self._config.overwrite:
            raise TomoscoutError(
                f"{whose}: there already, made by tomoscout for other results (of another working directory, or "
                f"removed since); choose another {option}, or set overwrite: true"
            )

    def owns(self, record: RunRecord, what: Written) -> bool:
        """Whether something in a project is what these results have written."""
        claims = (self._manifest(record) or {}).get("claims", {})
        return self.project(record).made_from(record.run, what) in claims.get(str(what), ())

    def finish(self, record: RunRecord, inputs: str, written: Sequence[Written], manifest: dict[str, Any]) -> None:
        """Write the manifest of a run whose data is complete."""
        claims = (self._manifest(record) or {}).get("claims", {}) if written else {}
        claims |= {str(what): [inputs] for what in written}
        facts = {"project": record.project, "run": record.run, **manifest, "inputs": inputs}
        if claims:
            facts["claims"] = claims
        write_json(self.manifest_path(record), facts)
        self._done[record.key] = digest(facts)

    def write(self) -> None:
        """Write the job's output: every run with the digest of its manifest.

        Raises:
            TomoscoutError: runs failed.
        """
        if len(self._failures) == 1:
            raise TomoscoutError(self._failures[0])
        if self._failures:
            done = "; the others are done" if len(self._failures) < len(self.records) else ""
            raise TomoscoutError(
                f"{len(self._failures)} of {len(self.records)} runs failed{done}: {'; '.join(self._failures)}"
            )
        write_json(self.output, {"batch": self.number, "runs": self._done})
