"""What the benchmarks on a GPU are made of: a report, a stopwatch, made-up tomograms, and trainings cut short."""

from __future__ import annotations

import io
import itertools
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import spread
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tomoscout.learning.augmentations import Augmentation
from tomoscout.learning.augmentations.batch import augment
from tomoscout.learning.checkpoint import Checkpoint
from tomoscout.learning.losses.combined import build_loss
from tomoscout.learning.losses.cross_entropy import CrossEntropy
from tomoscout.learning.precision import autocast, chosen_precision
from tomoscout.learning.progression import Validation
from tomoscout.learning.sampling import Centres, CropSampler, cut, largest_jitter
from tomoscout.learning.step_memory import step_memory
from tomoscout.learning.trainer import Interrupted, fit
from tomoscout.learning.volumes import LabelledVolume
from tomoscout.networks.options import NetworkOptions
from tomoscout.tasks.picking.options import Train

OUTPUTS, OBJECTS = 7, 100
"""Channels of the networks, and objects of each class in a tomogram."""

RADII = (5.0, 5.0, 7.0, 12.0, 10.0, 11.0)
"""Voxels: nearly the target spheres of the CZII challenge's objects."""

IGNORE = 255

Batch = tuple[torch.Tensor, tuple[torch.Tensor, ...]]
Draw = Callable[[int], Batch]


@dataclass(frozen=True)
class Size:
    """How large a benchmark is. `seconds`: spent on one figure."""

    volumes: int
    shape: tuple[int, int, int]
    patches: tuple[int, ...]
    batch: int
    seconds: float
    workers: int


