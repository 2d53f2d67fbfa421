"""What the Snakefile needs to know: which batches each stage has and what its jobs depend on.

Imported while Snakemake parses, in every job of a cluster too: no copick, no torch, nothing slow.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tomoscout.data.inventory import RunRecord, read_inventory
from tomoscout.data.inventory_refresh import read_fresh
from tomoscout.explore.records import best_names, trial_name
from tomoscout.explore.study import Study
from tomoscout.machine.errors import TomoscoutError, printing_never_fails
from tomoscout.machine.files import digest, to_json, write_text
from tomoscout.models.base import base_files
from tomoscout.models.octopi import WEIGHTS as OCTOPI_WEIGHTS
from tomoscout.options.config import Config, parse_config
from tomoscout.options.config_file import read_config_file
from tomoscout.options.names import model_name, names_octopi
from tomoscout.plan.classes import TargetPlan, plan_targets, print_warnings
from tomoscout.plan.fingerprints import (
    VERSIONS,
    chooses_thresholds,
    evaluate_fingerprint,
    import_fingerprint,
    localize_fingerprint,
    object_labels,
    segment_fingerprint,
    training_fingerprint,
)
from tomoscout.plan.predictions import check_objects, segmented_runs
from tomoscout.plan.splits import VERSION as SPLIT_VERSION
from tomoscout.plan.splits import Fold, SplitResult, chosen_fold, make_split, split_to_json
from tomoscout.stages.cross_validation import check_folds, fold_name, fold_number
from tomoscout.stages.evaluate import Scored, scored_runs
from tomoscout.stages.explore import study_of
from tomoscout.tasks.picking.model import PickingModel


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
        self.results = Path(results)
        self.settings = str(self.results / "config.json")
        self.inventory = str(self.results / "inventory.tsv")
        self.phantom = str(self.results / "phantom" / "copick.json")
        self._main = main
        if main:
            self._write_settings()
            if self.is_ready:
                self._refresh()

    @property
    def is_ready(self) -> bool:
        """Whether the projects are there: all but a phantom that is still to be made."""
        return all(path != self.phantom or Path(path).exists() for path in self.config.projects.values())

    def _write_settings(self) -> None:
        text = to_json(self.config.model_dump(mode="json", by_alias=True))
        path = Path(self.settings)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)

    def _refresh(self) -> None:
        fresh = read_fresh(Path(self.inventory), self.config.projects)
        if fresh is not None:
            self.records = fresh
            return
        command = [
            sys.executable,
            "-m",
            "tomoscout",
            "inventory",
            "--config",
            self.settings,
            "--output",
            self.inventory,
            "--quiet",
        ]
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
            raise TomoscoutError(f"{self.phantom}: the phantom is not there yet; run `snakemake phantom` first")
        return read_inventory(Path(self.inventory))

    @cached_property
    def plan(self) -> TargetPlan:
        """Classes and runs of the targets."""
        plan = plan_targets(self.config, self.records)
        if self._main:
            print_warnings(plan)
        return plan

    @cached_property
    def split(self) -> SplitResult:
        """Who trains, validates, tests."""
        return make_split(self.config, self.records, self.plan)

    def fold_numbers(self, model: str) -> list[int]:
        """The fold that a model of the cross-validation is trained on; none for the single model."""
        number = fold_number(model, self.config.train.name)
        return [] if number is None else [number]

    def fold(self, model: str) -> Fold:
        """The runs that train and validate a model."""
        return chosen_fold(self.config.split, self.split, *self.fold_numbers(model))

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn; else models from elsewhere are applied."""
        return self.config.learns

    @property
    def is_scored(self) -> bool:
        """Whether the report says how good the picks are."""
        return self.learns or self.config.evaluate.reference is not None

    @cached_property
    def scored(self) -> Scored:
        """What is scored."""
        return scored_runs(self.config, self.records, self.plan if self.learns else None)

    @cached_property
    def _by_batch(self) -> dict[int, list[RunRecord]]:
        batches: dict[int, list[RunRecord]] = {}
        for record in self.records:
            batches.setdefault(record.batch, []).append(record)
        return batches

    @cached_property
    def _labels(self) -> dict[str, dict[str, int | None]]:
        return object_labels(self.config)

    @cached_property
    def _segmented(self) -> frozenset[str]:
        return frozenset(record.key for record in segmented_runs(self.config, self.records))

    # Batches of the stages

    def target_batches(self) -> list[str]:
        """Batches with runs that have, or had, a target."""
        folder = self.results / "targets" / self.config.targets.name
        made = {
            f"{path.parent.name}/{path.stem}"
            for name in self.config.projects
            for path in (folder / name).glob("*.json")
        }
        return _batches(record for record in self.records if record.key in self.plan.inputs or record.key in made)

    def overlay_batches(self) -> list[str]:
        """Batches with runs that have a target."""
        return _batches(record for record in self.records if record.key in self.plan.inputs)

    def training_batches(self, model: str) -> list[str]:
        """Batches with runs that train or validate a model."""
        fold = self.fold(model)
        used = set(fold.train + fold.validate)
        return _batches(record for record in self.records if record.key in used)

    def training_targets(self, model: str) -> str:
        """What the targets of the runs that train or validate a model are made from."""
        fold = self.fold(model)
        return digest({key: self.plan.inputs[key] for key in fold.train + fold.validate})

    def gathered_models(self) -> list[str]:
        """Models whose trainings have all their targets as they are to be."""
        gates = (self.results / "models").glob("*/targets.made")
        return sorted(gate.parent.name for gate in gates if self._is_gathered(gate, gate.parent.name))

    def gathered_studies(self) -> list[str]:
        """Studies whose trials have all their targets as they are to be."""
        gates = (self.results / "explore").glob("*/targets.made")
        return sorted(gate.parent.name for gate in gates if self._is_gathered(gate, self.config.train.name))

    def _is_gathered(self, gate: Path, model: str) -> bool:
        if not self._main:  # Jobs need not know.
            return False
        try:
            return gate.read_bytes() == self.training_targets(model).encode()
        except TomoscoutError:  # Told where the targets or the split are needed.
            return False

    def study_batches(self) -> list[str]:
        """Batches with runs that train or validate the trials of an exploration."""
        return self.training_batches(self.config.train.name)

    def segment_batches(self) -> list[str]:
        """Batches with runs that are segmented."""
        return _batches(record for record in self.records if record.key in self._segmented)

    def shown_batches(self) -> list[str]:
        """Batches with runs that the report shows. Where a model from elsewhere is applied it shows what was found in
        every run."""
        return self.scored_batches() if self.learns else self.segment_batches()

    def scored_batches(self) -> list[str]:
        """Batches with runs that are scored."""
        return _batches(self.scored.records)

    # Models

    def fold_models(self) -> list[str]:
        """Folders of the models of all folds.

        Raises:
            TomoscoutError: the split has no folds.
        """
        check_folds(self.config.split)
        return [self._model(fold_name(self.config.train.name, fold)) for fold in range(len(self.split.folds))]

    def applied_models(self) -> list[str]:
        """Folders of the models that segment, together an ensemble."""
        models = self.config.segment.models
        if models == "folds":
            return self.fold_models()
        if models == "explored":
            return self.best_models()
        return self._listed_models or [self._model(self.config.train.name)]

    @cached_property
    def _listed_models(self) -> list[str]:
        """Folders of the models listed under segment.models: octopi's are imported first.

        Raises:
            TomoscoutError: nothing is learnt here, and one of them is missing, or finds what copick cannot keep.
        """
        folders = []
        for path in self.config.segment.models or []:
            if names_octopi(path):
                folders.append(self._model(model_name(path)))
                continue
            folder = path.removesuffix("/model.yaml")
            # What is learnt here may be among them, and not be there yet.
            if not self.config.learns:
                check_objects(self.config, self.records, PickingModel.read(Path(folder)).classes, folder)
            folders.append(folder)
        return folders

    @cached_property
    def imported(self) -> dict[str, str]:
        """octopi's models among those that segment: the name of each here, and its model_config.yaml."""
        models = self.config.segment.models
        listed = models if isinstance(models, list) else []
        return {model_name(path): path for path in listed if names_octopi(path)}

    def imported_files(self, name: str) -> list[str]:
        """Configuration and weights of a model of octopi's.

        Raises:
            TomoscoutError: one is missing.
        """
        config = Path(self.imported[name])
        files = [config, config.with_name(OCTOPI_WEIGHTS)]
        for path in files:
            if not path.is_file():
                raise TomoscoutError(f"segment.models: {path}: no such file; expected what octopi wrote")
        return [str(path) for path in files]

    def fine_tuned_model(self) -> str:
        """Folder of the model that is fine-tuned.

        Raises:
            TomoscoutError: there is nothing to start from.
        """
        if self.config.train.base is None:
            raise TomoscoutError("fine-tuning needs train.base: a model folder, or octopi's model_config.yaml")
        return self._model(self.config.train.name)

    def tracked_models(self) -> list[str]:
        """Names of the models that are there: the single one and those of folds."""
        name = self.config.train.name
        found = (path.parent.name for path in (self.results / "models").glob("*/model.yaml"))
        return sorted(model for model in found if model == name or fold_number(model, name) is not None)

    def base_files(self) -> list[str]:
        """What a fine-tuning starts from."""
        return [str(path) for path in base_files(self.config.train)]

    def _model(self, name: str) -> str:
        return str(self.results / "models" / name)

    # The exploration

    @cached_property
    def study(self) -> Study:
        """The study of this configuration and data.

        Raises:
            TomoscoutError: its space is at fault.
        """
        return study_of(self.config, self.records, self.plan, self.split)

    @property
    def study_folder(self) -> str:
        """Its folder."""
        return str(self.results / "explore" / self.study.name)

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
        return [str(self.results / "tracking" / "explore" / f"{self.study.name}.json")]

    def tracked_studies(self) -> list[str]:
        """Names of the studies that are there."""
        return sorted(path.parent.name for path in (self.results / "explore").glob("*/trials.csv"))

    def trials(self) -> list[str]:
        """Names of its trials."""
        return [trial_name(number) for number in range(self.config.explore.trials)]

    def trials_before(self, trial: str) -> tuple[str | None, str | None]:
        """What a proposal waits for: the proposal before, and the last result that it is told. All others come before
        these two: a list of them all would keep Snakemake busy for minutes."""
        number, told = int(trial), self.study.told(int(trial))
        return trial_name(number - 1) if number else None, trial_name(told[-1]) if told else None

    # What the jobs depend on

    def targets_inputs(self, batch: str) -> str:
        """What the targets of a batch depend on."""
        return digest({r.key: self.plan.inputs.get(r.key) for r in self._by_batch[int(batch)]})

    def overlay_inputs(self, batch: str) -> str:
        """What the pictures of the targets of a batch depend on besides the targets."""
        contents = {r.key: r.contents for r in self._by_batch[int(batch)] if r.key in self.plan.inputs}
        return digest([VERSIONS["overlays"], contents])

    def split_inputs(self) -> str:
        """What the split file depends on."""
        return digest([SPLIT_VERSION, split_to_json(self.config.split, self.split)])

    def train_inputs(self, model: str) -> str:
        """What a model depends on."""
        return training_fingerprint(self.config, self.records, self.plan, self.fold(model))

    def import_inputs(self) -> str:
        """What a model of octopi's depends on here besides its files."""
        runs = self.fold(self.config.train.name).validate if chooses_thresholds(self.config) else ()
        by_key = {record.key: record for record in self.records}
        uri = self.config.segment_tomogram
        validation = {key: [self.plan.inputs[key], by_key[key].contents.get(uri)] for key in runs}
        return import_fingerprint(self.config, validation)

    @property
    def chooses_thresholds(self) -> bool:
        """Whether the thresholds of octopi's models are chosen on validation runs."""
        return chooses_thresholds(self.config)

    def segment_inputs(self, batch: str) -> str:
        """What the probabilities of a batch depend on besides the model."""
        runs = [r for r in self._by_batch[int(batch)] if r.key in self._segmented]
        return digest({record.key: segment_fingerprint(self.config, record, self._labels) for record in runs})

    def localize_inputs(self) -> str:
        """What picks depend on besides the probabilities."""
        return localize_fingerprint(self.config)

    def evaluate_inputs(self) -> str:
        """What scores depend on besides the predicted picks."""
        return evaluate_fingerprint(self.config, self.scored.classes, self.scored.records, self.scored.kind)

    def report_inputs(self) -> str:
        """What the report depends on besides the other results."""
        shown = self.scored.records if self.is_scored else segmented_runs(self.config, self.records)
        contents = [record.contents.get(self.config.segment_tomogram) for record in shown]
        return digest([VERSIONS["report"], self.config.report.model_dump(), self.config.split.fold, contents])


def _batches(records: Iterable[RunRecord]) -> list[str]:
    return [f"{batch:04d}" for batch in sorted({record.batch for record in records})]
