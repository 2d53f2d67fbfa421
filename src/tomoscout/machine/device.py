"""Choice of the compute device, and the free memory of the GPU and of the machine.

psutil reports the available memory of the machine and the resident memory of this process, on Linux and macOS. It does
not know the limits that control groups (cgroups) and Slurm set for a job: these are read here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import psutil

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.heap import keep_freed_memory
from tomoscout.machine.lease import SCHEDULERS, VISIBLE

if TYPE_CHECKING:
    import torch

GIB = 2**30

GPU_CONTEXT = 600 * 2**20
"""Bytes of a GPU that its driver and the libraries take before the first tensor."""

OTHERS = GIB
"""Bytes of a GPU that may be missing before other processes are held responsible. A smaller shortage is attributed to
the system (a display, a larger CUDA context) and recurs at the next attempt."""

NOMINAL = 0.9
"""A GPU reports at least this fraction of its nominal memory, taken in GiB: error correction (ECC) takes some."""


def choose_device(wanted: str, root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> torch.device:
    """Choose the device for `wanted` (`auto`, `cpu` or `cuda`), check it and set it up.

    `root`: the folder that contains `dev`.

    Raises:
        TomoscoutError: a GPU is asked for but there is none, a scheduler gave one that PyTorch cannot use, or it
            computes 3D convolutions wrong.
    """
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise TomoscoutError("device: cuda was asked for, but PyTorch finds no GPU; use device: auto or cpu")
    if wanted == "auto" and not available:
        _refuse_unused_gpu(root, environment)
    if wanted == "cpu" or not available:
        keep_freed_memory()
        return torch.device("cpu")
    device = torch.device("cuda")
    torch.backends.cudnn.benchmark = True
    _test_convolution(device, half_precision())
    return device


def _refuse_unused_gpu(root: Path, environment: Mapping[str, str]) -> None:
    """Raise an error if the scheduler gave the job a GPU that PyTorch cannot use: training on the CPU would take
    days."""
    import torch

    scheduler = next((name for name in SCHEDULERS if name in environment), None)
    visible = environment.get(VISIBLE, "").strip()
    driver = root / "dev/nvidiactl"
    if scheduler and visible not in ("", "-1", "NoDevFiles") and driver.exists():
        raise TomoscoutError(
            f"device: this job ({scheduler}={environment[scheduler]}) was given a GPU ({VISIBLE}={visible}) on a node "
            f"that has some ({driver}), but PyTorch {torch.__version__} finds none; mend the driver (does nvidia-smi "
            "answer?), install a CUDA build of PyTorch, or ask for device: cpu (train.device, segment.device)"
        )


def half_precision() -> torch.dtype:
    """The dtype of 16 bits that the GPU has instructions for: bfloat16, or float16 on one older than Ampere, where
    cuDNN has no 3D convolution in bfloat16."""
    import torch

    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _test_convolution(device: torch.device, kind: torch.dtype) -> None:
    """Compare a 3D convolution in `kind` with float32 on the CPU: some pairs of PyTorch and cuDNN get it wrong.

    Raises:
        TomoscoutError: the device gets it wrong, or does not compute it.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 16, 24, 24, 24, generator=generator)
    kernel = torch.randn(16, 16, 3, 3, 3, generator=generator) / (16 * 27) ** 0.5
    expected = torch.nn.functional.conv3d(inputs, kernel, padding=1)
    try:
        with torch.autocast(device.type, kind):
            found = torch.nn.functional.conv3d(inputs.to(device), kernel.to(device), padding=1)
        error = float((found.float().cpu() - expected).abs().max())
        fault = "" if error < 0.1 else f"are wrong by {error:.3g}"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as failure:
        fault = f"fail: {' '.join(str(failure).split())[:150]}"
    if fault:
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        raise TomoscoutError(
            f"device: 3D convolutions on this GPU {fault} (PyTorch {torch.__version__}, cuDNN {cudnn}); "
            "install another pair or use device: cpu"
        )


