"""Outputs that tomoscout writes into a project, and the stamp that says from which inputs they were made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tomoscout.options.names import Source, TomogramUri

OURS = "tomoscout"
"""The key, in attributes of volumes and in picks files, of the stamp: `inputs` and `content`, two digests."""

OF_OTHERS = ""
"""The inputs of something that tomoscout has not written, or that was changed since."""

DAMAGED = "damaged"
"""The inputs of picks whose file cannot be read."""


@dataclass(frozen=True)
class Segmentation:
    """A segmentation by name, user, session and voxel spacing in Å."""

    name: str
    user: str
    session: str
    voxel_spacing: float
    is_multilabel: bool

    def __str__(self) -> str:
        kind = "?multilabel=true" if self.is_multilabel else ""
        return f"{self.name}:{self.user}/{self.session}@{self.voxel_spacing}{kind}"


def nearest_segmentation(
    there: Iterable[Segmentation], source: Source, voxel_spacing: float, *, multilabel: bool
) -> Segmentation | None:
    """Of the segmentations of a source the one that is multilabel, or binary, if there is one, at `voxel_spacing` (Å),
    else the finest; None if there is none."""
    return min(
        (s for s in there if Source(s.name, s.user, s.session) == source),
        key=lambda s: (s.is_multilabel != multilabel, s.voxel_spacing != voxel_spacing, s.voxel_spacing),
        default=None,
    )


class Probabilities(NamedTuple):
    """Class probabilities: the feature volume `name` of a kind of tomogram (its URI)."""

    tomogram: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} of {self.tomogram}"


Written = Source | Segmentation | Probabilities | TomogramUri
"""An output that tomoscout writes into a project: picks, a segmentation, class probabilities, or a tomogram."""


def kind_of(wanted: Written) -> str:
    """The kind of an output, for messages."""
    kinds: dict[type, str] = {
        Source: "picks",
        Segmentation: "segmentation",
        Probabilities: "probabilities",
        TomogramUri: "tomogram",
    }
    return kinds[type(wanted)]


def stamped_inputs(values: Mapping[str, Any], content: str) -> str:
    """The inputs in the stamp among `values`; `OF_OTHERS` without a stamp, or where it is of another content.

    Raises:
        AttributeError: the stamp is not a mapping.
    """
    stamp = values.get(OURS, {})
    inputs = stamp.get("inputs") if stamp.get("content") == content else OF_OTHERS
    return inputs if isinstance(inputs, str) else OF_OTHERS
