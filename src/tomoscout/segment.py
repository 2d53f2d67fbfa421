"""The segmentation stage: a model applied to tomograms, as quantised class probabilities and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.batches import Batch
from tomoscout.config import Config
from tomoscout.device import choose_device
from tomoscout.errors import TomoscoutError
from tomoscout.files import digest
from tomoscout.fingerprints import segment_fingerprint
from tomoscout.inference import predict
from tomoscout.inventory import RunRecord
from tomoscout.model import Model, load_network, read_model
from tomoscout.networks import size_step
from tomoscout.predictions import predicted_segmentation, probabilities_name, segmented_runs
from tomoscout.progress import Progress
from tomoscout.volumes import standardise


def argmax_labels(probabilities: NDArray[np.uint8]) -> NDArray[np.integer]:
    """Labels (z, y, x) from quantised probabilities (class, z, y, x) without background: the most probable class,
    background where it is more probable than any class."""
    kind = np.uint8 if len(probabilities) <= 255 else np.uint16
    labels = np.zeros(probabilities.shape[1:], dtype=kind)
    highest = np.zeros(probabilities.shape[1:], dtype=np.uint8)
    rest = np.full(probabilities.shape[1:], 255, dtype=np.int32)
    for label, values in enumerate(probabilities, 1):
        higher = values > highest
        labels[higher] = label
        highest[higher] = values[higher]
        rest -= values
    labels[rest > highest] = 0
    return labels


def run_segment(
    config: Config, records: Sequence[RunRecord], folder: Path, batch: int, output: Path, threads: int | None = None
) -> None:
    """Apply the model in `folder` to the runs of a batch; runs already done with this model are left alone.

    Raises:
        TomoscoutError: the model or a tomogram cannot be used.
    """
    if threads:
        torch.set_num_threads(threads)
    model = read_model(folder)
    if model.voxel_spacing != config.voxel_spacing:
        raise TomoscoutError(
            f"{folder}: trained at {model.voxel_spacing} Å per voxel, but tomograms is {config.segment_tomogram}"
        )
    work = Batch(config, segmented_runs(config, records), batch, output)
    inputs = {r.key: digest([model.weights_digest, segment_fingerprint(config, r)]) for r in work.records}
    pending = [r for r in work.records if not work.is_done(r, inputs[r.key], lambda r: _is_there(config, work, r))]
    if pending:
        device = choose_device(config.segment.device)
        network = load_network(folder, model, device)
        progress = Progress(len(pending))
        for number, record in enumerate(pending, 1):
            manifest = _segment_run(config, model, network, device, work, record, progress)
            work.finish(record, {**manifest, "inputs": inputs[record.key]})
            progress.show(number, f"{record.key}: run {number} of {len(pending)}", now=True)
    work.write()


def _is_there(config: Config, work: Batch, record: RunRecord) -> bool:
    project = work.project(record)
    return project.has_segmentation(record.run, predicted_segmentation(config)) and project.has_probabilities(
        record.run, config.segment_tomogram, probabilities_name(config)
    )


def _segment_run(
    config: Config,
    model: Model,
    network: torch.nn.Module,
    device: torch.device,
    work: Batch,
    record: RunRecord,
    progress: Progress,
) -> dict[str, Any]:
    project, uri = work.project(record), config.segment_tomogram
    tomogram = project.read_tomogram(record.run, uri)
    probabilities = predict(
        network,
        standardise(tomogram),
        outputs=len(model.classes) + 1,
        size_step=size_step(model.network),
        tile=config.segment.tile,
        overlap=config.segment.overlap,
        flips=config.segment.flips,
        device=device,
        progress=lambda text: progress.note(f"{record.key}: {text}"),
    )
    classes = [entry.to_json() for entry in model.classes]
    attributes = {"classes": classes, "model": model.weights_digest, "quantised": "255 = 1"}
    labels = argmax_labels(probabilities)
    name, wanted = probabilities_name(config), predicted_segmentation(config)
    return {
        "tomogram": uri,
        "model": model.weights_digest,
        "classes": classes,
        "probabilities": {
            "name": name,
            "digest": project.write_probabilities(record.run, uri, name, probabilities, attributes),
        },
        "segmentation": {
            "name": str(wanted),
            "digest": project.write_segmentation(record.run, wanted, labels, attributes),
            "voxels": {entry.name: int(np.count_nonzero(labels == entry.label)) for entry in model.classes},
        },
    }