@dataclass(frozen=True)
class GpuMemory:
    """Memory of a GPU in bytes.

    `free`: not held by any process. `total`: all of it. `own`: reserved by the PyTorch allocator of this process, for
    tensors and its cache. `stated`: the value of `train.gpu_memory_gb`, if set.
    """

    free: int
    total: int
    own: int = 0
    stated: int | None = None

    @classmethod
    def of(cls, device: torch.device, stated: float | None) -> GpuMemory:
        """The current memory of the GPU `device`. `stated`: GiB."""
        import torch

        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
        return cls(free, total, own, None if stated is None else round(stated * GIB))

    @property
    def is_smaller(self) -> bool:
        """Whether this GPU has less memory than is stated."""
        return self.stated is not None and self.total < NOMINAL * self.stated

    @property
    def promised(self) -> int:
        """Bytes that tensors may take while no other process uses the GPU: at most what is stated. If this GPU is
        smaller than stated, the bytes of one as stated."""
        empty = max(self.total - GPU_CONTEXT, self.free + self.own)
        if self.stated is None:
            return empty
        stated = max(0, self.stated - GPU_CONTEXT)
        return stated if self.is_smaller else min(stated, empty)

    @property
    def limit(self) -> int:
        """Bytes that tensors may take on this GPU now."""
        return min(self.promised, self.free + self.own)

    def fault(self, needed: int) -> str | None:
        """The reason and the remedy if `needed` bytes are not available because this GPU is smaller than stated or
        because other processes use it. None if a free GPU, as stated, would not have them either, or if no more than
        `OTHERS` bytes are missing from it."""
        if needed > self.promised:
            return None
        if self.is_smaller and self.stated is not None:
            return (
                f"this GPU has {_gib(self.total)} GiB in all, less than the {_gib(self.stated)} of "
                "train.gpu_memory_gb; use one that has them, or state what this one has"
            )
        if self.promised - self.limit <= OTHERS:
            return None
        return (
            f"of the {_gib(self.total)} GiB of this GPU {_gib(self.free)} are free and {_gib(self.own)} this "
            "training's, another process may hold the rest; end it, use another GPU, or, where it stays, state in "
            "train.gpu_memory_gb what it leaves"
        )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def cap_gpu_memory(device: torch.device, size: int) -> None:
    """Limit the tensors on a GPU to this many bytes. Beyond it, PyTorch raises an out-of-memory error even if the GPU
    has free memory."""
    import torch

    _, total = torch.cuda.mem_get_info(device)
    # Unlike the other functions of torch.cuda, this one does not accept a device without an index.
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / total), device.index)


def memory_limit(wanted: float | None) -> int:
    """Bytes of main memory that this process may allocate in addition to what it holds: up to `wanted` GiB in all, or,
    if None, nine tenths of the available memory."""
    if wanted is not None:
        return max(0, round(wanted * GIB) - own_memory())
    return available_memory() * 9 // 10


def own_memory() -> int:
    """Bytes of main memory that this process holds (resident set size)."""
    return int(psutil.Process().memory_info().rss)


def available_memory(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """Bytes of main memory that this process may allocate in addition to what it holds: the minimum of what is
    available on the machine, what the limits of its control groups (of a container or a batch system) leave, and what
    Slurm's limit leaves.

    `root`: the folder that contains `proc` and `sys`.
    """
    return max(0, min([int(psutil.virtual_memory().available), *_left_in_groups(root), *_left_in_job(environment)]))


# For control groups of version 2 (no controller name) and version 1 (memory): the files of the limit and of the usage,
# and the entries of memory.stat that count cached file pages, which the kernel reclaims when memory runs short.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
}


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes left under the limit of each control group of this process and of its parents."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        mount = "memory" if "memory" in controllers.split(",") else controllers
        if mount not in _GROUP_FILES:
            continue
        # In a container the path may be that of the host: then only the root group is found.
        group = PurePosixPath(name)
        for around in (group, *group.parents):
            yield from _left_in_group(root / "sys/fs/cgroup" / mount / str(around).lstrip("/"), *_GROUP_FILES[mount])


def _left_in_group(folder: Path, limit: str, usage: str, file_copies: tuple[str, ...]) -> Iterator[int]:
    try:
        most = (folder / limit).read_text(encoding="utf-8").strip()
        used = int((folder / usage).read_text(encoding="utf-8"))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    except OSError:
        return
    if most != "max":
        yield int(most) - used + sum(int(statistics.get(name, 0)) for name in file_copies)


def _left_in_job(environment: Mapping[str, str]) -> Iterator[int]:
    """Bytes left under Slurm's memory limits, which are in MiB, after what this process holds; 0 means no limit."""
    given = {name: int(value) for name, value in environment.items() if name.startswith("SLURM_") and value.isdigit()}
    for memory, count in (
        ("SLURM_MEM_PER_NODE", None),
        ("SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"),
        ("SLURM_MEM_PER_GPU", "SLURM_GPUS_ON_NODE"),
    ):
        most = given.get(memory, 0) * (given.get(count, 1) if count else 1)
        if most:
            yield most * 2**20 - own_memory()


_OUT_OF_MEMORY = (
    "can't allocate memory",  # PyTorch's allocator of main memory
    "CUDA error: out of memory",  # what PyTorch's allocator of GPU memory does not provide, as pinned memory
    "_STATUS_ALLOC_FAILED",  # cuBLAS and cuDNN
    "unable to find an engine",  # no way of cuDNN to convolve fits into memory; `_test_convolution` found one
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error reports that a device or the machine is out of memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)
