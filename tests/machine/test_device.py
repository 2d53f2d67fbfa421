"""Which device is chosen, and what a GPU that need not exist can be blamed for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.machine.device import GIB, GPU_CONTEXT, OTHERS, GpuMemory, choose_device
from tomoscout.machine.errors import TomoscoutError

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch finds a GPU here")
SLURM = {"SLURM_JOB_ID": "71"}


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
