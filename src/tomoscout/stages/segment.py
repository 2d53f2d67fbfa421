"""The segmentation stage: applies a model to tomograms and writes quantised class probabilities and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.data.geometry import Shape
from tomoscout.data.inventory import RunRecord
from tomoscout.data.labels import stored_labels, stored_type, to_stored
from tomoscout.data.streams import ChunkBuffer, ReadAhead, Window
from tomoscout.data.zarr_files import LARGEST_CHUNK
from tomoscout.learning.normalisation import Intensities, sampled_every
from tomoscout.learning.precision import chosen_precision
from tomoscout.learning.prediction import Ensemble, predict_blocks
from tomoscout.learning.readout import argmax_labels
from tomoscout.learning.step_memory import prediction_memory
from tomoscout.learning.tiles import InputSizes, TileGrid
from tomoscout.machine.device import GIB, choose_device, own_memory
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
        segmenter = Segmenter(config, model, network, sizes, device)
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


class Segmenter:
    """A model on a device, applied to the tomograms of one configuration."""

    def __init__(
        self, config: Config, model: PickingModel, network: torch.nn.Module, sizes: InputSizes, device: torch.device
    ) -> None:
        self.config, self.model, self.sizes, self.device = config, model, sizes, device
        self._network = network
        self._precision = chosen_precision(config.segment.precision, device)

    def _tile(self, shape: Shape, record: RunRecord) -> tuple[list[int], int]:
        """The largest tile with which a tomogram of `shape` does not need more main memory than it may take, and the
        bytes that it needs.

        Raises:
            TomoscoutError: it needs more with any tile.
        """
        options = self.config.segment
        tile = list(options.tile)
        while True:
            grid = TileGrid.of(shape, self.sizes, tile, options.overlap)
            needed, axis = self._memory(grid), grid.order[0]
            if needed <= options.memory_gb * GIB:
                return tile, needed
            if grid.lengths[axis] <= self.sizes.smallest[axis]:
                raise TomoscoutError(
                    f"{record.key}: a tomogram of {times(shape)} voxels takes {needed / GIB:.1f} GiB of main memory; "
                    f"segment.memory_gb is {options.memory_gb:g}"
                )
            tile[axis] = max(grid.lengths[axis] // 2, self.sizes.smallest[axis])

    def _memory(self, grid: TileGrid) -> int:
        """Bytes of main memory at most."""
        first, tile, classes = grid.order[0], math.prod(grid.lengths), len(self.model.classes)
        row = math.prod(grid.space) // grid.space[first]
        # One plane of tiles is being predicted, the next one read; for a moment what they share is there twice.
        rows = 1 if len(grid.starts[first]) == 1 else 2 + grid.longest_overlap(first) / grid.lengths[first]
        read = round(4 * row * grid.lengths[first] * rows)
        written = classes * row * min(LARGEST_CHUNK, grid.space[first])
        computed = 12 * classes * tile
        if self.device.type == "cpu":
            computed += 4 * classes * grid.values_held + prediction_memory(self._network, grid.lengths, self._precision)
        return own_memory() + read + written + computed

    def segment(self, work: Batch, record: RunRecord, inputs: str, progress: Progress) -> dict[str, Any]:
        """Segment the tomogram of a run, part by part. Returns what its manifest says."""
        config, model = self.config, self.model
        project, options = work.project(record), config.segment
        tomogram = project.open_tomogram(record.run, config.segment_tomogram)
        intensities = Intensities.of(tomogram.sample(sampled_every(tomogram.shape)))
        stored = stored_labels(Path(config.projects[record.project]), [entry.name for entry in model.classes])
        classes = [{**entry.to_json(), "stored_label": stored[entry.name]} for entry in model.classes]
        attributes = {"classes": classes, "model": model.weights_digest, "inputs": inputs}
        volume, segmentation = predicted_probabilities(config), predicted_segmentation(config)
        shape = (len(classes), *tomogram.shape)
        tile, needed = self._tile(tomogram.shape, record)
        grid = TileGrid.of(tomogram.shape, self.sizes, tile, options.overlap)
        progress.note(
            f"{record.key}: {times(tomogram.shape)} voxels, {grid.count} tiles of {times(grid.lengths)}, "
            f"{str(self._precision).removeprefix('torch.')} on {self.device}; at most {needed / GIB:.1f} GiB of memory"
        )

        def prepared(region: Window) -> NDArray[np.float32]:
            part = tomogram.read(region)
            return intensities.prepare(part, out=part)

        voxels = np.zeros(len(classes) + 1, dtype=np.int64)

        def write(place: Window, chunk: NDArray[np.uint8]) -> None:
            probabilities[(slice(None), *place)] = chunk
            found = argmax_labels(chunk)
            voxels[:] += np.bincount(found.ravel(), minlength=len(voxels))
            labels[place] = to_stored(found, stored)

        quantised = {**attributes, "quantised": "255 = 1"}
        with (
            project.writing(record.run, segmentation, tomogram.shape, stored_type(stored), attributes) as labels,
            project.writing(record.run, volume, shape, np.uint8, quantised) as probabilities,
            ReadAhead(prepared, tomogram.shape, grid.order[0]) as ahead,
        ):
            with ChunkBuffer(shape, labels.chunks, np.uint8, write) as chunks:
                for window, block in predict_blocks(
                    self._network,
                    lambda window: ahead.part(window)[None],
                    tomogram.shape,
                    sizes=self.sizes,
                    tile=tile,
                    overlap=options.overlap,
                    flips=options.flips,
                    quarter_turns=options.quarter_turns,
                    device=self.device,
                    precision=self._precision,
                    progress=lambda text: progress.note(f"{record.key}: {text}"),
                ):
                    chunks.add(window, block)
            # Checked again: another program may have written there during the prediction.
            work.claim(record, inputs, [volume, segmentation], "localize.session")
        return {
            "tomogram": config.segment_tomogram,
            "model": model.weights_digest,
            "classes": classes,
            "probabilities": {"name": volume.name, "digest": project.digest_written(record.run, volume)},
            "segmentation": {
                "name": str(segmentation),
                "digest": project.digest_written(record.run, segmentation),
                "voxels": {entry.name: int(voxels[entry.label]) for entry in model.classes},
            },
        }
