"""Which classes the network learns and which runs teach them: decided from the inventory alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tomoscout.config import Config, Source, TomogramUri
from tomoscout.errors import TomoscoutError
from tomoscout.files import digest
from tomoscout.inventory import RunRecord, find_runs
from tomoscout.project import Picks, Project, Segmentation, read_objects

TARGETS_VERSION = 1
"""Raised when the numbers in a target change."""


@dataclass(frozen=True)
class TargetClass:
    """One class of the targets: its label; radius of the object and of the target sphere in Å (None for a
    segmentation); where its picks or voxels come from."""

    name: str
    label: int
    radius: float | None
    target_radius: float | None
    sources: tuple[Source, ...]

    @property
    def is_particle(self) -> bool:
        """Whether the class is made of spheres at picks."""
        return self.radius is not None

    def to_json(self) -> dict[str, Any]:
        """The class as it stands in manifests and model files."""
        return {**asdict(self), "sources": [str(source) for source in self.sources]}


@dataclass(frozen=True)
class TargetPlan:
    """What will be made: the classes; per run (`project/run`) the digest of everything its targets depend on; and
    the runs that have any annotation of the classes."""

    classes: tuple[TargetClass, ...]
    inputs: dict[str, str]
    annotated: frozenset[str]


def plan_targets(config: Config, records: Sequence[RunRecord]) -> TargetPlan:
    """Decide classes and runs from the inventory alone.

    Raises:
        TomoscoutError: an object, radius, source or run in the config does not exist or is ambiguous.
    """
    options = config.targets
    if not config.learns:
        raise TomoscoutError(
            "targets.picks: nothing to learn; give user/session or a list of objects (segment.models applies a trained "
            "model without any)"
        )
    classes = _classes(config, records)
    sources = {source for entry in classes for source in entry.sources}
    annotated = frozenset(r.key for r in records if any(is_annotated(entry, r) for entry in classes))
    if options.runs is not None:
        chosen = {record.key for record in find_runs(list(records), options.runs, "targets.runs")}
    else:
        chosen = {r.key for r in records if r.key in annotated and has_tomogram(config, r)}
        chosen |= {record.key for record in find_runs(list(records), config.split.negatives, "split.negatives")}
    settings = digest([TARGETS_VERSION, options.model_dump(exclude={"runs"}), [entry.to_json() for entry in classes]])
    inputs = {record.key: _inputs(config, settings, classes, record) for record in records if record.key in chosen}
    if not inputs:
        have = ", ".join(sorted({uri for record in records for uri in record.tomograms})) or "none"
        raise TomoscoutError(
            f"targets: none of {len(records)} runs has a tomogram {' or '.join(config.tomograms)} and picks or a "
            f"segmentation of {', '.join(map(str, sorted(sources)))}; tomograms found: {have}"
        )
    picks = [record.picks[s].total for record in records if record.key in inputs for s in sources & record.picks.keys()]
    if all(entry.is_particle for entry in classes) and not any(picks):
        raise TomoscoutError(
            f"targets.picks: {', '.join(map(str, sorted(sources)))} are empty in all {len(inputs)} runs; "
            "expected a point in one of them at least"
        )
    return TargetPlan(classes, inputs, annotated)


def _inputs(config: Config, settings: str, classes: Sequence[TargetClass], record: RunRecord) -> str:
    """The digest of everything the targets of a run depend on."""
    targets = []
    for voxel_spacing, uri in reference_tomograms(config, record).items():
        found = [source_segmentation(entry, record, voxel_spacing) for entry in classes]
        drawn = [str(segmentation) for segmentation in found if segmentation]
        targets.append([uri, record.tomograms[uri], [[name, record.segmentations[name]] for name in drawn]])
    sources = {source for entry in classes if entry.is_particle for source in entry.sources}
    picks = [[str(source), record.picks[source].digest] for source in sorted(sources & record.picks.keys())]
    return digest([settings, targets, picks])


def is_annotated(entry: TargetClass, record: RunRecord) -> bool:
    """Whether a run has picks (an empty file too) or a segmentation that a class is made from."""
    if entry.is_particle:
        return any(source in record.picks for source in entry.sources)
    return bool(_source_spacings(entry, record))


def has_tomogram(config: Config, record: RunRecord) -> bool:
    """Whether a run has any of the kinds of tomogram to train on."""
    return any(uri in record.tomograms for uri in config.tomograms)


def reference_tomograms(config: Config, record: RunRecord) -> dict[float, str]:
    """Voxel spacing in Å → the tomogram that sets the shape of a run's target there: the first of its spacing that
    the run has, of `tomograms` and the one that is segmented. A run has one target for each.

    Raises:
        TomoscoutError: the run has no tomogram to train on.
    """
    if not has_tomogram(config, record):
        have = ", ".join(record.tomograms) or "none"
        raise TomoscoutError(f"{record.key}: no tomogram {' or '.join(config.tomograms)}; found: {have}")
    found: dict[float, str] = {}
    for uri in [*config.tomograms, config.segment_tomogram]:
        if uri in record.tomograms:
            found.setdefault(TomogramUri.parse(uri).voxel_spacing, uri)
    return found


def source_segmentation(entry: TargetClass, record: RunRecord, voxel_spacing: float) -> Segmentation | None:
    """The segmentation of a run that a continuous class is made from: the one at this voxel spacing (Å), else the
    finest, to be brought over. None where the run has none, and for particles."""
    spacings = _source_spacings(entry, record)
    if not spacings:
        return None
    source = entry.sources[0]
    found = voxel_spacing if voxel_spacing in spacings else min(spacings)
    return Segmentation(source.name, source.user or "", source.session or "", found, False)


def _source_spacings(entry: TargetClass, record: RunRecord) -> list[float]:
    if entry.is_particle:
        return []
    wanted = str(entry.sources[0])
    return [voxel_spacing for source, voxel_spacing in _binary(record.segmentations) if source == wanted]


def _binary(segmentations: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Source and voxel spacing of the binary ones among segmentations of the inventory."""
    for uri in segmentations:
        source, _, place = uri.rpartition("@")
        if "?" not in place:
            yield source, float(place)


