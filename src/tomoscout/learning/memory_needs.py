"""What a training needs of GPU memory, main memory and disk space, and the limits of each."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from tomoscout.learning.options import Training
from tomoscout.learning.step_memory import Shape, StepMemory
from tomoscout.learning.tiles import InputSizes, TileGrid
from tomoscout.learning.volumes import Storage, Tier
from tomoscout.machine.device import GIB, GPU_CONTEXT, GpuMemory, memory_limit, own_memory
from tomoscout.machine.messages import times

LIBRARIES = 256 * 2**20
"""Bytes that the libraries of a training take once they are used, on the device and in main memory each: compiled
kernels, workspaces, threads."""

PROCESS = 500 * 2**20
"""Bytes of main memory that Python, PyTorch and MONAI hold before a training begins."""

_UNLIMITED = 2**62

# Bytes per voxel.
# A volume being read and prepared: two copies of a channel in float32, a few parts of one, and the labels twice.
_READING, _READING_CHANNEL = 4, 8
# Values of a tile while they are stored: in float32, scaled and rounded, and as they are stored.
_BEING_STORED = 12


Place = Literal["GPU", "main memory", "disk"]
Phase = Literal["always", "reading", "training", "predicting", "decoding"]
PLACES: tuple[Place, ...] = ("GPU", "main memory", "disk")
PHASES: tuple[Phase, ...] = ("always", "reading", "training", "predicting", "decoding")

_SMALLER_STEP = "make train.patch or the network smaller"
THE_PLACE: dict[Place, str] = {"GPU": "the GPU", "main memory": "main memory", "disk": "the disk"}


@dataclass(frozen=True)
class Use:
    """A use of memory: its purpose, its place, and its size in bytes. Memory that a single phase uses is free again in
    the next phase. `remedy`: how to reduce the use."""

    what: str
    place: Place
    size: int
    phase: Phase = "always"
    remedy: str = ""


@dataclass(frozen=True)
class Limits:
    """Limits of a training in bytes.

    `memory`: main memory that the process may allocate in addition to the `process` bytes that it holds already.
    `stated_memory`: the limit of both together, if `train.memory_gb` states it. `gpu_memory`: for tensors, without what
    the driver takes. `gpu`: the memory of the GPU of this machine, if there is one.
    """

    memory: int
    gpu_memory: int
    disk: int
    gpu: GpuMemory | None = None
    process: int = 0
    stated_memory: int | None = None

    @classmethod
    def here(cls, options: Training, device: torch.device, folder: Path) -> Limits:
        """The limits of this machine, or those that the options state. `folder`: for memory-mapped files. The files in
        it count as free, as they may be replaced."""
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        held = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
        gpu = GpuMemory.of(device, options.gpu_memory_gb) if device.type == "cuda" else None
        disk = shutil.disk_usage(existing).free + held
        memory, process = memory_limit(options.memory_gb), own_memory()
        return cls(memory, gpu.limit if gpu else 0, disk, gpu, process, _stated_bytes(options))

    @classmethod
    def stated(cls, options: Training) -> Limits:
        """The limits that the options state, for a machine other than this one. What is not stated is unlimited."""
        gpu = GIB * options.gpu_memory_gb - GPU_CONTEXT if options.gpu_memory_gb else _UNLIMITED
        memory = GIB * options.memory_gb - PROCESS if options.memory_gb else _UNLIMITED
        return cls(max(0, round(memory)), max(0, round(gpu)), _UNLIMITED, None, PROCESS, _stated_bytes(options))

    def of(self, place: Place) -> int:
        """The limit of a place."""
        return {"GPU": self.gpu_memory, "main memory": self.memory, "disk": self.disk}[place]


@dataclass(frozen=True)
class Workload:
    """The quantities that the memory of a training depends on.

    `training`, `validation`: voxels (*space) of the volumes. `channels`: of each volume. `predicted`: channels of a
    prediction, of `stored` bytes each. `largest_label`: in the labels of the volumes. `prepared`: whether the task
    prepares channels itself. `tile`: voxels that validation predicts at once, with this `overlap`. `sizes`: input sizes
    that the network takes. `parts`: number of parts of a batch (gradient accumulation). `labelled`: whether validation
    needs labels. `one_by_one`: whether it keeps one volume at a time. `decoding`: bytes per voxel that decoding a
    prediction takes. `volume`: what a volume is called. `validation_option`: the option that says which volumes
    validate.
    """

    training: Sequence[Shape]
    validation: Sequence[Shape]
    predicted: int
    largest_label: int
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
    stored: int = 1
    prepared: bool = False
    volume: str = "tomogram"
    validation_option: str = "split.validate"
    one_by_one: bool = False

    @property
    def kept(self) -> int:
        """Voxels of the validation volumes that are in memory at the same time."""
        sizes = [math.prod(shape) for shape in self.validation]
        return max(sizes, default=0) if self.one_by_one else sum(sizes)

    @property
    def less_validation(self) -> str:
        """How to reduce what validation takes."""
        return f"validate on fewer or smaller {self.volume}s ({self.validation_option})"


@dataclass(frozen=True)
class MemoryPlan:
    """Where the data of a training is stored.

    `parts`: number of parts of a batch (gradient accumulation). `tile`: voxels that validation predicts at once.
    `reasons`: why the plan differs from the options, or does not use a faster place.
    """

    work: Workload
    limits: Limits
    storage: Storage
    parts: int
    tile: tuple[int, ...]
    reasons: tuple[str, ...] = ()

    @property
    def device(self) -> Place:
        """The place where the network computes."""
        return "GPU" if self.storage.device.type == "cuda" else "main memory"

    def uses(self) -> list[Use]:
        """All uses of memory."""
        return [use for use in (*self._held(), *self._training(), *self._validating()) if use.size]

    def _held(self) -> Iterator[Use]:
        work = self.work
        places: dict[Tier, Place] = {"device": self.device, "memory": "main memory", "files": "disk"}
        size = sum(self.storage.size(shape, work.patch) for shape in work.training)
        yield Use(f"{len(work.training)} training {work.volume}s", places[self.storage.tier], size)
        per_voxel = 4 * work.channels + self.storage.label_kind.itemsize * work.labelled
        at_once = ", one at a time" if work.one_by_one else ""
        what = f"{len(work.validation)} validation {work.volume}s{at_once}"
        yield Use(what, "main memory", work.kept * per_voxel, remedy=work.less_validation)
        yield Use("network and optimiser", self.device, work.step.state, remedy=_SMALLER_STEP)
        # The new weights are copied before the old ones are freed.
        yield Use("best weights", "main memory", work.step.state * 2 // 5, remedy=_SMALLER_STEP)
        yield Use("libraries", "main memory", LIBRARIES)
        if self.device == "GPU":
            yield Use("libraries of the GPU", "GPU", LIBRARIES)
        largest = max((math.prod(shape) for shape in (*work.training, *work.validation)), default=0)
        read = largest * (_READING + _READING_CHANNEL * work.channels)
        yield Use(f"one more {work.volume}", "main memory", read, "reading")

    def _training(self) -> Iterator[Use]:
        work = self.work
        crops = math.ceil(work.batch_size / self.parts)
        at_once = "" if self.parts == 1 else f", {crops} at a time"
        what = f"a step of {work.batch_size} crops of {times(work.patch)} voxels{at_once}"
        size = work.step.training(work.batch_size, self.parts)
        yield Use(what, self.device, size, "training", _SMALLER_STEP)

    def _validating(self) -> Iterator[Use]:
        work = self.work
        if not work.validation:
            return
        grids = [TileGrid.of(shape, work.sizes, self.tile, work.overlap) for shape in work.validation]
        network = max(work.step.predicting(grid.lengths) for grid in grids)
        # Values are float16 on a GPU, float32 on a CPU.
        held = max(grid.values_held for grid in grids) * (2 if self.device == "GPU" else 4)
        stored = max(math.prod(grid.lengths) for grid in grids) * _BEING_STORED
        yield Use(f"a tile of {times(self.tile)} voxels", self.device, network, "predicting", _SMALLER_STEP)
        yield Use("blended tiles", self.device, work.predicted * (held + stored), "predicting", work.less_validation)
        kept = work.kept * work.predicted * work.stored
        # The tile as the network takes it. Pinned memory is allocated in powers of two.
        tile = 4 * work.channels * max(math.prod(grid.lengths) for grid in grids)
        tile += 2 ** math.ceil(math.log2(tile)) if self.device == "GPU" else 0
        yield Use("predictions of validation", "main memory", kept + tile, "predicting", work.less_validation)
        decoded = kept + max(math.prod(shape) for shape in work.validation) * work.decoding
        yield Use("the same while it is decoded", "main memory", decoded, "decoding", work.less_validation)

    def needed(self, place: Place, phase: Phase | None = None) -> int:
        """Bytes needed at a place: the maximum over the phases, or in one phase."""
        sizes: dict[Phase, int] = dict.fromkeys(PHASES, 0)
        for use in self.uses():
            if use.place == place:
                sizes[use.phase] += use.size
        always = sizes.pop("always")
        return always + (max(sizes.values()) if phase is None else sizes[phase])

    def overfull(self, phase: Phase | None = None) -> Place | None:
        """The first place whose limit is exceeded, in any phase or (GPU and main memory only) in one phase; None if all
        suffice."""
        places = PLACES if phase is None else PLACES[:2]
        return next((place for place in places if self.needed(place, phase) > self.limits.of(place)), None)

    def shortage(self, place: Place, phase: Phase | None = None) -> str:
        """The needed and the available memory of a place, as text."""
        needed, limits = self.needed(place, phase), self.limits
        if place == "main memory" and limits.stated_memory is not None:
            # The process already holds a part of what is stated, or more.
            return (
                f"main memory would have to hold {in_gib(needed + limits.process)} of "
                f"{in_gib(limits.stated_memory)} GiB, {in_gib(limits.process)} of it for Python and its libraries"
            )
        return f"{THE_PLACE[place]} would have to hold {in_gib(needed)} of {in_gib(limits.of(place))} GiB"

    def lines(self) -> list[str]:
        """The plan as text: memory needed and available at each place, the single uses, and the reasons."""
        totals = [(place, self.needed(place)) for place in PLACES]
        most = ", ".join(f"{place} {in_gib(size)} of {in_gib(self.limits.of(place))}" for place, size in totals if size)
        table = [
            f"  {use.place:<11} {in_gib(use.size):>8}  {use.what}{_when(use)}"
            for use in sorted(self.uses(), key=lambda use: PLACES.index(use.place))
        ]
        return [f"memory at most, in GiB: {most}", *table, *(f"  {reason}" for reason in self.reasons)]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def _stated_bytes(options: Training) -> int | None:
    return None if options.memory_gb is None else round(options.memory_gb * GIB)


def in_gib(size: int) -> str:
    """Bytes as text in GiB."""
    return f"{size / GIB:.2f}"


def _when(use: Use) -> str:
    return "" if use.phase == "always" else f" (while {use.phase})"
