"""The stage that lets StarDist or Cellpose train on annotated images, and writes their model folder."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tomoscout.machine.files import digest, read_json, write_bytes, write_json, write_table
from tomoscout.machine.messages import say, warn
from tomoscout.machine.progress import Progress
from tomoscout.options.config import Config
from tomoscout.plan.paths import results_of
from tomoscout.plan.stages import STAGES
from tomoscout.stages.train_cells import data_of, keep_in_library
from tomoscout.tasks.instances.annotation import Annotation
from tomoscout.tasks.instances.annotations import channel_numbers
from tomoscout.tasks.instances.backends.applied import AppliedBackend
from tomoscout.tasks.instances.backends.celldetective import CONFIG, celldetective_config, typical_diameter
from tomoscout.tasks.instances.backends.curves import loss_curves
from tomoscout.tasks.instances.backends.model import NAMES, Backend, BackendModel
from tomoscout.tasks.instances.backends.processes import Predictor, python_of, train
from tomoscout.tasks.instances.data import CellData
from tomoscout.tasks.instances.options import CellTraining
from tomoscout.tasks.instances.scores import IOU, mean_ap, overlaps, score
from tomoscout.tracking.store import default_uri
from tomoscout.tracking.tracker import Tracker

STATE = "checkpoint"
"""The folder, in that of the model, of prepared images and of what a restart needs; removed at the end."""
_EPOCH = 100
"""Steps of an epoch of StarDist, and fewest epochs of Cellpose: its schedule of the learning rate is made of epochs."""


def run_train_backend(config: Config, division: Path, folder: Path, threads: int | None = None) -> None:
    """Train a model of StarDist or Cellpose into `folder`; an interrupted training goes on from its last epoch.

    Args:
        division: the file that says which images train and which choose the model.

    Raises:
        TomoscoutError: images are missing or unusable, the package is missing, or its training failed.
        Interrupted: a signal stopped the training.
    """
    if threads:
        torch.set_num_threads(threads)
    cells = config.cells
    assert cells.train.backend != "tomoscout"
    python = python_of(cells.train.backend, cells.train.python)
    data = data_of(cells, config.projects, division)
    training, validation = data.training, data.validation
    options = cells.train.in_steps(len(training))
    if len(set(data.weights.values())) > 1:
        warn(f"cells.annotations: {NAMES[options.backend]} takes all images alike; weight is not used")
    job = _job(options, data) | {"threads": torch.get_num_threads(), "device": options.computes_on}
    fingerprint = _fingerprint(options, data)
    place = folder / STATE
    _prepare(data, place, job, fingerprint)
    names = {"train": [entry.key for entry in training], "validate": [entry.key for entry in validation]}
    facts = {
        "name": options.name,
        "fingerprint": fingerprint,
        "classes": ["cells"],
        **names,
        "options": options_of(job),
    }
    say(
        f"training {options.name} with {NAMES[options.backend]}: {len(training)} images, {job['epochs']} epochs of "
        f"{job['steps_per_epoch']} steps of {options.batch_size} crops; {len(validation)} images validate"
    )
    rows: list[dict[str, float]] = []
    progress = Progress(job["epochs"] * job["steps_per_epoch"])
    with Tracker(folder, config.tracking, default_uri(results_of(folder)), facts) as tracker:

        def tell(new: Sequence[Mapping[str, float]]) -> None:
            rows.extend(dict(row) for row in new)
            tracker.update(rows)
            if rows:
                progress.note(_line(rows[-1], job))

        made = train(python, options.backend, place, tell)
        _write_model(data, options, folder, rows, made, fingerprint, python, names)
        tracker.finish()
    shutil.rmtree(place)
    if cells.library:
        keep_in_library(folder, Path(cells.library) / options.name)


def _job(options: CellTraining, data: CellData) -> dict[str, Any]:
    """What the package is asked for."""
    batches = math.ceil(len(data.training) / options.batch_size)
    if options.backend == "stardist":
        epoch = min(options.steps, options.validate_every or _EPOCH)
    else:
        epoch = min(batches, max(1, options.steps // _EPOCH))
    changes = ("probability", "flip", "rotate90", "intensity_scale", "intensity_shift", "noise")
    return {
        "name": options.name,
        "channels": len(data.inputs),
        "rays": options.rays,
        "patch": list(options.crop),
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "steps_per_epoch": epoch,
        "epochs": math.ceil(options.steps / epoch),
        "seed": options.seed,
        "augmentation": {name: getattr(options.augmentation, name) for name in changes},
    }


def options_of(job: dict[str, Any]) -> dict[str, Any]:
    """The options of a job that its record shows."""
    return {name: value for name, value in job.items() if name not in ("name", "threads")}


def _fingerprint(options: CellTraining, data: CellData) -> str:
    """The digest of everything that the weights depend on, but the versions of packages."""
    inputs = [[entry.inputs for entry in part] for part in (data.training, data.validation)]
    return digest([STAGES["train_cells"].version, options.backend, _job(options, data), data.prepared, inputs])


def _prepare(data: CellData, place: Path, job: dict[str, Any], fingerprint: str) -> None:
    """Write the prepared images, and what the package is asked for. They are kept where an interrupted training asked
    for the same."""
    file = place / "fingerprint.json"
    if not file.exists() or read_json(file) != fingerprint:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for part, entries in (("train", data.training), ("validate", data.validation)):
            for number, entry in enumerate(entries):
                image, labels = data.read(entry)
                np.save(place / f"{part}_{number:06d}_image.npy", image)
                np.save(place / f"{part}_{number:06d}_labels.npy", labels)
        write_json(file, fingerprint)
    write_json(place / "job.json", job)


def _line(row: dict[str, float], job: dict[str, Any]) -> str:
    epoch = round(row["step"] / job["steps_per_epoch"])
    validated = f", validation loss {row['val_loss']:.4f}" if "val_loss" in row else ""
    return f"epoch {epoch} of {job['epochs']}: loss {row['loss']:.4f}{validated}"


def _write_model(
    data: CellData,
    options: CellTraining,
    folder: Path,
    rows: Sequence[dict[str, float]],
    made: dict[str, Any],
    fingerprint: str,
    python: str,
    names: dict[str, list[str]],
) -> None:
    """Move the package's files into the model folder, and write tomoscout's beside them, `model.yaml` last."""
    backend: Backend = "stardist" if options.backend == "stardist" else "cellpose"
    (folder / "model.yaml").unlink(missing_ok=True)
    for file in (folder / STATE / "model").iterdir():
        file.replace(folder / file.name)
    labels = [np.load(file) for file in sorted((folder / STATE).glob("train_*_labels.npy"))]
    # A short training of Cellpose validates nothing, and keeps its last weights.
    best = min([row for row in rows if "val_loss" in row] or rows[-1:], key=lambda row: row.get("val_loss", math.inf))
    model = BackendModel(
        options.name,
        backend,
        data.inputs,
        data.normalisations,
        data.calibration,
        data.options.rescale_tolerance,
        BackendModel.digest_of(folder, BackendModel.files(backend, options.name)),
        {"fingerprint": fingerprint, **names, "step": best["step"]},
        made["versions"],
    )
    diameter = typical_diameter(labels)
    size = None if diameter is None or data.calibration is None else round(diameter * data.calibration, 3)
    dataset = {
        "train": [entry.name for entry in data.training],
        "validation": [entry.name for entry in data.validation],
    }
    write_json(folder / CONFIG, celldetective_config(model, dataset, size, made.get("diameter")))
    write_table(folder / "metrics.csv", ["step", "loss", "val_loss", "learning_rate"], rows)
    write_bytes(folder / "history.png", loss_curves(rows))
    predictor = Predictor(python, backend, folder, options.computes_on)
    try:
        scores = _validated(AppliedBackend(model, predictor), data.validation)
    finally:
        predictor.close()
    write_json(folder / "results.json", {"best_step": best["step"], "steps": rows[-1]["step"], **scores})
    say(f"weights of step {best['step']:,.0f}; mean AP {scores['score']:.3f} on the validation images")
    model.write(folder)


def _validated(applied: AppliedBackend, validation: Sequence[Annotation]) -> dict[str, Any]:
    """Scores on the validation images, as tomoscout's own trainings have them."""
    found = []
    for entry in validation:
        image, labels = entry.read_image(), entry.read_labels()
        ours = applied.labels(image, channel_numbers(entry, applied.model.inputs), entry.calibration)
        found.append(overlaps(ours, labels))
    return {
        "metric": "mean AP at IoU 0.5 to 0.9",
        "score": mean_ap(found),
        "scores": {f"AP{round(100 * iou)}": score(found, iou).ap for iou in IOU},
    }
