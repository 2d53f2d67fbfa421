"""How much memory there is, what a training takes of it, and what goes where."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tomoscout.learning.losses.combined import build_loss
from tomoscout.learning.losses.cross_entropy import CrossEntropy
from tomoscout.learning.losses.weighted_focal_tversky import WeightedFocalTversky
from tomoscout.learning.memory import plan_memory, plan_training
from tomoscout.learning.memory_needs import LIBRARIES, PLACES, Limits, MemoryPlan, Workload
from tomoscout.learning.readout import PROBABILITIES
from tomoscout.learning.step_memory import MARGIN, StepMemory, label_targets, step_memory
from tomoscout.learning.tiles import InputSizes
from tomoscout.learning.volumes import Storage
from tomoscout.machine.device import GIB, GpuMemory, own_memory
from tomoscout.machine.errors import TomoscoutError, TrainingFailed
from tomoscout.networks import FAMILIES, build_network, parse_network
from tomoscout.tasks.picking.options import Train

torch.set_num_threads(1)
CPU, GPU = torch.device("cpu"), torch.device("cuda")
MIB = 2**20
FOLDER = Path("results/models/unet/volumes")

# What a step takes.


class Exponentials(nn.Module):
    """(1 + weight) times the input, exponentials of it: each keeps its result for the backward pass."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.count = count

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for _ in range(self.count):
            inputs = (inputs * self.weight).exp()
        return inputs


class Sum(nn.Module):
    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return outputs.sum()


class LooksAtValues(nn.Module):
    """No step without content: it depends on the largest value."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.BatchNorm3d(3), nn.Dropout(0.5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(inputs) if float(inputs.max()) < 1 else inputs


def loss(classes: int = 4, *terms: object) -> nn.Module:
    return build_loss(list(terms) or [CrossEntropy()], torch.ones(classes), torch.ones(classes), 255)


def test_every_tensor_that_is_alive_counts_once() -> None:
    """By hand: three exponentials are kept (the last is the output, too); going back through a product, there are the
    gradient that comes in, the one that goes out, and the product that becomes the weight's."""
    crop = 8**3 * 4
    for count in (2, 3, 5):
        step = step_memory(Exponentials(count), Sum(), (8, 8, 8), (1, 1, 1), torch.float32)
        assert (count + 3) * crop <= step.crop < (count + 3) * crop + 64
        assert step.state == 5 * 4


def real_peak(network: nn.Module, criterion: nn.Module, patch: Sequence[int]) -> int:
    """What the allocator of the CPU hands out for a real step of two crops: an independent count. (For one alone
    PyTorch computes small convolutions by another method.)"""
    inputs, labels = torch.randn(2, 1, *patch), torch.randint(0, 4, (2, *patch))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    network.train()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        outputs = network(inputs)
        criterion(outputs, labels).backward()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("terms", [(CrossEntropy(),), (CrossEntropy(), WeightedFocalTversky())])
