"""What the Snakefile needs to know: which batches each stage has and what its jobs depend on.

Imported while Snakemake parses, in every job of a cluster too: no copick, no torch, nothing slow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tomoscout.data.inventory import RunRecord, read_inventory
from tomoscout.data.inventory_refresh import read_fresh
from tomoscout.explore.records import best_names, trial_name
from tomoscout.explore.study import Study
from tomoscout.machine.errors import TomoscoutError, printing_never_fails
from tomoscout.machine.files import to_json, write_text
from tomoscout.models.base import base_files
from tomoscout.options.config import Config, parse_config
from tomoscout.options.config_file import read_config_file
from tomoscout.plan.fingerprints import training_targets
from tomoscout.plan.folds import fold_number
from tomoscout.plan.paths import Results
from tomoscout.plan.plan import Plan
from tomoscout.plan.stages import STAGES
from tomoscout.stages.applied_models import applied_models, fold_models, imported_files, imported_models
from tomoscout.stages.explore import study_of


class Workflow:
    """One configuration over one inventory. Everything is decided on first use, so that a target asks only for
    what it needs."""

    def __init__(
        self, values: Mapping[str, Any], results: str, *, main: bool, files: Iterable[str | Path] = ()
    ) -> None:
        """`values`: Snakemake's config. `results`: folder of the results. `main`: whether this is the main process,
        which alone writes the settings for the jobs, keeps the inventory fresh and says what it changed in what it
        read. `files`: those that the values are from.

        Raises:
            TomoscoutError: the configuration or a project is at fault.
        """
        printing_never_fails()
        # Snakemake has read them: of two sections of one name it kept the last.
        written = [read_config_file(Path(file)) for file in files] if main else []
        self.config: Config = parse_config(dict(values), "config", written, quiet=not main)
        self.results = Results(Path(results))
        self._main = main
        if main:
            self._write_settings()
            if self.is_ready:
                self._refresh()

    @property
    def is_ready(self) -> bool:
        """Whether the projects are there: all but a phantom that is still to be made."""
        return all(path != str(self.results.phantom) or Path(path).exists() for path in self.config.projects.values())

    def _write_settings(self) -> None:
        text = to_json(self.config.model_dump(mode="json", by_alias=True))
        path = self.results.settings
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)

    def _refresh(self) -> None:
        fresh = read_fresh(self.results.inventory, self.config.projects)
        if fresh is not None:
            self.records = fresh
            return
        files = ["--config", str(self.results.settings), "--output", str(self.results.inventory)]
        command = [sys.executable, "-m", "tomoscout", "inventory", *files, "--quiet"]
        # Whatever the locale, what it says comes as UTF-8.
        environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
        finished = subprocess.run(command, check=False, stderr=subprocess.PIPE, encoding="utf-8", env=environment)
        if finished.returncode:
            raise TomoscoutError(finished.stderr.strip().splitlines()[-1].removeprefix("error: "))
        sys.stderr.write(finished.stderr)

    @cached_property
    def records(self) -> list[RunRecord]:
        """All runs."""
        if not self.is_ready:
            raise TomoscoutError(f"{self.results.phantom}: the phantom is not there yet; run `snakemake phantom` first")
        return read_inventory(self.results.inventory)

    @cached_property
    def plan(self) -> Plan:
        """What follows from them."""
        return Plan(self.config, self.records, self.results.folder, warn=self._main)

    # Jobs

    def batches(self, stage: str) -> list[str]:
        """The batches of a stage."""
        runs = STAGES[stage].runs
        assert runs is not None, f"{stage}: nothing in the table says which runs it works on"
        return _batches(runs(self.plan))

    def depends_on(self, stage: str, job: str = "") -> str:
        """What a job of a stage depends on besides its input files; as of `Plan.fingerprint`."""
        return self.plan.fingerprint(stage, job)

    def training_batches(self, model: str) -> list[str]:
        """Batches with runs that train or validate a model."""
        fold = self.plan.fold_of(model)
        return _batches(self.plan.by_key[key] for key in fold.train + fold.validate)

    def study_batches(self) -> list[str]:
        """Batches with runs that train or validate the trials of an exploration."""
        return self.training_batches(self.config.train.name)

    def training_targets(self, model: str) -> str:
        """What the targets of the runs that train or validate a model are made from."""
        return training_targets(self.plan, self.plan.fold_of(model))

    def gathered_models(self) -> list[str]:
        """Models whose trainings have all their targets as they are to be."""
        return self._gathered(self.results.models, lambda model: model)

    def gathered_studies(self) -> list[str]:
        """Studies whose trials have all their targets as they are to be."""
        return self._gathered(self.results.studies, lambda study: self.config.train.name)

    def _gathered(self, folder: Path, model_of: Callable[[str], str]) -> list[str]:
        """Folders whose file targets.made says what the targets of their model are made from."""
        if not self._main:  # Jobs need not know.
            return []
        gates = sorted(folder.glob("*/targets.made"))
        return [gate.parent.name for gate in gates if self._is_gathered(gate, model_of(gate.parent.name))]

    def _is_gathered(self, gate: Path, model: str) -> bool:
        try:
            return gate.read_bytes() == self.training_targets(model).encode()
        except TomoscoutError:  # Told where the targets or the split are needed.
            return False

    # Models

    @cached_property
    def applied_models(self) -> list[str]:
        """Folders of the models that segment, as of `applied_models`."""
        return [str(folder) for folder in applied_models(self.plan)]

    def fold_models(self) -> list[str]:
        """Folders of the models of all folds, as of `fold_models`."""
        return [str(folder) for folder in fold_models(self.plan)]

    def fold_numbers(self, model: str) -> list[int]:
        """The fold that a model of the cross-validation is trained on; none for the single model."""
        number = fold_number(model, self.config.train.name)
        return [] if number is None else [number]

    @cached_property
    def imported(self) -> dict[str, Path]:
        """octopi's models among those that segment: the name of each here, and its model_config.yaml."""
        return imported_models(self.config)

    def imported_files(self, name: str) -> list[str]:
        """Configuration and weights of a model of octopi's, as of `imported_files`."""
        return [str(path) for path in imported_files(self.imported[name])]

    def fine_tuned_model(self) -> str:
        """Folder of the model that is fine-tuned.

        Raises:
            TomoscoutError: there is nothing to start from.
        """
        if self.config.train.base is None:
            raise TomoscoutError("fine-tuning needs train.base: a model folder, or octopi's model_config.yaml")
        return str(self.results.model(self.config.train.name))

    def tracked_models(self) -> list[str]:
        """Names of the models that are there: the single one and those of folds."""
        name = self.config.train.name
        found = [folder.name for folder in self.results.trained_models()]
        return [model for model in found if model == name or fold_number(model, name) is not None]

    def base_files(self) -> list[str]:
        """What a fine-tuning starts from."""
        return [str(path) for path in base_files(self.config.train)]

    # The exploration

    @cached_property
    def study(self) -> Study:
        """The study of this configuration and data.

        Raises:
            TomoscoutError: its space is at fault.
        """
        return study_of(self.plan)

    @property
    def study_folder(self) -> str:
        """Its folder."""
        return str(self.results.study(self.study.name))

    def best_models(self) -> list[str]:
        """Folders of the models that the study ends with, the best first."""
        return [f"{self.study_folder}/{name}" for name in self.best_names]

    @property
    def best_names(self) -> list[str]:
        """Names of their folders."""
        return best_names(self.config.explore.top)

    def recorded_study(self) -> list[str]:
        """What says that the study is recorded, where its trials do not write to a server themselves."""
        tracking = self.config.tracking
        if not tracking.enabled or tracking.uri:
            return []
        return [str(self.results.tracked_study(self.study.name))]

    def tracked_studies(self) -> list[str]:
        """Names of the studies that are there."""
        return sorted(path.parent.name for path in self.results.studies.glob("*/trials.csv"))

    def trials(self) -> list[str]:
        """Names of its trials."""
        return [trial_name(number) for number in range(self.config.explore.trials)]

    def trials_before(self, trial: str) -> tuple[str | None, str | None]:
        """What a proposal waits for: the proposal before, and the last result that it is told. All others come before
        these two: a list of them all would keep Snakemake busy for minutes."""
        number, told = int(trial), self.study.told(int(trial))
        return trial_name(number - 1) if number else None, trial_name(told[-1]) if told else None


def _batches(records: Iterable[RunRecord]) -> list[str]:
    return [f"{batch:04d}" for batch in sorted({record.batch for record in records})]
