"""Which device is chosen, what a GPU that need not exist can be blamed for, and how much main memory is free."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from tomoscout.machine.device import (
    GIB,
    GPU_CONTEXT,
    OTHERS,
    GpuMemory,
    _test_convolution,
    available_memory,
    choose_device,
    is_out_of_memory,
    memory_limit,
    own_memory,
)
from tomoscout.machine.errors import TomoscoutError

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch finds a GPU here")
SLURM = {"SLURM_JOB_ID": "71"}
MIB = 2**20


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The root of a machine with an NVIDIA driver."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    return tmp_path


# The device


@without_gpu
@pytest.mark.parametrize("job", [SLURM, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}])
@pytest.mark.parametrize("visible", ["0", "1,2", "GPU-aaaa1111-0000"])
def test_a_gpu_of_a_job_is_not_left_unused(node: Path, job: dict[str, str], visible: str) -> None:
    [(name, value)] = job.items()
    with pytest.raises(TomoscoutError) as refused:
        choose_device("auto", node, {**job, "CUDA_VISIBLE_DEVICES": visible})
    message = str(refused.value)
    assert message.startswith(f"device: this job ({name}={value}) was given a GPU (CUDA_VISIBLE_DEVICES={visible}) ")
    assert f"{node}/dev/nvidiactl" in message and "train.device" in message
    assert "\n" not in message


@without_gpu
@pytest.mark.parametrize(
    "environment",
    [
        {"CUDA_VISIBLE_DEVICES": "0"},
        SLURM,
        *({**SLURM, "CUDA_VISIBLE_DEVICES": visible} for visible in ("", " ", "-1", "NoDevFiles")),
    ],
)
def test_without_a_gpu_for_the_job_the_cpu_is_used(node: Path, environment: dict[str, str]) -> None:
    assert choose_device("auto", node, environment) == torch.device("cpu")


@without_gpu
def test_without_a_driver_the_cpu_is_used(tmp_path: Path) -> None:
    assert choose_device("auto", tmp_path, {**SLURM, "CUDA_VISIBLE_DEVICES": "0"}) == torch.device("cpu")


def test_the_cpu_is_used_where_it_is_asked_for(node: Path) -> None:
    assert choose_device("cpu", node, {**SLURM, "CUDA_VISIBLE_DEVICES": "0"}) == torch.device("cpu")


@without_gpu
def test_a_gpu_that_is_asked_for_must_be_there() -> None:
    with pytest.raises(TomoscoutError, match=r"^device: cuda was asked for, but PyTorch finds no GPU"):
        choose_device("cuda")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_convolutions_that_are_right_pass(kind: torch.dtype) -> None:
    _test_convolution(torch.device("cpu"), kind)


def test_a_device_that_computes_no_convolution_is_refused() -> None:
    with pytest.raises(TomoscoutError, match=r"^device: 3D convolutions on this GPU fail: .*; install another pair"):
        _test_convolution(torch.device("meta"), torch.bfloat16)


class WrongAtTheBorder(TorchFunctionMode):
    """Half precision as on a device that leaves the padding out."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.nn.functional.conv3d and torch.is_autocast_enabled("cpu"):
            return torch.nn.functional.pad(function(*args), [1] * 6)
        return function(*args, **(kwargs or {}))


def test_a_device_that_convolves_wrong_is_refused() -> None:
    with WrongAtTheBorder(), pytest.raises(TomoscoutError, match=r"3D convolutions on this GPU are wrong by [1-9]"):
        _test_convolution(torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to ...", True),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("FIND was unable to find an engine to execute this computation", True),
        ("CUDA error: device-side assert triggered", False),
        ("Given groups=1, weight of size [4, 1, 3, 3, 3], expected input to have 1 channels", False),
    ],
)
def test_which_errors_mean_that_memory_is_short(message: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) == expected
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))


@pytest.mark.gpu
def test_a_gpu_is_chosen_where_there_is_one() -> None:
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    memory = GpuMemory.of(torch.device("cuda"), None)
    assert 0 < memory.limit <= memory.total


# The memory of a GPU


def gpu(free: float, total: float, own: float = 0, stated: float | None = None) -> GpuMemory:
    """In GiB."""
    sizes = (None if size is None else round(size * GIB) for size in (free, total, own, stated))
    return GpuMemory(*sizes)  # type: ignore[arg-type]


def test_how_much_tensors_may_take() -> None:
    assert gpu(20, 24, own=2).limit == 22 * GIB
    # The context is as large as it is.
    assert gpu(23.9, 24).limit == gpu(23.9, 24).promised == round(23.9 * GIB)
    assert gpu(20, 24, own=2).promised == 24 * GIB - GPU_CONTEXT
    assert gpu(70, 80, stated=16).limit == gpu(70, 80, stated=16).promised == 16 * GIB - GPU_CONTEXT
    assert gpu(7, 80, stated=16).limit == 7 * GIB
    assert gpu(7, 80, stated=0.1).limit == 0


