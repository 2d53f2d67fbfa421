"""The segmentation stage: applies a model to tomograms and writes quantised class probabilities and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tomoscout.data.inventory import RunRecord
from tomoscout.data.labels import stored_labels, to_stored
from tomoscout.learning.normalisation import standardise
from tomoscout.learning.precision import chosen_precision
from tomoscout.learning.prediction import Ensemble, predict
from tomoscout.learning.readout import argmax_labels
from tomoscout.learning.tiles import InputSizes, TileGrid
from tomoscout.machine.device import choose_device
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest
from tomoscout.machine.messages import times
from tomoscout.machine.progress import Progress
from tomoscout.models.folder import load_network
from tomoscout.options.config import Config
from tomoscout.plan.fingerprints import segment_fingerprint
from tomoscout.plan.plan import Plan
from tomoscout.plan.predictions import check_objects, predicted_probabilities, predicted_segmentation
from tomoscout.stages.batches import Batch
from tomoscout.tasks.picking.model import PickingModel, read_ensemble


def run_segment(
    plan: Plan,
    folders: Sequence[Path],
    batch: int,
    output: Path,
    threads: int | None = None,
) -> None:
    """Apply a model, or several as an ensemble, to the runs of a batch; skips runs that are segmented with it already.

    Raises:
        TomoscoutError: the model or a tomogram cannot be used.
    """
    if threads:
        torch.set_num_threads(threads)
    config = plan.config
    # The best model so far of a running training is a symbolic link, whose target may change during this job.
    folders = [folder.resolve() for folder in folders]
    model, members = read_ensemble(folders)
    if config.voxel_spacing not in model.voxel_spacings:
        raise TomoscoutError(
            f"{folders[0]}: trained at {' and '.join(map(str, model.voxel_spacings))} Å per voxel, but the tomogram to "
            f"segment is {config.segment_tomogram}"
        )
    check_objects(config, plan.records, model.classes, folders[0])
    work = Batch(config, plan.segmented, batch, output)
    made_by = [model.weights_digest, [entry.to_json() for entry in model.classes]]
    inputs = {r.key: digest([made_by, segment_fingerprint(plan, r)]) for r in work.records}
    written = (predicted_probabilities(config), predicted_segmentation(config))
    pending = [r for r in work.records if not work.is_done(r, inputs[r.key], written)]
    if pending:
        device = choose_device(config.segment.device)
        networks = [load_network(folder, member, device) for folder, member in zip(folders, members, strict=True)]
        network = networks[0] if len(networks) == 1 else Ensemble(networks)
        sizes = InputSizes.of([member.network for member in members], model.dimensions)
        progress = Progress(len(pending))
        for number, record in enumerate(pending, 1):
            with work.attempt(record):
                made_from = inputs[record.key]
                # Checked before the prediction, which may take hours.
                work.claim(record, made_from, written, "localize.session")
                manifest = _segment_run(config, model, network, sizes, device, work, record, made_from, progress)
                work.finish(record, made_from, written, manifest)
                progress.show(number, f"{record.key}: run {number} of {len(pending)}", now=True)
    work.write()


def _segment_run(
    config: Config,
    model: PickingModel,
    network: torch.nn.Module,
    sizes: InputSizes,
    device: torch.device,
    work: Batch,
    record: RunRecord,
    inputs: str,
    progress: Progress,
) -> dict[str, Any]:
    project, uri = work.project(record), config.segment_tomogram
    tomogram = standardise(project.read_tomogram(record.run, uri))
    options = config.segment
    precision = chosen_precision(options.precision, device)
    grid = TileGrid.of(tomogram.shape, sizes, options.tile, options.overlap)
    progress.note(
        f"{record.key}: {times(tomogram.shape)} voxels, {grid.count} tiles of {times(grid.lengths)}, "
        f"{str(precision).removeprefix('torch.')} on {device}"
    )
    probabilities = predict(
        network,
        tomogram,
        sizes=sizes,
        tile=options.tile,
        overlap=options.overlap,
        flips=options.flips,
        device=device,
        precision=precision,
        progress=lambda text: progress.note(f"{record.key}: {text}"),
    )
    del tomogram
    stored = stored_labels(Path(config.projects[record.project]), [entry.name for entry in model.classes])
    classes = [{**entry.to_json(), "stored_label": stored[entry.name]} for entry in model.classes]
    attributes = {"classes": classes, "model": model.weights_digest, "inputs": inputs}
    labels = argmax_labels(probabilities)
    volume, segmentation = predicted_probabilities(config), predicted_segmentation(config)
    # Checked again: another program may have written there during the prediction.
    work.claim(record, inputs, [volume, segmentation], "localize.session")
    return {
        "tomogram": uri,
        "model": model.weights_digest,
        "classes": classes,
        "probabilities": {
            "name": volume.name,
            "digest": project.write_probabilities(
                record.run, volume, probabilities, {**attributes, "quantised": "255 = 1"}
            ),
        },
        "segmentation": {
            "name": str(segmentation),
            "digest": project.write_segmentation(record.run, segmentation, to_stored(labels, stored), attributes),
            "voxels": {entry.name: int(np.count_nonzero(labels == entry.label)) for entry in model.classes},
        },
    }
