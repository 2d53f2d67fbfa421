"""Options of a fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tomoscout.options.sections import FilePath, Section


class FineTuning(Section):
    """What a training starts from, and what it keeps of it."""

    base: FilePath | None = None
    """Fine-tune from this model folder, or from an octopi `model_config.yaml`. Its network is taken over."""
    base_weights: FilePath | None = None
    """The `.pth` of an octopi base. Default: `best_model.pth` beside its `model_config.yaml`."""
    freeze: Literal["nothing", "body"] | list[str] = "nothing"
    """Parameters of the base that are kept as they are: `body` is all but the layers that make the classes; or a list
    of patterns of parameter names, such as `model.0.*`."""
    freeze_steps: int | None = Field(default=None, ge=1)
    """Keep them for this many steps only. Default: for the whole training."""
    promote: Literal["better", "always"] = "better"
    """What a fine-tuning keeps that does not score better than its base on the validation runs: better keeps the
    base's weights, always the new ones."""
