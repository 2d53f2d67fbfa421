"""The colours of pictures and their legends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Literal, NamedTuple

Colour = tuple[int, int, int]
"""Red, green, blue from 0 to 255."""


Shape = Literal["circle", "dashed", "plus", "cross", "square", "diamond", "outline"]
"""A circle cuts a particle's sphere, a dashed one too; plus to diamond are small signs at its centre; an outline goes
around labels."""


class Mark(NamedTuple):
    """How one kind of thing is drawn: its name in captions and legends, its colour and shape."""

    word: str
    colour: Colour
    shape: Shape = "circle"


# They differ in hue and brightness, so that they can be told apart on grey and with common colour vision deficiencies.
FOUND = Mark("found", (0, 205, 150))
MISSED = Mark("missed", (255, 190, 30), "dashed")
FALSE = Mark("false", (235, 75, 190))

_SIGNS: list[tuple[Colour, Shape]] = [
    ((86, 180, 233), "plus"),
    ((240, 228, 66), "cross"),
    ((255, 255, 255), "square"),
    ((225, 95, 20), "diamond"),
]


def signs(names: Iterable[str]) -> list[Mark]:
    """Marks for several sets of picks, which differ in shape as well; with more than four sets they repeat."""
    return [Mark(name, *sign) for name, sign in zip(names, cycle(_SIGNS))]


# Okabe and Ito (2008), brightest first: for objects whose own colours are greyish or alike.
_PALETTE: list[Colour] = [
    (240, 228, 66),
    (86, 180, 233),
    (230, 159, 0),
    (0, 190, 140),
    (225, 130, 180),
    (225, 95, 20),
    (60, 120, 230),
]


def readable_colours(colours: Sequence[Sequence[int]]) -> list[Colour]:
    """The given colours, with those replaced that are greyish, dark or close to an earlier one."""
    chosen: dict[int, Colour] = {}
    for place, (red, green, blue, *_) in enumerate(colours):
        colour = (red, green, blue)
        if max(colour) - min(colour) > 60 and max(colour) > 110 and _apart(colour, chosen.values(), 60):
            chosen[place] = colour
    for place in range(len(colours)):
        if place not in chosen:
            # With more objects than colours some must repeat.
            fresh = [colour for colour in _PALETTE if _apart(colour, chosen.values(), 110)]
            chosen[place] = fresh[0] if fresh else _PALETTE[place % len(_PALETTE)]
    return [chosen[place] for place in range(len(colours))]


def _apart(colour: Colour, others: Iterable[Colour], distance: int) -> bool:
    return all(sum(abs(a - b) for a, b in zip(colour, other, strict=True)) > distance for other in others)
