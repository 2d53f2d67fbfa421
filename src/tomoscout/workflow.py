"""The interface to the Snakefile: the batches of each stage and the fingerprints of its jobs.

Snakemake imports this module when it parses the workflow, also in every job on a cluster. It must not import copick,
torch or anything else that loads slowly.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tomoscout.data.inventory import RunRecord, read_inventory
from tomoscout.data.inventory_refresh import read_fresh
from tomoscout.explore.options import Explore
from tomoscout.explore.records import best_names
from tomoscout.explore.search import Search
from tomoscout.explore.study import Study
from tomoscout.machine.errors import TomoscoutError, printing_never_fails
from tomoscout.machine.files import digest, to_json, write_text
from tomoscout.machine.messages import note
from tomoscout.models.base import base_files
from tomoscout.options.config import Config, RuleGroup, parse_config
from tomoscout.options.config_file import read_config_file
from tomoscout.plan.containers import enter_images, image_of
from tomoscout.plan.exchange import exported_reads, files_beside, files_of_import
from tomoscout.plan.extractions import Read, predictions, reads_of, written_by
from tomoscout.plan.fingerprints import annotated_tomograms, cell_options, training_targets
from tomoscout.plan.members import SINGLE, member_names
from tomoscout.plan.paths import Results
from tomoscout.plan.plan import Plan
from tomoscout.plan.scored import compared_with, compares_targets
from tomoscout.plan.stages import STAGES
from tomoscout.stages.applied_models import applied_models, fold_models, imported_files, imported_models
from tomoscout.stages.explore import study_of
from tomoscout.stages.explore_cells import cell_study
from tomoscout.tasks.instances.annotation_files import annotation_files, images_of


class Workflow:
    """A configuration applied to an inventory. Properties are computed on first use, so that a target of Snakemake
    computes only what it needs."""

    def __init__(
        self,
        values: Mapping[str, Any],
        results: str,
        *,
        main: bool,
        files: Iterable[str | Path] = (),
        imported: bool = False,
    ) -> None:
        """`values`: Snakemake's config. `results`: folder of the results. `main`: whether this is Snakemake's main
        process, the only one that writes the settings for the jobs, refreshes the inventory, and reports option values
        that were converted. `files`: the configuration files that `values` was read from. `imported`: whether another
        workflow imports this one.

        Raises:
            TomoscoutError: the configuration is invalid, or a project cannot be used.
        """
        printing_never_fails()
        # Read again: of two sections with the same name Snakemake keeps only the last, without an error.
        written = [read_config_file(Path(file)) for file in files] if main else []
        self.config: Config = parse_config(dict(values), "config", written, quiet=not main)
        self.results = Results(Path(results))
        self._main = main
        self._imported = imported
        if main:
            self._write_settings()

    def _awaited(self) -> list[str]:
        """The copick configs that are not there yet, as rules may have to make them: that of the phantom, and where
        another workflow imports this one any."""
        paths = [path for path in self.config.projects.values() if not Path(path).exists()]
        return paths if self._imported else [path for path in paths if path == str(self.results.phantom)]

    def _write_settings(self) -> None:
        text = to_json(self.config.model_dump(mode="json", by_alias=True))
        path = self.results.settings
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)

    @cached_property
    def records(self) -> list[RunRecord]:
        """All runs of the inventory. The main process refreshes it when something asks for a run: what looks at the
        rules alone, such as `--lint`, needs no project."""
        for path in self._awaited():
            if path == str(self.results.phantom):
                raise TomoscoutError(f"{path}: the phantom is not there yet; run `snakemake phantom` first")
            raise TomoscoutError(f"{path}: no such copick config; a rule that makes it must have run before")
        if self._main:
            fresh = read_fresh(self.results.inventory, self.config.projects)
            if fresh is not None:
                return fresh
            self._refresh()
        return read_inventory(self.results.inventory)

    def _refresh(self) -> None:
        files = ["--config", str(self.results.settings), "--output", str(self.results.inventory)]
        command = [sys.executable, "-m", "tomoscout", "inventory", *files, "--quiet"]
        # The output is decoded as UTF-8, whatever the locale.
        environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
        finished = subprocess.run(command, check=False, stderr=subprocess.PIPE, encoding="utf-8", env=environment)
        if finished.returncode:
            raise TomoscoutError(finished.stderr.strip().splitlines()[-1].removeprefix("error: "))
        sys.stderr.write(finished.stderr)

    @cached_property
    def plan(self) -> Plan:
        """The plan of this configuration and its runs."""
        return Plan(self.config, self.records, self.results.folder, warn=self._main)

    # What jobs run in

    def image(self, group: RuleGroup, folder: Path) -> str:
        """The image of a group of rules; see `plan.containers`."""
        return image_of(self.config, group, folder)

    def enter_images(self, images: Iterable[str]) -> None:
        """Let the images of jobs see the folders that the configuration names, and the GPU."""
        enter_images(self.config, images, self.results.folder)

    # Jobs

    def batches(self, stage: str) -> list[str]:
        """The batches of a stage, as numbers of four digits."""
        runs = STAGES[stage].runs
        assert runs is not None, f"{stage}: nothing in the table says which runs it works on"
        return _batches(runs(self.plan))

    def depends_on(self, stage: str, job: str = "") -> str:
        """Fingerprint of what a job of a stage depends on besides its input files; see `Plan.fingerprint`."""
        return self.plan.fingerprint(stage, job)

    def training_batches(self, model: str) -> list[str]:
        """Batches with runs that train or validate a model."""
        runs = self.plan.runs_of(self.plan.member_of(model))
        return _batches(self.plan.by_key[key] for key in runs.train + runs.validate)

    def study_batches(self) -> list[str]:
        """Batches with runs that train or validate the trials of an exploration."""
        return self.training_batches(self.config.train.name)

    def training_targets(self, model: str) -> str:
        """Digest of the inputs of the targets of the runs that train or validate a model."""
        return training_targets(self.plan, self.plan.runs_of(self.plan.member_of(model)))

    def gathered_models(self) -> list[str]:
        """Names of the models whose file targets.made shows that all targets of their training are up to date."""
        return self._gathered(self.results.models, lambda model: model)

    def gathered_studies(self) -> list[str]:
        """Names of the studies whose file targets.made shows that all targets of their trials are up to date."""
        return self._gathered(self.results.studies, lambda study: self.config.train.name)

    def _gathered(self, folder: Path, model_of: Callable[[str], str]) -> list[str]:
        """Names of the folders whose file targets.made holds the current digest of the targets of their model."""
        if not self._main:  # Used only in the main process.
            return []
        gates = sorted(folder.glob("*/targets.made"))
        return [gate.parent.name for gate in gates if self._is_gathered(gate, model_of(gate.parent.name))]

    def _is_gathered(self, gate: Path, model: str) -> bool:
        try:
            return gate.read_bytes() == self.training_targets(model).encode()
        except TomoscoutError:  # Reported where the targets or the split are needed.
            return False

    def extracted_batches(self) -> list[str]:
        """The batches of runs from which something is extracted.

        Raises:
            TomoscoutError: the configuration extracts nothing.
        """
        if not self.config.extract:
            raise TomoscoutError("extract: nothing to extract; give a name of yours and, below it, the kind")
        return self.batches("extract")

    def localized_before(self, batch: str) -> list[str]:
        """The batch itself if something is extracted from the predictions for its runs."""
        owner = predictions(self.config)
        reading = {
            name for name in self.config.extract if any(read.owner == owner for read in reads_of(self.config, name))
        }
        runs = (record for name in reading for record in self.plan.extracted[name])
        return [batch] if any(record.batch == int(batch) for record in runs) else []

    def targets_compared(self) -> list[str]:
        """The batches of targets with which segmentations are compared."""
        return self.batches("evaluate") if compares_targets(self.config) else []

    def extractions_compared(self) -> list[str]:
        """The batches of scored runs, where something extracted is scored beside the picks of the model."""
        return self._extracted_for("evaluate", compared_with(self.config))

    def extractions_exported(self) -> list[str]:
        """The batches of exported runs, where something extracted is exported."""
        return self._extracted_for("export", exported_reads(self.config))

    def _extracted_for(self, stage: str, reads: Iterable[Read]) -> list[str]:
        made = {written_by(self.config, name) for name in self.config.extract}
        return self._common_batches(stage, "extract") if any(read.owner in made for read in reads) else []

    def _common_batches(self, stage: str, before: str) -> list[str]:
        """The batches of a stage in which a stage before it works."""
        made = set(self.batches(before))
        return [batch for batch in self.batches(stage) if batch in made]

    # Models

    @cached_property
    def applied_models(self) -> list[str]:
        """Folders of the models to apply; see `stages.applied_models`."""
        return [str(folder) for folder in applied_models(self.plan, imported=self._imported)]

    @property
    def picking_models(self) -> list[str]:
        """Folders of the models from whose probabilities picks are made; none where a segmentation is localised."""
        return [] if self.config.localize.segmentation else self.applied_models

    def fold_models(self) -> list[str]:
        """Folders of the models of all folds; see `stages.applied_models`."""
        return [str(folder) for folder in fold_models(self.plan)]

    def curve_models(self) -> list[str]:
        """Folders of the models of the learning curve."""
        return [str(self.plan.model_of(member)) for member in self.plan.curve]

    @property
    def model_names(self) -> str:
        """The regular expression of the names of the models that are trained here."""
        return member_names(self.config.train.name)

    def member_options(self, model: str) -> list[str]:
        """The options of `tomoscout train` for a model; none for the single model."""
        chosen = self.plan.member_of(model)._asdict().items() - SINGLE._asdict().items()
        return [word for name, value in sorted(chosen) for word in (f"--{name}", str(value))]

    @cached_property
    def imported(self) -> dict[str, Path]:
        """octopi models among the models to apply: name of the model folder → model_config.yaml."""
        return imported_models(self.config)

    def imported_files(self, name: str) -> list[str]:
        """Configuration and weights of an octopi model; see `stages.applied_models`."""
        return [str(path) for path in imported_files(self.imported[name])]

    def fine_tuned_model(self) -> str:
        """Folder of the fine-tuned model.

        Raises:
            TomoscoutError: `train.base` is not set.
        """
        if self.config.train.base is None:
            raise TomoscoutError("fine-tuning needs train.base: a model folder, or octopi's model_config.yaml")
        return str(self.results.model(self.config.train.name))

    def tracked_models(self) -> list[str]:
        """Names of the existing models that are trained here."""
        found = [folder.name for folder in self.results.trained_models()]
        return [model for model in found if re.fullmatch(self.model_names, model)]

    def base_files(self) -> list[str]:
        """Files of the model that fine-tuning starts from."""
        return [str(path) for path in base_files(self.config.train)]

    # Explorations

    @cached_property
    def search(self) -> Search:
        """The search of the task of picking."""
        return self._search(self.config.explore, lambda: study_of(self.plan))

    @cached_property
    def cell_search(self) -> Search:
        """The search of the task of instances of cells."""
        return self._search(self.config.cells.explore, lambda: cell_study(self.config.cells))

    def _search(self, options: Explore, make_study: Callable[[], Study]) -> Search:
        return Search(options, self.results, self.config.tracking, make_study)

    def started_studies(self) -> list[str]:
        """Names of the studies that have a study.json."""
        if not self._main:  # Used only in the main process.
            return []
        return sorted(path.parent.name for path in self.results.studies.glob("*/study.json"))

    def tracked_studies(self) -> list[str]:
        """Names of the studies that have a table of trials."""
        return sorted(path.parent.name for path in self.results.studies.glob("*/trials.csv"))

    # Exchange with other programs

    def imports(self, section: Literal["import_picks", "import_tomograms", "download"]) -> list[str]:
        """The imports of picks or of tomograms, or the downloads.

        Raises:
            TomoscoutError: there are none.
        """
        entries: dict[str, Any] = getattr(self.config, section)
        if not entries:
            what = "its source" if section == "download" else "its files"
            raise TomoscoutError(f"{section}: nothing to import; give a name of yours and, below it, {what}")
        return list(entries)

    def all_imports(self) -> list[str]:
        """The outputs of all imports. Picks are left out until all tomograms are there: the runs that these make are
        known to the next command.

        Raises:
            TomoscoutError: there are no imports.
        """
        tomograms = [self.results.import_tomograms(name) for name in self.config.import_tomograms]
        picks = [self.results.import_picks(name) for name in self.config.import_picks]
        if not (tomograms or picks):
            raise TomoscoutError("import_tomograms, import_picks: nothing to import; give one of them")
        if picks and not all(path.exists() for path in tomograms):
            if self._main:
                note("tomograms are imported now; the same command then imports picks")
            picks = []
        return [str(path) for path in (*tomograms, *picks)]

    def imported_tomogram_files(self, name: str) -> list[str]:
        """The files that an import of tomograms reads."""
        return [str(path) for path in files_of_import(self.config.import_tomograms[name], f"import_tomograms.{name}")]

    def import_depends_on(self, section: Literal["import_tomograms", "download"], name: str) -> str:
        """What an import of tomograms, or a download, depends on besides its files. It does not look at the project,
        which may have no runs yet."""
        return digest([STAGES[section].version, getattr(self.config, section)[name].decisive()])

    def imported_pick_files(self, name: str) -> list[str]:
        """The files that an import reads."""
        entry = self.config.import_picks[name]
        files = files_of_import(entry, f"import_picks.{name}")
        return [str(path) for path in [*files, *files_beside(entry, files)]]

    def exported_batches(self) -> list[str]:
        """The batches of runs whose picks the localize stage makes and which are exported; none if others are."""
        owner = predictions(self.config)
        own = self.config.export.picks is None or any(read.owner == owner for read in exported_reads(self.config))
        return self._common_batches("export", "localize") if own else []

    # Instances of cells

    def annotation_files(self) -> list[str]:
        """The files of annotated images of cells; where a rule is still to make them, the folder that it makes."""
        made = self.results.annotations
        if not made.exists() and str(made) in [source.folder for source in self.config.cells.annotations.values()]:
            return [str(made)]
        return annotation_files(self.config.cells)

    def images_of_cells(self) -> list[str]:
        """The images of cells to segment; where a rule is still to make them, the folder that it makes."""
        made = str(self.results.images_of_cells)
        paths = self.config.cells.segment.images
        if made in paths and not self.results.images_of_cells.exists():
            return [made]
        records = self.results.segmented_cells(Path(self.segmenting_cell_model("")).name).parent
        return [str(path) for path in images_of(paths, records)]

    def depends_on_cells(self, stage: str) -> str:
        """Fingerprint of what a stage of instances of cells depends on besides its input files."""
        parts = [STAGES[stage].version, cell_options(self.config.cells, stage)]
        if stage in ("check_annotations", "divide_cells"):
            parts += annotated_tomograms(self.config.cells, lambda: self.records)
        return digest(parts)

    def instance_batches(self) -> list[str]:
        """The batches of runs in whose tomograms instances are segmented.

        Raises:
            TomoscoutError: no kind of tomogram is named, or no run has it.
        """
        uri = self.config.cells.segment.tomogram
        if uri is None:
            raise TomoscoutError("cells.segment.tomogram: not given; name the kind of tomogram, algorithm@spacing")
        batches = self.batches("segment_instances")
        if not batches:
            raise TomoscoutError(f"cells.segment.tomogram: no run has a tomogram {uri}")
        return batches

    @property
    def cell_group(self) -> RuleGroup:
        """The group of the rules that use a network for instances of cells: the star head and back ends have packages
        of their own."""
        train = self.config.cells.train
        if train.backend != "tomoscout":
            return train.backend
        return "cells" if train.head == "star" else "network"

    @property
    def cell_weights(self) -> str:
        """Name of the file of weights in the folder of the model of instances of cells."""
        train = self.config.cells.train
        return {"stardist": "weights_best.h5", "cellpose": train.name}.get(train.backend, "weights.safetensors")

    def cell_base_files(self) -> list[str]:
        """Files of the model that the training on annotated images starts from."""
        return [str(path) for path in base_files(self.config.cells.train)]

    def segmenting_cell_model(self, results: str) -> str:
        """Folder of the model that segments images: one that is named, the best of the exploration, or that of the
        training. `results`: the folder of the results, as rules write it."""
        cells = self.config.cells
        named = cells.segment.model
        if named == "explored":
            return str(Results(Path(results)).study(self.cell_search.study.name) / best_names(1)[0])
        if named is None:
            return str(Results(Path(results)).model(cells.train.name))
        return named if "/" in named or cells.library is None else str(Path(cells.library) / named)


def _batches(records: Iterable[RunRecord]) -> list[str]:
    return [f"{batch:04d}" for batch in sorted({record.batch for record in records})]
