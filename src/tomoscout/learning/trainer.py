"""The training loop. It knows nothing of cryo-ET: a network, a source of batches, a loss, a validation, a schedule."""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from tomoscout.learning.checkpoint import Checkpoint
from tomoscout.learning.options import Train
from tomoscout.learning.precision import autocast, chosen_precision
from tomoscout.learning.schedule import learning_rate, obstacle_to_going_on, validations_without_progress
from tomoscout.machine.device import GIB, GpuMemory, is_out_of_memory
from tomoscout.machine.errors import TomoscoutError, TrainingFailed
from tomoscout.machine.progress import Progress

EXIT_INTERRUPTED = 75
"""Exit code of a training that was told to stop and can go on from its checkpoint (EX_TEMPFAIL of sysexits.h)."""


COLUMNS = ("step", "loss", "learning_rate", "score")
"""Columns of the history; all others are scores by name."""


class Interrupted(Exception):
    """The training was told to stop; its checkpoint is written."""


@dataclass(frozen=True)
class Validation:
    """What a validation found: the score that chooses the best weights, the scores by name for the history, and
    whatever the caller wants kept with the best weights (plain data)."""

    score: float
    scores: dict[str, float]
    details: dict[str, Any]


@dataclass
class Progression:
    """Where a training is, apart from weights and optimiser: plain data, so a checkpoint can hold it.

    `parts`: parts in which a batch is worked through. `history`: rows of loss, learning rate and, where a validation
    took place, scores. `base_score`: that of the weights a fine-tuning began with."""

    step: int = 0
    parts: int = 1
    loss_sum: float = 0.0
    loss_steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_step: int = -1
    best_score: float = -math.inf
    best_details: dict[str, Any] = field(default_factory=dict)
    base_score: float | None = None

    @property
    def validations(self) -> list[float]:
        """The scores so far, in order, without that of the base."""
        return [row["score"] for row in self.history if "score" in row and row["step"]]

    @property
    def latest(self) -> dict[str, float]:
        """The row of the last validation, or nothing."""
        return next((row for row in reversed(self.history) if "score" in row), {})

    @property
    def is_validated(self) -> bool:
        """Whether the weights of this step were validated."""
        return self.latest.get("step") == self.step


@dataclass(frozen=True)
class Speed:
    """What this process did: steps, the seconds spent on them, and the seconds spent on validations."""

    steps: int
    seconds: float
    validation_seconds: float


@dataclass(frozen=True)
class Outcome:
    """The best weights and how they came about. `finished_early`: the training was ended before its last step."""

    weights: dict[str, torch.Tensor]
    progression: Progression
    speed: Speed
    finished_early: bool = False


class Batches(Protocol):
    """The batch of a step, decided by the step and the scores of the last validation alone: inputs (batch, channels,
    *space) and the loss's targets, each with the batch as its first axis."""

    def __call__(self, step: int, scores: Mapping[str, float]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]: ...


