"""The losses that a training can be given: each is a file of this package, with its options, its formula and its search
space, and is listed in `Losses`. `combined` adds them up."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from tomoscout.learning.losses.base import LossTerm, VoxelLoss
from tomoscout.learning.losses.cross_entropy import CrossEntropy
from tomoscout.learning.losses.cross_entropy_tversky import CrossEntropyTversky
from tomoscout.learning.losses.dice import Dice
from tomoscout.learning.losses.focal import Focal
from tomoscout.learning.losses.focal_tversky import FocalTversky
from tomoscout.learning.losses.generalised_dice import GeneralisedDice
from tomoscout.learning.losses.tversky import Tversky
from tomoscout.learning.losses.weighted_focal_tversky import WeightedFocalTversky
from tomoscout.options.sections import note_change

Losses = (
    CrossEntropyTversky | CrossEntropy | Dice | GeneralisedDice | Focal | Tversky | FocalTversky | WeightedFocalTversky
)
Loss = Annotated[Losses, Field(discriminator="name")]
LOSSES: dict[str, type[LossTerm]] = {loss.model_fields["name"].default: loss for loss in get_args(Losses)}
"""Losses by name."""
LossName: Any = Literal[tuple(LOSSES)]
VOXEL_LOSSES = [name for name, loss in LOSSES.items() if any(isinstance(part, VoxelLoss) for part in loss().parts())]
"""Names of the losses to which weights of voxels matter."""


def parse_losses(value: Any) -> Any:
    """Convert one loss, or several, by name or as mappings, to a list of mappings."""
    terms = value if isinstance(value, list | tuple) else [value]
    named = [{"name": term} if isinstance(term, str) else term for term in terms]
    return [
        {**term, "name": _loss_name(term["name"])}
        if isinstance(term, dict) and isinstance(term.get("name"), str)
        else term
        for term in named
    ]


def _loss_name(given: str) -> str:
    """The name of a loss from one in any case, or octopi's and MONAI's, such as TverskyLoss."""
    letters = re.sub("[^a-z]", "", given.lower()).removesuffix("loss").replace("generalized", "generalised")
    name = {name.lower(): name for name in LOSSES}.get(letters, given)
    if name != given:
        note_change("train.loss", "name", given, name)
    return name


def search_space() -> dict[str, Any]:
    """The search space of losses: the name, and all options in alphabetical order, each under the condition that the
    loss has it."""
    space: dict[str, Any] = {"loss.name": {"choices": list(LOSSES)}}
    for option, domain in sorted({option: d for loss in LOSSES.values() for option, d in loss.SPACE.items()}.items()):
        having = [name for name, loss in LOSSES.items() if option in loss.SPACE]
        space[f"loss.{option}"] = {**domain, "when": {"loss.name": having}}
    return space
