"""The overview of a dataset: which runs and tomograms there are, who annotated what, and which part each run plays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tomoscout.data.geometry import Shape
from tomoscout.data.inventory import RunRecord
from tomoscout.plan.annotations import count_picks, is_annotated

if TYPE_CHECKING:
    from tomoscout.plan.classes import TargetClass
    from tomoscout.plan.plan import Plan


@dataclass(frozen=True)
class RunOverview:
    """A run: the tomograms that the configuration names and their shapes (z, y, x), and for each object its number of
    picks, whether it has a segmentation of it, or None where it is not annotated."""

    record: RunRecord
    tomograms: dict[str, Shape]
    annotated: dict[str, int | bool | None]

    def to_json(self) -> list[Any]:
        """What the overview of the run depends on."""
        contents = [self.record.contents.get(uri) for uri in self.tomograms]
        return [self.record.key, self.tomograms, contents, self.annotated]


def overview(plan: Plan) -> list[RunOverview]:
    """All runs of the inventory. Annotations are those that the targets are made from and, of other objects, those that
    picks are scored against; tomoscout's own are not counted."""
    config = plan.config
    referenced = plan.scored.classes if config.is_scored else ()
    learnt = plan.targets.classes if config.learns else ()
    # Objects in the order of the targets; what is learnt counts, where both name an object.
    classes = {entry.name: entry for entry in (*learnt, *referenced, *learnt)}
    wanted = dict.fromkeys([*config.tomograms, config.segment_tomogram])
    return [
        RunOverview(
            record,
            {uri: record.tomograms[uri] for uri in wanted if uri in record.tomograms},
            {name: _annotated(entry, record) for name, entry in classes.items()},
        )
        for record in plan.records
    ]


def _annotated(entry: TargetClass, record: RunRecord) -> int | bool | None:
    if not is_annotated(entry, record):
        return None
    return count_picks(entry, record) if entry.is_particle else True
