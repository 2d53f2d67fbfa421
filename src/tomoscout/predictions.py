"""What predictions are called and which runs have them: shared by the stages that write and read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tomoscout.classes import TargetClass
from tomoscout.config import Config, Source
from tomoscout.errors import TomoscoutError
from tomoscout.inventory import RunRecord, find_runs
from tomoscout.project import Segmentation, read_objects


def probabilities_name(config: Config) -> str:
    """Name of the feature volume that holds a model's probabilities."""
    return f"{config.localize.user}-{config.session}"


def predicted_segmentation(config: Config) -> Segmentation:
    """The multilabel segmentation that holds a model's labels."""
    return Segmentation("predicted", config.localize.user, config.session, config.voxel_spacing, True)


def predicted_picks(config: Config, name: str) -> Source:
    """The picks of an object that a model finds."""
    return Source(name, config.localize.user, config.session)


def segmented_runs(config: Config, records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs that are segmented.

    Raises:
        TomoscoutError: a run asked for does not exist or lacks the tomogram.
    """
    uri = config.segment_tomogram
    if config.segment.runs is None:
        return [record for record in records if uri in record.tomograms]
    chosen = find_runs(list(records), config.segment.runs, "segment.runs")
    for record in chosen:
        if uri not in record.tomograms:
            have = ", ".join(record.tomograms) or "none"
            raise TomoscoutError(f"segment.runs: {record.key} has no tomogram {uri}; found: {have}")
    return chosen


def check_objects(
    config: Config, records: Sequence[RunRecord], classes: Iterable[TargetClass], model: Path | str
) -> None:
    """Say before hours are spent that picks of a model cannot be written: copick keeps those of the objects of its
    config alone. `model` names it in messages.

    Raises:
        TomoscoutError: the copick config of a project that is segmented lacks an object of the model.
    """
    segmented = {record.project for record in segmented_runs(config, records)}
    for path in (path for name, path in config.projects.items() if name in segmented):
        objects = read_objects(Path(path))
        for entry in classes:
            if entry.is_particle and entry.name not in objects:
                label = 1 + max((known.label or 0 for known in objects.values()), default=0)
                wanted = {"name": entry.name, "is_particle": True, "label": label, "radius": entry.radius}
                raise TomoscoutError(
                    f"{path}: no object '{entry.name}', which the model {model} finds; picks of it cannot be written: "
                    f"add {json.dumps(wanted)} to pickable_objects"
                )
