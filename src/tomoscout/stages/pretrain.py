"""The pretraining stage: trains a model on phantoms of the objects to learn, as a base for a training on few annotated
tomograms."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from tomoscout.data.inventory_refresh import refresh
from tomoscout.learning.progression import Outcome
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.machine.messages import say
from tomoscout.models.options import BASE_OPTIONS
from tomoscout.options.config import Config, parse_config
from tomoscout.phantom.options import SHAPES, Phantom
from tomoscout.phantom.project import ALGORITHM, PROJECT, SESSION, USER, make_phantom
from tomoscout.plan.classes import TargetClass
from tomoscout.plan.plan import Plan
from tomoscout.stages.targets import run_targets
from tomoscout.stages.train import run_train


def run_pretrain(plan: Plan, folder: Path, threads: int | None = None) -> Outcome:
    """Make the phantoms, beside the model in `folder`, and train on them; an interrupted training resumes from its
    checkpoint.

    Raises:
        TrainingFailed: training cannot succeed with these options.
        TomoscoutError: an object has neither a density map nor a built-in shape, or a map cannot be used.
        Interrupted: a signal stopped the training.
    """
    objects = [entry for entry in plan.targets.classes if entry.is_particle]
    # Phantoms that a killed job made with other options stay apart from these, and leave with them.
    work = folder / "phantoms" / plan.fingerprint("pretrain")
    project = _make_phantoms(phantom_of(plan.config, objects), work / "project")
    radii = {name: facts["radius"] for name, facts in read_json(project.with_name("phantom.json"))["objects"].items()}
    own = Plan(_configuration(plan.config, objects, radii, project), [], plan.results.folder)
    own.records = refresh(work / "inventory.tsv", own.config.projects, own.config.runs_per_job)
    for batch in sorted({record.batch for record in own.records}):
        run_targets(own, batch, work / "targets" / f"batch-{batch:04d}.json")
    outcome = run_train(own, folder, threads=threads)
    shutil.rmtree(work.parent)
    return outcome


def phantom_of(config: Config, objects: Sequence[TargetClass]) -> Phantom:
    """The phantoms to train on: with the objects, and with maps that are none of them as particles that are not to be
    found.

    Raises:
        TomoscoutError: an object has neither a density map nor a built-in shape, or an option names no object.
    """
    options = config.pretrain.phantom
    names = [entry.name for entry in objects]
    for name in names:
        if name not in (*options.maps, *SHAPES):
            raise TomoscoutError(
                f"pretrain.phantom.maps: no density map of '{name}', and no built-in shape has this name "
                f"({', '.join(SHAPES)}); give an MRC file"
            )
    shapes = [name for name in SHAPES if name in names and name not in options.maps]
    try:
        return Phantom(**options.model_dump(), shapes=shapes, voxel_spacing=config.voxel_spacing)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise TomoscoutError(f"pretrain.phantom.{message}") from None


def _make_phantoms(options: Phantom, folder: Path) -> Path:
    """Make the phantoms, unless they are complete; returns their copick config."""
    if (folder / "phantom.json").exists():
        return folder / "copick.json"
    return make_phantom(folder, options, say)


def _configuration(config: Config, objects: Sequence[TargetClass], radii: dict[str, float], project: Path) -> Config:
    """The configuration of the training: that of the user, on the phantoms. Its spheres are as large as those of the
    targets, whatever the extent of a map. `radii`: of the objects of the phantoms, in Å."""
    replaced = {*BASE_OPTIONS, "radius_scale", "class_weights", "class_sampling"}
    train = config.train.model_dump(mode="json", exclude=replaced)
    scales = {entry.name: (entry.target_radius or 0.0) / radii[entry.name] for entry in objects}
    *learning, validating = (f"phantom-{number:03d}" for number in range(config.pretrain.phantom.runs))
    values = {
        "projects": {PROJECT: str(project)},
        "tomograms": [f"{ALGORITHM}@{config.voxel_spacing}"],
        "targets": {"picks": [f"{entry.name}:{USER}/{SESSION}" for entry in objects]},
        "split": {"train": learning, "validate": [validating]},
        "train": {
            **train,
            "name": config.pretrain.name,
            "steps": config.pretrain.steps or config.train.steps,
            "radius_scale": scales,
        },
        "tracking": config.tracking.model_dump(mode="json"),
    }
    return parse_config(values, "pretrain", quiet=True)
