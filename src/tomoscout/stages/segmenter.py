"""A model applied to tomograms part by part: read, predicted and written in bounded memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.data.geometry import Shape
from tomoscout.data.inventory import RunRecord
from tomoscout.data.labels import stored_labels, stored_type, to_stored
from tomoscout.data.open_mask import OpenMask
from tomoscout.data.open_tomogram import OpenTomogram
from tomoscout.data.project import Project
from tomoscout.data.streams import ChunkBuffer, ReadAhead, Window
from tomoscout.data.zarr_files import LARGEST_CHUNK
from tomoscout.learning.normalisation import Intensities, sampled_every
from tomoscout.learning.precision import chosen_precision
from tomoscout.learning.prediction import Inference, predict_blocks
from tomoscout.learning.readout import argmax_labels
from tomoscout.learning.resampled import Resampled
from tomoscout.learning.step_memory import prediction_memory
from tomoscout.learning.tiles import InputSizes, TileGrid
from tomoscout.machine.device import GIB, own_memory
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.messages import times
from tomoscout.machine.progress import Progress
from tomoscout.options.config import Config
from tomoscout.plan.masks import required_mask
from tomoscout.plan.predictions import predicted_probabilities, predicted_segmentation
from tomoscout.stages.batches import Batch
from tomoscout.tasks.picking.model import PickingModel

MEASURED = 64
"""Side of the parts of a tomogram in which its intensities are measured at another voxel spacing."""

GAPS = 1.25
"""Factor for what the C library keeps of the arrays that a prediction makes and frees."""
CHUNKS_IN_WORK = 300 * 2**20
"""Bytes of the chunks that are being decoded and encoded, those of a mask among them."""


class PreparedTomogram:
    """A tomogram as a network takes it, read part by part."""

    def __init__(self, tomogram: OpenTomogram) -> None:
        """Read the whole tomogram once, to measure its intensities.

        Raises:
            TomoscoutError: a voxel is NaN or infinite, all have one value, or a chunk cannot be decoded.
        """
        self.shape = tomogram.shape
        self._tomogram = tomogram
        self._intensities = Intensities.of(tomogram.sample(sampled_every(tomogram.shape)))

    def read(self, region: Window) -> NDArray[np.float32]:
        """A region (z, y, x)."""
        part = self._tomogram.read(region)
        return self._intensities.prepare(part, out=part)

    def parts(self) -> list[torch.Tensor]:
        """Eight parts, in the middle of each octant."""
        spans = []
        for size in self.shape:
            length = min(MEASURED, max(1, size // 2))
            starts = (round(size * share - length / 2) for share in (0.25, 0.75))
            spans.append([slice(max(0, start), max(0, start) + length) for start in starts])
        return [torch.from_numpy(self.read(window)) for window in itertools.product(*spans)]


class Segmenter:
    """A model on a device, applied to the tomograms of one configuration."""

    def __init__(
        self, config: Config, model: PickingModel, network: torch.nn.Module, sizes: InputSizes, device: torch.device
    ) -> None:
        """`sizes`: of tiles that the network takes."""
        self.config, self.model, self.sizes, self.device = config, model, sizes, device
        self._network = network
        self._precision = chosen_precision(config.segment.precision, device)
        # Measured once for each size of tile: a dry run takes a second.
        self._predicting = cache(lambda tile: prediction_memory(network, tile, self._precision))

    def segment(self, work: Batch, record: RunRecord, inputs: str, progress: Progress) -> dict[str, Any]:
        """Segment the tomogram of a run. Returns what its manifest says."""
        config, project = self.config, work.project(record)
        # Before the tomogram is read, which takes long: a run may lack its mask.
        mask = self._mask(project, record)
        tomogram = PreparedTomogram(project.open_tomogram(record.run, config.segment_tomogram))
        for module in self._network.modules():
            if isinstance(module, Resampled):
                module.measure(tomogram.parts())
        stored = stored_labels(Path(config.projects[record.project]), self.model.class_names)
        classes = [{**entry.to_json(), "stored_label": stored[entry.name]} for entry in self.model.classes]
        attributes = {"classes": classes, "model": self.model.weights_digest, "inputs": inputs}
        volume, segmentation = predicted_probabilities(config), predicted_segmentation(config)
        shape = (len(classes), *tomogram.shape)
        quantised = {**attributes, "quantised": "255 = 1"}
        voxels = np.zeros(len(classes) + 1, dtype=np.int64)

        def write(place: Window, chunk: NDArray[np.uint8]) -> None:
            if mask is not None:
                chunk *= mask.read(place)
            probabilities[(slice(None), *place)] = chunk
            found = argmax_labels(chunk)
            voxels[:] += np.bincount(found.ravel(), minlength=len(voxels))
            labels[place] = to_stored(found, stored)

        with (
            project.writing(record.run, segmentation, tomogram.shape, stored_type(stored), attributes) as labels,
            project.writing(record.run, volume, shape, np.uint8, quantised) as probabilities,
        ):
            with (
                self._blocks(tomogram, mask, record, progress) as blocks,
                ChunkBuffer(shape, labels.chunks, np.uint8, write) as chunks,
            ):
                for window, block in blocks:
                    chunks.add(window, block)
            # Checked again: another program may have written there during the prediction.
            work.claim(record, inputs, [volume, segmentation], "localize.session")
        return {
            "tomogram": config.segment_tomogram,
            "model": self.model.weights_digest,
            "classes": classes,
            "probabilities": {"name": volume.name, "digest": project.digest_written(record.run, volume)},
            "segmentation": {
                "name": str(segmentation),
                "digest": project.digest_written(record.run, segmentation),
                "voxels": {entry.name: int(voxels[entry.label]) for entry in self.model.classes},
            },
        }

    def _mask(self, project: Project, record: RunRecord) -> OpenMask | None:
        wanted = required_mask(self.config, record, "segment")
        if wanted is None:
            return None
        allowed = self.config.targets.allow_missing_chunks
        return project.open_mask(record.run, wanted, self.config.voxel_spacing, allow_missing_chunks=allowed)

    @contextmanager
    def _blocks(
        self, tomogram: PreparedTomogram, mask: OpenMask | None, record: RunRecord, progress: Progress
    ) -> Iterator[Iterator[tuple[Window, NDArray[np.uint8]]]]:
        """The blocks of the prediction (see `predict_blocks`), while the tomogram is read ahead."""
        options, shape = self.config.segment, tomogram.shape
        tile, needed = self._tile(shape, record)
        inference = Inference(
            self.sizes,
            tile,
            options.overlap,
            self.device,
            options.flips,
            options.quarter_turns,
            precision=self._precision,
        )
        grid = inference.grid(shape, tile)
        progress.note(
            f"{record.key}: {times(shape)} voxels, {grid.count} tiles of {times(grid.lengths)}, "
            f"{str(self._precision).removeprefix('torch.')} on {self.device}; at most {needed / GIB:.1f} GiB of memory"
        )
        with ReadAhead(tomogram.read, shape, grid.order[0]) as ahead:
            yield predict_blocks(
                self._network,
                lambda window: ahead.part(window)[None],
                shape,
                inference,
                needed=lambda window: mask is None or bool(mask.read(window).any()),
                progress=lambda text: progress.note(f"{record.key}: {text}"),
            )

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
            computed += 4 * classes * grid.values_held + self._predicting(grid.lengths)
        return own_memory() + read + written + round(GAPS * computed) + CHUNKS_IN_WORK
