"""The state of a training: network, averaged network (exponential moving average), optimiser, gradient scaler and
progression."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tomoscout.learning.optimisers import make_optimiser
from tomoscout.learning.options import Optimisation
from tomoscout.learning.precision import autocast, chosen_precision
from tomoscout.learning.progression import Progression, Validation
from tomoscout.learning.schedule import learning_rate, obstacle_to_going_on
from tomoscout.machine.device import GIB, GpuMemory, is_out_of_memory
from tomoscout.machine.errors import TomoscoutError, TrainingFailed
from tomoscout.machine.progress import Progress


class TrainingState:
    """Network, averaged network, optimiser, scaler and progression: all that a checkpoint holds.

    Random numbers need no state: every draw is seeded by (seed, step).
    """

    def __init__(
        self,
        network: nn.Module,
        options: Optimisation,
        device: torch.device,
        parts: int,
        frozen: Callable[[int], frozenset[str]],
        gpu_memory_gb: float | None,
    ) -> None:
        self.network = network
        self.options = options
        self.device = device
        self.frozen = frozen
        self.gpu_memory_gb = gpu_memory_gb
        self.precision = chosen_precision(options.precision, device)
        self.trained = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
        self.averaged = _copy_of(network)
        self.optimiser = make_optimiser(options, network.parameters(), device)
        # float16, unlike bfloat16, has so little range that small gradients vanish unless the loss is scaled up.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision is torch.float16)
        self.progression = Progression(parts=parts)
        # On the device: reading the loss of every step would make the processor wait for the GPU.
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.best_weights: dict[str, torch.Tensor] = {}
        self._before_validation: dict[str, Any] | None = None

    def update(
        self, inputs: torch.Tensor, targets: tuple[torch.Tensor, ...], loss: nn.Module, progress: Progress
    ) -> None:
        """Make one optimiser step."""
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
        """Compute the gradients of a batch, in more parts (gradient accumulation) if memory runs out. Returns the
        loss."""
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
                gpu = GpuMemory.of(self.device, self.gpu_memory_gb) if on_gpu else None
                raise too_large(inputs.shape[2:], gpu)
            self.progression.parts = min(2 * self.progression.parts, len(inputs))
            self.optimiser.zero_grad(set_to_none=True)
            # The failed attempt may have changed the running statistics of batch norms; the averaged network has the
            # old ones.
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
        """Update the exponential moving average of the weights. The decay rises with the step, so that the initial
        weights are soon forgotten."""
        decay = min(self.options.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), 1 - decay)
        self._copy_buffers(self.network, self.averaged)

    @staticmethod
    def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
        for value, copied in zip(source.buffers(), target.buffers(), strict=True):
            copied.copy_(value)

    def check_finite(self) -> None:
        """Check that the loss and the weights are finite.

        Raises:
            TrainingFailed: the loss or a weight is not finite.
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
        """Add a validation to the history. If `keep` is set and it is the best so far, keep its weights."""
        progression = self.progression
        if progression.loss_steps:
            self._log()
        if progression.step == 0:
            progression.base_score = result.score
            progression.history.append({"step": 0})
        progression.history[-1] |= {"score": result.score, **result.scores}
        if keep and result.score > progression.best_score:
            progression.best_score, progression.best_step = result.score, progression.step
            progression.best_details = result.details | result.more()
            self.best_weights = {
                name: value.detach().cpu().clone() for name, value in self.averaged.state_dict().items()
            }

    def set_aside(self) -> None:
        """Save what a validation outside of the regular interval will change: a longer training would not make this
        validation."""
        self.progression.loss_sum = float(self._loss_sum)
        self._before_validation = {
            "progression": copy.deepcopy(vars(self.progression)),
            "best_weights": self.best_weights,
        }

    def take_back_validation(self) -> None:
        """Undo a validation outside of the regular interval, if the training is continued."""
        if self._before_validation:
            self._restore_progression(self._before_validation)
            self._before_validation = None

    def obstacle_to_going_on(self, state: Mapping[str, Any]) -> str | None:
        """Why the saved state of a training of another length cannot be continued; None if it can."""
        before = self.options.model_copy(update=state["length"])
        return obstacle_to_going_on(before, self.options, state["progression"]["step"])

    def to_dict(self) -> dict[str, Any]:
        """The state as plain data and tensors."""
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
        """Restore a saved state; None changes nothing."""
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        for saved, own in zip(state["optimiser"]["param_groups"], self.optimiser.param_groups, strict=True):
            # The way of computing of this device: a GPU may go on from where a CPU was, and the other way round.
            saved["fused"] = own["fused"]
        self.optimiser.load_state_dict(state["optimiser"])
        if state["scaler"]:  # Empty if the precision needs no scaling of the loss.
            self.scaler.load_state_dict(state["scaler"])
        self._restore_progression(state)
        # Checkpoints of earlier versions do not have it.
        self._before_validation = state.get("before_validation")

    def _restore_progression(self, state: Mapping[str, Any]) -> None:
        self.progression = Progression(**state["progression"])
        self._loss_sum.fill_(self.progression.loss_sum)
        self.best_weights = state["best_weights"]


def _freeze_statistics(network: nn.Module, frozen: frozenset[str]) -> None:
    """Keep the running statistics of those batch norms whose parameters are frozen."""
    for name, module in network.named_modules():
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)}
        if own and own <= frozen:
            module.eval()


def _copy_of(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).requires_grad_(False).eval()


def too_large(crop: Sequence[int], gpu: GpuMemory | None) -> TomoscoutError:
    """The error that ends a training if not even one crop (voxels) fits into GPU memory or, without a GPU, main
    memory."""
    size = f"{'×'.join(map(str, crop))} voxels"
    # What the process holds is a lower bound of what it needs.
    fault = gpu and gpu.fault(gpu.own)
    if gpu and fault:
        return TomoscoutError(
            f"training: one crop of {size} needs more than the {gpu.own / GIB:.2f} GiB that could be had; {fault}"
        )
    # Another machine, or another attempt, may have more main memory: the error is then no TrainingFailed.
    kind = TrainingFailed if gpu else TomoscoutError
    return kind(
        f"training: not enough memory on {'cuda' if gpu else 'cpu'} for one crop of {size}; "
        "make train.patch or the network smaller"
    )
