"""The plan of the targets: which runs have targets, and what these depend on. Uses only the inventory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tomoscout.data.inventory import RunRecord, find_runs
from tomoscout.data.labels import stored_labels
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest
from tomoscout.machine.messages import warn
from tomoscout.options.config import Config
from tomoscout.options.names import Source
from tomoscout.plan.annotations import (
    existing_target,
    has_tomogram,
    is_annotated,
    reference_tomograms,
    refuse_overwriting,
    refuse_unreadable,
    source_segmentation,
)
from tomoscout.plan.classes import TargetClass, learnt_classes
from tomoscout.plan.predictions import check_objects
from tomoscout.plan.runs import excluded_runs


@dataclass(frozen=True)
class TargetPlan:
    """The targets to make.

    `classes`: the classes. `inputs`: run (`project/run`) → digest of everything its targets depend on. `annotated`: the
    runs with an annotation of any class. `unannotated`: annotated run → names of the classes that are not annotated in
    it. `stored_labels`: project → class → label on disk. `warnings`: messages for the user.
    """

    classes: tuple[TargetClass, ...]
    inputs: dict[str, str]
    annotated: frozenset[str]
    unannotated: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stored_labels: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def plan_targets(config: Config, records: Sequence[RunRecord], version: int) -> TargetPlan:
    """Decide classes and runs from the inventory alone. `version`: that of the targets stage.

    Raises:
        TomoscoutError: an object, radius, source or run in the configuration does not exist, is ambiguous or cannot be
            read, or predictions would overwrite data that is read.
    """
    options = config.targets
    if not config.learns:
        raise TomoscoutError(
            "targets.picks: nothing to learn; give user/session or a list of objects (segment.models applies a trained "
            "model without any)"
        )
    excluded = excluded_runs(config, records)
    used = [record for record in records if record.key not in excluded]
    classes, warnings = learnt_classes(config, used)
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
    settings = [version, options.decisive(), [e.to_json() for e in classes]]
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


def _is_taught(config: Config, classes: Sequence[TargetClass], record: RunRecord) -> bool:
    if config.targets.existing is not None:
        return existing_target(config, record, config.voxel_spacing) is not None
    return any(is_annotated(entry, record) for entry in classes)


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
    """Check, before training, that predictions can be written and would not overwrite annotations.

    Raises:
        TomoscoutError: they would overwrite annotations, or a project lacks one of their objects.
    """
    existing = [Source.parse(config.targets.existing)] if config.targets.existing else []
    refuse_overwriting(config, [*existing, *(source for entry in classes for source in entry.sources)], "targets")
    check_objects(config, records, classes, config.session)


def _unannotated(
    config: Config, classes: Sequence[TargetClass], records: Sequence[RunRecord]
) -> dict[str, tuple[str, ...]]:
    """Run → names of the classes not annotated in it, for runs where others are. A negative counts as annotated and
    empty."""
    if config.targets.existing is not None:
        return {}
    negatives = {record.key for record in find_runs(list(records), config.split.negatives, "split.negatives")}
    found = {r.key: tuple(e.name for e in classes if not is_annotated(e, r)) for r in records if r.key not in negatives}
    return {key: names for key, names in found.items() if 0 < len(names) < len(classes)}


def ignored_classes(config: Config, plan: TargetPlan, run: str) -> tuple[str, ...]:
    """Names of the classes that are ignored in a run (`project/run`): those not annotated in it, if
    `targets.unannotated` is `ignore`."""
    return plan.unannotated.get(run, ()) if config.targets.unannotated == "ignore" else ()


def print_warnings(plan: TargetPlan) -> None:
    """Print the warnings of a plan."""
    for warning in plan.warnings:
        warn(f"{warning}")


def _warnings_of_unannotated(
    config: Config, classes: Sequence[TargetClass], unannotated: Mapping[str, Sequence[str]], total: int
) -> list[str]:
    """Warnings about classes that count as background in runs where they are not annotated, with possible remedies."""
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


def _doubts(records: Iterable[RunRecord], sources: set[Source]) -> list[str]:
    names = {str(source) for source in sources}
    found: dict[str, list[str]] = {}
    for record in records:
        for name, reason in record.doubtful.items():
            if name in names:
                found.setdefault(f"picks {name}: {reason}", []).append(record.key)
    return [f"{doubt} ({_some(keys)})" for doubt, keys in found.items()]


def _unreadable_tomograms(config: Config, records: Iterable[RunRecord]) -> list[str]:
    wanted = {*config.tomograms, config.segment_tomogram}
    return [
        f"{record.key}: tomogram {uri} cannot be read and is left out: {reason}"
        for record in records
        for uri, reason in record.unreadable.items()
        if uri in wanted
    ]


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more runs" if len(keys) > 3 else "")
