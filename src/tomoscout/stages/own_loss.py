"""A loss that the user passes as a PyTorch module, in the Python interface."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tomoscout.machine.errors import TomoscoutError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NamedLoss:
    """A loss of the user, called with logits (B, C+1, z, y, x) and labels (B, z, y, x). In the fingerprint of the
    training the name represents its code."""

    module: nn.Module
    name: str


def own_loss(options: dict[str, Any], name: str | None) -> NamedLoss | None:
    """Remove the user's loss from the options of a training and return it; None if there is none.

    Raises:
        TomoscoutError: the loss has no name, a name is given without such a loss, or the loss is not a module.
    """
    loss = options.get("loss")
    if loss is None or isinstance(loss, str | Mapping | list):
        if name is not None:
            raise TomoscoutError("loss_name: for a loss of your own (a torch.nn.Module) alone")
        return None
    from torch import nn

    if not isinstance(loss, nn.Module):
        raise TomoscoutError(
            f"loss: found {loss.__name__ if isinstance(loss, type) else type(loss).__name__}, expected a "
            "torch.nn.Module (an object, not a class), the name of a loss, or a mapping"
        )
    if not name:
        raise TomoscoutError(
            f"loss_name: missing; what {type(loss).__name__} computes cannot be seen from outside, so give it a name "
            'of yours, such as loss_name="my-loss-1", and another when it changes'
        )
    del options["loss"]
    return NamedLoss(loss, name)
