"""The localisation stage: turns class probabilities, or the labels of a segmentation, into scored picks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import inside, to_voxels
from tomoscout.data.inventory import RunRecord
from tomoscout.data.picks import Picks
from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation
from tomoscout.data.zarr_files import LARGEST_CHUNK
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest
from tomoscout.machine.messages import say
from tomoscout.options.config import Config
from tomoscout.plan.fingerprints import picks_fingerprint
from tomoscout.plan.localized import labelled_objects, labels_of
from tomoscout.plan.masks import required_mask
from tomoscout.plan.paths import read_manifest
from tomoscout.plan.plan import Plan
from tomoscout.plan.predictions import predicted_picks, predicted_probabilities
from tomoscout.stages.batches import Batch
from tomoscout.tasks.picking.decoding import Search, find_in_labels, find_in_probability
from tomoscout.tasks.picking.model import PickingModel, read_ensemble
from tomoscout.tasks.picking.options import Peaks

_PLANES = 16
"""Planes of labels that are worked on at once."""


def run_localize(plan: Plan, models: Sequence[Path], segment_folder: Path, batch: int, output: Path) -> None:
    """Write the picks of a batch of runs. They replace picks of the same object, user and session, with an empty file
    where nothing is found. With `localize.segmentation` neither `models` nor `segment_folder` is read.

    Raises:
        TomoscoutError: probabilities are missing or were made by another model, or a segmentation cannot be used.
    """
    config = plan.config
    work = Batch(config, plan.localized, batch, output)
    source = FromLabels(plan) if config.localize.segmentation else FromProbabilities(plan, models, segment_folder)
    for record in work.records:
        with work.attempt(record):
            inputs, project = source.inputs(record), work.project(record)
            written = [predicted_picks(config, name) for name in source.searches(record)]
            if work.is_done(record, inputs, written):
                continue
            work.claim(record, inputs, written, "localize.session")
            found = _masked(config, project, record, source.find(project, record))
            work.finish(record, inputs, written, source.facts(record) | _write(config, project, record, found, inputs))
            say(f"{record.key}: {', '.join(f'{len(picks)} {name}' for name, picks in found.items())}")
    work.write()
    if not config.localize.segmentation and not config.segment.keep_probabilities:
        _delete_probabilities(config, work, segment_folder)


def _delete_probabilities(config: Config, work: Batch, segment_folder: Path) -> None:
    """Delete the probabilities of the runs of a job, those alone that the segment stage wrote."""
    probabilities = predicted_probabilities(config)
    for record in work.records:
        project, made_from = work.project(record), read_manifest(segment_folder, record).get("inputs")
        if project.made_from(record.run, probabilities) == made_from:
            project.delete(record.run, probabilities)


class FromProbabilities:
    """Picks from the probabilities that the segment stage wrote with a model, read one class after the other."""

    def __init__(self, plan: Plan, models: Sequence[Path], segment_folder: Path) -> None:
        self._plan, self._models, self._folder = plan, models, segment_folder
        self._volume = predicted_probabilities(plan.config)
        self._model, _ = read_ensemble(models)
        self._searches = searches_of(plan.config, self._model)

    def searches(self, record: RunRecord) -> Mapping[str, Search]:
        """How each object is looked for."""
        return self._searches

    def inputs(self, record: RunRecord) -> str:
        """Digest of what the picks of a run are made from.

        Raises:
            TomoscoutError: the run is not segmented, or with another model.
        """
        segmented = read_manifest(self._folder, record, model=str, probabilities=dict)
        if segmented["model"] != self._model.weights_digest:
            raise TomoscoutError(
                f"{record.key}: its probabilities are not of {' and '.join(map(str, self._models))}; run the segment "
                "stage again"
            )
        classes = [entry.to_json() for entry in self._model.classes]
        made_by = [self._model.weights_digest, classes, {n: asdict(search) for n, search in self._searches.items()}]
        return digest([picks_fingerprint(self._plan, record), made_by, segmented["probabilities"].get("digest")])

    def find(self, project: Project, record: RunRecord) -> dict[str, Picks]:
        """The picks of every object.

        Raises:
            TomoscoutError: the probabilities are not those that the segment stage wrote.
        """
        made_from = str(read_manifest(self._folder, record).get("inputs"))
        project.require(record.run, self._volume, made_from, "segment")
        spacing, labels = self._plan.config.voxel_spacing, {e.name: e.label for e in self._model.classes}
        return {
            name: find_in_probability(
                project.read_probabilities(record.run, self._volume, labels[name]), spacing, search
            )
            for name, search in self._searches.items()
        }

    def facts(self, record: RunRecord) -> dict[str, Any]:
        """What the manifest of a run says of the source."""
        thresholds = {name: search.threshold for name, search in self._searches.items()}
        return {"model": self._model.weights_digest, "thresholds": thresholds}


def searches_of(config: Config, model: PickingModel) -> dict[str, Search]:
    """Object → how it is looked for: as the configuration says, or else the model.

    Raises:
        TomoscoutError: the configuration names an object that is not a particle class of the model.
    """
    options = config.localize
    if unknown := options.first_unknown(model.thresholds):
        option, name = unknown
        raise TomoscoutError(f"localize.{option}: the model finds no '{name}'; it finds {', '.join(model.thresholds)}")
    return {
        entry.name: Search.of_peaks(entry, model.picking, model.thresholds[entry.name]).with_options(
            options, entry.name
        )
        for entry in model.classes
        if entry.is_particle and (options.objects is None or entry.name in options.objects)
    }


class FromLabels:
    """Picks from a multilabel segmentation, whoever made it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def searches(self, record: RunRecord) -> dict[str, Search]:
        """How each object is looked for."""
        options, usual = self._plan.config.localize, Peaks()
        return {
            name: Search(
                entry.radius, entry.radius, "watershed", 0.0, usual.smoothing, usual.separation, 0.0, None, 0.0
            ).with_options(options, name)
            for name, entry in labelled_objects(self._plan.config, record.project).items()
        }

    def inputs(self, record: RunRecord) -> str:
        """Digest of what the picks of a run are made from."""
        return picks_fingerprint(self._plan, record)

    def find(self, project: Project, record: RunRecord) -> dict[str, Picks]:
        """The picks of every object."""
        labels = {name: entry.label for name, entry in labelled_objects(self._plan.config, record.project).items()}
        wanted = self._segmentation(record)
        slabs = _slabs(self._plan.config, project, record, wanted)
        return find_in_labels(slabs, wanted.voxel_spacing, labels, self.searches(record))

    def facts(self, record: RunRecord) -> dict[str, Any]:
        """What the manifest of a run says of the source."""
        return {"segmentation": str(self._segmentation(record)), "thresholds": {}}

    def _segmentation(self, record: RunRecord) -> Segmentation:
        wanted = labels_of(self._plan.config, record)
        assert wanted is not None, "a run is localised that has no segmentation"
        return wanted