@pytest.mark.parametrize(
    ("memory", "needed", "reason"),
    [
        # Nothing else is on it, and where it is not enough nothing will be.
        (gpu(23.3, 24), 23.35, None),
        (gpu(23.3, 24), 30, None),
        (gpu(0.1, 24, own=23.2), 23.2, None),
        # Something else is on it; of no matter where the need is beyond it anyway.
        (gpu(10, 24), 20, "of the 24.00 GiB of this GPU 10.00 are free and 0.00 this training's"),
        (gpu(2, 24, own=8), 8, "of the 24.00 GiB of this GPU 2.00 are free and 8.00 this training's"),
        (gpu(10, 24), 23.5, None),
        # As a screen is, which stays.
        (gpu(22.9, 24), 23, None),
        # A part of it is stated: others may have what is beyond that part.
        (gpu(40, 80, stated=24), 30, None),
        (gpu(13, 80, own=11, stated=24), 11, None),
        (gpu(10, 80, own=11, stated=24), 11, "of the 80.00 GiB of this GPU 10.00 are free and 11.00 this training's"),
        # More is stated than it has; but sold as 24 GB it has less.
        (gpu(15.4, 16, stated=24), 20, "this GPU has 16.00 GiB in all, less than the 24.00 of train.gpu_memory_gb"),
        (gpu(1, 16, own=14, stated=24), 14, "this GPU has 16.00 GiB in all, less than the 24.00"),
        (gpu(15.4, 16, stated=24), 23.9, None),
        (gpu(21.4, 22, stated=24), 22.5, None),
        (gpu(10, 22, stated=24), 20, "of the 22.00 GiB of this GPU 10.00 are free"),
    ],
)
def test_who_is_to_blame(memory: GpuMemory, needed: float, reason: str | None) -> None:
    fault = memory.fault(round(needed * GIB))
    if reason is None:
        assert fault is None
    else:
        assert fault is not None and fault.startswith(reason)
        assert "; " in fault and "\n" not in fault


SIZES = st.integers(0, 200 * GIB)


@given(SIZES, SIZES, SIZES, st.none() | SIZES, SIZES)
@settings(deadline=None, derandomize=True)
def test_an_empty_gpu_as_stated_is_never_to_blame(
    total: int, own: int, context: int, stated: int | None, needed: int
) -> None:
    own = min(own, total)
    free = total - own - min(context, total - own, GPU_CONTEXT + OTHERS)
    assert GpuMemory(free, total, own, stated and min(stated, total)).fault(needed) is None


# Main memory


class Machine:
    """Made-up main memory, `/proc` and `/sys`."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.free = 8 * GIB
        patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * GIB, free=1, available=self.free))

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def group(self, folder: str, limit: int | str, used: int, file_copies: int = 0) -> None:
        """A control group of version 2."""
        self.write(f"{folder}/memory.max", f"{limit}\n")
        self.write(f"{folder}/memory.current", f"{used}\n")
        self.write(f"{folder}/memory.stat", f"anon 7\ninactive_file {file_copies}\nactive_file 0\n")

    def available(self, **environment: object) -> int:
        return available_memory(self.root, {name: str(value) for name, value in environment.items()})


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_what_the_machine_has_free(machine: Machine) -> None:
    assert machine.available() == machine.free


def test_the_tightest_control_group_counts(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/system.slice/job_7/step_0\n")
    machine.group("sys/fs/cgroup/system.slice/job_7/step_0", "max", GIB)
    machine.group("sys/fs/cgroup/system.slice/job_7", 4 * GIB, 3 * GIB, file_copies=GIB // 2)
    machine.group("sys/fs/cgroup/system.slice", 6 * GIB, GIB)
    assert machine.available() == 3 * GIB // 2
    machine.group("sys/fs/cgroup/system.slice", 2 * GIB, GIB)
    assert machine.available() == GIB
    machine.group("sys/fs/cgroup/system.slice", GIB, 2 * GIB)
    assert machine.available() == 0


def test_a_container_that_sees_only_its_own_group(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/../../docker/abc\n")
    machine.group("sys/fs/cgroup", 3 * GIB, GIB)
    assert machine.available() == 2 * GIB


def test_control_groups_of_version_1(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "9:name=systemd:/\n4:memory:/slurm/job_7\n2:cpu,cpuacct:/elsewhere\n0::/\n")
    folder = "sys/fs/cgroup/memory/slurm/job_7"
    machine.write(f"{folder}/memory.limit_in_bytes", f"{3 * GIB}\n")
    machine.write(f"{folder}/memory.usage_in_bytes", f"{2 * GIB}\n")
    machine.write(f"{folder}/memory.stat", f"cache 1\ntotal_inactive_file {GIB}\ntotal_active_file {GIB // 4}\n")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")
    machine.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "0\n")
    machine.write("sys/fs/cgroup/memory/memory.stat", "")
    assert machine.available() == 9 * GIB // 4


@pytest.mark.parametrize(
    ("environment", "gib"),
    [
        ({"SLURM_MEM_PER_NODE": 4096}, 4),
        ({"SLURM_MEM_PER_CPU": 1024, "SLURM_CPUS_ON_NODE": 6}, 6),
        ({"SLURM_MEM_PER_GPU": 2048, "SLURM_GPUS_ON_NODE": 2}, 4),
        ({"SLURM_MEM_PER_GPU": 5120}, 5),
    ],
)
def test_what_slurm_gave_the_job(machine: Machine, environment: dict[str, int], gib: int) -> None:
    assert machine.available(**environment) == pytest.approx(gib * GIB - own_memory(), abs=50 * MIB)


def test_slurms_zero_is_no_limit(machine: Machine) -> None:
    assert machine.available(SLURM_MEM_PER_NODE=0, SLURM_JOB_NAME="train") == machine.free


def test_what_is_asked_for_holds() -> None:
    assert memory_limit(40) == pytest.approx(40 * GIB - own_memory(), abs=50 * MIB)
    assert memory_limit(0.01) == 0
    built_in = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory_limit(None) <= 0.9 * built_in
