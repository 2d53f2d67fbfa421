"""What a training takes of the memory of machine and GPU, and of the disk: known before it starts.

`plan_memory` is arithmetic alone: it plans for a GPU that is not there as for one that is.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from tomoscout.learning.options import Training
from tomoscout.learning.precision import chosen_precision
from tomoscout.learning.step_memory import Shape, StepMemory, step_memory
from tomoscout.learning.task import Task
from tomoscout.learning.tiles import InputSizes
from tomoscout.learning.validation import OVERLAP
from tomoscout.learning.volumes import Storage, Tier
from tomoscout.machine.device import GIB, GPU_CONTEXT, GpuMemory, cap_gpu_memory, memory_limit, own_memory
from tomoscout.machine.errors import TomoscoutError, TrainingFailed

LIBRARIES = 256 * 2**20
"""Bytes that the libraries of a training take once they are at work, on the device and in main memory each: compiled
kernels, their scratch space, threads."""

PROCESS = 500 * 2**20
"""Bytes of main memory that Python, PyTorch and MONAI hold before a training begins."""

_UNLIMITED = 2**62

# Bytes per voxel.
# A volume being read and prepared: two copies of a channel in float32, a few parts of one, and the labels twice.
_READING, _READING_CHANNEL = 4, 8
# A prediction on its way to probabilities: two float32 copies. Its input: a padded copy of each channel.
_BEING_QUANTISED, _PADDED = 8, 4


Place = Literal["GPU", "main memory", "disk"]
Phase = Literal["always", "reading", "training", "predicting", "decoding"]
PLACES: tuple[Place, ...] = ("GPU", "main memory", "disk")
PHASES: tuple[Phase, ...] = ("always", "reading", "training", "predicting", "decoding")

_SMALLER_STEP = "make train.patch or the network smaller"
_LESS_VALIDATION = "validate on fewer or smaller tomograms (split.validate)"
_THE: dict[Place, str] = {"GPU": "the GPU", "main memory": "main memory", "disk": "the disk"}


@dataclass(frozen=True)
class Use:
    """What something takes, and where. What is used in a phase alone gives way to the next. `remedy`: what makes it
    smaller."""

    what: str
    place: Place
    size: int
    phase: Phase = "always"
    remedy: str = ""


@dataclass(frozen=True)
class Limits:
    """Bytes that a training may take. `memory` is what the process may take besides what it holds already, `process`,
    where `train.memory_gb` states how much both may be; `gpu_memory` is for tensors, without what the driver takes;
    `gpu`: the one that is here, if any."""

    memory: int
    gpu_memory: int
    disk: int
    gpu: GpuMemory | None = None
    process: int = 0
    stated_memory: int | None = None

    @classmethod
    def here(cls, options: Training, device: torch.device, folder: Path) -> Limits:
        """Those of this machine, or of the options. `folder` is for mapped files; what lies there may be replaced."""
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        held = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
        gpu = GpuMemory.of(device, options.gpu_memory_gb) if device.type == "cuda" else None
        disk = shutil.disk_usage(existing).free + held
        memory, process = memory_limit(options.memory_gb), own_memory()
        return cls(memory, gpu.limit if gpu else 0, disk, gpu, process, _stated_bytes(options))

    @classmethod
    def stated(cls, options: Training) -> Limits:
        """Those that the options state for machines that are not there; what is not stated has no limit."""
        gpu = GIB * options.gpu_memory_gb - GPU_CONTEXT if options.gpu_memory_gb else _UNLIMITED
        memory = GIB * options.memory_gb - PROCESS if options.memory_gb else _UNLIMITED
        return cls(max(0, round(memory)), max(0, round(gpu)), _UNLIMITED, None, PROCESS, _stated_bytes(options))

    def of(self, place: Place) -> int:
        """The limit of a place."""
        return {"GPU": self.gpu_memory, "main memory": self.memory, "disk": self.disk}[place]


@dataclass(frozen=True)
class Workload:
    """What a training holds and does.

    `training`, `validation`: voxels (*space) of the volumes, which have so many `channels`. `classes`: without
    background. `tile`: what validation predicts at once, with that much `overlap`, in sizes that the network takes.
    `parts`: those of a batch. `labelled`: whether validation needs labels. `decoding`: bytes per voxel that it takes to
    decode a prediction.
    """

    training: Sequence[Shape]
    validation: Sequence[Shape]
    classes: int
    patch: Shape
    tile: Shape
    overlap: float
    sizes: InputSizes
    batch_size: int
    parts: int
    step: StepMemory
    labelled: bool = False
    channels: int = 1
    decoding: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """What will live where. `parts`: parts that a batch is worked through in. `tile`: what validation predicts at once.
    `reasons`: why it is not as asked for, or not at a faster place."""

    work: Workload
    limits: Limits
    storage: Storage
    parts: int
    tile: tuple[int, ...]
    reasons: tuple[str, ...] = ()

    @property
    def device(self) -> Place:
        """Where the network works."""
        return "GPU" if self.storage.device.type == "cuda" else "main memory"

    def uses(self) -> list[Use]:
        """Everything that takes memory."""
        return [use for use in (*self._held(), *self._training(), *self._validating()) if use.size]

    def _held(self) -> Iterator[Use]:
        work = self.work
        places: dict[Tier, Place] = {"device": self.device, "memory": "main memory", "files": "disk"}
        size = sum(self.storage.size(shape, work.patch) for shape in work.training)
        yield Use(f"{len(work.training)} training tomograms", places[self.storage.tier], size)
        voxels = sum(math.prod(shape) for shape in work.validation)
        per_voxel = 4 * work.channels + self.storage.label_kind.itemsize * work.labelled
        yield Use(
            f"{len(work.validation)} validation tomograms", "main memory", voxels * per_voxel, remedy=_LESS_VALIDATION
        )
        yield Use("network and optimiser", self.device, work.step.state, remedy=_SMALLER_STEP)
        # The new ones are copied before the old ones go.
        yield Use("best weights", "main memory", work.step.state * 2 // 5, remedy=_SMALLER_STEP)
        yield Use("libraries", "main memory", LIBRARIES)
        if self.device == "GPU":
            yield Use("libraries of the GPU", "GPU", LIBRARIES)
        largest = max((math.prod(shape) for shape in (*work.training, *work.validation)), default=0)
        read = largest * (_READING + _READING_CHANNEL * work.channels)
        yield Use("reading a tomogram", "main memory", read, "reading")

    def _training(self) -> Iterator[Use]:
        work = self.work
        crops = math.ceil(work.batch_size / self.parts)
        at_once = "" if self.parts == 1 else f", {crops} at a time"
        what = f"a step of {work.batch_size} crops of {_text(work.patch)} voxels{at_once}"
        size = work.step.training(work.batch_size, self.parts)
        yield Use(what, self.device, size, "training", _SMALLER_STEP)

    def _validating(self) -> Iterator[Use]:
        work = self.work
        if not work.validation:
            return
        tiles = [self._tile_of(shape) for shape in work.validation]
        network = max(work.step.predicting(tile) for tile in tiles)
        padded = max(
            math.prod(max(n, t) for n, t in zip(shape, tile, strict=True))
            for shape, tile in zip(work.validation, tiles, strict=True)
        )
        # Sums and weights are half as wide on a GPU; the quantised classes come last.
        sums = padded * (work.classes + 1) * (2 if self.device == "GPU" else 4)
        quantised = padded * (_BEING_QUANTISED + work.classes)
        yield Use(f"a tile of {_text(self.tile)} voxels", self.device, network, "predicting", _SMALLER_STEP)
        yield Use("blended tiles", self.device, sums + quantised, "predicting", _LESS_VALIDATION)
        kept = sum(math.prod(shape) for shape in work.validation) * work.classes
        copies = padded * _PADDED * work.channels
        if self.device == "GPU":
            # Locked memory is handed out in powers of two.
            copies += 2 ** math.ceil(math.log2(copies))
        yield Use("probabilities of validation", "main memory", kept + copies, "predicting", _LESS_VALIDATION)
        decoded = kept + padded * work.decoding
        yield Use("the same while it is decoded", "main memory", decoded, "decoding", _LESS_VALIDATION)

    def _tile_of(self, shape: Shape) -> list[int]:
        """What is predicted at once of a tomogram."""
        return [length for _, length in self.work.sizes.tiles(shape, self.tile, self.work.overlap)]

    def needed(self, place: Place, phase: Phase | None = None) -> int:
        """Bytes taken at a place: at most, or in one phase."""
        sizes: dict[Phase, int] = dict.fromkeys(PHASES, 0)
        for use in self.uses():
            if use.place == place:
                sizes[use.phase] += use.size
        always = sizes.pop("always")
        return always + (max(sizes.values()) if phase is None else sizes[phase])

    def overfull(self, phase: Phase | None = None) -> Place | None:
        """A place that would have to hold more than it can: at any time, or GPU or main memory in one phase."""
        places = PLACES if phase is None else PLACES[:2]
        return next((place for place in places if self.needed(place, phase) > self.limits.of(place)), None)

    def shortage(self, place: Place, phase: Phase | None = None) -> str:
        """What a place would have to hold and what it can."""
        needed, limits = self.needed(place, phase), self.limits
        if place == "main memory" and limits.stated_memory is not None:
            # The process has taken a part of what is stated, if not more.
            return (
                f"main memory would have to hold {_gib(needed + limits.process)} of {_gib(limits.stated_memory)} GiB, "
                f"{_gib(limits.process)} of it for Python and its libraries"
            )
        return f"{_THE[place]} would have to hold {_gib(needed)} of {_gib(limits.of(place))} GiB"

    def lines(self) -> list[str]:
        """The announcement: what each place holds of what it can, what takes it, and why it is not elsewhere."""
        totals = [(place, self.needed(place)) for place in PLACES]
        most = ", ".join(f"{place} {_gib(size)} of {_gib(self.limits.of(place))}" for place, size in totals if size)
        table = [
            f"  {use.place:<11} {_gib(use.size):>8}  {use.what}{_when(use)}"
            for use in sorted(self.uses(), key=lambda use: PLACES.index(use.place))
        ]
        return [f"memory at most, in GiB: {most}", *table, *(f"  {reason}" for reason in self.reasons)]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def plan_memory(work: Workload, limits: Limits, device: torch.device, folder: Path) -> MemoryPlan:
    """Decide where everything lives: training tomograms on the device, else in main memory, else in mapped files in
    `folder`; the batch in more parts, and validation by smaller tiles, where they do not fit otherwise.

    Raises:
        TrainingFailed: it does not fit into the GPU even so, nor would it if nothing else were there.
        TomoscoutError: it does not fit into main memory, on the disk, or into a GPU that is smaller than stated or that
            something else occupies.
    """
    parts = min(work.parts, work.batch_size)
    storage = Storage("files", device, work.classes, folder, work.channels)
    plan = MemoryPlan(work, limits, storage, parts, tuple(work.tile))
    plan = _smaller(plan, "training", _in_more_parts)
    plan = _smaller(plan, "predicting", _by_smaller_tiles)
    _check(plan)
    tiers: list[Tier] = ["memory", "files"] if plan.device == "main memory" else ["device", "memory", "files"]
    for tier in tiers:
        candidate = replace(plan, storage=replace(storage, tier=tier))
        place = candidate.overfull()
        if place is None:
            return candidate
        where = f"{'on' if place == 'GPU' else 'in'} {_THE[place]}"
        why = f"training tomograms are not {where}: {candidate.shortage(place)}"
        plan = replace(plan, reasons=(*plan.reasons, why))
    raise TomoscoutError(
        f"{folder}: {candidate.shortage('disk')} for {len(work.training)} training tomograms; free some space there, "
        "or let them fit into main memory (train.memory_gb)"
    )


def _smaller(plan: MemoryPlan, phase: Phase, step: Callable[[MemoryPlan], MemoryPlan]) -> MemoryPlan:
    """The plan, made smaller until a phase fits or nothing more can be done; and why."""
    small, place = plan, plan.overfull(phase)
    while small.overfull(phase) and (smaller := step(small)) != small:
        small = smaller
    if place is None or small == plan:
        return plan
    how = next(use.what for use in small.uses() if use.phase == phase)
    return replace(small, reasons=(*plan.reasons, f"{how}: otherwise {plan.shortage(place, phase)}"))


def _in_more_parts(plan: MemoryPlan) -> MemoryPlan:
    return replace(plan, parts=min(2 * plan.parts, plan.work.batch_size))


def _by_smaller_tiles(plan: MemoryPlan) -> MemoryPlan:
    """Half the longest side, but no smaller than a crop."""
    spare = [size - least for size, least in zip(plan.tile, plan.work.patch, strict=True)]
    if max(spare) <= 0 or not plan.work.validation:
        return plan
    longest = max((size, axis) for axis, size in enumerate(plan.tile) if spare[axis] > 0)[1]
    tile = list(plan.tile)
    tile[longest] = max(tile[longest] // 2, plan.work.patch[longest])
    return replace(plan, tile=tuple(tile))


def _check(plan: MemoryPlan) -> None:
    """Refuse what does not fit even with all training tomograms in files."""
    for place in PLACES[:2]:
        phase = max(PHASES[1:], key=lambda phase: plan.needed(place, phase))
        if plan.needed(place, phase) <= plan.limits.of(place):
            continue
        if place == "GPU" and plan.limits.gpu:
            plan = _without_others(plan, plan.limits.gpu, phase)
        uses = [use for use in plan.uses() if use.place == place and use.phase in ("always", phase) and use.remedy]
        largest = max(uses, key=lambda use: use.size)
        # Of main memory another machine, or another attempt, may have more.
        raise (TrainingFailed if place == "GPU" else TomoscoutError)(
            f"memory: {plan.shortage(place, phase)} while {phase}, {_gib(largest.size)} of it for {largest.what}; "
            f"{largest.remedy}, or let it have more "
            f"({'a larger GPU, train.gpu_memory_gb' if place == 'GPU' else 'train.memory_gb'})"
        )


def _without_others(plan: MemoryPlan, gpu: GpuMemory, phase: Phase) -> MemoryPlan:
    """Refuse a GPU that is to blame for what does not fit; else the plan with the limit that is to blame."""
    needed = plan.needed("GPU", phase)
    fault = gpu.fault(needed)
    if fault:
        raise TomoscoutError(f"memory: {plan.shortage('GPU', phase)} while {phase}; {fault}")
    # What others hold at the moment does not count where an empty GPU would not do.
    limit = gpu.promised if needed > gpu.promised else plan.limits.gpu_memory
    return replace(plan, limits=replace(plan.limits, gpu_memory=limit))


def plan_training(
    network: nn.Module,
    loss: nn.Module,
    task: Task,
    options: Training,
    device: torch.device,
    folder: Path,
    limits: Limits | None = None,
) -> MemoryPlan:
    """Plan a training: on this machine, unless `limits` are those of another. Where `gpu_memory_gb` limits it, it will
    find no more than that.

    Args:
        network, loss: as they will be trained, not run yet.
        options: with `patch` and `network` planned.
        folder: for mapped files, should the training volumes live there.

    Raises:
        TrainingFailed: not even one crop fits into the GPU, or validation does not, even with nothing else there.
        TomoscoutError: they do not fit into main memory, the disk is too full, or the GPU is smaller than stated or
            something else occupies it.
    """
    # On a GPU that is not here: both kinds of 16 bits take the same.
    wanted = "fp16" if limits and options.precision == "auto" and device.type == "cuda" else options.precision
    sizes = InputSizes.of([options.network], options.DIMENSIONS)
    work = Workload(
        task.training_shapes,
        task.validation_shapes,
        len(task.class_names),
        options.crop,
        task.tile,
        OVERLAP,
        sizes,
        options.batch_size,
        options.accumulation,
        step_memory(
            network,
            loss,
            options.crop,
            sizes.smallest,
            chosen_precision(wanted, device),
            mixup=options.augmentation.mixup > 0,
            channels=task.channels,
            targets=task.example_targets,
        ),
        task.labelled,
        task.channels,
        task.decoding_memory,
    )
    if limits is None:
        limits = Limits.here(options, device, folder)
        if limits.gpu and limits.gpu.stated is not None:
            cap_gpu_memory(device, limits.gpu.promised)
    return plan_memory(work, limits, device, folder)


def _stated_bytes(options: Training) -> int | None:
    return None if options.memory_gb is None else round(options.memory_gb * GIB)


def _text(shape: Shape) -> str:
    return "×".join(map(str, shape))


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _when(use: Use) -> str:
    return "" if use.phase == "always" else f" (while {use.phase})"
