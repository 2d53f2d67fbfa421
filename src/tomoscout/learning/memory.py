"""The memory plan of a training (GPU, main memory and disk), made before it starts.

`plan_memory` only does arithmetic, so it can also plan for a GPU that this machine does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tomoscout.learning.memory_needs import PHASES, PLACES, THE_PLACE, Limits, MemoryPlan, Phase, Workload, in_gib
from tomoscout.learning.options import Training
from tomoscout.learning.precision import chosen_precision
from tomoscout.learning.step_memory import step_memory
from tomoscout.learning.task import Task
from tomoscout.learning.tiles import InputSizes
from tomoscout.learning.validation import OVERLAP
from tomoscout.learning.volumes import Storage, Tier
from tomoscout.machine.device import GpuMemory, cap_gpu_memory
from tomoscout.machine.errors import TomoscoutError, TrainingFailed


def plan_memory(work: Workload, limits: Limits, device: torch.device, folder: Path) -> MemoryPlan:
    """Decide where the data of a training is stored: training tomograms on the device, else in main memory, else in
    memory-mapped files in `folder`. If the rest does not fit otherwise, batches are divided into more parts (gradient
    accumulation) and validation uses smaller tiles.

    Raises:
        TrainingFailed: it does not fit into the GPU even so, and would not fit if nothing else were on it.
        TomoscoutError: it does not fit into main memory, on the disk, or into a GPU that is smaller than stated or that
            other processes use.
    """
    parts = min(work.parts, work.batch_size)
    storage = Storage("files", device, work.largest_label, folder, work.channels, work.prepared, work.volume)
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
        where = f"{'on' if place == 'GPU' else 'in'} {THE_PLACE[place]}"
        why = f"training {work.volume}s are not {where}: {candidate.shortage(place)}"
        plan = replace(plan, reasons=(*plan.reasons, why))
    raise TomoscoutError(
        f"{folder}: {candidate.shortage('disk')} for {len(work.training)} training {work.volume}s; free some space "
        "there, or let them fit into main memory (train.memory_gb)"
    )


def _smaller(plan: MemoryPlan, phase: Phase, step: Callable[[MemoryPlan], MemoryPlan]) -> MemoryPlan:
    """Apply `step` to the plan until a phase fits or nothing changes, and add the reason."""
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
    """Halve the longest side of the tile, but not below the size of a crop."""
    spare = [size - least for size, least in zip(plan.tile, plan.work.patch, strict=True)]
    if max(spare) <= 0 or not plan.work.validation:
        return plan
    longest = max((size, axis) for axis, size in enumerate(plan.tile) if spare[axis] > 0)[1]
    tile = list(plan.tile)
    tile[longest] = max(tile[longest] // 2, plan.work.patch[longest])
    return replace(plan, tile=tuple(tile))


def _check(plan: MemoryPlan) -> None:
    """Raise an error if the plan does not fit even with all training tomograms in files."""
    for place in PLACES[:2]:
        phase = max(PHASES[1:], key=lambda phase: plan.needed(place, phase))
        if plan.needed(place, phase) <= plan.limits.of(place):
            continue
        if place == "GPU" and plan.limits.gpu:
            plan = _without_others(plan, plan.limits.gpu, phase)
        uses = [use for use in plan.uses() if use.place == place and use.phase in ("always", phase) and use.remedy]
        largest = max(uses, key=lambda use: use.size)
        # Another machine, or another attempt, may have more main memory: the error is then no TrainingFailed.
        raise (TrainingFailed if place == "GPU" else TomoscoutError)(
            f"memory: {plan.shortage(place, phase)} while {phase}, {in_gib(largest.size)} of it for {largest.what}; "
            f"{largest.remedy}, or let it have more "
            f"({'a larger GPU, train.gpu_memory_gb' if place == 'GPU' else 'train.memory_gb'})"
        )


def _without_others(plan: MemoryPlan, gpu: GpuMemory, phase: Phase) -> MemoryPlan:
    """Raise an error if the plan does not fit because of this GPU or of other processes on it. Otherwise return the
    plan with the limit to report."""
    needed = plan.needed("GPU", phase)
    fault = gpu.fault(needed)
    if fault:
        raise TomoscoutError(f"memory: {plan.shortage('GPU', phase)} while {phase}; {fault}")
    # If even an empty GPU does not suffice, what other processes hold at the moment does not matter.
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
    """Plan the memory of a training on this machine or, with `limits`, on another one. If `gpu_memory_gb` limits the
    training on this machine, PyTorch gets no more than that from now on.

    Args:
        network, loss: as they will be trained, not run yet.
        options: with `patch` and `network` planned.
        folder: for memory-mapped training volumes.

    Raises:
        TrainingFailed: one crop, or validation, does not fit into the GPU even if nothing else is on it.
        TomoscoutError: they do not fit into main memory, the disk is too full, or the GPU is smaller than stated or
            used by other processes.
    """
    # For a GPU that is not present, fp16 stands for auto: bf16 takes the same memory.
    wanted = "fp16" if limits and options.precision == "auto" and device.type == "cuda" else options.precision
    sizes = InputSizes.of([options.network], options.DIMENSIONS)
    work = Workload(
        task.training_shapes,
        task.validation_shapes,
        task.predicted,
        task.largest_label,
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
        task.readout.kind.itemsize,
        task.prepared,
        task.volume,
        task.validation_option,
        task.one_by_one,
    )
    if limits is None:
        limits = Limits.here(options, device, folder)
        if limits.gpu and limits.gpu.stated is not None:
            cap_gpu_memory(device, limits.gpu.promised)
    return plan_memory(work, limits, device, folder)
