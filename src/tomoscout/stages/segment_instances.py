"""The stage that finds instances in tomograms, and writes them as segmentations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tomoscout.data.written import Segmentation
from tomoscout.machine.device import choose_device
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest
from tomoscout.machine.progress import Progress
from tomoscout.options.names import TomogramUri, copick_name
from tomoscout.plan.fingerprints import instances_fingerprint
from tomoscout.plan.plan import Plan
from tomoscout.stages.batches import Batch
from tomoscout.tasks.instances.annotated_tomograms import ANGSTROM_PER_MICROMETRE
from tomoscout.tasks.instances.applied import AppliedModel
from tomoscout.tasks.instances.model import CellModel


def run_segment_instances(plan: Plan, folder: Path, batch: int, output: Path, threads: int | None = None) -> None:
    """Find instances in the tomograms of a batch of runs with the model in `folder`; skips runs in which it has done so
    already.

    Raises:
        TomoscoutError: the model or a tomogram cannot be used.
    """
    if threads:
        torch.set_num_threads(threads)
    config = plan.config
    options = config.cells.segment
    assert options.tomogram is not None
    model = CellModel.read(folder)
    if model.dimensions != 3:
        raise TomoscoutError(f"{folder}: a model of images; tomograms need one with cells.dimensions: 3")
    spacing = TomogramUri.parse(options.tomogram).voxel_spacing
    session = copick_name(model.name)
    written = Segmentation(options.segmentation, config.localize.user, session, spacing, is_multilabel=True)
    work = Batch(config, plan.with_instances, batch, output)
    made_by = [model.weights_digest, model.thresholds]
    inputs = {record.key: digest([made_by, instances_fingerprint(plan, record)]) for record in work.records}
    pending = [record for record in work.records if not work.is_done(record, inputs[record.key], [written])]
    if pending:
        applied = AppliedModel(folder, choose_device(options.device))
    progress = Progress(len(pending))
    for number, record in enumerate(pending, 1):
        with work.attempt(record):
            made_from = inputs[record.key]
            # Checked before the prediction, which may take long, and after it: others may have written meanwhile.
            work.claim(record, made_from, [written], "cells.segment.segmentation")
            tomogram = work.project(record).read_tomogram(record.run, options.tomogram)
            labels = applied.labels(tomogram[None], [0], spacing / ANGSTROM_PER_MICROMETRE)
            work.claim(record, made_from, [written], "cells.segment.segmentation")
            stored = labels.astype("uint16" if labels.max(initial=0) < 2**16 else "uint32")
            attributes = {"model": model.weights_digest, "inputs": made_from}
            found: dict[str, Any] = {
                "name": str(written),
                "objects": int(labels.max(initial=0)),
                "digest": work.project(record).write_segmentation(record.run, written, stored, attributes),
            }
            manifest = {"tomogram": options.tomogram, "model": model.weights_digest, "segmentation": found}
            work.finish(record, made_from, [written], manifest)
            text = f"{record.key}: {found['objects']} objects; run {number} of {len(pending)}"
            progress.show(number, text, now=True)
    work.write()
