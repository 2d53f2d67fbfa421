"""What the localize stage reads where it takes a segmentation in place of a model's probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tomoscout.data.copick_config import read_objects
from tomoscout.data.inventory import RunRecord, find_runs
from tomoscout.data.written import Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import Config
from tomoscout.options.names import Source
from tomoscout.plan.annotations import nearest_segmentation
from tomoscout.plan.predictions import segmented_runs
from tomoscout.plan.runs import excluded_runs


class LabelledObject(NamedTuple):
    """An object that is looked for in a segmentation: its label there, and its radius in Å."""

    label: int
    radius: float


def localized_runs(config: Config, records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs to localise: the segmented ones, or those that have `localize.segmentation` and are not excluded, of
    `segment.runs` where that is given.

    Raises:
        TomoscoutError: no run has the segmentation, it cannot be read, or a run of `segment.runs` lacks it.
    """
    if config.localize.segmentation is None:
        return segmented_runs(config, records)
    source, excluded = Source.parse(config.localize.segmentation), excluded_runs(config, records)
    there = [record for record in records if record.key not in excluded]
    for uri, reason in (entry for record in there for entry in record.unreadable.items()):
        if uri.startswith(f"{source}@"):
            raise TomoscoutError(f"localize.segmentation: {reason} (split.exclude leaves a run out)")
    if config.segment.runs is not None:
        chosen = find_runs(list(records), config.segment.runs, "segment.runs")
        for record in chosen:
            if labels_of(config, record) is None:
                raise TomoscoutError(f"segment.runs: {record.key} has no multilabel segmentation {source}")
        return chosen
    found = [record for record in there if labels_of(config, record) is not None]
    if not found:
        have = ", ".join(sorted({uri for record in records for uri in record.segmentations if "?" in uri})) or "none"
        raise TomoscoutError(f"localize.segmentation: no multilabel segmentation {source} in any run; found: {have}")
    return found


def labels_of(config: Config, record: RunRecord) -> Segmentation | None:
    """The segmentation of a run whose labels become picks, None without one."""
    name = config.localize.segmentation
    if name is None:
        return None
    return nearest_segmentation(Source.parse(name), record, config.voxel_spacing, multilabel=True)


def labelled_objects(config: Config, project: str) -> dict[str, LabelledObject]:
    """The objects of a project that are looked for in `localize.segmentation`.

    Raises:
        TomoscoutError: `localize` names an object that no project has with a label and a radius, this project has none,
            or two have one label.
    """
    found = {name: _labelled(config, path) for name, path in config.projects.items()}
    everywhere = {name: entry for of_project in found.values() for name, entry in of_project.items()}
    if unknown := config.localize.first_unknown(everywhere):
        option, name = unknown
        raise TomoscoutError(
            f"localize.{option}: no pickable particle with a label and a radius is '{name}'; there are "
            f"{', '.join(everywhere) or 'none'}"
        )
    wanted = config.localize.objects or everywhere
    chosen = {name: entry for name, entry in found[project].items() if name in wanted}
    if not chosen:
        which = "of localize.objects" if config.localize.objects else "pickable particle"
        raise TomoscoutError(f"{config.projects[project]}: no object {which} has a label and a radius in Å")
    by_label: dict[int, str] = {}
    for name, entry in chosen.items():
        if (other := by_label.setdefault(entry.label, name)) != name:
            raise TomoscoutError(
                f"{config.projects[project]}: objects '{other}' and '{name}' have one label, {entry.label}; expected "
                "two (localize.labels)"
            )
    return chosen


def _labelled(config: Config, path: str) -> dict[str, LabelledObject]:
    labels = config.localize.labels
    return {
        name: LabelledObject(label, entry.radius)
        for name, entry in read_objects(Path(path)).items()
        if (label := labels.get(name, entry.label)) and entry.radius and (entry.is_particle or name in labels)
    }