def _slabs(config: Config, project: Project, record: RunRecord, wanted: Segmentation) -> Iterator[NDArray[np.integer]]:
    """A label volume, read as many planes at once as there are in a chunk, in parts that take little memory besides."""
    for start in count(0, LARGEST_CHUNK):
        slab = _read(config, project, record, wanted, (slice(start, start + LARGEST_CHUNK),))
        if slab.dtype.kind not in "biu":
            raise TomoscoutError(f"{record.key}: segmentation {wanted}: holds {slab.dtype}, expected whole numbers")
        yield from (slab[first : first + _PLANES] for first in range(0, len(slab), _PLANES))
        if len(slab) < LARGEST_CHUNK:
            return
        del slab


def _read(
    config: Config, project: Project, record: RunRecord, wanted: Segmentation, region: tuple[slice, ...] = ()
) -> NDArray[Any]:
    allowed = config.targets.allow_missing_chunks
    return project.read_segmentation(record.run, wanted, region, allow_missing_chunks=allowed)


def _masked(config: Config, project: Project, record: RunRecord, found: dict[str, Picks]) -> dict[str, Picks]:
    """The picks in the mask, if there is one."""
    wanted = required_mask(config, record, "localize")
    if wanted is None:
        return found
    mask = _read(config, project, record, wanted)
    return {name: picks[_is_in(mask, picks, wanted.voxel_spacing)] for name, picks in found.items()}


def _is_in(mask: NDArray[Any], picks: Picks, voxel_spacing: float) -> NDArray[np.bool_]:
    """Which picks lie in voxels that are not 0."""
    places = to_voxels(picks.positions, voxel_spacing)
    kept = inside(places, mask.shape)
    kept[kept] = mask[tuple(np.floor(places[kept] + 0.5).astype(int).T)] != 0
    return kept


def _write(
    config: Config, project: Project, record: RunRecord, found: Mapping[str, Picks], inputs: str
) -> dict[str, Any]:
    """Write the picks of a run; returns what its manifest says of them."""
    facts = {}
    for name, picks in found.items():
        source = predicted_picks(config, name)
        project.write_picks(record.run, source, picks, inputs)
        written = project.find_picks(record.run, source)
        facts[name] = {"source": str(source), "count": written.total, "digest": written.digest}
    return {"picks": facts}
