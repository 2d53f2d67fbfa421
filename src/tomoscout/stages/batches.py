"""Jobs that process a batch of runs, with a manifest per run, so that completed runs are not processed again."""

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
    """The runs of one job.

    Beside the job's output every run has a manifest, `project/run.json`. Its entry "inputs" is the digest of what the
    results of the run were made from: a repeated job processes only runs that are missing or out of date. Its entry
    "claims" maps every output in the project to the digests of inputs with which these results may have written it: an
    output with another digest was written by others.
    """

    def __init__(self, config: Config, records: Iterable[RunRecord], number: int | None, output: Path) -> None:
        """`records`: the runs of the stage, in all batches. `number`: that of the batch; None for a job of all runs."""
        self.output = output
        self.number = number
        self.records = [record for record in records if number in (None, record.batch)]
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
        """Path of the manifest of a run."""
        return manifest_path(self.output.parent, record)

    @contextlib.contextmanager
    def attempt(self, record: RunRecord) -> Iterator[None]:
        """Context for the work on one run. A TomoscoutError is collected, so that the other runs are processed; `write`
        raises all collected errors."""
        try:
            yield
        except TomoscoutError as error:
            self._failures.append(str(error))
            say(f"failed: {error}")

    def is_done(self, record: RunRecord, inputs: str, written: Sequence[Written | Path]) -> bool:
        """Whether the results of a run were made from these inputs and still exist unchanged.

        If not, the inputs are removed from its manifest: otherwise a job killed after writing data but before writing
        the manifest would count as done once the old inputs came back. The other entries are kept, as a job that fails
        leaves the old data in place.
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
        """Note in the manifest what is about to be written into a project, so that a repeated job recognises the
        outputs of a killed one as its own.

        Raises:
            TomoscoutError: an output exists that these results have not made. The message names `option`, which gives
                the output another name.
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
        """Whether an output in a project was written by these results."""
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
        """Write the job's output: run → digest of its manifest.

        Raises:
            TomoscoutError: at least one run failed.
        """
        if len(self._failures) == 1:
            raise TomoscoutError(self._failures[0])
        if self._failures:
            done = "; the others are done" if len(self._failures) < len(self.records) else ""
            raise TomoscoutError(
                f"{len(self._failures)} of {len(self.records)} runs failed{done}: {'; '.join(self._failures)}"
            )
        write_json(self.output, {"batch": self.number, "runs": self._done})
