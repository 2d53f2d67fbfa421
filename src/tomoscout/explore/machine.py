"""The check whether a training fits into the memory that the configuration states. It does not need the machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tomoscout.explore.proposals import Misfit
from tomoscout.learning.options import Training
from tomoscout.machine.errors import TomoscoutError

if TYPE_CHECKING:
    from tomoscout.learning.task import Task


def misfit_of(train: Training, make_task: Callable[[Any], Task]) -> Misfit:
    """A function that says why a training needs more memory than `train.gpu_memory_gb` (on a CPU `train.memory_gb`)
    states. If that is not set, the function accepts every training. `make_task`: creates the task from the options of a
    training."""
    on_cpu = train.device == "cpu"
    stated = train.memory_gb if on_cpu else train.gpu_memory_gb
    if stated is None:
        return lambda options: None

    def misfit(options: Training) -> str | None:
        import torch

        from tomoscout.learning.memory_needs import Limits
        from tomoscout.learning.training import plan_of, resolve_options

        device = torch.device("cpu" if on_cpu else "cuda")
        try:
            task = make_task(options)
            options = resolve_options(options, None, task)
            plan_of(task, options, device, Path(), Limits.stated(options))
        except TomoscoutError as error:
            return str(error)
        return None

    return misfit
