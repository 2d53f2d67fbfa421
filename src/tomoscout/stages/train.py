"""The training stage: from tomograms, targets and a split to a model folder."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from tomoscout.learning.augment import augment
from tomoscout.learning.checkpoint import Checkpoint
from tomoscout.learning.losses import MarginalLoss
from tomoscout.learning.memory import MemoryPlan, plan_training
from tomoscout.learning.options import Train
from tomoscout.learning.sampling import CropSampler, cut
from tomoscout.learning.trainer import COLUMNS, Outcome, Progression, Speed, fit
from tomoscout.learning.volumes import Storage, remove_volumes
from tomoscout.machine.device import choose_device
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, write_json, write_table
from tomoscout.models.base import Base, base_digest, frozen_parameters, read_base, starting_weights
from tomoscout.models.folder import Model, save_model, save_weights
from tomoscout.models.so_far import SO_FAR, remove_so_far, replace_so_far
from tomoscout.networks import build_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.config import Config
from tomoscout.plan.fingerprints import training_fingerprint
from tomoscout.plan.folds import Fold, fold_name
from tomoscout.plan.paths import results_of
from tomoscout.plan.plan import Plan
from tomoscout.plan.targets import TargetPlan, print_warnings
from tomoscout.stages.finish import FinishRequest
from tomoscout.tasks.picking.data import Shape, TrainingData
from tomoscout.tasks.picking.head import PickingHead
from tomoscout.tasks.picking.validation import (
    LEAST_INTERVAL,
    VALIDATION_OVERLAP,
    VALIDATION_TILE,
    Validator,
    default_interval,
    score_base,
)
from tomoscout.tracking import Tracker, default_uri


@dataclass(frozen=True)
class NamedLoss:
    """A loss of the user: called with logits (B, C+1, z, y, x) and labels (B, z, y, x); the name stands for all that it
    computes in the fingerprint of the training."""

    module: nn.Module
    name: str


@dataclass(frozen=True)
class _Job:
    """What is decided before anything large is read. `fingerprint` stands for all that the weights depend on, `kind`
    for the same but how long the training is."""

    config: Config
    options: Train
    plan: TargetPlan
    runs: Fold
    name: str
    folder: Path
    device: torch.device
    fingerprint: str
    kind: str
    loss: NamedLoss | None


def run_train(
    plan: Plan,
    folder: Path,
    fold: int | None = None,
    threads: int | None = None,
    watch: Callable[[Progression], None] = lambda progression: None,
    loss: NamedLoss | None = None,
) -> Outcome:
    """Train a model into `folder`, taking up an interrupted training where it was. `fold`: which fold of the split,
    in place of `split.fold`. `watch`: called after every validation; what it raises ends the training. `loss`: in place
    of `train.loss`.

    Raises:
        TrainingFailed: it cannot succeed with these options.
        TomoscoutError: data is missing or unusable.
        Interrupted: the training was told to stop.
    """
    if threads:
        torch.set_num_threads(threads)
    config, runs = plan.config, plan.fold(fold)
    print_warnings(plan.targets)
    data = TrainingData(config, plan.targets, plan.records, runs)
    besides = [base_digest(config.train), *([loss.name] if loss else [])]
    fingerprint = digest([training_fingerprint(plan, runs), *besides])
    kind = digest([training_fingerprint(plan, runs, leave_out=("steps", "warmup")), *besides])
    base = read_base(config.train) if config.train.base else None
    options = resolve_options(config.train, base, data.training_shapes, data.validation_shapes)
    device = choose_device(options.device)
    name = fold_name(config.train.name, fold)
    job = _Job(config, options, plan.targets, runs, name, folder, device, fingerprint, kind, loss)
    return _train(job, data, base, watch)


def _train(job: _Job, data: TrainingData, base: Base | None, watch: Callable[[Progression], None]) -> Outcome:
    options, classes, device = job.options, job.plan.classes, job.device
    head = PickingHead(classes, job.config.voxel_spacing, options)
    network = _build(options, head.outputs, base, job.plan)
    frozen = frozen_parameters(options, options.network, head.outputs)
    scratch = job.folder / "volumes"
    loss = head.loss(Storage("files", device, len(classes), scratch).ignore, job.loss.module if job.loss else None)
    memory = plan_training(
        network,
        loss,
        options,
        data.training_shapes,
        data.validation_shapes,
        classes=len(classes),
        tile=VALIDATION_TILE,
        overlap=VALIDATION_OVERLAP,
        device=device,
        folder=scratch,
        labelled=head.needs_labels,
    )
    _announce(job, memory)
    validator = Validator(head, data, options.network, memory.tile, device)
    validator.check_references(job.runs.validate)
    remove_volumes(scratch, keep=data.volume_names if memory.storage.tier == "files" else ())
    volumes = data.training_volumes(options.crop, memory.storage)
    absent = data.absent
    sampler = CropSampler(
        [tuple(volume.labels.shape) for volume in volumes],
        [data.centres(entry, volumes, options.crop) for entry in classes],
        options.crop,
        shares=[options.class_sampling.get(entry.name, 1.0) for entry in classes],
        batch_size=options.batch_size,
        background_fraction=options.background_fraction,
        seed=options.seed,
        harder_classes=options.harder_classes,
    )

    def batches(step: int, scores: Mapping[str, float]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        crops = sampler.crops(step, [scores.get(entry.name) for entry in classes])
        of_crops = None if absent is None else torch.from_numpy(absent[[crop.volume for crop in crops]]).to(device)
        drawn = cut(volumes, crops, options.crop, device)
        return augment(*drawn, options.augmentation, options.seed, step, absent=of_crops)

    def keep_best(outcome: Outcome) -> None:
        # From here on, `finish` finds which training it is.
        tracker.describe(outcome.progression.history)
        _keep_best(job, outcome, base)

    def report(progression: Progression, speed: Speed) -> None:
        tracker.update(progression.history, _facts_of(speed))
        watch(progression)

    with _tracker(job, memory) as tracker:
        outcome = fit(
            network,
            batches,
            (loss if absent is None else MarginalLoss(loss)).to(device),
            validator,
            options,
            Checkpoint(job.folder / "checkpoint.pt", job.fingerprint, options.checkpoint_seconds, job.kind),
            device,
            validate_every=options.validate_every or LEAST_INTERVAL,
            parts=memory.parts,
            base=score_base(base, validator, device) if base else None,
            keep_base=base is not None and base.knows(classes) and options.promote == "better",
            frozen=frozen,
            report=report,
            keep_best=keep_best,
            finish=FinishRequest(job.folder, job.fingerprint),
        )
        tracker.update(outcome.progression.history, _facts_of(outcome.speed))
        with _replaced_together(job.folder) as new:
            _write_model(job, outcome, base, new)
        tracker.finish()
    remove_so_far(job.folder)
    remove_volumes(scratch)
    return outcome


def _keep_best(job: _Job, outcome: Outcome, base: Base | None) -> None:
    """Let the best so far be a model folder for all to use."""
    if not outcome.weights:
        remove_so_far(job.folder)
        return
    try:
        replace_so_far(job.folder, lambda folder: _write_model(job, outcome, base, folder, complete=False))
    except OSError as error:
        print(f"warning: {job.folder / SO_FAR}: not written ({error.strerror or error})", file=sys.stderr)


def _facts_of(speed: Speed) -> dict[str, float]:
    return {"steps_per_second": speed.steps / speed.seconds if speed.seconds else 0.0, **asdict(speed)}


def resolve_options(
    options: Train, base: Base | None, training_shapes: Sequence[Shape], validation_shapes: Sequence[Shape]
) -> Train:
    """The options with everything filled in that depends on the data (voxels z, y, x of the tomograms) or on the base:
    network, patch, interval of validations.

    Raises:
        TomoscoutError: the patch does not fit the base's network, or there is none for tomograms this small.
    """
    network: NetworkOptions = base.network if base else options.network
    patch = options.patch
    try:
        if patch == "auto":
            median = [int(size) for size in np.median(training_shapes, axis=0)]
            if base:
                # Its network stays as it is, of a family that plans its networks, too.
                _, planned = NetworkOptions.plan(network, median, options.plan_memory_gb)
            else:
                network, planned = network.plan(median, options.plan_memory_gb)
            patch = list(planned)
        resolved = Train.model_validate(options.model_dump() | {"network": network, "patch": patch})
        resolved.check_patch_of(network)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise TomoscoutError(f"train: {message}") from None
    except ValueError as error:
        raise TomoscoutError(f"train: {error}") from None
    interval = options.validate_every or default_interval(resolved, validation_shapes)
    return resolved.model_copy(update={"validate_every": interval})


def _build(options: Train, outputs: int, base: Base | None, plan: TargetPlan) -> nn.Module:
    torch.manual_seed(options.seed)
    network = build_network(options.network, outputs)
    if base:
        print(starting_weights(base, plan.classes, network.state_dict()), file=sys.stderr)
    return network


def _announce(job: _Job, memory: MemoryPlan) -> None:
    print(
        f"training {job.name} on {_device_name(job.device)}: {job.options.network.family}, "
        f"{len(job.runs.train)} runs ({len(memory.work.training)} tomograms), {job.options.steps} steps of "
        f"{job.options.batch_size} crops; {len(job.runs.validate)} validation runs every "
        f"{job.options.validate_every} steps\n{memory}",
        file=sys.stderr,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads, {platform.machine()})"


def _tracker(job: _Job, memory: MemoryPlan) -> Tracker:
    facts = {
        "name": job.name,
        "fingerprint": job.fingerprint,
        "classes": [entry.name for entry in job.plan.classes],
        "train": list(job.runs.train),
        "validate": list(job.runs.validate),
        "device": _device_name(job.device),
        "versions": {name: version(name) for name in ("tomoscout", "torch", "monai", "numpy", "copick", "zarr")},
        "options": job.options.model_dump(mode="json") | ({"loss": job.loss.name} if job.loss else {}),
        "memory": {use.what: {"place": use.place, "bytes": use.size} for use in memory.uses()},
    }
    return Tracker(job.folder, job.config.tracking, default_uri(results_of(job.folder)), facts)


@contextmanager
def _replaced_together(folder: Path) -> Iterator[Path]:
    """A folder for new files, which take the place of those in `folder` once all are written, `model.yaml` last: where
    the disk is full, an earlier model stays whole."""
    new = folder / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for path in sorted(new.iterdir(), key=lambda path: path.name == "model.yaml"):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_model(job: _Job, outcome: Outcome, base: Base | None, folder: Path, *, complete: bool = True) -> None:
    """Write the files of a model, of a `complete` training or of the best so far."""
    from tomoscout.report.pictures import draw_history

    progression, classes = outcome.progression, job.plan.classes
    names = [entry.name for entry in classes]
    weights = save_weights(folder, outcome.weights)
    write_table(folder / "metrics.csv", [*COLUMNS, *names], progression.history)
    if complete:
        draw_history(progression.history, folder / "history.png")
    results: dict[str, Any] = {
        "classes": names,
        "metric": f"{job.options.best_metric} of {job.options.best_metric_on}",
        "best_step": progression.best_step,
        "score": progression.best_score,
        "steps": progression.step,
        **progression.best_details,
    }
    state: dict[str, Any] = {}
    if not complete:
        state = {"steps": progression.step, "so_far": True}
    elif outcome.finished_early:
        state = {"steps": progression.step, "finished_early": True}
    results |= state
    if base:
        results["base_score"] = progression.base_score
        if complete:
            print(_compare_with_base(progression, base, job), file=sys.stderr)
    write_json(folder / "results.json", results)
    save_model(
        folder,
        Model(
            job.name,
            job.options.network,
            classes,
            progression.best_details["thresholds"],
            tuple(job.config.target_spacings),
            job.options.crop,
            job.options.picking,
            {
                "fingerprint": job.fingerprint,
                "base": job.options.base,
                "tomograms": job.config.tomograms,
                "train": list(job.runs.train),
                "validate": list(job.runs.validate),
                "score": progression.best_score,
                "step": progression.best_step,
                **state,
            },
            weights,
        ),
    )


def _compare_with_base(progression: Progression, base: Base, job: _Job) -> str:
    """Whether the fine-tuning was worth it, for people."""
    assert progression.base_score is not None
    shared = [entry.name for entry in base.shared(job.plan.classes)]
    if not shared:
        return f"{base.origin} finds none of these classes, so its scores say nothing"
    if base.knows(job.plan.classes):
        before, after, what = progression.base_score, progression.best_score, job.options.best_metric
        if progression.best_step == 0:
            best = max(progression.validations, default=0.0)
            return (
                f"warning: no validation scored better than the base ({best:.4f} at best, base {before:.4f}): the "
                "base's weights are kept (train.promote: always would keep the new ones)"
            )
    else:
        scores = base.shared_scores(progression.best_details["scores"], job.plan.classes)
        if not scores:
            return f"the validation runs hold no {', '.join(shared)}, all that {base.origin} could be compared by"
        before, after = progression.base_score, float(np.mean(list(scores.values())))
        what = f"mean score of {', '.join(scores)}"
    worse = "warning: " if after < before else ""
    return f"{worse}{what}: {before:.4f} with {base.origin}, {after:.4f} fine-tuned"
