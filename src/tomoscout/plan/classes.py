"""Which classes the network learns and which runs teach them: decided from the inventory alone."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tomoscout.data.copick_config import read_objects
from tomoscout.data.geometry import inside, to_voxels
from tomoscout.data.inventory import RunRecord, find_runs, tomograms_of
from tomoscout.data.labels import stored_labels
from tomoscout.data.picks import Picks
from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest
from tomoscout.options.config import Config
from tomoscout.options.names import Source, TomogramUri
from tomoscout.plan.predictions import check_objects
from tomoscout.plan.runs import excluded_runs

TARGETS_VERSION = 2
"""Raised when the numbers in a target change."""


LARGEST_RADIUS = 1e5
"""Å: more than any object in a tomogram has."""


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
    """What will be made: the classes; per run (`project/run`) the digest of everything its targets depend on; the runs
    that have any annotation of the classes; per annotated run the names of classes that are not annotated in it; per
    project the label on disk of each class; what a user should know."""

    classes: tuple[TargetClass, ...]
    inputs: dict[str, str]
    annotated: frozenset[str]
    unannotated: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stored_labels: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def plan_targets(config: Config, records: Sequence[RunRecord]) -> TargetPlan:
    """Decide classes and runs from the inventory alone.

    Raises:
        TomoscoutError: an object, radius, source or run in the config does not exist, is ambiguous or cannot be read,
            or predictions would be written over what is read.
    """
    options = config.targets
    if not config.learns:
        raise TomoscoutError(
            "targets.picks: nothing to learn; give user/session or a list of objects (segment.models applies a trained "
            "model without any)"
        )
    excluded = excluded_runs(config, records)
    used = [record for record in records if record.key not in excluded]
    classes, warnings = _classes(config, used)
    sources = {source for entry in classes for source in entry.sources}
    annotated = frozenset(r.key for r in used if _is_taught(config, classes, r))
    if options.runs is not None:
        chosen = {record.key for record in find_runs(list(records), options.runs, "targets.runs")} - excluded.keys()
    else:
        chosen = {r.key for r in used if r.key in annotated and has_tomogram(config, r)}
        chosen |= {record.key for record in find_runs(list(records), config.split.negatives, "split.negatives")}
    concerned = [record for record in records if record.key in chosen]
    refuse_unreadable(used, sources, "targets.picks")
    _check_predictions(config, records, classes)
    names = [entry.name for entry in classes]
    stored = {project: stored_labels(Path(path), names) for project, path in config.projects.items()}
    settings = [TARGETS_VERSION, options.model_dump(exclude={"runs", "unannotated"}), [e.to_json() for e in classes]]
    shared = {project: digest([*settings, labels]) for project, labels in stored.items()}
    inputs = {record.key: _inputs(config, shared[record.project], classes, record) for record in concerned}
    if not inputs:
        have = ", ".join(sorted({uri for record in records for uri in record.tomograms})) or "none"
        raise TomoscoutError(
            f"targets: none of {len(records)} runs has a tomogram {' or '.join(config.tomograms)} and picks or a "
            f"segmentation of {', '.join(map(str, sorted(sources)))}; tomograms found: {have}"
            f"{''.join(f'; {reason}' for reason in _unreadable_tomograms(config, used)[:3])}"
        )
    picks = [record.picks[s].total for record in concerned for s in sources & record.picks.keys()]
    if all(entry.is_particle for entry in classes) and not any(picks):
        raise TomoscoutError(
            f"targets.picks: {', '.join(map(str, sorted(sources)))} are empty in all {len(inputs)} runs; "
            "expected a point in one of them at least"
        )
    unannotated = _unannotated(config, classes, concerned)
    warnings += _doubts(concerned, sources) + _unreadable_tomograms(config, used)
    warnings += _warnings_of_unannotated(config, classes, unannotated, len(inputs))
    return TargetPlan(classes, inputs, annotated, unannotated, stored, tuple(warnings))


def _unannotated(
    config: Config, classes: Sequence[TargetClass], records: Sequence[RunRecord]
) -> dict[str, tuple[str, ...]]:
    """Classes that are not annotated in runs that others are annotated in. A negative is annotated as empty."""
    if config.targets.existing is not None:
        return {}
    negatives = {record.key for record in find_runs(list(records), config.split.negatives, "split.negatives")}
    found = {r.key: tuple(e.name for e in classes if not is_annotated(e, r)) for r in records if r.key not in negatives}
    return {key: names for key, names in found.items() if 0 < len(names) < len(classes)}


def ignored_classes(config: Config, plan: TargetPlan, run: str) -> tuple[str, ...]:
    """Names of the classes that do not count in a run (`project/run`): those that are not annotated in it, where
    `targets.unannotated` is `ignore`."""
    return plan.unannotated.get(run, ()) if config.targets.unannotated == "ignore" else ()


def _warnings_of_unannotated(
    config: Config, classes: Sequence[TargetClass], unannotated: Mapping[str, Sequence[str]], total: int
) -> list[str]:
    """Which classes are taken as absent from runs that they are not annotated in, and what can be done."""
    warnings = []
    for entry in classes if config.targets.unannotated == "background" else ():
        runs = sorted(key for key, names in unannotated.items() if entry.name in names)
        if runs:
            warnings.append(
                f"'{entry.name}' is not annotated in {len(runs)} of {total} runs with a target ({_some(runs)}), which "
                "teach that there is none; if there may be, set targets.unannotated to exclude (leave these runs out) "
                "or ignore (let it not count there), or give runs without any an empty picks file"
            )
    return warnings


def print_warnings(plan: TargetPlan) -> None:
    """Tell people what they should know of a plan."""
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def refuse_unreadable(records: Iterable[RunRecord], sources: Iterable[Source], option: str) -> None:
    """Refuse picks or segmentations that cannot be read, of any of the runs.

    Raises:
        TomoscoutError: `option` names one that cannot be read.
    """
    names = {str(source) for source in sources}
    broken = [reason for record in records for name, reason in record.unreadable.items() if name in names]
    if broken:
        more = f"; and {len(broken) - 1} others" if len(broken) > 1 else ""
        raise TomoscoutError(f"{option}: {broken[0]}{more} (split.exclude leaves a run out)")


def _doubts(records: Iterable[RunRecord], sources: set[Source]) -> list[str]:
    names = {str(source) for source in sources}
    found: dict[str, list[str]] = {}
    for record in records:
        for name, reason in record.doubtful.items():
            if name in names:
                found.setdefault(f"picks {name}: {reason}", []).append(record.key)
    return [f"{doubt} ({_some(keys)})" for doubt, keys in found.items()]


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more runs" if len(keys) > 3 else "")


def _unreadable_tomograms(config: Config, records: Iterable[RunRecord]) -> list[str]:
    wanted = {*config.tomograms, config.segment_tomogram}
    return [
        f"{record.key}: tomogram {uri} cannot be read and is left out: {reason}"
        for record in records
        for uri, reason in record.unreadable.items()
        if uri in wanted
    ]


def _inputs(config: Config, settings: str, classes: Sequence[TargetClass], record: RunRecord) -> str:
    """The digest of everything the targets of a run depend on."""
    targets = []
    for voxel_spacing, uri in reference_tomograms(config, record).items():
        found = [source_segmentation(entry, record, voxel_spacing) for entry in classes]
        found.append(existing_target(config, record, voxel_spacing))
        drawn = [str(segmentation) for segmentation in found if segmentation]
        targets.append([uri, record.tomograms[uri], [[name, record.segmentations[name]] for name in drawn]])
    sources = {source for entry in classes if entry.is_particle for source in entry.sources}
    picks = [[str(source), record.picks[source].digest] for source in sorted(sources & record.picks.keys())]
    return digest([settings, targets, picks])


def _check_predictions(config: Config, records: Sequence[RunRecord], classes: Sequence[TargetClass]) -> None:
    """Refuse, before anything is trained, predictions that could not be written or would replace what is read.

    Raises:
        TomoscoutError: they would be written over annotations, or of an object that a project lacks.
    """
    existing = [Source.parse(config.targets.existing)] if config.targets.existing else []
    refuse_overwriting(config, [*existing, *(source for entry in classes for source in entry.sources)], "targets")
    check_objects(config, records, classes, config.session)


def refuse_overwriting(config: Config, sources: Iterable[Source], option: str) -> None:
    """Refuse predictions under the user and session of picks or segmentations that are read as truth.

    Raises:
        TomoscoutError: `option` reads what predictions would be written over.
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


