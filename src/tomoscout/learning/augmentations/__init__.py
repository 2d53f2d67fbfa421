"""The augmentations of a training: each is a file of this package, with its options, its drawing of random numbers, its
effect and its search space. `batch` applies them."""

from __future__ import annotations

from typing import Any

from tomoscout.learning.augmentations.base import Change
from tomoscout.learning.augmentations.blur import Blur
from tomoscout.learning.augmentations.intensities import Intensities
from tomoscout.learning.augmentations.mirror import Mirror
from tomoscout.learning.augmentations.mixup import Mixup
from tomoscout.learning.augmentations.noise import Noise
from tomoscout.learning.augmentations.turn import Turn
from tomoscout.options.sections import Fraction

CHANGES: tuple[type[Change], ...] = (Mirror, Turn, Blur, Intensities, Noise)
"""In the order in which they draw random numbers and are applied. Append new ones, so that the others still draw the
same numbers."""


# Options are listed from the last base to the first.
class Augmentation(Mixup, Blur, Noise, Intensities, Turn, Mirror):
    """Random changes to every crop, made on the training device; 0 or false turns one off. None of the defaults moves
    the missing wedge to another axis; rotate and tilt lean it by a few degrees."""

    probability: Fraction = 0.5
    """Share of crops that each of these is applied to, drawn apart: rotation with tilt, zoom, the intensity changes,
    noise, blur."""


def search_space() -> dict[str, Any]:
    """The search space of the augmentations."""
    space = {"probability": {"low": 0.0, "high": 1.0}} | {o: d for c in CHANGES for o, d in c.SPACE.items()}
    return {f"augmentation.{option}": domain for option, domain in space.items()}
