"""The stage that trains a model of instances on annotated images, and writes its model folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from tomoscout.learning.progression import Outcome, Progression
from tomoscout.learning.training import Job, resolve_options, train_network
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, write_bytes
from tomoscout.machine.messages import say
from tomoscout.models.base import base_digest, base_files, read_base
from tomoscout.networks import code_digest
from tomoscout.options.config import Config
from tomoscout.plan.paths import results_of
from tomoscout.plan.stages import STAGES
from tomoscout.report.cell_scores import side_by_side
from tomoscout.tasks.instances.annotations import find_annotations
from tomoscout.tasks.instances.data import CellData
from tomoscout.tasks.instances.division import annotations_of, read_division
from tomoscout.tasks.instances.model import CellModel
from tomoscout.tasks.instances.options import Cells, CellTraining
from tomoscout.tasks.instances.task import CellTask
from tomoscout.tracking.store import default_uri
from tomoscout.tracking.tracker import Tracker

VALIDATION = "validation.png"
"""The picture of a few validation images, drawn again at every validation."""


def run_train_cells(
    config: Config,
    division: Path,
    folder: Path,
    threads: int | None = None,
    watch: Callable[[Progression], None] = lambda progression: None,
) -> Outcome:
    """Train a model into `folder`; an interrupted training resumes from its checkpoint.

    Args:
        division: the file that says which images train and which choose the model.
        watch: called after every validation; an exception that it raises ends the training.

    Raises:
        TrainingFailed: training cannot succeed with these options.
        TomoscoutError: images are missing or unusable.
        Interrupted: a signal stopped the training.
    """
    if threads:
        torch.set_num_threads(threads)
    cells = as_base(config.cells)
    options = cells.train
    base = read_base(options, CellModel) if options.base else None
    data = data_of(cells, config.projects, division)
    names = {"train": [entry.key for entry in data.training], "validate": [entry.key for entry in data.validation]}
    options = options.in_steps(len(data.training))
    task = CellTask(data, options)
    uri = default_uri(results_of(folder))

    def shown(progression: Progression) -> None:
        if task.shown:
            write_bytes(folder / VALIDATION, side_by_side(task.shown))
        watch(progression)

    outcome = train_network(
        Job(
            task,
            resolve_options(options, base, task),
            options.name,
            folder,
            cell_fingerprint(options, data),
            cell_fingerprint(options, data, "steps", "warmup"),
            lambda facts: Tracker(folder, config.tracking, uri, dict(facts)),
            base,
            tuple(names["train"]),
            tuple(names["validate"]),
            names,
        ),
        shown,
    )
    if cells.library:
        place = Path(cells.library) / options.name
        keep_in_library(folder, place)
        say(f"kept as {place}")
    return outcome


def data_of(cells: Cells, projects: Mapping[str, str], division: Path) -> CellData:
    """The annotated images that train and that choose the model.

    Args:
        projects: copick projects, name → config, of annotated tomograms.
        division: the file that says which images they are.

    Raises:
        TomoscoutError: images are missing, unusable, or not those that were divided.
    """
    annotations, members = find_annotations(cells, projects), read_division(division)
    return CellData(cells, *(annotations_of(members[part], annotations) for part in ("train", "validate")))


def as_base(cells: Cells) -> Cells:
    """The options with what a fine-tuning takes over from its base: how instances are told apart, channels,
    normalisation and calibration.

    Raises:
        TomoscoutError: the base cannot be read, or the configuration asks for other channels.
    """
    if cells.train.base is None:
        return cells
    base = base_files(cells.train)[0].parent
    model = CellModel.read(base)
    if cells.channels and len(cells.channels) != len(model.inputs):
        raise TomoscoutError(
            f"cells.channels: {', '.join(cells.channels)}, but {base} takes {len(model.inputs)}: "
            f"{', '.join(model.inputs)}"
        )
    head = {"head": model.told_apart_by} | ({"rays": model.rays} if model.rays else {})
    return cells.model_copy(
        update={
            "channels": cells.channels or list(model.inputs),
            "normalisation": list(model.normalisations),
            "calibration": model.calibration,
            "rescale_tolerance": model.rescale_tolerance,
            "train": cells.train.model_copy(update=head),
        }
    )


def cell_fingerprint(options: CellTraining, data: CellData, *leave_out: str) -> str:
    """The digest of everything that the weights depend on."""
    return digest(
        {
            "version": STAGES["train_cells"].version,
            "train": options.decisive(leave_out=leave_out),
            "network_code": code_digest(options.network),
            "base": base_digest(options),
            "prepared": data.prepared,
            "weights": data.weights,
            "training": [entry.inputs for entry in data.training],
            "validation": [entry.inputs for entry in data.validation],
        }
    )


def keep_in_library(folder: Path, place: Path) -> None:
    """Copy a model folder into the library; the folder appears there when it is whole."""
    place.parent.mkdir(parents=True, exist_ok=True)
    new, old = place.with_name(f".{place.name}.new"), place.with_name(f".{place.name}.old")
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(folder, new, ignore=shutil.ignore_patterns("checkpoint*", "volumes", ".lock"))
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