def _is_taught(config: Config, classes: Sequence[TargetClass], record: RunRecord) -> bool:
    if config.targets.existing is not None:
        return existing_target(config, record, config.voxel_spacing) is not None
    return any(is_annotated(entry, record) for entry in classes)


def is_annotated(entry: TargetClass, record: RunRecord) -> bool:
    """Whether a run has picks (an empty file too) or a segmentation that a class is made from."""
    if entry.is_particle:
        return any(source in record.picks for source in entry.sources)
    source = str(entry.sources[0])
    return any(uri.rpartition("@")[0] == source for uri in record.segmentations)


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
        raise TomoscoutError(f"{record.key}: no tomogram {' or '.join(config.tomograms)}; {tomograms_of(record)}")
    found: dict[float, str] = {}
    for uri in [*config.tomograms, config.segment_tomogram]:
        if uri in record.tomograms:
            found.setdefault(TomogramUri.parse(uri).voxel_spacing, uri)
    return found


def source_segmentation(entry: TargetClass, record: RunRecord, voxel_spacing: float) -> Segmentation | None:
    """The binary segmentation of a run that a continuous class is made from: the one at this voxel spacing (Å), else
    the finest, to be brought over. None where the run has none, and for particles."""
    return None if entry.is_particle else _nearest(entry.sources[0], record, voxel_spacing, multilabel=False)