def fit(
    network: nn.Module,
    batches: Batches,
    loss: nn.Module,
    validate: Callable[[nn.Module], Validation],
    options: Train,
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    validate_every: int,
    parts: int = 1,
    base: Callable[[nn.Module], Validation] | None = None,
    keep_base: bool = False,
    frozen: Callable[[int], frozenset[str]] = lambda step: frozenset(),
    report: Callable[[Progression, Speed], None] = lambda progression, speed: None,
    keep_best: Callable[[Outcome], None] = lambda outcome: None,
    finish: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train, validating the averaged weights as it goes, and return the best of them.

    Taken up from the checkpoint where there is one; the result does not depend on how often it was interrupted.

    Args:
        loss: called with the network's outputs and the targets of a batch.
        validate_every: steps between validations.
        parts: parts in which a batch is worked through; more where the device runs out of memory.
        base: validates the weights that the network starts with, before the first step.
        keep_base: whether these are the outcome unless others score better.
        frozen: names of the parameters that are kept as they are at a step.
        report: called after every validation, with how fast it went so far.
        keep_best: called with the best so far: where a training begins or is taken up (without weights where nothing
            was validated yet), and after every validation that was better.
        finish: asked after every step whether to end the training now, with the best so far.

    Raises:
        Interrupted: SIGTERM, SIGUSR1 or SIGINT arrived; the step was finished and the checkpoint written.
        TrainingFailed: loss or weights are no longer finite, or not even one crop fits into the GPU's memory.
        TomoscoutError: not even one crop fits into main memory, or into a GPU that is smaller than stated or that
            something else occupies.
    """
    state = _State(network.to(device), options, device, parts, frozen)
    state.restore(checkpoint.load(state.obstacle_to_going_on))
    if not (state.progression.step == options.steps or finish()):
        state.take_back_validation()
    progression = state.progression
    progress = Progress(options.steps, progression.step)
    if progression.step:
        progress.note(f"resumed at step {progression.step} of {options.steps}")
    if options.compile:
        state.network.compile()
    first, started, validating = progression.step, time.monotonic(), 0.0

    def is_over() -> bool:
        return _is_complete(progression, options) or (progression.step > 0 and finish())

    def speed() -> Speed:
        return Speed(progression.step - first, time.monotonic() - started - validating, validating)

    def measure(validation: Callable[[nn.Module], Validation], *, keep: bool, scheduled: bool = True) -> None:
        nonlocal validating
        state.check_finite()
        if not scheduled:
            state.set_aside()
        begun = time.monotonic()
        result = validation(state.averaged)
        validating += time.monotonic() - begun
        state.record(result, keep=keep)
        progress.note(_validation_line(progression, options))
        report(progression, speed())
        if progression.best_step == progression.step:
            keep_best(Outcome(state.best_weights, progression, speed()))

    try:
        with _stop_requested() as stop:
            if not is_over():
                keep_best(Outcome(state.best_weights, progression, speed()))
            if base is not None and progression.base_score is None:
                measure(base, keep=keep_base)
            while not is_over():
                inputs, targets = batches(progression.step, progression.latest)
                state.update(inputs, targets, loss, progress)
                progress.show(progression.step, _line(progression, options))
                scheduled = progression.step % validate_every == 0
                if scheduled or progression.step == options.steps:
                    measure(validate, keep=True, scheduled=scheduled)
                # Asked once: a signal that comes in between waits for the next step.
                stopped = stop.is_set()
                if stopped or checkpoint.is_due():
                    checkpoint.save(state.to_dict())
                if stopped:
                    raise Interrupted
            if not _is_complete(progression, options):
                progress.note(f"finished early, at step {progression.step} of {options.steps}, as asked for")
            if not progression.is_validated:
                # Killed while it validates, the training ends at the same step.
                checkpoint.save(state.to_dict())
                measure(validate, keep=True, scheduled=False)
    except TrainingFailed as error:
        error.validations = progression.validations
        raise
    # A training asked for again with the same settings and data is complete at once.
    checkpoint.save(state.to_dict())
    checkpoint.remove_previous()
    return Outcome(state.best_weights, progression, speed(), not _is_complete(progression, options))


def too_large(crop: Sequence[int], gpu: GpuMemory | None) -> TomoscoutError:
    """What ends a training whose single crop (voxels) finds no memory on the GPU, or without one in main memory."""
    size = f"{'×'.join(map(str, crop))} voxels"
    # What it holds is the least that it needs.
    fault = gpu and gpu.fault(gpu.own)
    if gpu and fault:
        return TomoscoutError(
            f"training: one crop of {size} needs more than the {gpu.own / GIB:.2f} GiB that could be had; {fault}"
        )
    # Of main memory another machine, or another attempt, may have more.
    kind = TrainingFailed if gpu else TomoscoutError
    return kind(
        f"training: not enough memory on {'cuda' if gpu else 'cpu'} for one crop of {size}; "
        "make train.patch or the network smaller"
    )


def _is_complete(progression: Progression, options: Train) -> bool:
    patience = options.early_stopping
    return progression.step >= options.steps or bool(
        patience and validations_without_progress(progression.validations) >= patience
    )


def _line(progression: Progression, options: Train) -> str:
    loss = f"  loss {progression.history[-1]['loss']:.4f}" if "loss" in (progression.history or [{}])[-1] else ""
    score = f"{progression.best_score:.4f}" if progression.best_step >= 0 else "–"
    return f"step {progression.step}/{options.steps}{loss}  best score {score}"


def _validation_line(progression: Progression, options: Train) -> str:
    """What the last validation found: score, score of each class, and the best so far and when it was."""
    row = progression.latest
    by_name = ", ".join(f"{name} {score:.3f}" for name, score in row.items() if name not in COLUMNS)
    loss = f", loss {row['loss']:.4f}" if "loss" in row else ""
    what = f"step {progression.step} of {options.steps}{loss}" if progression.step else "the base"
    best = ""
    if progression.best_step == progression.step:
        best = "; the best so far"
    elif progression.best_step >= 0:
        best = f"; best so far {progression.best_score:.4f} at step {progression.best_step}"
    return f"{what}: score {row['score']:.4f}{by_name and f' ({by_name})'}{best}"


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event set by SIGTERM or SIGUSR1, which schedulers send ahead of the end, or by Ctrl-C."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    earlier = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


class _State:
    """Network, averaged network, optimiser, scaler and progression: all that a checkpoint holds.

    Random numbers need no state: every draw is seeded by (seed, step).
    """

    def __init__(
        self,
        network: nn.Module,
        options: Train,
        device: torch.device,
        parts: int,
        frozen: Callable[[int], frozenset[str]],
    ) -> None:
        self.network = network
        self.options = options
        self.device = device
        self.frozen = frozen
        self.precision = chosen_precision(options.precision, device)
        self.trained = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
        self.averaged = _copy_of(network)
        self.optimiser = torch.optim.AdamW(
            network.parameters(),
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
            fused=device.type == "cuda",
        )
        # Half precision alone has so little range that small gradients vanish unless the loss is scaled up.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        self.progression = Progression(parts=parts)
        # On the device: reading the loss of every step would make the processor wait for the GPU.
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.best_weights: dict[str, torch.Tensor] = {}
        self._before_validation: dict[str, Any] | None = None

    def update(
        self, inputs: torch.Tensor, targets: tuple[torch.Tensor, ...], loss: nn.Module, progress: Progress
    ) -> None:
        """One optimiser step."""
        step = self.progression.step
        rate = learning_rate(self.options, step, self.progression.validations)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        frozen = self.frozen(step)
        for name, parameter in self.trained:
            parameter.requires_grad_(name not in frozen)
        self.network.train()
        if frozen:
            _freeze_statistics(self.network, frozen)
        value = self._gradients(inputs, targets, loss, progress)
        if self.options.gradient_clip:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.options.gradient_clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._average(step)
        self._loss_sum += value
        self.progression.step += 1
        self.progression.loss_steps += 1
        if self.progression.step % self._log_every == 0:
            self._log()

    @property
    def _log_every(self) -> int:
        return max(1, self.options.steps // 200)

    def _gradients(
        self, inputs: torch.Tensor, targets: tuple[torch.Tensor, ...], loss: nn.Module, progress: Progress
    ) -> torch.Tensor:
        """Gradients of a batch, in as many parts as memory asks for; returns its loss."""
        while True:
            try:
                torch.manual_seed(self.options.seed * 1_000_003 + self.progression.step)
                return self._accumulate(inputs, targets, loss)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the handler, which keeps the tensors of the failed step alive.
            if self.progression.parts >= len(inputs):
                on_gpu = self.device.type == "cuda"
                gpu = GpuMemory.of(self.device, self.options.gpu_memory_gb) if on_gpu else None
                raise too_large(inputs.shape[2:], gpu)
            self.progression.parts = min(2 * self.progression.parts, len(inputs))
            self.optimiser.zero_grad(set_to_none=True)
            # A failed attempt may have moved the running means of a batch norm; the averaged network has the old ones.
            self._copy_buffers(self.averaged, self.network)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            progress.note(
                f"out of memory at step {self.progression.step}: batches of {len(inputs)} crops are worked through "
                f"{math.ceil(len(inputs) / self.progression.parts)} at a time from here on"
            )

    def _accumulate(self, inputs: torch.Tensor, targets: tuple[torch.Tensor, ...], loss: nn.Module) -> torch.Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        size = math.ceil(len(inputs) / self.progression.parts)
        for start in range(0, len(inputs), size):
            part = slice(start, start + size)
            with autocast(self.device, self.precision):
                outputs = self.network(inputs[part])
            value = loss(outputs, *(target[part] for target in targets)) * (len(inputs[part]) / len(inputs))
            self.scaler.scale(value).backward()
            total += value.detach()
        return total

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Exponential moving average of the weights; the decay rises with the step, so that the start is forgotten."""
        decay = min(self.options.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), 1 - decay)
        self._copy_buffers(self.network, self.averaged)

    @staticmethod
    def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
        for value, copied in zip(source.buffers(), target.buffers(), strict=True):
            copied.copy_(value)

    def check_finite(self) -> None:
        """Refuse to go on with weights that are lost.

        Raises:
            TrainingFailed: the loss is no longer finite, or its gradient was not.
        """
        weights = [value for value in self.averaged.state_dict().values() if value.is_floating_point()]
        norm = torch.stack(torch._foreach_norm(weights)).sum()
        for name, value in (("loss", float(self._loss_sum)), ("norm of the weights", float(norm))):
            if not math.isfinite(value):
                raise TrainingFailed(
                    f"training: the {name} became {value} before step {self.progression.step}; "
                    "lower train.learning_rate"
                )

    def _log(self) -> None:
        self.check_finite()
        progression = self.progression
        progression.history.append(
            {
                "step": progression.step,
                "loss": float(self._loss_sum) / progression.loss_steps,
                "learning_rate": self.optimiser.param_groups[0]["lr"],
            }
        )
        self._loss_sum.zero_()
        progression.loss_steps = 0

    def record(self, result: Validation, *, keep: bool) -> None:
        """Note a validation and, where they may be kept and are the best so far, its weights."""
        progression = self.progression
        if progression.loss_steps:
            self._log()
        if progression.step == 0:
            progression.base_score = result.score
            progression.history.append({"step": 0})
        progression.history[-1] |= {"score": result.score, **result.scores}
        if keep and result.score > progression.best_score:
            progression.best_score, progression.best_step = result.score, progression.step
            progression.best_details = result.details
            self.best_weights = {
                name: value.detach().cpu().clone() for name, value in self.averaged.state_dict().items()
            }

    def set_aside(self) -> None:
        """Remember what a validation off the interval will change: a longer training would not have had it."""
        self.progression.loss_sum = float(self._loss_sum)
        self._before_validation = {
            "progression": copy.deepcopy(vars(self.progression)),
            "best_weights": self.best_weights,
        }

    def take_back_validation(self) -> None:
        """Undo a validation off the interval, where the training goes on after all."""
        if self._before_validation:
            self._restore_progression(self._before_validation)
            self._before_validation = None

    def obstacle_to_going_on(self, state: Mapping[str, Any]) -> str | None:
        """Why the training of a saved state, of another length than this one, cannot be gone on from, if it cannot."""
        before = self.options.model_copy(update=state["length"])
        return obstacle_to_going_on(before, self.options, state["progression"]["step"])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data and tensors."""
        self.check_finite()
        self.progression.loss_sum = float(self._loss_sum)
        return {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progression": vars(self.progression),
            "best_weights": self.best_weights,
            "before_validation": self._before_validation,
            "length": self.options.model_dump(include={"steps", "warmup"}),
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to a saved state."""
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        if state["scaler"]:  # nothing in it where the precision needed no scaling
            self.scaler.load_state_dict(state["scaler"])
        self._restore_progression(state)
        # Of a checkpoint that an earlier version wrote there is none.
        self._before_validation = state.get("before_validation")

    def _restore_progression(self, state: Mapping[str, Any]) -> None:
        self.progression = Progression(**state["progression"])
        self._loss_sum.fill_(self.progression.loss_sum)
        self.best_weights = state["best_weights"]


def _freeze_statistics(network: nn.Module, frozen: frozenset[str]) -> None:
    """Let a batch norm whose parameters are frozen keep its running means, too."""
    for name, module in network.named_modules():
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)}
        if own and own <= frozen:
            module.eval()


def _copy_of(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).requires_grad_(False).eval()
