"""The heads by name."""

from __future__ import annotations

from typing import Literal

from tomoscout.tasks.instances.flow import FlowHead
from tomoscout.tasks.instances.heads import Head
from tomoscout.tasks.instances.star import StarHead


def head_of(name: Literal["star", "flow"], rays: int | None, dimensions: int) -> Head:
    """The head that an option or a model names. `rays`: of the star head."""
    if name == "flow":
        return FlowHead(dimensions)
    assert rays is not None
    return StarHead(rays, dimensions)
