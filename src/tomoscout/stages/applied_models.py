"""The models that the segment stage applies: models trained here, other model folders, or octopi models."""

from __future__ import annotations

from pathlib import Path

from tomoscout.explore.records import best_names
from tomoscout.machine.errors import TomoscoutError
from tomoscout.models.octopi import WEIGHTS as OCTOPI_WEIGHTS
from tomoscout.options.config import Config
from tomoscout.options.names import model_name, names_octopi
from tomoscout.plan.folds import check_folds
from tomoscout.plan.members import Member
from tomoscout.plan.plan import Plan
from tomoscout.plan.predictions import check_objects
from tomoscout.stages.explore import study_of
from tomoscout.tasks.picking.model import PickingModel


def applied_models(plan: Plan, *, imported: bool = False) -> list[Path]:
    """Folders of the models to apply; several form an ensemble.

    `imported`: another workflow imports this one, and its rules may make a listed model that does not exist yet.

    Raises:
        TomoscoutError: nothing is trained here, and a listed model is missing or finds an object that a copick config
            lacks; or the split has no folds.
    """
    models = plan.config.segment.models
    if models == "folds":
        return fold_models(plan)
    if models == "explored":
        study = plan.results.study(study_of(plan).name)
        return [study / name for name in best_names(plan.config.explore.top)]
    if not models:
        return [plan.results.model(plan.config.train.name)]
    return [_listed_model(plan, path, imported) for path in models]


def fold_models(plan: Plan) -> list[Path]:
    """Folders of the models of all folds.

    Raises:
        TomoscoutError: the split has no folds.
    """
    check_folds(plan.config.split)
    return [plan.model_of(Member(fold)) for fold in range(len(plan.split.folds))]


def _listed_model(plan: Plan, path: str, imported: bool) -> Path:
    """Folder of an entry of `segment.models`; for an octopi model, the folder that it is imported into."""
    if names_octopi(path):
        return plan.results.model(model_name(path))
    folder = Path(path.removesuffix("/model.yaml"))
    # With training, a listed model may be trained in this workflow and not exist yet.
    made_elsewhere = imported and not (folder / "model.yaml").exists()
    if not plan.config.learns and not made_elsewhere:
        check_objects(plan.config, plan.records, PickingModel.read(folder).classes, folder)
    return folder


def imported_models(config: Config) -> dict[str, Path]:
    """octopi models in `segment.models`: name of the model folder → model_config.yaml."""
    listed = config.segment.models if isinstance(config.segment.models, list) else []
    return {model_name(path): Path(path) for path in listed if names_octopi(path)}


def imported_files(source: Path) -> list[Path]:
    """Configuration and weights of an octopi model, given its model_config.yaml.

    Raises:
        TomoscoutError: one of the files is missing.
    """
    files = [source, source.with_name(OCTOPI_WEIGHTS)]
    for path in files:
        if not path.is_file():
            raise TomoscoutError(f"segment.models: {path}: no such file; expected what octopi wrote")
    return files