def existing_target(config: Config, record: RunRecord, voxel_spacing: float) -> Segmentation | None:
    """The multilabel segmentation of a run that `targets.existing` names, chosen as by `source_segmentation`."""
    existing = config.targets.existing
    return None if existing is None else _nearest(Source.parse(existing), record, voxel_spacing, multilabel=True)


def _nearest(source: Source, record: RunRecord, voxel_spacing: float, *, multilabel: bool) -> Segmentation | None:
    there = _segmentations_of(record.segmentations, multilabel=multilabel)
    spacings = [at for found, at in there if found == str(source)]
    if not spacings:
        return None
    at = voxel_spacing if voxel_spacing in spacings else min(spacings)
    return Segmentation(source.name, source.user or "", source.session or "", at, multilabel)


def _segmentations_of(segmentations: Iterable[str], *, multilabel: bool) -> Iterator[tuple[str, float]]:
    """Source and voxel spacing of the binary or the multilabel ones among segmentations of the inventory."""
    for uri in segmentations:
        source, _, place = uri.rpartition("@")
        if ("?" in place) == multilabel:
            yield source, float(place.partition("?")[0])


def target_segmentation(config: Config, voxel_spacing: float) -> Segmentation:
    """The segmentation that holds the targets at a voxel spacing (Å)."""
    options = config.targets
    return Segmentation(options.name, options.user, options.session, voxel_spacing, True)


def _classes(config: Config, records: Sequence[RunRecord]) -> tuple[tuple[TargetClass, ...], list[str]]:
    """The classes, and what a user should know of how they were chosen."""
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
    """The objects that `picks` stands for, as classes from label 1 on, and what a user should know of them. `option`
    names it in messages.

    Raises:
        TomoscoutError: an object, a radius or a source does not exist or is ambiguous.
    """
    counts: dict[Source, int] = {}
    for record in records:
        for source, found in record.picks.items():
            counts[source] = counts.get(source, 0) + found.total
        for name in record.unreadable:
            # Picks that cannot be read count as there: leaving their object out would hide it.
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
    # A name alone never means picks that a model made, or the first prediction would make it ambiguous.
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
        (Source.parse(source), voxel_spacing) for source, voxel_spacing in _segmentations_of(there, multilabel=False)
    ]
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


def read_reference(project: Project, record: RunRecord, entry: TargetClass) -> Picks:
    """All picks of a class in a run, from every source of the class."""
    found = [project.read_picks(record.run, source) for source in entry.sources if source in record.picks]
    return Picks.at(np.concatenate([np.zeros((0, 3)), *(picks.positions for picks in found)]))


REPEATED = 0.1
"""Two picks of an object nearer than this many radii are one particle, picked twice."""


class SoundReference(NamedTuple):
    """Reference picks that can be found, and how many others there were: outside of the tomogram, or of a particle that
    was picked before."""

    picks: Picks
    outside: int
    repeated: int


def sound_reference(picks: Picks, shape: Sequence[int], voxel_spacing: float, radius: float) -> SoundReference:
    """Leave out reference picks that nothing could find in a tomogram of `shape` (z, y, x). `voxel_spacing` and
    `radius` are in Å."""
    from tomoscout.tasks.picking.peaks import suppress

    z, y, x = shape
    within = picks.positions[inside(to_voxels(picks.positions, voxel_spacing), (z, y, x))]
    kept = within[suppress(within, REPEATED * radius)]
    return SoundReference(Picks.at(kept), len(picks) - len(within), len(within) - len(kept))