def target_segmentation(config: Config, voxel_spacing: float) -> Segmentation:
    """The segmentation that holds the targets at a voxel spacing (Å)."""
    options = config.targets
    return Segmentation(options.name, options.user, options.session, voxel_spacing, True)


def _classes(config: Config, records: Sequence[RunRecord]) -> tuple[TargetClass, ...]:
    options = config.targets
    found: dict[Source, None] = {source: None for record in records for source in record.picks}
    by_object: dict[str, list[Source]] = {}
    if isinstance(options.picks, str):
        user, session = options.picks.split("/")
        present = {source.name for source in found if (source.user, source.session) == (user, session)}
        order = [name for path in config.projects.values() for name in read_objects(Path(path))]
        by_object = {name: [Source(name, user, session)] for name in dict.fromkeys(order) if name in present}
        if not by_object:
            have = ", ".join(sorted({f"{s.user}/{s.session}" for s in found})) or "none"
            raise TomoscoutError(f"targets.picks: no picks of {options.picks} in any run; found picks of: {have}")
    else:
        for entry in options.picks:
            source = _resolve(Source.parse(entry), found, entry, config.localize.user)
            by_object.setdefault(source.name, []).append(source)
    classes: list[TargetClass] = []
    for name, sources in by_object.items():
        radius = _radius(config, name)
        target_radius = radius * options.radius_scale
        classes.append(TargetClass(name, len(classes) + 1, radius, target_radius, tuple(dict.fromkeys(sources))))
    for entry in options.segmentations:
        source = _resolve_segmentation(Source.parse(entry), records, config.target_spacings, entry)
        if source.name in {known.name for known in classes}:
            raise TomoscoutError(f"targets.segmentations: '{source.name}' is already a class")
        classes.append(TargetClass(source.name, len(classes) + 1, None, None, (source,)))
    return tuple(classes)


def _resolve(wanted: Source, found: dict[Source, None], entry: str, predicting_user: str) -> Source:
    same_name = sorted(source for source in found if source.name == wanted.name)
    # A name alone never means picks that a model made, or the first prediction would make it ambiguous.
    matching = [s for s in same_name if s == wanted or (wanted.user is None and s.user != predicting_user)]
    if not matching:
        have = ", ".join(map(str, same_name or sorted(found))) or "none"
        raise TomoscoutError(f"targets.picks: no picks '{entry}' in any run; found: {have}")
    if len(matching) > 1:
        raise TomoscoutError(f"targets.picks: '{entry}' could be {' or '.join(map(str, matching))}; name the one meant")
    return matching[0]


def _resolve_segmentation(
    wanted: Source, records: Sequence[RunRecord], spacings: Sequence[float], entry: str
) -> Source:
    there = sorted({uri for record in records for uri in record.segmentations})
    found = [(Source.parse(source), voxel_spacing) for source, voxel_spacing in _binary(there)]
    matching = [(s, at) for s, at in found if wanted in (s, Source(s.name, None, None))]
    # What needs no bringing over is meant before what does.
    sources = sorted({s for s, at in matching if at in spacings} or {s for s, _ in matching})
    if not sources:
        raise TomoscoutError(
            f"targets.segmentations: no binary segmentation '{entry}' in any run; found: {', '.join(there) or 'none'}"
        )
    if len(sources) > 1:
        raise TomoscoutError(
            f"targets.segmentations: '{entry}' could be {' or '.join(map(str, sources))}; name the one meant"
        )
    return sources[0]


def _radius(config: Config, name: str) -> float:
    radii: dict[str, float] = {}
    for path in config.projects.values():
        objects = read_objects(Path(path))
        if name not in objects:
            continue
        radius = objects[name].radius
        if not radius or radius <= 0:
            raise TomoscoutError(f"{path}: object '{name}' has no radius (in Å); its target spheres need one")
        radii[path] = radius
    if not radii:
        have = sorted({known for path in config.projects.values() for known in read_objects(Path(path))})
        raise TomoscoutError(f"targets.picks: no project has an object '{name}'; objects: {', '.join(have)}")
    if len(set(radii.values())) > 1:
        raise TomoscoutError(f"object '{name}' has different radii: {radii}; make them equal to train on all at once")
    return next(iter(radii.values()))


def read_reference(project: Project, record: RunRecord, entry: TargetClass) -> Picks:
    """All picks of a class in a run, from every source of the class."""
    found = [project.read_picks(record.run, source) for source in entry.sources if source in record.picks]
    return Picks.at(np.concatenate([np.zeros((0, 3)), *(picks.positions for picks in found)]))
