"""The split: which runs are for training, for validation (the choice of the model), and for test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tomoscout.data.inventory import RunRecord, find_runs
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import Config
from tomoscout.plan.annotations import has_tomogram, holds
from tomoscout.plan.division import divide, groups_of
from tomoscout.plan.folds import PARTS, Fold
from tomoscout.plan.options import Split
from tomoscout.plan.runs import excluded_runs
from tomoscout.plan.targets import TargetPlan


@dataclass(frozen=True)
class SplitResult:
    """All folds (one without cross-validation), and run → reason for the runs left out."""

    folds: tuple[Fold, ...]
    excluded: dict[str, str]


def make_split(config: Config, records: Sequence[RunRecord], plan: TargetPlan) -> SplitResult:
    """Divide the runs. The place of a run (or group of runs) in the random order depends only on the seed and its name,
    so that adding runs moves few others. Runs without `segment.tomogram` can only train.

    Raises:
        TomoscoutError: parts overlap or are empty, a listed run cannot be used in its part, or no training run holds a
            class.
    """
    options = config.split
    eligible, excluded = _eligible(config, list(records), plan)
    lacking = {record.key for record in records if config.segment_tomogram not in record.tomograms}
    explicit = _explicit(options, list(records), eligible, excluded)
    for part in ("validate", "test"):
        if unfit := sorted(lacking & set(explicit[part])):
            raise TomoscoutError(
                f"split.{part}: {', '.join(unfit)} can only train: it has no tomogram {config.segment_tomogram}"
            )
    groups = groups_of(options, [r for r in records if r.key in eligible])
    _refuse_divided_groups(explicit, groups)
    taken = {key for keys in explicit.values() for key in keys}
    free = [group for group in groups if not taken & set(group)]
    measurable = [group for group in free if lacking.isdisjoint(group)]
    others = [group for group in free if not lacking.isdisjoint(group)]
    by_key = {record.key: record for record in records}
    held = {key: frozenset(e.name for e in plan.classes if holds(by_key[key], e)) for key in eligible}
    folds = tuple(_sort(fold) for fold in divide(options, explicit, measurable, others, held))
    for number, fold in enumerate(folds):
        _check(fold, number, config, excluded, lacking & eligible)
        _refuse_absent_classes(config, plan, list(records), fold, number, excluded)
    used = set(folds[0].part("all"))
    excluded |= {key: "neither listed in split nor drawn by split.ratios" for key in eligible if key not in used}
    return SplitResult(folds, excluded)


def _eligible(config: Config, records: list[RunRecord], plan: TargetPlan) -> tuple[set[str], dict[str, str]]:
    options = config.split
    reasons = excluded_runs(config, records)
    used = plan.annotated | {record.key for record in find_runs(records, options.negatives, "split.negatives")}
    for record in records:
        if record.key in reasons:
            continue
        if not has_tomogram(config, record):
            broken = [
                f"{uri} cannot be read: {record.unreadable[uri]}"
                for uri in config.tomograms
                if uri in record.unreadable
            ]
            reasons[record.key] = "; ".join(broken) or f"no tomogram {' or '.join(config.tomograms)}"
        elif record.key not in plan.inputs:
            reasons[record.key] = "no target: it has no picks or segmentation of the target classes"
        elif record.key not in used:
            reasons[record.key] = "not annotated; list it under split.negatives to train on it as empty"
        elif config.targets.unannotated == "exclude" and (names := plan.unannotated.get(record.key)):
            reasons[record.key] = f"{', '.join(names)} not annotated (targets.unannotated: exclude)"
    return {record.key for record in records} - reasons.keys(), reasons


def _explicit(
    options: Split, records: list[RunRecord], eligible: set[str], excluded: dict[str, str]
) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for part, names in zip(PARTS, (options.train, options.validate_, options.test), strict=True):
        keys = [record.key for record in find_runs(records, names or [], f"split.{part}")]
        for key in keys:
            if key not in eligible:
                raise TomoscoutError(f"split.{part}: run '{key}' cannot be used: {excluded[key]}")
            for other, others in parts.items():
                if key in others:
                    raise TomoscoutError(f"split: run '{key}' is listed under both {other} and {part}")
        parts[part] = list(dict.fromkeys(keys))
    return parts


def _refuse_divided_groups(explicit: dict[str, list[str]], groups: list[list[str]]) -> None:
    for group in groups:
        parts = [part for part, keys in explicit.items() if set(group) & set(keys)]
        if len(parts) > 1:
            raise TomoscoutError(f"split: {', '.join(group)} belong to one group but are in {' and '.join(parts)}")


def _sort(fold: Fold) -> Fold:
    return Fold(*(tuple(sorted(fold.part(part))) for part in PARTS))


def _check(fold: Fold, number: int, config: Config, excluded: dict[str, str], lacking: set[str]) -> None:
    name = config.split.name
    for part in ("train", "validate"):
        if not fold.part(part):
            usable = len(fold.part("all"))
            reasons = "; ".join(f"{key}: {reason}" for key, reason in list(excluded.items())[:3])
            only = f", {len(lacking)} without {config.segment_tomogram} can only train" if lacking else ""
            raise TomoscoutError(
                f"split {name}: no run is left for '{part}' (fold {number}, {usable} usable runs{only}, "
                f"{len(excluded)} excluded{': ' + reasons if reasons else ''})"
            )
    overlap = set(fold.train) & set(fold.validate) | set(fold.test) & set(fold.train + fold.validate)
    if overlap:
        raise TomoscoutError(f"split {name}: {', '.join(sorted(overlap))} are in more than one part")


def _refuse_absent_classes(
    config: Config, plan: TargetPlan, records: list[RunRecord], fold: Fold, number: int, excluded: dict[str, str]
) -> None:
    by_key = {record.key: record for record in records}
    for entry in plan.classes:
        if any(holds(by_key[key], entry) for key in fold.train):
            continue
        having = [record.key for record in records if holds(record, entry)]
        what = f"'{entry.name}' ({', '.join(map(str, entry.sources))})"
        if not having:
            raise TomoscoutError(f"targets: no run has any {what}; annotate one at least, or leave the object out")
        usable = [key for key in having if key not in excluded]
        some = ", ".join((usable or having)[:3]) + (" …" if len(usable or having) > 3 else "")
        if not usable:
            raise TomoscoutError(
                f"split {config.split.name}: of {what} there is something only in runs that are left out ({some}: "
                f"{excluded[having[0]]})"
            )
        if config.split.folds or config.split.leave_one_out:
            raise TomoscoutError(
                f"split {config.split.name}: no training run of fold {number} has {what}, only {some}, which "
                "validate or test there; annotate more runs, choose other split.folds, or leave the object out"
            )
        raise TomoscoutError(
            f"split {config.split.name}: no training run has {what}, only {some}; list one of these under split.train"
        )


def split_to_json(options: Split, result: SplitResult) -> dict[str, Any]:
    """The content of the split file."""
    return {
        "name": options.name,
        "seed": options.seed,
        "folds": [fold.to_json() for fold in result.folds],
        "excluded": result.excluded,
    }


def chosen_fold(options: Split, result: SplitResult, number: int | None = None) -> Fold:
    """A fold by its number. Default: `split.fold`.

    Raises:
        TomoscoutError: there are fewer folds.
    """
    number = options.fold if number is None else number
    if not 0 <= number < len(result.folds):
        raise TomoscoutError(f"split.fold: {number} asked for, but there are folds 0 to {len(result.folds) - 1}")
    return result.folds[number]