class Report:
    """Tables that are printed, and written, row by row, until time is up."""

    def __init__(self, output: Path | None, minutes: float) -> None:
        self._file = output.open("w") if output else None
        self._end = time.monotonic() + 60 * minutes

    def line(self, text: str = "") -> None:
        """A line."""
        print(text, flush=True)
        if self._file:
            print(text, file=self._file, flush=True)

    def table(self, title: str, columns: Sequence[str]) -> None:
        """Begin a table."""
        self.line(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")

    def row(self, what: Sequence[object], measure: Callable[[], Sequence[object]], *, takes: float = 0.0) -> None:
        """A row: what is measured, and what is found or why it could not be. `takes`: seconds that must be left."""
        try:
            if self._end - time.monotonic() <= takes:
                raise TimeoutError("no time left")
            found = measure()
        except Interrupted:
            sys.exit("stopped")
        except Exception as error:
            message = " ".join(str(error).split())[:150].replace("|", "/")
            found = [f"failed: {type(error).__name__}: {message}"]
        self.line(f"| {' | '.join(map(str, [*what, *found]))} |")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Enough(Exception):
    """Measured for long enough."""


class Stopwatch:
    """Seconds per step of work that a device queues up: waits for the device, and looks at the clock, a few times."""

    def __init__(self, device: torch.device, seconds: float, warm_up: int = 0) -> None:
        """`warm_up`: steps before the clock starts, on top of those in which cuDNN tries its algorithms."""
        warm_up += 3 if device.type == "cuda" else 1
        self.device = device
        self.seconds = seconds
        self.each: list[float] = []
        self._warm_up = self._next = self._last = warm_up
        self._started = self._looked = 0.0

    def look(self, step: int) -> None:
        """To be called before every step, from 0 on; raises _Enough."""
        if step < self._next:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if step == self._warm_up:
            self._started = now
            self._next += 1
        else:
            per_step, over = (now - self._looked) / (step - self._last), now - self._started >= self.seconds
            # The first step alone only says how many of them make a quarter of the time.
            if step > self._warm_up + 1 or over:
                self.each.append(per_step)
            if over:
                raise _Enough
            self._next += max(1, round(self.seconds / 4 / per_step))
        self._looked, self._last = now, step


def per_call(work: Callable[[int], object], device: torch.device, seconds: float, warm_up: int = 0) -> list[float]:
    """Seconds of a call, found a few times."""
    watch = Stopwatch(device, seconds, warm_up)
    with suppress(_Enough):
        for step in itertools.count():
            watch.look(step)
            work(step)
    return watch.each


def rates(amount: float, each: Sequence[float], digits: int = 0) -> str:
    """So much per second."""
    return spread((amount / seconds for seconds in each), digits)


def milliseconds(each: Sequence[float], digits: int = 1) -> str:
    """Of seconds."""
    return spread((1000 * seconds for seconds in each), digits)


def peak_memory(device: torch.device) -> str:
    """GiB of the device that were taken at most since `torch.cuda.reset_peak_memory_stats`."""
    return f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if device.type == "cuda" else "–"


def place(device: torch.device) -> str:
    """The memory of a device, in words."""
    return "GPU memory" if device.type == "cuda" else "main memory"


class Phantoms:
    """Noise with labelled spheres, as a training holds it."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size = size
        random = np.random.default_rng(0)
        extents = (size.volumes, *size.shape)
        count = OBJECTS * size.volumes
        self.places = [np.stack([random.integers(n, size=count) for n in extents], axis=1) for _ in RADII]
        labels = np.zeros(extents, dtype=np.uint8)
        for label, (radius, places) in enumerate(zip(RADII, self.places, strict=True), 1):
            for volume, *centre in places.tolist():
                _stamp(labels[volume], centre, radius, label)
        torch.manual_seed(0)
        self.volumes = [
            LabelledVolume(
                f"{number}",
                torch.randn((1, *size.shape), device=device).half(),
                torch.from_numpy(labels[number]).to(device),
                IGNORE,
            )
            for number in range(size.volumes)
        ]

    def in_main_memory(self) -> list[LabelledVolume]:
        """The volumes there."""
        return [LabelledVolume(v.name, v.intensities.cpu(), v.labels.cpu(), v.ignore) for v in self.volumes]

    def draw(
        self,
        patch: int,
        device: torch.device,
        *,
        batch: int | None = None,
        volumes: Sequence[LabelledVolume] | None = None,
        options: Augmentation | None = None,
    ) -> Draw:
        """The batch of a step, as the training stage draws it; with default options unless others are given."""
        options = options or Augmentation()
        sampler = CropSampler(
            [self.size.shape] * self.size.volumes,
            [Centres(places, largest_jitter([patch] * 3, r)) for r, places in zip(RADII, self.places, strict=True)],
            [patch] * 3,
            shares=[1.0] * len(RADII),
            batch_size=batch or self.size.batch,
            background_fraction=Train().background_fraction,
            seed=0,
        )
        held = volumes or self.volumes
        return lambda step: augment(*cut(held, sampler.crops(step), [patch] * 3, device), options, 0, step)

    def probabilities(self, label: int) -> NDArray[np.uint8]:
        """What a fair network might say of a class in the first volume (z, y, x): its spheres, under noise."""
        noise = np.abs(np.random.default_rng(label).normal(0, 4, self.size.shape))
        return (noise + 200.0 * (self.volumes[0].labels.cpu().numpy() == label)).astype(np.uint8)

    def given(self, patch: int, device: torch.device, batch: int | None = None) -> Draw:
        """Four batches, drawn before, in turn."""
        draw = self.draw(patch, device, batch=batch)
        drawn = [draw(step) for step in range(4)]
        return lambda step: drawn[step % len(drawn)]


def _stamp(labels: NDArray[np.uint8], centre: Sequence[int], radius: float, label: int) -> None:
    reach = math.ceil(radius)
    window = tuple(slice(max(0, c - reach), min(c + reach + 1, n)) for c, n in zip(centre, labels.shape, strict=True))
    axes = [(np.arange(part.start, part.stop) - c) ** 2 for part, c in zip(window, centre, strict=True)]
    distances = axes[0][:, None, None] + axes[1][:, None] + axes[2]
    labels[window][distances <= radius**2] = label


class NoCheckpoint(Checkpoint):
    """Nothing is kept."""

    def __init__(self) -> None:
        super().__init__(Path("none.pt"), "", math.inf)

    def load(self, *_: object) -> None:
        """Nothing."""

    def save(self, state: dict[str, Any]) -> None:
        """Nothing."""


def cross_entropy() -> nn.Module:
    """The loss."""
    return build_loss([CrossEntropy()], torch.ones(OUTPUTS), torch.ones(OUTPUTS), IGNORE)


def planned(network: nn.Module, options: NetworkOptions, patch: int, batch: int, device: torch.device) -> str:
    """GiB that the device would hold in a step by the memory plan, with what it holds already; the network is on the
    CPU."""
    held = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    kind = chosen_precision("auto", device)
    step = step_memory(network, cross_entropy(), [patch] * 3, options.smallest_size(), kind)
    return f"{(held + step.state + step.training(batch, 1)) / 2**30:.2f}"


def train(
    network: nn.Module, draw: Draw, device: torch.device, seconds: float, warm_up: int = 0, /, **options: Any
) -> tuple[list[float], str]:
    """Seconds per step of the real loop, and a remark where memory was short."""
    watch = Stopwatch(device, seconds, warm_up)

    def batches(step: int, *_: object) -> Batch:
        watch.look(step)
        return draw(step)

    loss = cross_entropy().to(device)
    settings = Train(steps=10**6, **options)
    nothing = Validation(0.0, {}, {})
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(_Enough), redirect_stderr(io.StringIO()) as said:
        fit(network, batches, loss, lambda _: nothing, settings, NoCheckpoint(), device, validate_every=10**6)
    at_once = re.findall(r"worked through (\d+) at a time", said.getvalue())
    return watch.each, f", {at_once[-1]} at a time for want of memory" if at_once else ""


def step_tflop(network: nn.Module, inputs: torch.Tensor, device: torch.device) -> float:
    """TFLOP of a step, forward and backward: counted for one crop, times the batch."""
    network = network.to(device).train()
    with FlopCounterMode(display=False) as counter:
        with autocast(device, chosen_precision("auto", device)):
            outputs = network(inputs[:1])
        levels = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        torch.stack([level.float().mean() for level in levels]).sum().backward()
    network.zero_grad(set_to_none=True)
    return len(inputs) * counter.get_total_flops() / 1e12


def fitting(options: NetworkOptions, patch: int) -> int:
    """The patch, or the next larger one that the network takes."""
    step, least = max(options.size_step()), max(options.smallest_size())
    return math.ceil(max(patch, least) / step) * step
