"""A training from its options to a model folder, for any task."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from tomoscout.learning.checkpoint import Checkpoint
from tomoscout.learning.finish import FinishRequest
from tomoscout.learning.history import draw_history
from tomoscout.learning.memory import plan_training
from tomoscout.learning.memory_needs import Limits, MemoryPlan
from tomoscout.learning.options import Training
from tomoscout.learning.precision import chosen_precision
from tomoscout.learning.progression import COLUMNS, Outcome, Progression, Speed
from tomoscout.learning.task import Task
from tomoscout.learning.trainer import fit
from tomoscout.learning.validation import LEAST_INTERVAL, Validator, default_interval, score_base
from tomoscout.learning.volumes import remove_volumes
from tomoscout.machine.device import choose_device
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import write_json, write_table
from tomoscout.machine.messages import say, warn
from tomoscout.models.base import Base, frozen_parameters, starting_weights
from tomoscout.models.folder import save_weights
from tomoscout.models.so_far import SO_FAR, remove_so_far, replace_so_far
from tomoscout.networks import build_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.tracking.tracker import Tracker

Options = TypeVar("Options", bound=Training)


@dataclass(frozen=True)
class Job:
    """A training, specified completely before any volume is read.

    `options`: those of `resolve_options`. `fingerprint`: digest of everything that the weights depend on. `kind`: the
    same without the length of the training. `made_from`: description of the inputs for `model.yaml`. `tracker`: creates
    the record of the training from facts about it.
    """

    task: Task
    options: Training
    name: str
    folder: Path
    fingerprint: str
    kind: str
    tracker: Callable[[Mapping[str, Any]], Tracker]
    base: Base | None = None
    train: tuple[str, ...] = ()
    validate: tuple[str, ...] = ()
    made_from: Mapping[str, Any] = field(default_factory=dict)
    loss_name: str | None = None

    @property
    def scratch(self) -> Path:
        """The folder for memory-mapped volumes."""
        return self.folder / "volumes"


def resolve_options(options: Options, base: Base | None, task: Task) -> Options:
    """The options with everything filled in that depends on the data or on the base: network, patch, and interval of
    validations.

    Raises:
        TomoscoutError: the patch does not fit the base's network, or there is none for volumes this small.
    """
    network: NetworkOptions = base.network if base else options.network
    patch = options.patch
    try:
        if patch == "auto":
            median = [int(size) for size in np.median(task.training_shapes, axis=0)]
            if base:
                # The base's network stays as it is, even if its family plans networks: only the patch is planned.
                _, planned = NetworkOptions.plan(network, median, options.plan_memory_gb)
            else:
                network, planned = network.plan(median, options.plan_memory_gb)
            patch = list(planned)
        resolved = type(options).model_validate(options.model_dump() | {"network": network, "patch": patch})
        resolved.check_patch_of(network)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise TomoscoutError(f"train: {message}") from None
    except ValueError as error:
        raise TomoscoutError(f"train: {error}") from None
    interval = options.validate_every or default_interval(resolved, task)
    return resolved.model_copy(update={"validate_every": interval})


def plan_of(
    task: Task, options: Training, device: torch.device, folder: Path, limits: Limits | None = None
) -> tuple[nn.Module, nn.Module, MemoryPlan]:
    """The network with random weights, the loss, and the memory plan (see `plan_training`).

    Raises:
        TomoscoutError: an option does not suit the classes, or memory does not suffice.
    """
    torch.manual_seed(options.seed)
    network = build_network(options.network, task.outputs, inputs=task.channels, dimensions=options.DIMENSIONS)
    loss = task.loss()
    return network, loss, plan_training(network, loss, task, options, device, folder, limits)


def train_network(job: Job, watch: Callable[[Progression], None] = lambda progression: None) -> Outcome:
    """Train a model into the folder of the job, resuming an interrupted training from its checkpoint. `watch`: called
    after every validation; an exception in it ends the training.

    Raises:
        TrainingFailed: the training cannot succeed with these options.
        TomoscoutError: data is unusable, or memory does not suffice.
        Interrupted: a signal stopped the training.
    """
    task, options, base = job.task, job.options, job.base
    device = choose_device(options.device)
    network, loss, memory = plan_of(task, options, device, job.scratch)
    if base:
        say(starting_weights(base, task.class_names, network.state_dict()))
    frozen = frozen_parameters(options, task.outputs, task.channels)
    _announce(job, memory, device)
    precision = chosen_precision(options.precision, device)
    validator = Validator(task, options.network, options.DIMENSIONS, memory.tile, device, precision)
    batches = task.batches(options, memory.storage)
    tracker = job.tracker(_facts(job, memory, device))

    def keep_best(outcome: Outcome) -> None:
        # This writes training.json, from which `finish_training` reads the fingerprint.
        tracker.describe(outcome.progression.history)
        _keep_best(job, outcome)

    def report(progression: Progression, speed: Speed) -> None:
        tracker.update(progression.history, _facts_of(speed))
        watch(progression)

    with tracker:
        outcome = fit(
            network,
            batches,
            loss.to(device),
            validator,
            options,
            Checkpoint(job.folder / "checkpoint.pt", job.fingerprint, options.checkpoint_seconds, job.kind),
            device,
            validate_every=options.validate_every or LEAST_INTERVAL,
            parts=memory.parts,
            gpu_memory_gb=options.gpu_memory_gb,
            base=score_base(base, validator) if base else None,
            keep_base=base is not None and base.knows(task.class_names) and options.promote == "better",
            frozen=frozen,
            report=report,
            keep_best=keep_best,
            finish=FinishRequest(job.folder, job.fingerprint),
        )
        tracker.update(outcome.progression.history, _facts_of(outcome.speed))
        with _replaced_together(job.folder) as new:
            _write_model(job, outcome, new)
        tracker.finish()
    remove_so_far(job.folder)
    remove_volumes(job.scratch)
    return outcome


def _announce(job: Job, memory: MemoryPlan, device: torch.device) -> None:
    work, options = memory.work, job.options
    say(
        f"training {job.name} on {_device_name(device)}: {options.network.family}, "
        f"{len(work.training)} {work.volume}s, {options.steps} steps of {options.batch_size} crops; "
        f"{len(work.validation)} {work.volume}s validate every {options.validate_every} steps\n{memory}"
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads, {platform.machine()})"


def _facts(job: Job, memory: MemoryPlan, device: torch.device) -> dict[str, Any]:
    """Facts about the training, for its record."""
    return {
        "name": job.name,
        "fingerprint": job.fingerprint,
        "classes": list(job.task.class_names),
        "train": list(job.train),
        "validate": list(job.validate),
        "device": _device_name(device),
        "versions": {name: version(name) for name in ("tomoscout", "torch", "monai", "numpy", "copick", "zarr")},
        "options": job.options.model_dump(mode="json") | ({"loss": job.loss_name} if job.loss_name else {}),
        "memory": {use.what: {"place": use.place, "bytes": use.size} for use in memory.uses()},
    }


def _facts_of(speed: Speed) -> dict[str, float]:
    return {"steps_per_second": speed.steps / speed.seconds if speed.seconds else 0.0, **asdict(speed)}


def _keep_best(job: Job, outcome: Outcome) -> None:
    """Write the best model so far as a model folder that can be used already."""
    if not outcome.weights:
        remove_so_far(job.folder)
        return
    try:
        replace_so_far(job.folder, lambda folder: _write_model(job, outcome, folder, complete=False))
    except OSError as error:
        warn(f"{job.folder / SO_FAR}: not written ({error.strerror or error})")


@contextmanager
def _replaced_together(folder: Path) -> Iterator[Path]:
    """Yield a folder for new files. Once all are written, they replace those in `folder`, `model.yaml` last: if the
    disk is full, an earlier model stays complete."""
    new = folder / "new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for path in sorted(new.iterdir(), key=lambda path: path.name == "model.yaml"):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_model(job: Job, outcome: Outcome, folder: Path, *, complete: bool = True) -> None:
    """Write the files of a model, of a `complete` training or of the best model so far."""
    progression = outcome.progression
    weights = save_weights(folder, outcome.weights)
    write_table(folder / "metrics.csv", [*COLUMNS, *job.task.score_names], progression.history)
    if complete:
        draw_history(progression.history, folder / "history.png")
    state: dict[str, Any] = {}
    if not complete:
        state = {"steps": progression.step, "so_far": True}
    elif outcome.finished_early:
        state = {"steps": progression.step, "finished_early": True}
    results: dict[str, Any] = {
        "classes": list(job.task.class_names),
        "metric": job.task.metric,
        "best_step": progression.best_step,
        "score": progression.best_score,
        "steps": progression.step,
        **progression.best_details,
        **state,
    }
    if never := _never_found(job.task.class_names, progression.history):
        results["never_found"] = never
        if complete:
            warn(
                f"{', '.join(never)}: score 0 in every validation, so this model does not find it; see whether its "
                "annotations lie where it is (snakemake targets shows them), then let crops be centred on it more "
                "often (train.class_sampling), count it more in the loss (train.class_weights) or train longer"
            )
    if job.base:
        results["base_score"] = progression.base_score
        if complete:
            say(_compare_with_base(progression, job.base, job))
    write_json(folder / "results.json", results)
    facts = {"score": progression.best_score, "step": progression.best_step, **state}
    made_from = {"fingerprint": job.fingerprint, "base": job.options.base, **job.made_from, **facts}
    common = {"name": job.name, "network": job.options.network, "made_from": made_from, "weights_digest": weights}
    job.task.model(common, job.options, progression.best_details).write(folder)


def _never_found(names: Sequence[str], history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The classes that had a score in a validation, and 0 in all of them."""
    scores = {name: [row[name] for row in history if row.get(name) is not None] for name in names}
    return [name for name, found in scores.items() if found and not any(found)]


def _compare_with_base(progression: Progression, base: Base, job: Job) -> str:
    """The scores of the fine-tuning compared with those of the base, as a message."""
    assert progression.base_score is not None
    names = job.task.class_names
    shared = base.shared(names)
    if not shared:
        return f"{base.origin} finds none of these classes, so its scores say nothing"
    if base.knows(names):
        before, after, what = progression.base_score, progression.best_score, job.task.metric
        if progression.best_step == 0:
            best = max(progression.validations, default=0.0)
            return (
                f"warning: no validation scored better than the base ({best:.4f} at best, base {before:.4f}): the "
                "base's weights are kept (train.promote: always would keep the new ones)"
            )
    else:
        scores = base.shared_scores(progression.best_details["scores"], names)
        if not scores:
            return f"the validation runs hold no {', '.join(shared)}, all that {base.origin} could be compared by"
        before, after = progression.base_score, float(np.mean(list(scores.values())))
        what = f"mean score of {', '.join(scores)}"
    worse = "warning: " if after < before else ""
    return f"{worse}{what}: {before:.4f} with {base.origin}, {after:.4f} fine-tuned"
