"""The segmentation stage: applies a model to tomograms and writes quantised class probabilities and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from tomoscout.learning.prediction import Ensemble
from tomoscout.learning.resampled import Resampled
from tomoscout.learning.tiles import InputSizes
from tomoscout.machine.device import choose_device
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest
from tomoscout.machine.progress import Progress
from tomoscout.models.folder import load_network
from tomoscout.options.config import Config
from tomoscout.plan.fingerprints import segment_fingerprint
from tomoscout.plan.plan import Plan
from tomoscout.plan.predictions import check_objects, predicted_probabilities, predicted_segmentation
from tomoscout.stages.batches import Batch
from tomoscout.stages.segmenter import Segmenter
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
    for folder, member in zip(folders, members, strict=True):
        if config.voxel_spacing not in member.voxel_spacings and not config.segment.resample:
            spacings = " and ".join(map(str, member.voxel_spacings))
            raise TomoscoutError(
                f"{folder}: trained at {spacings} Å per voxel, but the tomogram to segment is "
                f"{config.segment_tomogram}; give another one, or set segment.resample"
            )
    check_objects(config, plan.records, model.classes, folders[0])
    work = Batch(config, plan.segmented, batch, output)
    made_by = [model.weights_digest, [entry.to_json() for entry in model.classes]]
    inputs = {r.key: digest([made_by, segment_fingerprint(plan, r)]) for r in work.records}
    written = (predicted_probabilities(config), predicted_segmentation(config))
    pending = [r for r in work.records if not work.is_done(r, inputs[r.key], written)]
    if pending:
        device = choose_device(config.segment.device)
        segmenter = Segmenter(config, model, *_load(config, folders, members, device), device)
        progress = Progress(len(pending))
        for number, record in enumerate(pending, 1):
            with work.attempt(record):
                made_from = inputs[record.key]
                # Checked before the prediction, which may take hours.
                work.claim(record, made_from, written, "localize.session")
                manifest = segmenter.segment(work, record, made_from, progress)
                work.finish(record, made_from, written, manifest)
                progress.show(number, f"{record.key}: run {number} of {len(pending)}", now=True)
    work.write()


def _load(
    config: Config, folders: Sequence[Path], members: Sequence[PickingModel], device: torch.device
) -> tuple[torch.nn.Module, InputSizes]:
    """The network of a model, or of the ensemble of several, and the sizes of tiles that it takes."""
    networks: list[torch.nn.Module] = []
    all_sizes = []
    for folder, member in zip(folders, members, strict=True):
        network, sizes = load_network(folder, member, device), InputSizes.of([member.network], member.dimensions)
        own = min(member.voxel_spacings, key=lambda spacing: abs(math.log(spacing / config.voxel_spacing)))
        if own != config.voxel_spacing:
            network = Resampled(network, config.voxel_spacing / own, sizes)
            sizes = network.sizes
        networks.append(network)
        all_sizes.append(sizes)
    return networks[0] if len(networks) == 1 else Ensemble(networks), InputSizes.common(all_sizes)
