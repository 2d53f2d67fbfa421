"""Annotations: which classes are annotated in a run, and by which picks and segmentations. Uses only the inventory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tomoscout.data import written
from tomoscout.data.inventory import RunRecord, tomograms_of
from tomoscout.data.written import Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import Config
from tomoscout.options.names import Source, TomogramUri

if TYPE_CHECKING:
    from tomoscout.plan.classes import TargetClass


def is_annotated(entry: TargetClass, record: RunRecord) -> bool:
    """Whether a run has a source of a class: picks (an empty file counts), or a segmentation."""
    if entry.is_particle:
        return any(source in record.picks for source in entry.sources)
    source = str(entry.sources[0])
    return any(uri.rpartition("@")[0] == source for uri in record.segmentations)


def holds(record: RunRecord, entry: TargetClass) -> bool:
    """Whether a run holds a class: at least one pick of a particle, or a segmentation."""
    return count_picks(entry, record) > 0 if entry.is_particle else is_annotated(entry, record)


def count_picks(entry: TargetClass, record: RunRecord) -> int:
    """The number of picks of a particle in a run, from all of its sources."""
    return sum(record.picks[source].total for source in entry.sources if source in record.picks)


def has_tomogram(config: Config, record: RunRecord) -> bool:
    """Whether a run has any of the tomograms to train on."""
    return any(uri in record.tomograms for uri in config.tomograms)


def reference_tomograms(config: Config, record: RunRecord) -> dict[float, str]:
    """Voxel spacing in Å → URI of the tomogram that sets the shape of the run's target at this spacing: the first that
    the run has, of `tomograms` and then of `segment.tomogram`. A run has one target per voxel spacing.

    Raises:
        TomoscoutError: the run has no tomogram to train on.
    """
    if not has_tomogram(config, record):
        raise TomoscoutError(f"{record.key}: no tomogram {' or '.join(config.tomograms)}; {tomograms_of(record)}")
    found: dict[float, str] = {}
    for uri in [*config.tomograms, config.segment_tomogram]:
        if uri in record.tomograms:
            found.setdefault(TomogramUri.parse(uri).voxel_spacing, uri)
    return found


def source_segmentation(entry: TargetClass, record: RunRecord, voxel_spacing: float) -> Segmentation | None:
    """The binary segmentation of a run that a continuous class is made from: the one at `voxel_spacing` (Å), else the
    finest, which is then resampled. None if the run has none, and for particles."""
    return (
        None if entry.is_particle else nearest_segmentation(entry.sources[0], record, voxel_spacing, multilabel=False)
    )


def existing_target(config: Config, record: RunRecord, voxel_spacing: float) -> Segmentation | None:
    """The multilabel segmentation of a run that `targets.existing` names, chosen as in `source_segmentation`."""
    existing = config.targets.existing
    if existing is None:
        return None
    return nearest_segmentation(Source.parse(existing), record, voxel_spacing, multilabel=True)


def nearest_segmentation(
    source: Source, record: RunRecord, voxel_spacing: float, *, multilabel: bool
) -> Segmentation | None:
    """The multilabel, or the binary, segmentation of a run: the one at `voxel_spacing` (Å), else the finest; None if
    the run has none."""
    there = [
        Segmentation(source.name, source.user or "", source.session or "", at, multilabel)
        for found, at in segmentations_of(record.segmentations, multilabel=multilabel)
        if found == str(source)
    ]
    return written.nearest_segmentation(there, source, voxel_spacing, multilabel=multilabel)


def segmentations_of(segmentations: Iterable[str], *, multilabel: bool) -> Iterator[tuple[str, float]]:
    """Source and voxel spacing (Å) of the multilabel, or of the binary, segmentations among those of the inventory."""
    for uri in segmentations:
        source, _, place = uri.rpartition("@")
        if ("?" in place) == multilabel:
            yield source, float(place.partition("?")[0])


def target_segmentation(config: Config, voxel_spacing: float) -> Segmentation:
    """The segmentation that holds the targets at a voxel spacing (Å)."""
    options = config.targets
    return Segmentation(options.name, options.user, options.session, voxel_spacing, True)


def refuse_unreadable(records: Iterable[RunRecord], sources: Iterable[Source], option: str) -> None:
    """Raise an error if picks or segmentations of `sources` cannot be read in any of the runs.

    Raises:
        TomoscoutError: a source named by `option` cannot be read.
    """
    names = {str(source) for source in sources}
    broken = [reason for record in records for name, reason in record.unreadable.items() if name in names]
    if broken:
        more = f"; and {len(broken) - 1} others" if len(broken) > 1 else ""
        raise TomoscoutError(f"{option}: {broken[0]}{more} (split.exclude leaves a run out)")


def refuse_overwriting(config: Config, sources: Iterable[Source], option: str) -> None:
    """Raise an error if predictions or targets would overwrite picks or segmentations that are read as ground truth.

    Raises:
        TomoscoutError: a source named by `option` has the user and session of predictions, or the name of the targets.
    """
    predicted, target = (config.localize.user, config.session), config.targets
    for source in sources:
        if (source.user, source.session) == predicted:
            raise TomoscoutError(
                f"localize.user and localize.session: {source} is what {option} reads, and would be written over by "
                "predictions; choose another localize.session"
            )
        if source == Source(target.name, target.user, target.session):
            raise TomoscoutError(f"targets.name: {source} is what {option} reads; choose another name for the targets")
