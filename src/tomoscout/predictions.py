"""What predictions are called and which runs have them: shared by the stages that write and read them."""

from __future__ import annotations

from collections.abc import Sequence

from tomoscout.config import Config, Source
from tomoscout.errors import TomoscoutError
from tomoscout.inventory import RunRecord, excluded_runs, find_runs, tomograms_of
from tomoscout.project import Probabilities, Segmentation


def predicted_probabilities(config: Config) -> Probabilities:
    """The feature volume that holds a model's probabilities."""
    return Probabilities(config.segment_tomogram, f"{config.localize.user}-{config.session}")


def predicted_segmentation(config: Config) -> Segmentation:
    """The multilabel segmentation that holds a model's labels."""
    return Segmentation("predicted", config.localize.user, config.session, config.voxel_spacing, True)


def predicted_picks(config: Config, name: str) -> Source:
    """The picks of an object that a model finds."""
    return Source(name, config.localize.user, config.session)


def segmented_runs(config: Config, records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs that are segmented: all that have the tomogram and are not excluded, or those asked for.

    Raises:
        TomoscoutError: a run asked for does not exist or lacks the tomogram.
    """
    uri = config.segment_tomogram
    if config.segment.runs is None:
        excluded = excluded_runs(config, records)
        return [record for record in records if uri in record.tomograms and record.key not in excluded]
    chosen = find_runs(list(records), config.segment.runs, "segment.runs")
    for record in chosen:
        if uri not in record.tomograms:
            raise TomoscoutError(f"segment.runs: {record.key} has no tomogram {uri}; {tomograms_of(record)}")
    return chosen
