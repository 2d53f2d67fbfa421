"""The training loop. It is independent of cryo-ET: it takes a network, a source of batches, a loss, a validation and a
schedule."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from tomoscout.learning.checkpoint import Checkpoint
from tomoscout.learning.options import Optimisation
from tomoscout.learning.progression import (
    Outcome,
    Progression,
    Speed,
    Validation,
    is_complete,
    progress_line,
    validation_line,
)
from tomoscout.learning.state import TrainingState
from tomoscout.machine.errors import TrainingFailed
from tomoscout.machine.progress import Progress

EXIT_INTERRUPTED = 75
"""Exit code of a training that a signal stopped and that can resume from its checkpoint (EX_TEMPFAIL of sysexits.h)."""


class Interrupted(Exception):
    """A signal stopped the training; its checkpoint is written."""


class Batches(Protocol):
    """A source of batches. The batch of a step depends only on the step and the scores of the last validation: inputs
    (batch, channels, *space) and the targets of the loss, each with the batch as its first axis."""

    def __call__(self, step: int, scores: Mapping[str, float]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]: ...


def fit(
    network: nn.Module,
    batches: Batches,
    loss: nn.Module,
    validate: Callable[[nn.Module], Validation],
    options: Optimisation,
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    validate_every: int,
    parts: int = 1,
    gpu_memory_gb: float | None = None,
    base: Callable[[nn.Module], Validation] | None = None,
    keep_base: bool = False,
    frozen: Callable[[int], frozenset[str]] = lambda step: frozenset(),
    report: Callable[[Progression, Speed], None] = lambda progression, speed: None,
    keep_best: Callable[[Outcome], None] = lambda outcome: None,
    finish: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train a network, validate the averaged weights at intervals, and return the best of them.

    The training resumes from the checkpoint if there is one. The result does not depend on how often it was
    interrupted.

    Args:
        loss: called with the network's outputs and the targets of a batch.
        validate_every: steps between validations.
        parts: number of parts of a batch (gradient accumulation); increased if the device runs out of memory.
        gpu_memory_gb: GPU memory in GiB that the training may take, if stated.
        base: validates the weights that the network starts with, before the first step.
        keep_base: whether these weights are the outcome unless others score better.
        frozen: names of the parameters that are frozen at a step.
        report: called after every validation, with the speed so far.
        keep_best: called with the best so far: at the start and after a resume (without weights if nothing was
            validated yet), and after every better validation.
        finish: called after every step; returns whether to end the training now, with the best so far.

    Raises:
        Interrupted: SIGTERM, SIGUSR1 or SIGINT arrived; the step was finished and the checkpoint written.
        TrainingFailed: loss or weights are no longer finite, or not even one crop fits into the GPU's memory.
        TomoscoutError: not even one crop fits into main memory, or into a GPU that is smaller than stated or that
            something else occupies.
    """
    state = TrainingState(network.to(device), options, device, parts, frozen, gpu_memory_gb)
    state.restore(checkpoint.load(state.obstacle_to_going_on))
    if not (state.progression.step == options.steps or finish()):
        state.take_back_validation()
    if options.compile:
        state.network.compile()
    loop = _Loop(state, options, checkpoint, report, keep_best, finish)
    try:
        with _stop_requested() as stop:
            loop.begin(base, keep_base)
            loop.run(batches, loss, validate, validate_every, stop)
            loop.end(validate)
    except TrainingFailed as error:
        error.validations = state.progression.validations
        raise
    return loop.outcome(finished_early=not is_complete(state.progression, options))


class _Loop:
    """The steps and validations of a training that one process makes."""

    def __init__(
        self,
        state: TrainingState,
        options: Optimisation,
        checkpoint: Checkpoint,
        report: Callable[[Progression, Speed], None],
        keep_best: Callable[[Outcome], None],
        finish: Callable[[], bool],
    ) -> None:
        self.state, self.progression, self.options, self.checkpoint = state, state.progression, options, checkpoint
        self.report, self.keep_best, self.finish = report, keep_best, finish
        self.progress = Progress(options.steps, self.progression.step)
        self.first_step, self.started, self.validating = self.progression.step, time.monotonic(), 0.0
        if self.progression.step:
            self.progress.note(f"resumed at step {self.progression.step} of {options.steps}")

    @property
    def is_over(self) -> bool:
        return is_complete(self.progression, self.options) or (self.progression.step > 0 and self.finish())

    def outcome(self, *, finished_early: bool = False) -> Outcome:
        return Outcome(self.state.best_weights, self.progression, self._speed(), finished_early)

    def _speed(self) -> Speed:
        seconds = time.monotonic() - self.started - self.validating
        return Speed(self.progression.step - self.first_step, seconds, self.validating)

    def begin(self, base: Callable[[nn.Module], Validation] | None, keep_base: bool) -> None:
        """Call `keep_best` with the best so far, and validate the weights that a fine-tuning starts with."""
        if not self.is_over:
            self.keep_best(self.outcome())
        if base is not None and self.progression.base_score is None:
            self._validate(base, keep=keep_base)

    def run(
        self,
        batches: Batches,
        loss: nn.Module,
        validate: Callable[[nn.Module], Validation],
        validate_every: int,
        stop: threading.Event,
    ) -> None:
        """Make steps until the training is over or `stop` is set."""
        progression = self.progression
        while not self.is_over:
            inputs, targets = batches(progression.step, progression.latest)
            self.state.update(inputs, targets, loss, self.progress)
            self.progress.show(progression.step, progress_line(progression, self.options))
            scheduled = progression.step % validate_every == 0
            if scheduled or progression.step == self.options.steps:
                self._validate(validate, keep=True, scheduled=scheduled)
            # Read once: a signal that arrives after this line takes effect after the next step.
            stopped = stop.is_set()
            if stopped or self.checkpoint.is_due():
                self.checkpoint.save(self.state.to_dict())
            if stopped:
                raise Interrupted

    def end(self, validate: Callable[[nn.Module], Validation]) -> None:
        """Validate the last weights and write the checkpoint of a training that is over. If it is started again with
        the same settings and data, it is complete at once."""
        step = self.progression.step
        if not is_complete(self.progression, self.options):
            self.progress.note(f"finished early, at step {step} of {self.options.steps}, as asked for")
        if not self.progression.is_validated:
            # If it is killed during the validation, the training still ends at this step.
            self.checkpoint.save(self.state.to_dict())
            self._validate(validate, keep=True, scheduled=False)
        self.checkpoint.save(self.state.to_dict())
        self.checkpoint.remove_previous()

    def _validate(self, validation: Callable[[nn.Module], Validation], *, keep: bool, scheduled: bool = True) -> None:
        self.state.check_finite()
        if not scheduled:
            self.state.set_aside()
        begun = time.monotonic()
        result = validation(self.state.averaged)
        self.validating += time.monotonic() - begun
        self.state.record(result, keep=keep)
        self.progress.note(validation_line(self.progression, self.options))
        self.report(self.progression, self._speed())
        if self.progression.best_step == self.progression.step:
            self.keep_best(self.outcome())


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that is set by SIGTERM or SIGUSR1, which schedulers send before they end a job, or by Ctrl-C
    (SIGINT)."""
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
