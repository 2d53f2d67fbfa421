"""The classes that the network learns, with their objects, radii and sources."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tomoscout.data.copick_config import read_objects
from tomoscout.data.inventory import RunRecord
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import Config
from tomoscout.options.names import Source
from tomoscout.plan.annotations import existing_target, segmentations_of

LARGEST_RADIUS = 1e5
"""Largest radius accepted, in Å: no object in a tomogram is as large."""


@dataclass(frozen=True)
class TargetClass:
    """A class of the targets: its label, the radius of the object and of its target sphere in Å (None for a continuous
    class), and the sources of its picks or voxels."""

    name: str
    label: int
    radius: float | None
    target_radius: float | None
    sources: tuple[Source, ...]

    @property
    def is_particle(self) -> bool:
        """Whether the class consists of spheres at picks."""
        return self.radius is not None

    def to_json(self) -> dict[str, Any]:
        """The class as written into manifests and model files."""
        return {**asdict(self), "sources": [str(source) for source in self.sources]}


def rescaled(classes: Sequence[TargetClass], scale: float | Mapping[str, float] | None) -> tuple[TargetClass, ...]:
    """The classes with target radii of `scale` × the radius of the object; those that it does not name stay as they
    are."""

    def one(entry: TargetClass) -> TargetClass:
        own = scale.get(entry.name) if isinstance(scale, Mapping) else scale
        return entry if entry.radius is None or own is None else replace(entry, target_radius=entry.radius * own)

    return tuple(map(one, classes))


def learnt_classes(config: Config, records: Sequence[RunRecord]) -> tuple[tuple[TargetClass, ...], list[str]]:
    """The classes to learn, and warnings for the user."""
    options = config.targets
    found, warnings = particle_classes(config, records, options.picks, "targets.picks") if options.picks else ((), [])
    classes = list(found)
    if options.existing is not None:
        existing = Source.parse(options.existing)
        if not any(existing_target(config, record, config.voxel_spacing) for record in records):
            there = sorted({uri for record in records for uri in record.segmentations if "?" in uri})
            have = ", ".join(there) or "none"
            raise TomoscoutError(f"targets.existing: no multilabel segmentation {existing} in any run; found: {have}")
        known = {entry.name for entry in classes}
        for name in options.labels:
            if name not in known:
                classes.append(TargetClass(name, len(classes) + 1, None, None, (existing,)))
                warnings.append(
                    f"targets.existing: '{name}' is learnt by its voxels alone and not localised, as targets.picks "
                    "names no picks of it"
                )
    for entry in options.segmentations:
        source = _resolve_segmentation(Source.parse(entry), records, config.target_spacings, entry)
        if source.name in {known.name for known in classes}:
            raise TomoscoutError(f"targets.segmentations: '{source.name}' is already a class")
        classes.append(TargetClass(source.name, len(classes) + 1, None, None, (source,)))
    return tuple(classes), warnings


def particle_classes(
    config: Config, records: Sequence[RunRecord], picks: str | list[str], option: str
) -> tuple[tuple[TargetClass, ...], list[str]]:
    """The objects selected by `picks` as classes with labels from 1 on, and warnings for the user. `option` names the
    option in messages.

    Raises:
        TomoscoutError: an object, a radius or a source does not exist or is ambiguous.
    """
    counts: dict[Source, int] = {}
    for record in records:
        for source, found in record.picks.items():
            counts[source] = counts.get(source, 0) + found.total
        for name in record.unreadable:
            # Unreadable picks count as present: otherwise their object would be left out without an error.
            with contextlib.suppress(ValueError):
                counts.setdefault(Source.parse(name), 1)
    by_object: dict[str, list[Source]] = {}
    warnings = []
    if isinstance(picks, str):
        user, session = picks.split("/")
        present = {
            source.name: total for source, total in counts.items() if (source.user, source.session) == (user, session)
        }
        order = dict.fromkeys(name for path in config.projects.values() for name in read_objects(Path(path)))
        by_object = {name: [Source(name, user, session)] for name in order if present.get(name)}
        empty = [name for name in order if present.get(name) == 0]
        if not by_object:
            have = ", ".join(sorted({f"{s.user}/{s.session}" for s in counts})) or "none"
            what = f"the picks of {picks} are empty in every run" if empty else f"no picks of {picks} in any run"
            raise TomoscoutError(f"{option}: {what}; found picks of: {have}")
        if empty:
            warnings.append(f"{option}: {', '.join(empty)}: no pick of {picks} in any run; left out")
    else:
        for entry in picks:
            source = _resolve(Source.parse(entry), counts, entry, config.localize.user, option)
            by_object.setdefault(source.name, []).append(source)
    classes = []
    for label, (name, sources) in enumerate(by_object.items(), 1):
        radius = _radius(config, name, option)
        target_radius = radius * config.targets.radius_scale
        classes.append(TargetClass(name, label, radius, target_radius, tuple(dict.fromkeys(sources))))
    return tuple(classes), warnings


def _resolve(wanted: Source, found: Mapping[Source, int], entry: str, predicting_user: str, option: str) -> Source:
    same_name = sorted(source for source in found if source.name == wanted.name)
    # A name without user and session never selects predicted picks, or the first prediction would make it ambiguous.
    matching = [s for s in same_name if s == wanted or (wanted.user is None and s.user != predicting_user)]
    if not matching:
        have = ", ".join(map(str, same_name or sorted(found))) or "none"
        raise TomoscoutError(f"{option}: no picks '{entry}' in any run; found: {have}")
    if len(matching) > 1:
        raise TomoscoutError(f"{option}: '{entry}' could be {' or '.join(map(str, matching))}; name the one meant")
    return matching[0]


def _resolve_segmentation(
    wanted: Source, records: Sequence[RunRecord], spacings: Sequence[float], entry: str
) -> Source:
    there = sorted({uri for record in records for uri in record.segmentations})
    found = [
        (Source.parse(source), voxel_spacing) for source, voxel_spacing in segmentations_of(there, multilabel=False)
    ]
    matching = [(s, at) for s, at in found if wanted in (s, Source(s.name, None, None))]
    # Segmentations at a voxel spacing of the targets take precedence over those that need resampling.
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


def _radius(config: Config, name: str, option: str) -> float:
    radii: dict[str, float] = {}
    for path in config.projects.values():
        objects = read_objects(Path(path))
        if name not in objects:
            continue
        radius = objects[name].radius
        if not radius or radius <= 0:
            raise TomoscoutError(f"{path}: object '{name}' has no radius (in Å); its target spheres need one")
        if not radius <= LARGEST_RADIUS:
            raise TomoscoutError(
                f"{path}: object '{name}' has the radius {radius:g} Å, expected {LARGEST_RADIUS:g} Å at most"
            )
        radii[path] = radius
    if not radii:
        have = sorted({known for path in config.projects.values() for known in read_objects(Path(path))})
        raise TomoscoutError(f"{option}: no project has an object '{name}'; objects: {', '.join(have)}")
    if len(set(radii.values())) > 1:
        raise TomoscoutError(f"object '{name}' has different radii: {radii}; make them equal to train on all at once")
    return next(iter(radii.values()))
