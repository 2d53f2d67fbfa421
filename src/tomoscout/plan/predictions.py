"""Names of predictions, and the runs that have them: shared by the stages that write and read them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tomoscout.data.copick_config import read_objects
from tomoscout.data.inventory import RunRecord, find_runs, tomograms_of
from tomoscout.data.written import Probabilities, Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import Config
from tomoscout.options.names import Source
from tomoscout.plan.annotations import refuse_overwriting
from tomoscout.plan.runs import excluded_runs

if TYPE_CHECKING:
    from tomoscout.plan.classes import TargetClass


def predicted_probabilities(config: Config) -> Probabilities:
    """The feature volume that holds predicted class probabilities."""
    return Probabilities(config.segment_tomogram, f"{config.localize.user}-{config.session}")


def predicted_segmentation(config: Config) -> Segmentation:
    """The multilabel segmentation that holds predicted labels."""
    return Segmentation("predicted", config.localize.user, config.session, config.voxel_spacing, True)


def predicted_picks(config: Config, name: str) -> Source:
    """The source of the predicted picks of an object."""
    return Source(name, config.localize.user, config.session)


def segmented_runs(config: Config, records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs to segment: those of `segment.runs`, or else all that have the tomogram and are not excluded.

    Raises:
        TomoscoutError: a run of `segment.runs` does not exist or lacks the tomogram, or predictions would overwrite
            the mask.
    """
    uri = config.segment_tomogram
    if config.segment.mask is not None:
        refuse_overwriting(config, [Source.parse(config.segment.mask)], "segment.mask")
    if config.segment.runs is None:
        excluded = excluded_runs(config, records)
        return [record for record in records if uri in record.tomograms and record.key not in excluded]
    chosen = find_runs(list(records), config.segment.runs, "segment.runs")
    for record in chosen:
        if uri not in record.tomograms:
            raise TomoscoutError(f"segment.runs: {record.key} has no tomogram {uri}; {tomograms_of(record)}")
    return chosen


def check_objects(
    config: Config, records: Sequence[RunRecord], classes: Iterable[TargetClass], model: Path | str
) -> None:
    """Check, before long computations, that the picks of a model can be written: copick accepts only picks of objects
    in its config. `model` names the model in messages.

    Raises:
        TomoscoutError: the copick config of a segmented project lacks an object of the model.
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
