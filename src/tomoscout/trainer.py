"""The training loop. It knows nothing of cryo-ET: a network, a source of batches, a loss, a validation, a schedule."""

from __future__ import annotations

import copy
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from tomoscout.checkpoint import Checkpoint
from tomoscout.config import Train
from tomoscout.errors import TomoscoutError
from tomoscout.progress import Progress

EXIT_INTERRUPTED = 75
"""Exit code of a training that was told to stop and can go on from its checkpoint (EX_TEMPFAIL of sysexits.h)."""


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
    """Where a training is, apart from weights and optimiser: plain data, so a checkpoint can hold it."""

    step: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_step: int = -1
    best_score: float = -math.inf
    best_details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The best weights and how they came about."""

    weights: dict[str, torch.Tensor]
    progression: Progression


class Batches(Protocol):
    """The batch of a step, decided by the step alone: inputs (batch, channels, *space) and targets."""

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]: ...


def learning_rate(options: Train, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak (Loshchilov & Hutter, SGDR, 2017)."""
    warmup = max(1, round(options.warmup * options.steps))
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, options.steps - warmup)
    return options.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def fit(
    network: nn.Module,
    batches: Batches,
    loss: nn.Module,
    validate: Callable[[nn.Module], Validation],
    options: Train,
    checkpoint: Checkpoint,
    device: torch.device,
) -> Outcome:
    """Train, validating the averaged weights as it goes, and return the best of them.

    Taken up from the checkpoint where there is one; the result does not depend on how often it was interrupted.

    Raises:
        Interrupted: SIGTERM, SIGUSR1 or SIGINT arrived; the step was finished and the checkpoint written.
        TomoscoutError: the loss is no longer finite.
    """
    state = _State(network.to(device), options, device)
    state.restore(checkpoint.load())
    progress = Progress(options.steps, state.progression.step)
    if state.progression.step:
        progress.note(f"resumed at step {state.progression.step} of {options.steps}")
    with _stop_requested() as stop:
        while (step := state.progression.step) < options.steps:
            inputs, targets = batches(step)
            value = state.update(inputs, targets, loss)
            progress.show(step + 1, _line(state.progression, options, value))
            if state.progression.step % options.validate_every == 0 or state.progression.step == options.steps:
                result = validate(state.averaged)
                state.record(result)
                better = "  best so far" if state.progression.best_step == state.progression.step else ""
                progress.show(step + 1, _line(state.progression, options, value) + better, now=True)
            if stop.is_set() or checkpoint.is_due():
                checkpoint.save(state.to_dict())
            if stop.is_set():
                raise Interrupted
    # A training asked for again with the same settings and data is complete at once.
    checkpoint.save(state.to_dict())
    return Outcome(state.best_weights, state.progression)


def _line(progression: Progression, options: Train, value: float) -> str:
    score = f"{progression.best_score:.4f}" if progression.best_step >= 0 else "–"
    return f"step {progression.step}/{options.steps}  loss {value:.4f}  best score {score}"


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
    """Network, averaged network, optimiser and progression: all that a checkpoint holds.

    Random numbers need no state: every draw is seeded by (seed, step).
    """

    def __init__(self, network: nn.Module, options: Train, device: torch.device) -> None:
        self.network = network
        self.options = options
        self.device = device
        self.averaged = _copy_of(network)
        self.optimiser = torch.optim.AdamW(
            network.parameters(),
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
            fused=device.type == "cuda",
        )
        self.progression = Progression()
        self.best_weights: dict[str, torch.Tensor] = {}

    def update(self, inputs: torch.Tensor, targets: torch.Tensor, loss: nn.Module) -> float:
        """One optimiser step; returns the loss."""
        step = self.progression.step
        torch.manual_seed(self.options.seed * 1_000_003 + step)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.options, step)
        self.network.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            outputs = self.network(inputs)
        value = loss(outputs, targets)
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.options.gradient_clip)
        number = float(value.detach())
        if not math.isfinite(number):
            raise TomoscoutError(f"training: the loss became {number} at step {step}; lower train.learning_rate")
        self.optimiser.step()
        self._average(step)
        self.progression.step += 1
        self.progression.loss_sum += number
        self.progression.loss_steps += 1
        if self.progression.step % max(1, self.options.validate_every // 10) == 0:
            self._log()
        return number

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Exponential moving average of the weights; the decay rises with the step, so that the start is forgotten."""
        decay = min(self.options.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), 1 - decay)
        for averaged, current in zip(self.averaged.buffers(), self.network.buffers(), strict=True):
            averaged.copy_(current)

    def _log(self) -> None:
        progression = self.progression
        progression.history.append(
            {
                "step": progression.step,
                "loss": progression.loss_sum / progression.loss_steps,
                "learning_rate": learning_rate(self.options, progression.step - 1),
            }
        )
        progression.loss_sum, progression.loss_steps = 0.0, 0

    def record(self, result: Validation) -> None:
        """Note a validation and keep the weights if they are the best so far."""
        progression = self.progression
        if progression.loss_steps:
            self._log()
        progression.history[-1] |= {"score": result.score, **result.scores}
        if result.score > progression.best_score:
            progression.best_score, progression.best_step = result.score, progression.step
            progression.best_details = result.details
            self.best_weights = {
                name: value.detach().cpu().clone() for name, value in self.averaged.state_dict().items()
            }

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data and tensors."""
        return {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "progression": vars(self.progression),
            "best_weights": self.best_weights,
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to a saved state."""
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.progression = Progression(**state["progression"])
        self.best_weights = state["best_weights"]


def _copy_of(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).requires_grad_(False).eval()
