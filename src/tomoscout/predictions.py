"""What predictions are called and which runs have them: shared by the stages that write and read them."""

from __future__ import annotations

from collections.abc import Sequence

from tomoscout.config import Config, Source
from tomoscout.errors import TomoscoutError
from tomoscout.inventory import RunRecord, find_runs
from tomoscout.project import Segmentation


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
