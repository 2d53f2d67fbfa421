"""The training stage: from tomograms, targets and a split to a model folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.augment import augment
from tomoscout.checkpoint import Checkpoint
from tomoscout.classes import TargetClass, TargetPlan, plan_targets, read_reference, target_segmentation
from tomoscout.config import Config
from tomoscout.device import choose_device
from tomoscout.errors import TomoscoutError
from tomoscout.files import write_json, write_table
from tomoscout.fingerprints import training_fingerprint
from tomoscout.geometry import inside, to_voxels
from tomoscout.heads import DEFAULT_THRESHOLD, PickingHead, Reference
from tomoscout.inference import predict
from tomoscout.inventory import RunRecord
from tomoscout.model import Model, save_model, save_weights
from tomoscout.networks import build_network, size_step
from tomoscout.project import Picks, Project
from tomoscout.sampling import Centres, CropSampler, cut, largest_jitter
from tomoscout.splits import Fold, chosen_fold, make_split
from tomoscout.targets import align
from tomoscout.trainer import Outcome, Validation, fit
from tomoscout.volumes import LabelledVolume, labelled_volume, standardise, storage_device

# Not those of `segment`: trying another tile there must not train again.
VALIDATION_TILE = (160, 160, 160)
VALIDATION_OVERLAP = 0.25

MOST_VOXELS = 50_000
"""Voxels of a continuous class kept per tomogram as places to centre crops on."""


def run_train(config: Config, records: Sequence[RunRecord], folder: Path, threads: int | None = None) -> None:
    """Train a model into `folder`, taking up an interrupted training where it was.

    Raises:
        TomoscoutError: data is missing or unusable.
        Interrupted: the training was told to stop.
    """
    if threads:
        torch.set_num_threads(threads)
    plan = plan_targets(config, records)
    fold = chosen_fold(config.split, make_split(config, records, plan))
    device = choose_device(config.train.device)
    fingerprint = training_fingerprint(config, plan, fold)
    data = _Data(config, plan, {record.key: record for record in records}, device)
    volumes = data.training_volumes(fold.train)
    validation = [data.validation_volume(key) for key in fold.validate]
    _announce(config, fold, volumes, device)
    _check_references(plan.classes, fold, [reference for _, reference in validation])

    options = config.train
    torch.manual_seed(options.seed)
    network = build_network(options.network, len(plan.classes) + 1)
    head = PickingHead(plan.classes, config.voxel_spacing, options.picking)
    sampler = CropSampler(
        [tuple(volume.labels.shape) for volume in volumes],
        [data.centres(entry, volumes) for entry in plan.classes],
        options.patch,
        batch_size=options.batch_size,
        background_fraction=options.background_fraction,
        seed=options.seed,
    )

    def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        intensities, labels = cut(volumes, sampler.crops(step), options.patch, device)
        return augment(intensities, labels, options.augmentation, options.seed, step)

    def validate(current: torch.nn.Module) -> Validation:
        predictions = [
            predict(
                current,
                volume,
                outputs=head.outputs,
                size_step=size_step(options.network),
                tile=VALIDATION_TILE,
                overlap=VALIDATION_OVERLAP,
                flips=1,
                device=device,
            )
            for volume, _ in validation
        ]
        return head.measure(predictions, [reference for _, reference in validation], options.beta)

    checkpoint = Checkpoint(folder / "checkpoint.pt", fingerprint, options.checkpoint_seconds)
    loss = head.loss(options, volumes[0].ignore).to(device)
    outcome = fit(network, batches, loss, validate, options, checkpoint, device)
    _write_model(config, plan, fold, fingerprint, outcome, folder)


class _Data:
    """Reads what the training needs, project by project."""

    def __init__(self, config: Config, plan: TargetPlan, records: dict[str, RunRecord], device: torch.device) -> None:
        self.config = config
        self.plan = plan
        self.records = records
        self.device = device
        self.projects = {name: Project(name, Path(path)) for name, path in config.projects.items()}
        self._origins: list[RunRecord] = []

    def training_volumes(self, keys: Sequence[str]) -> list[LabelledVolume]:
        """Every kind of tomogram of every run, with its target."""
        pairs = [(self.records[key], uri) for key in keys for uri in self._tomograms(self.records[key])]
        self._origins = [record for record, _ in pairs]
        voxels = sum(int(np.prod(record.tomograms[uri])) for record, uri in pairs)
        storage = storage_device(voxels, self.device)
        return [self._training_volume(record, uri, storage) for record, uri in pairs]

    def _tomograms(self, record: RunRecord) -> list[str]:
        return [uri for uri in self.config.tomograms if uri in record.tomograms]

    def _training_volume(self, record: RunRecord, uri: str, storage: torch.device) -> LabelledVolume:
        tomogram = self.projects[record.project].read_tomogram(record.run, uri)
        labels = self._target(record, tomogram.shape)
        return labelled_volume(f"{record.key} {uri}", tomogram, labels, self.config.train.patch, storage)

    def _target(self, record: RunRecord, shape: tuple[int, ...]) -> NDArray[np.integer]:
        wanted = target_segmentation(self.config)
        labels = self.projects[record.project].read_segmentation(record.run, wanted)
        return align(labels, (shape[0], shape[1], shape[2]), f"{record.key}: target {wanted}")

    def validation_volume(self, key: str) -> tuple[NDArray[np.float32], Reference]:
        """The tomogram that will be segmented, prepared, and its truth."""
        record = self.records[key]
        project = self.projects[record.project]
        uri = self.config.segment_tomogram
        if uri not in record.tomograms:
            raise TomoscoutError(f"{key}: validation needs the tomogram {uri}; found: {', '.join(record.tomograms)}")
        tomogram = project.read_tomogram(record.run, uri)
        picks = {
            entry.name: _inside(read_reference(project, record, entry), tomogram.shape, self.config.voxel_spacing)
            for entry in self.plan.classes
            if entry.is_particle
        }
        continuous = any(not entry.is_particle for entry in self.plan.classes)
        labels = self._target(record, tomogram.shape) if continuous else None
        return standardise(tomogram), Reference(picks, labels)

    def centres(self, entry: TargetClass, volumes: Sequence[LabelledVolume]) -> Centres:
        """Where crops of a class may be centred: at its picks, or at voxels of a continuous class."""
        places = []
        for number, (record, volume) in enumerate(zip(self._origins, volumes, strict=True)):
            if entry.is_particle:
                picks = read_reference(self.projects[record.project], record, entry)
                indices = to_voxels(picks.positions, self.config.voxel_spacing)
                shape = tuple(volume.labels.shape)
                found = np.rint(indices[inside(indices, (shape[0], shape[1], shape[2]))]).astype(np.int64)
            else:
                found = np.argwhere((volume.labels == entry.label).cpu().numpy())
                found = found[:: max(1, -(-len(found) // MOST_VOXELS))]
            places.append(np.column_stack([np.full(len(found), number), found]))
        # A crop keeps the whole particle wherever it is moved to.
        reach = 0.0 if entry.target_radius is None else entry.target_radius / self.config.voxel_spacing
        return Centres(np.concatenate(places), largest_jitter(self.config.train.patch, reach))


def _inside(picks: Picks, shape: tuple[int, ...], voxel_spacing: float) -> Picks:
    return Picks.at(picks.positions[inside(to_voxels(picks.positions, voxel_spacing), (shape[0], shape[1], shape[2]))])


def _announce(config: Config, fold: Fold, volumes: Sequence[LabelledVolume], device: torch.device) -> None:
    size = sum(volume.intensities.nbytes + volume.labels.nbytes for volume in volumes) / 2**30
    where = volumes[0].intensities.device.type
    print(
        f"training {config.train.name} on {device.type}: {len(fold.train)} runs ({len(volumes)} tomograms, {size:.2f} "
        f"GiB in {'GPU' if where == 'cuda' else 'main'} memory), {len(fold.validate)} validation runs",
        file=sys.stderr,
    )


def _check_references(classes: Sequence[TargetClass], fold: Fold, references: Sequence[Reference]) -> None:
    """Say before hours are spent that the validation runs cannot tell how well a class is found."""
    absent = [
        entry.name
        for entry in classes
        if entry.is_particle and not any(len(reference.picks[entry.name]) for reference in references)
    ]
    if not absent:
        return
    what = f"the validation runs ({', '.join(fold.validate)}) hold no {', '.join(absent)}"
    if len(absent) == sum(entry.is_particle for entry in classes):
        raise TomoscoutError(f"split: {what}; choose others under split.validate")
    print(f"warning: {what}: no part in choosing the model, threshold {DEFAULT_THRESHOLD}", file=sys.stderr)


def _write_model(
    config: Config, plan: TargetPlan, fold: Fold, fingerprint: str, outcome: Outcome, folder: Path
) -> None:
    from tomoscout.report.pictures import draw_history

    progression = outcome.progression
    names = [entry.name for entry in plan.classes]
    folder.mkdir(parents=True, exist_ok=True)
    weights = save_weights(folder, outcome.weights)
    write_table(folder / "metrics.csv", ["step", "loss", "learning_rate", "score", *names], progression.history)
    draw_history(progression.history, folder / "history.png")
    write_json(
        folder / "results.json",
        {
            "best_step": progression.best_step,
            "score": progression.best_score,
            "steps": progression.step,
            **progression.best_details,
        },
    )
    save_model(
        folder,
        Model(
            config.train.name,
            config.train.network,
            plan.classes,
            progression.best_details["thresholds"],
            config.voxel_spacing,
            tuple(config.train.patch),
            config.train.picking,
            {
                "fingerprint": fingerprint,
                "tomograms": config.tomograms,
                "train": list(fold.train),
                "validate": list(fold.validate),
                "score": progression.best_score,
                "step": progression.best_step,
            },
            weights,
        ),
    )
