"""The optimiser of a training and its options. Other optimisers can be added here.

Torch is imported where it is used, since options are read while the workflow is parsed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tomoscout.options.sections import Section

if TYPE_CHECKING:
    import torch

    from tomoscout.learning.options import Optimisation


class AdamW(Section):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019). The schedule sets the learning rate of each step."""

    SPACE: ClassVar[dict[str, Any]] = {"weight_decay": {"low": 1e-4, "high": 1e-1, "log": True}}

    weight_decay: float = Field(default=1e-2, ge=0, le=10)
    """Weight decay of AdamW."""


def make_optimiser(
    options: Optimisation, parameters: Iterable[torch.nn.Parameter], device: torch.device
) -> torch.optim.Optimizer:
    """Create the optimiser for parameters that are on `device`."""
    import torch

    return torch.optim.AdamW(
        parameters,
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        fused=device.type == "cuda",
    )
