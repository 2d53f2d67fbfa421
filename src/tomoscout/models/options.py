"""Options of a fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tomoscout.options.sections import FilePath, NotSearched, Section

BASE_OPTIONS = ("base", "base_weights", "freeze", "freeze_steps", "promote")
"""Names of the options of a fine-tuning."""

_ONLY_HERE = NotSearched("trials are no fine-tunings")


class FineTuning(Section):
    """What a training starts from, and what it keeps of it."""

    base: Annotated[FilePath | None, _ONLY_HERE] = None
    """Fine-tune from this model folder, or from an octopi `model_config.yaml`. Its network is taken over."""
    base_weights: Annotated[FilePath | None, _ONLY_HERE] = None
    """The `.pth` of an octopi base. Default: `best_model.pth` beside its `model_config.yaml`."""
    freeze: Annotated[Literal["nothing", "body"] | list[str], _ONLY_HERE] = "nothing"
    """Parameters of the base that are kept as they are: `body` is all but the layers that make the classes; or a list
    of patterns of parameter names, such as `model.0.*`."""
    freeze_steps: Annotated[int | None, _ONLY_HERE] = Field(default=None, ge=1)
    """Keep them for this many steps only. Default: for the whole training."""
    promote: Annotated[Literal["better", "always"], _ONLY_HERE] = "better"
    """What a fine-tuning keeps that does not score better than its base on the validation runs: better keeps the
    base's weights, always the new ones."""