@pytest.mark.parametrize("family", ["UNet", "AttentionUNet", "SegResNet"])
def test_a_dry_run_takes_what_a_real_step_takes(family: str, terms: tuple[object, ...]) -> None:
    network, criterion = build_network(parse_network({"family": family}), 4), loss(4, *terms)
    planned = 2 * step_memory(network, criterion, (32, 32, 32), (1, 1, 1), torch.float32).crop
    assert 0.95 < planned / real_peak(network, criterion, (32, 32, 32)) < 1.4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_dry_run(family: str) -> None:
    """In a second, without memory: a real step with the smallest crop given would fail."""
    options = parse_network({"family": family})
    network = build_network(options, 4)
    names = {name: value.clone() for name, value in network.state_dict().items()}
    patch = [max(64, size) for size in options.smallest_size()]
    wide, narrow = (
        step_memory(network, loss(), patch, (1, 1, 1), kind, mixup=True) for kind in (torch.float32, torch.bfloat16)
    )
    voxels = math.prod(patch)
    assert wide.crop > 4 * 16 * voxels
    assert 0.45 < narrow.crop / wide.crop < 1.05
    assert wide.state == narrow.state >= 5 * 4 * sum(p.numel() for p in network.parameters())
    assert 4 * 4 < wide.predicted_voxel < wide.crop / voxels * 2
    # The network is as it was, its tensors still have content, and it can still be copied.
    assert all(torch.equal(value, names[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_larger_crops_take_more_in_proportion() -> None:
    network = build_network(parse_network({"family": "UNet"}), 4)
    small, large = (step_memory(network, loss(), (size,) * 3, (1,) * 3, torch.float32) for size in (64, 128))
    assert large.crop / small.crop == pytest.approx(8, rel=0.05)
    assert large.predicted_voxel == pytest.approx(small.predicted_voxel, rel=0.05)


def test_norms_that_a_gpu_widens_are_planned_wide() -> None:
    def crop(norm: nn.Module) -> int:
        network = nn.Sequential(nn.Conv3d(1, 16, 1), norm, nn.Conv3d(16, 4, 1))
        return step_memory(network, loss(), (32, 32, 32), (1, 1, 1), torch.bfloat16).crop

    # Kept for the backward pass: what went in, in four bytes instead of two.
    assert crop(nn.GroupNorm(2, 16)) - crop(nn.InstanceNorm3d(16)) >= 16 * 32**3 * 2


def test_a_network_that_looks_at_values_is_measured_for_real(capsys: pytest.CaptureFixture[str]) -> None:
    network = LooksAtValues()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    step = step_memory(network, loss(3), (32, 32, 32), (8, 8, 8), torch.float32)
    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert capsys.readouterr() == ("", "")
    body = step_memory(network.body, loss(3), (32, 32, 32), (1, 1, 1), torch.float32)
    assert 0.9 < step.crop / body.crop < 1.3
    assert 0.9 < step.predicted_voxel / body.predicted_voxel < 1.3
    assert step.state == body.state


def test_a_step_in_parts_takes_less() -> None:
    step = StepMemory(state=7, crop=100, waiting_crop=10, changing_crop=30, predicted_voxel=2.0)
    assert step.training(8, 1) == math.ceil(MARGIN * (8 * 10 + 8 * 100))
    assert step.training(8, 4) == math.ceil(MARGIN * (8 * 10 + 2 * 100))
    assert step.training(8, 3) == math.ceil(MARGIN * (8 * 10 + 3 * 100))
    # Augmentation sees the whole batch.
    assert step.training(8, 8) == math.ceil(MARGIN * 8 * 30)
    assert step.predicting((2, 3, 4)) == math.ceil(MARGIN * 2 * 24)


# What goes where.

STEP = StepMemory(state=50 * MIB, crop=100 * MIB, waiting_crop=MIB, changing_crop=8 * MIB, predicted_voxel=100.0)
WORK = Workload(
    training=[(100, 200, 200)] * 10,
    validation=[(100, 200, 200), (100, 160, 160)],
    predicted=3,
    largest_label=3,
    patch=(50, 50, 50),
    tile=(100, 100, 100),
    overlap=0.0,
    sizes=InputSizes((10, 10, 10), (10, 20, 20)),
    batch_size=8,
    parts=1,
    step=STEP,
    decoding=32,
)
LARGE, SMALL = 4_000_000, 2_560_000
HELD = 100**3
TRAINING = 10 * LARGE * 3


def plan(memory: int, gpu: int = 0, disk: int = 10**12, work: Workload = WORK) -> MemoryPlan:
    return plan_memory(work, Limits(memory, gpu, disk), GPU if gpu else CPU, FOLDER)


def test_on_a_gpu_with_room() -> None:
    made = plan(10 * GIB, 10 * GIB)
    assert made.storage == Storage("device", GPU, 3, FOLDER)
    assert (made.parts, made.tile, made.reasons) == (1, (100, 100, 100), ())
    always = TRAINING + 50 * MIB + LIBRARIES
    training = math.ceil(MARGIN * (8 * MIB + 800 * MIB))
    predicting = math.ceil(MARGIN * 100 * 10**6) + 3 * HELD * (2 + 12)
    assert made.needed("GPU", "training") == always + training
    assert made.needed("GPU", "predicting") == always + predicting
    assert made.needed("GPU") == always + max(training, predicting)
    held = (LARGE + SMALL) * 4 + 20 * MIB + LIBRARIES
    kept = (LARGE + SMALL) * 3
    assert made.needed("main memory", "predicting") == held + kept + 10**6 * 4 + 2**22
    assert made.needed("main memory") == held + kept + LARGE * 32
    assert made.needed("disk") == 0


def test_on_a_cpu_everything_is_in_main_memory() -> None:
    made = plan(10 * GIB)
    assert made.storage.tier == "memory"
    always = TRAINING + (LARGE + SMALL) * 4 + 70 * MIB + LIBRARIES
    assert made.needed("main memory", "training") == always + math.ceil(MARGIN * 808 * MIB)
    blended = 3 * HELD * (4 + 12)
    copies = (LARGE + SMALL) * 3 + 10**6 * 4
    assert made.needed("main memory", "predicting") == always + math.ceil(MARGIN * 10**8) + blended + copies
    assert made.needed("GPU") == made.needed("disk") == 0


def test_the_tier_below_where_the_one_above_is_too_small() -> None:
    without = plan(10 * GIB, 10 * GIB).needed("GPU") - TRAINING
    made = plan(10 * GIB, without + TRAINING - 1)
    assert made.storage.tier == "memory"
    assert made.needed("GPU") == without
    assert len(made.reasons) == 1 and "not on the GPU" in made.reasons[0]
    least = made.needed("main memory") - TRAINING
    made = plan(least + TRAINING - 1, without)
    assert made.storage.tier == "files"
    assert made.needed("disk") == TRAINING
    assert len(made.reasons) == 2 and "not in main memory" in made.reasons[1]
    assert made.parts == 1
    assert plan(least, without, disk=TRAINING).storage.tier == "files"


def test_a_batch_in_parts_where_the_step_alone_is_too_large() -> None:
    whole = plan(10 * GIB, 10 * GIB)
    fixed = whole.needed("GPU", "training") - STEP.training(8, 1) - TRAINING
    assert plan(10 * GIB, fixed + STEP.training(8, 1)).parts == 1
    for parts in (2, 4, 8):
        made = plan(10 * GIB, fixed + STEP.training(8, parts))
        assert made.parts == parts
        assert any(f"{8 // parts} at a time: otherwise the GPU would have to hold" in line for line in made.reasons)
    assert plan(10 * GIB, 10 * GIB, work=replace(WORK, parts=3)).parts == 3
    assert plan(10 * GIB, 10 * GIB, work=replace(WORK, parts=30)).parts == 8


def test_validation_by_smaller_tiles() -> None:
    work = replace(WORK, step=replace(STEP, predicted_voxel=2000.0))
    whole = plan(10 * GIB, 10 * GIB, work=work)
    made = plan(10 * GIB, whole.needed("GPU", "predicting") - TRAINING - 1, work=work)
    assert made.tile == (100, 100, 50)
    assert made.parts == 1
    assert any("a tile of 100×100×50 voxels: otherwise" in line for line in made.reasons)


@pytest.mark.parametrize(
    ("memory", "gpu", "work", "words"),
    [
        (
            10 * GIB,
            400 * MIB,
            WORK,
            ["the GPU", "0.43 of 0.39 GiB while training", "1 at a time", "train.patch", "gpu_memory_gb"],
        ),
        (300 * MIB, 10 * GIB, WORK, ["main memory", "of 0.29 GiB", "split.validate", "train.memory_gb"]),
        (400 * MIB, 0, WORK, ["main memory", "0.48 of 0.39 GiB while decoding", "train.memory_gb"]),
        (
            10 * GIB,
            GIB,
            replace(WORK, predicted=499),
            ["the GPU", "while predicting", "for blended tiles", "split.validate"],
        ),
    ],
)
def test_what_does_not_fit_at_all_is_refused(memory: int, gpu: int, work: Workload, words: list[str]) -> None:
    with pytest.raises(TomoscoutError) as refused:
        plan(memory, gpu, work=work)
    message = str(refused.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def refused_on(gpu: GpuMemory, *, needed: float = 8.0) -> TomoscoutError:
    """Why a training whose smallest step takes so many GiB of a GPU is refused there."""
    crop = round((needed * GIB - STEP.state - LIBRARIES) / MARGIN)
    work = replace(WORK, validation=[], batch_size=1, step=replace(STEP, crop=crop, waiting_crop=0))
    with pytest.raises(TomoscoutError) as refused:
        plan_memory(work, Limits(100 * GIB, gpu.limit, 10**12, gpu), GPU, FOLDER)
    return refused.value


def test_a_gpu_that_something_else_occupies_is_to_blame() -> None:
    error = refused_on(GpuMemory(free=4 * GIB, total=16 * GIB))
    assert type(error) is TomoscoutError
    assert str(error) == (
        "memory: the GPU would have to hold 8.00 of 4.00 GiB while training; of the 16.00 GiB of this GPU 4.00 are "
        "free and 0.00 this training's, another process may hold the rest; end it, use another GPU, or, where it "
        "stays, state in train.gpu_memory_gb what it leaves"
    )


def test_a_gpu_that_is_smaller_than_stated_is_to_blame() -> None:
    error = refused_on(GpuMemory(free=round(7.4 * GIB), total=8 * GIB, stated=16 * GIB))
    assert type(error) is TomoscoutError
    assert str(error) == (
        "memory: the GPU would have to hold 8.00 of 7.40 GiB while training; this GPU has 8.00 GiB in all, less than "
        "the 16.00 of train.gpu_memory_gb; use one that has them, or state what this one has"
    )


@pytest.mark.parametrize(
    "gpu",
    [
        # Empty and too small; occupied, but too small when empty, too; as much as is stated, and not enough.
        GpuMemory(free=round(7.4 * GIB), total=8 * GIB),
        GpuMemory(free=GIB, total=8 * GIB),
        GpuMemory(free=15 * GIB, total=16 * GIB, stated=8 * GIB),
        GpuMemory(free=GIB, total=16 * GIB, stated=8 * GIB),
    ],
)
def test_a_training_too_large_for_an_empty_gpu_is_to_blame(gpu: GpuMemory) -> None:
    error = refused_on(gpu)
    assert type(error) is TrainingFailed
    assert "hold 8.00 of 7.41 GiB while training, " in str(error)
    assert "make train.patch or the network smaller" in str(error)


def test_an_occupied_gpu_that_has_room_enough_is_used() -> None:
    gpu = GpuMemory(free=4 * GIB, total=16 * GIB, stated=16 * GIB)
    made = plan_memory(WORK, Limits(10 * GIB, gpu.limit, 10**12, gpu), GPU, FOLDER)
    assert made.storage.tier == "device"


def test_a_disk_without_room_for_the_files_is_refused() -> None:
    with pytest.raises(
        TomoscoutError, match=r"volumes: the disk would have to hold 0\.11 of 0\.08 GiB for 10 training"
    ):
        plan(plan(10 * GIB).needed("main memory") - 1, disk=TRAINING * 3 // 4)


def test_a_training_without_validation_tomograms() -> None:
    made = plan(10 * GIB, 10 * GIB, work=replace(WORK, validation=[]))
    assert made.needed("GPU", "predicting") < made.needed("GPU", "training")
    assert not any("0 validation" in line for line in made.lines())


def test_the_announcement_tells_what_where_how_much_and_why() -> None:
    lines = plan(10 * GIB, plan(10 * GIB, 10 * GIB).needed("GPU") - 1).lines()
    assert lines[0] == "memory at most, in GiB: GPU 1.25 of 1.36, main memory 0.54 of 10.00"
    assert "  main memory     0.11  10 training tomograms" in lines
    assert "  GPU             0.95  a step of 8 crops of 50×50×50 voxels (while training)" in lines
    assert lines[-1] == "  training tomograms are not on the GPU: the GPU would have to hold 1.36 of 1.36 GiB"
    names = [use.what for use in plan(10 * GIB, 10 * GIB).uses()]
    assert len(names) == len(set(names))


@given(
    st.integers(0, 3 * 2**31),
    st.integers(0, 2 * 2**31),
    st.integers(0, 2**28),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_a_plan_keeps_what_it_promises(
    memory: int, gpu: int, disk: int, batch_size: int, parts: int, validated: int
) -> None:
    work = replace(WORK, batch_size=batch_size, parts=parts, validation=[(100, 200, 200)] * validated)
    try:
        made = plan(memory, gpu, disk, work)
    except TomoscoutError:
        # Nor would any other: the least is every crop by itself, the smallest tiles, and everything else in files.
        least = plan(10**12, 10**12 if gpu else 0, 10**12, replace(work, parts=batch_size, tile=work.patch))
        files = replace(least, storage=replace(least.storage, tier="files"))
        assert files.overfull() or replace(files, limits=Limits(memory, gpu, disk)).overfull()
        return
    assert made.overfull() is None
    assert min(parts, batch_size) <= made.parts <= batch_size
    tiers = ["device", "memory", "files"] if gpu else ["memory", "files"]
    for tier in tiers[: tiers.index(made.storage.tier)]:
        assert replace(made, storage=replace(made.storage, tier=tier)).overfull()
    # More of everything is never worse.
    more = plan(memory + GIB, gpu + GIB if gpu else 0, disk + GIB, work)
    assert tiers.index(more.storage.tier) <= tiers.index(made.storage.tier)
    assert more.parts <= made.parts and more.tile >= made.tile
    assert all(more.needed(place) <= more.limits.of(place) for place in PLACES)


# A training on this machine.


def planned_here(tmp_path: Path, **options: object) -> MemoryPlan:
    train = Train(patch=[32, 32, 32], batch_size=4, **options)
    network = build_network(train.network, 4)
    task: Any = SimpleNamespace(
        training_shapes=[(40, 64, 64)] * 3,
        validation_shapes=[(40, 64, 64)],
        class_names=["a", "b", "c"],
        predicted=3,
        largest_label=3,
        readout=PROBABILITIES,
        prepared=False,
        volume="tomogram",
        validation_option="split.validate",
        channels=1,
        tile=(160, 160, 160),
        labelled=False,
        one_by_one=False,
        decoding_memory=32,
        example_targets=label_targets,
    )
    return plan_training(network, loss(), task, train, CPU, tmp_path / "not" / "there" / "volumes")


def test_a_small_training_fits_into_main_memory(tmp_path: Path) -> None:
    made = planned_here(tmp_path, accumulation=2)
    assert (made.storage.tier, made.parts, made.tile) == ("memory", 2, (160, 160, 160))
    # Tiles of a small tomogram are no larger than the tomogram.
    assert made.needed("main memory", "predicting") < 500 * MIB


def test_the_memory_that_is_asked_for_decides(tmp_path: Path) -> None:
    enough = planned_here(tmp_path).needed("main memory")
    made = planned_here(tmp_path, memory_gb=(own_memory() + 2 * enough) / GIB)
    assert made.limits.memory == pytest.approx(2 * enough, abs=100 * MIB)
    with pytest.raises(TomoscoutError, match=r"train\.memory_gb"):
        planned_here(tmp_path, memory_gb=0.001)


def test_files_that_lie_there_count_as_room(tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    with (tmp_path / "volumes" / "a.npy").open("wb") as sparse:
        sparse.truncate(2**42)
    held = Limits.here(Train(), CPU, tmp_path / "volumes").disk
    assert held - Limits.here(Train(), CPU, tmp_path / "other").disk == pytest.approx(2**42, rel=0.01)


MEASURE = """
import copy, sys, torch
from pathlib import Path
from tomoscout.machine.device import own_memory
from tomoscout.learning.losses.combined import build_loss
from tomoscout.learning.memory_needs import LIBRARIES
from tomoscout.learning.step_memory import step_memory, label_targets
from tomoscout.networks import build_network, parse_network
from tomoscout.learning.losses.cross_entropy import CrossEntropy

torch.set_num_threads(1)
patch = (64, 64, 64)
network = build_network(parse_network({"family": sys.argv[1]}), 6)
criterion = build_loss([CrossEntropy()], torch.ones(6), torch.ones(6), 255)
step = step_memory(network, criterion, patch, (1, 1, 1), torch.float32)
planned = step.state + step.training(4, 2) + LIBRARIES
before = own_memory()
Path("/proc/self/clear_refs").write_text("5")
averaged = copy.deepcopy(network)
optimiser = torch.optim.AdamW(network.parameters())
inputs, labels = torch.randn(4, 1, *patch), torch.randint(0, 6, (4, *patch))
for part in (slice(2), slice(2, 4)):
    (criterion(network(inputs[part]), labels[part]) / 2).backward()
optimiser.step()
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(planned / (int(status["VmHWM"].split()[0]) * 1024 - before))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from Linux")
@pytest.mark.parametrize("family", ["UNet"])
def test_a_step_stays_within_the_plan(family: str) -> None:
    """Of a process of its own, as the system counts it; and the plan does not ask for much more than is taken."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, family], capture_output=True, text=True, check=True, env=environment
    )
    assert 1 < float(result.stdout) < 2.5


def test_what_the_process_holds_counts_as_a_part_of_the_memory_that_is_stated() -> None:
    work = replace(WORK, training=[(64, 64, 64)], validation=[])
    limits = Limits(0, 0, 10**12, process=GIB // 2, stated_memory=round(0.3 * GIB))
    with pytest.raises(TomoscoutError, match=r"would have to hold 0\.\d\d of 0\.30 GiB, 0\.50 of it for Python"):
        plan_memory(work, limits, CPU, FOLDER)
