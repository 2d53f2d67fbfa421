"""Paths of all results: the only module that defines the layout of the folder `results/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.forms import read_entries

if TYPE_CHECKING:
    from tomoscout.data.inventory import RunRecord


@dataclass(frozen=True)
class Results:
    """A folder of results."""

    folder: Path

    @property
    def settings(self) -> Path:
        """The configuration file that the jobs of the workflow read."""
        return self.folder / "config.json"

    @property
    def inventory(self) -> Path:
        """The list of runs."""
        return self.folder / "inventory.tsv"

    @property
    def phantom(self) -> Path:
        """The copick config of the phantom."""
        return self.folder / "phantom" / "copick.json"

    @property
    def models(self) -> Path:
        """The folders of all models."""
        return self.folder / "models"

    @property
    def studies(self) -> Path:
        """The folders of all explorations."""
        return self.folder / "explore"

    def targets(self, name: str) -> Path:
        """Folder of the manifests of the targets with this name."""
        return self.folder / "targets" / name

    def overlays(self, name: str) -> Path:
        """Folder of the pictures of the targets with this name."""
        return self.targets(name) / "pictures"

    def split(self, name: str) -> Path:
        """The file of a split."""
        return self.folder / "splits" / f"{name}.json"

    def model(self, name: str) -> Path:
        """The folder of a model."""
        return self.models / name

    def study(self, name: str) -> Path:
        """The folder of an exploration."""
        return self.studies / name

    def compared_folds(self, model: str) -> Path:
        """The table of a cross-validation."""
        return self.folder / "cross_validation" / f"{model}.csv"

    def learning_curve(self, model: str) -> Path:
        """The table of a learning curve; its rows (.json) and its figure (.svg) are beside it."""
        return self.folder / "learning_curve" / f"{model}.csv"

    def segment(self, session: str) -> Path:
        """Folder of the manifests of the segment stage."""
        return self.folder / "segment" / session

    def localize(self, session: str) -> Path:
        """Folder of the manifests of the localize stage."""
        return self.folder / "localize" / session

    @property
    def extract(self) -> Path:
        """The folder that has, for each extraction, a folder of manifests and tables."""
        return self.folder / "extract"

    def evaluate(self, session: str) -> Path:
        """Folder of the scores."""
        return self.folder / "evaluate" / session

    def report(self, session: str) -> Path:
        """The HTML file of the report."""
        return self.folder / "report" / f"{session}.html"

    def export(self, form: str) -> Path:
        """What says which picks were written in a format, beside the files."""
        return self.folder / "export" / form / "export.json"

    def exports(self) -> list[Path]:
        """What says which picks were written, of all formats."""
        return sorted((self.folder / "export").glob("*/export.json"))

    def download(self, name: str) -> Path:
        """The output of a download."""
        return self.folder / "download" / name / "runs.json"

    def import_tomograms(self, name: str) -> Path:
        """The list of the runs whose tomograms an import brought, beside their manifests."""
        return self.folder / "import_tomograms" / name / "runs.json"

    def import_picks(self, name: str) -> Path:
        """The list of the runs into which an import brought picks, beside their manifests."""
        return self.folder / "import_picks" / name / "runs.json"

    def tracked_model(self, name: str) -> Path:
        """The file that is written once a model is recorded in MLflow."""
        return self.folder / "tracking" / f"{name}.json"

    def tracked_study(self, name: str) -> Path:
        """The file that is written once the trials of an exploration are recorded in MLflow."""
        return self.folder / "tracking" / "explore" / f"{name}.json"

    @property
    def annotations(self) -> Path:
        """Folder of made-up annotated images of cells."""
        return self.folder / "cells" / "annotations"

    @property
    def images_of_cells(self) -> Path:
        """Folder of made-up images of cells without annotations."""
        return self.folder / "cells" / "images"

    @property
    def checked_annotations(self) -> Path:
        """The page with the check of annotated images."""
        return self.folder / "cells" / "check" / "index.html"

    @property
    def cell_division(self) -> Path:
        """The file that divides annotated images."""
        return self.folder / "cells" / "division.json"

    def cell_scores(self, model: str) -> Path:
        """The scores of a model of cells."""
        return self.folder / "cells" / "evaluate" / model / "scores.json"

    def exported_cell_model(self, model: str) -> Path:
        """The package of bioimage.io of a model of cells."""
        return self.folder / "cells" / "export" / f"{model}.zip"

    def segmented_cells(self, model: str) -> Path:
        """The list of the images that a model of cells segmented."""
        return self.folder / "cells" / "segment" / f"{model}.json"

    def instances(self, model: str) -> Path:
        """Folder of the manifests of the instances that a model found in tomograms."""
        return self.folder / "segment_instances" / model

    def manifests(self, stage: str) -> list[Path]:
        """The manifests of all runs that a stage has written, for all names and sessions."""
        return sorted((self.folder / stage).glob("*/*/*.json"))

    def trained_models(self) -> list[Path]:
        """Folders of the existing models."""
        return sorted(path.parent for path in self.models.glob("*/model.yaml"))


def results_of(folder: Path) -> Path:
    """The results folder that contains the folder of a model or of an exploration."""
    return folder.absolute().parents[1]


def batch_file(folder: Path, batch: str | int) -> Path:
    """The output of a job, which a stage writes last for a batch of runs, in the folder of its manifests."""
    return folder / f"batch-{int(batch):04d}.json"


def manifest_path(folder: Path, record: RunRecord) -> Path:
    """The manifest of a run in the folder of a stage."""
    return folder / record.project / f"{record.run}.json"


def read_manifest(folder: Path, record: RunRecord, **expected: type) -> dict[str, Any]:
    """The manifest of a run in the folder of a stage. `expected`: further required entries with their types.

    Raises:
        TomoscoutError: the run has not been through the stage, or the file is not a manifest.
    """
    path = manifest_path(folder, record)
    if not path.exists():
        raise TomoscoutError(f"{path}: no manifest; {record.key} has not been through this stage")
    return read_entries(path, "a manifest", project=str, run=str, **expected)
