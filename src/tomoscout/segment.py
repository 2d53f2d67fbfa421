"""The segmentation stage: a model applied to tomograms, as quantised class probabilities and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tomoscout.batches import Batch
from tomoscout.config import Config
from tomoscout.device import choose_device
from tomoscout.errors import TomoscoutError
from tomoscout.files import digest
from tomoscout.fingerprints import segment_fingerprint
from tomoscout.inference import Ensemble, InputSizes, argmax_labels, predict
from tomoscout.inventory import RunRecord
from tomoscout.model import Model, load_network, read_ensemble
from tomoscout.predictions import check_objects, predicted_segmentation, probabilities_name, segmented_runs
from tomoscout.progress import Progress
from tomoscout.volumes import standardise


def run_segment(
    config: Config,
    records: Sequence[RunRecord],
    folders: Sequence[Path],
    batch: int,
    output: Path,
    threads: int | None = None,
) -> None:
    """Apply a model, or several as an ensemble, to the runs of a batch; runs already done with it are left alone.

    Raises:
        TomoscoutError: the model or a tomogram cannot be used.
    """
    if threads:
        torch.set_num_threads(threads)
    model, members = read_ensemble(folders)
    if config.voxel_spacing not in model.voxel_spacings:
        raise TomoscoutError(
            f"{folders[0]}: trained at {' and '.join(map(str, model.voxel_spacings))} Å per voxel, but the tomogram to "
            f"segment is {config.segment_tomogram}"
        )
    check_objects(config, records, model.classes, folders[0])
    work = Batch(config, segmented_runs(config, records), batch, output)
    inputs = {r.key: digest([model.weights_digest, segment_fingerprint(config, r)]) for r in work.records}
    pending = [r for r in work.records if not work.is_done(r, inputs[r.key], lambda r: _is_there(config, work, r))]
    if pending:
        device = choose_device(config.segment.device)
        networks = [load_network(folder, member, device) for folder, member in zip(folders, members, strict=True)]
        network = networks[0] if len(networks) == 1 else Ensemble(networks)
        sizes = InputSizes.of([member.network for member in members])
        progress = Progress(len(pending))
        for number, record in enumerate(pending, 1):
            manifest = _segment_run(config, model, network, sizes, device, work, record, progress)
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
    sizes: InputSizes,
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
        sizes=sizes,
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
