"""An image to be shown with what was found in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tomoscout.tasks.instances.scores import IOU, Overlaps, score


@dataclass(frozen=True)
class Shown:
    """An image, or the slice of a volume that holds most objects, with what was found and what was annotated (y, x).

    `overlaps`: of the whole image. `matched`, `missed`: numbers of annotated objects. `hit`, `false`: numbers of found
    ones.
    """

    name: str
    channel: NDArray[Any]
    found: NDArray[np.int32]
    annotated: NDArray[np.int32]
    overlaps: Overlaps
    matched: NDArray[np.int32]
    missed: NDArray[np.int32]
    hit: NDArray[np.int32]
    false: NDArray[np.int32]

    @classmethod
    def of(
        cls,
        name: str,
        channel: NDArray[Any],
        found: NDArray[np.int32],
        annotated: NDArray[np.int32],
        overlaps: Overlaps,
    ) -> Self:
        """Take an image ((z,) y, x) and its labels."""
        theirs, ours = np.unique(annotated[annotated > 0]), np.unique(found[found > 0])
        well, there = overlaps.matched > IOU[0], overlaps.hit > IOU[0]
        if channel.ndim == 3:
            z = int(np.argmax(((found > 0) | (annotated > 0)).sum((1, 2))))
            channel, found, annotated = channel[z].copy(), found[z].copy(), annotated[z].copy()
        return cls(name, channel, found, annotated, overlaps, theirs[well], theirs[~well], ours[there], ours[~there])

    @property
    def picture(self) -> str:
        """The name of its picture, in the folder of its source."""
        return f"{self.name}.png"

    @property
    def text(self) -> str:
        """What there is to say of it."""
        half = score([self.overlaps], IOU[0])
        return (
            f"{half.matched} of {half.annotated} objects found, {half.found - half.matched} false; "
            f"{self.overlaps.merges} merges, {self.overlaps.splits} splits"
        )
