"""Which classes the network learns and which runs teach them: decided from the inventory alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tomoscout.config import Config, Source
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
    """What will be made: the classes, and per run (`project/run`) the tomogram that sets the shape and the digest
    of everything its target depends on."""

    classes: tuple[TargetClass, ...]
    inputs: dict[str, str]
    annotated: frozenset[str]


def plan_targets(config: Config, records: Sequence[RunRecord]) -> TargetPlan:
    """Decide classes and runs from the inventory alone.

    Raises:
        TomoscoutError: an object, radius, source or run in the config does not exist or is ambiguous.
    """
    options = config.targets
    if not options.picks and not options.segmentations:
        raise TomoscoutError("targets.picks: nothing to learn; give user/session or a list of objects")
    classes = _classes(config, records)
    sources = {source for entry in classes for source in entry.sources}
    names = {str(source_segmentation(config, e)) for e in classes if not e.is_particle}
    annotated = frozenset(r.key for r in records if sources & r.picks.keys() or names & r.segmentations.keys())
    if options.runs is not None:
        chosen = {record.key for record in find_runs(list(records), options.runs, "targets.runs")}
    else:
        chosen = {r.key for r in records if r.key in annotated and has_tomogram(config, r)}
        chosen |= {record.key for record in find_runs(list(records), config.split.negatives, "split.negatives")}
    settings = digest([TARGETS_VERSION, options.model_dump(exclude={"runs"}), [entry.to_json() for entry in classes]])
    inputs = {}
    for record in records:
        if record.key in chosen:
            uri = reference_tomogram(config, record)
            inputs[record.key] = digest(
                [
                    settings,
                    uri,
                    record.tomograms[uri],
                    [[str(s), record.picks[s].digest] for s in sorted(sources & record.picks.keys())],
                    [[name, record.segmentations[name]] for name in sorted(names & record.segmentations.keys())],
                ]
            )
    if not inputs:
        have = ", ".join(sorted({uri for record in records for uri in record.tomograms})) or "none"
        raise TomoscoutError(
            f"targets: none of {len(records)} runs has a tomogram {' or '.join(config.tomograms)} and picks or a "
            f"segmentation of {', '.join(map(str, sorted(sources)))}; tomograms found: {have}"
        )
    picks = [record.picks[s].total for record in records if record.key in inputs for s in sources & record.picks.keys()]
    if not names and not any(picks):
        raise TomoscoutError(
            f"targets.picks: {', '.join(map(str, sorted(sources)))} are empty in all {len(inputs)} runs; "
            "expected a point in one of them at least"
        )
    return TargetPlan(classes, inputs, annotated)


def has_tomogram(config: Config, record: RunRecord) -> bool:
    """Whether a run has any of the kinds of tomogram to train on."""
    return any(uri in record.tomograms for uri in config.tomograms)


def reference_tomogram(config: Config, record: RunRecord) -> str:
    """The tomogram that sets the shape of a run's target: the first of `tomograms` that the run has.

    Raises:
        TomoscoutError: the run has none of them.
    """
    for uri in config.tomograms:
        if uri in record.tomograms:
            return uri
    have = ", ".join(record.tomograms) or "none"
    raise TomoscoutError(f"{record.key}: no tomogram {' or '.join(config.tomograms)}; found: {have}")


def source_segmentation(config: Config, entry: TargetClass) -> Segmentation:
    """The segmentation that a continuous class is made from."""
    source = entry.sources[0]
    return Segmentation(source.name, source.user or "", source.session or "", config.voxel_spacing, False)


def target_segmentation(config: Config) -> Segmentation:
    """The segmentation that holds the targets."""
    options = config.targets
    return Segmentation(options.name, options.user, options.session, config.voxel_spacing, True)


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
        source = _resolve_segmentation(Source.parse(entry), records, config.voxel_spacing, entry)
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


def _resolve_segmentation(wanted: Source, records: Sequence[RunRecord], spacing: float, entry: str) -> Source:
    there = sorted({uri for record in records for uri in record.segmentations})
    matching = []
    for uri in there:
        name, _, place = uri.partition("@")
        if (
            place == str(spacing)
            and (source := Source.parse(name)).name == wanted.name
            and wanted in (source, Source(source.name, None, None))
        ):
            matching.append(source)
    if not matching:
        raise TomoscoutError(
            f"targets.segmentations: no binary segmentation '{entry}' at {spacing} Å in any run; "
            f"found: {', '.join(there) or 'none'}"
        )
    if len(matching) > 1:
        raise TomoscoutError(
            f"targets.segmentations: '{entry}' could be {' or '.join(map(str, matching))}; name the one meant"
        )
    return matching[0]


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
