"""Which runs train, which choose the model, which test it: the only place that decides."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tomoscout.data.inventory import RunRecord, find_runs
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import write_json
from tomoscout.options.config import Config
from tomoscout.plan.classes import TargetClass, TargetPlan, has_tomogram, is_annotated
from tomoscout.plan.options import Split
from tomoscout.plan.runs import excluded_runs

VERSION = 2
"""Raised when the same options would divide the same runs otherwise."""

PARTS = ("train", "validate", "test")


@dataclass(frozen=True)
class Fold:
    """One division of the runs (`project/run`)."""

    train: tuple[str, ...]
    validate: tuple[str, ...]
    test: tuple[str, ...]

    def part(self, name: str) -> tuple[str, ...]:
        """The runs of `train`, `validate`, `test`, or `all` three together."""
        if name == "all":
            return self.train + self.validate + self.test
        runs: tuple[str, ...] = getattr(self, name)
        return runs

    def to_json(self) -> dict[str, list[str]]:
        """The fold as it stands in the split file."""
        return {part: list(self.part(part)) for part in PARTS}


@dataclass(frozen=True)
class SplitResult:
    """All folds (one, unless cross-validating) and why runs were left out."""

    folds: tuple[Fold, ...]
    excluded: dict[str, str]


def make_split(config: Config, records: Sequence[RunRecord], plan: TargetPlan) -> SplitResult:
    """Divide the runs. A run (or group of runs) has a fixed place in a random order that depends only on the seed
    and its name, so that adding runs moves few others. Runs without the tomogram that is segmented (theirs may be of
    another voxel spacing) can only train.

    Raises:
        TomoscoutError: parts overlap, are empty, or name a run that cannot be used there.
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
    groups = _groups(options, [r for r in records if r.key in eligible])
    _refuse_divided_groups(explicit, groups)
    taken = {key for keys in explicit.values() for key in keys}
    free = [group for group in groups if not taken & set(group)]
    measurable = [group for group in free if lacking.isdisjoint(group)]
    others = [group for group in free if not lacking.isdisjoint(group)]
    by_key = {record.key: record for record in records}
    held = {key: frozenset(e.name for e in plan.classes if _holds(by_key[key], e)) for key in eligible}
    folds = tuple(_sort(fold) for fold in _divide(options, explicit, measurable, others, held))
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


def _rank(seed: int, name: str) -> str:
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).hexdigest()


def _groups(options: Split, records: list[RunRecord]) -> list[list[str]]:
    """Runs that must stay together, in the random order of the seed."""
    groups: dict[str, list[str]] = {}
    for record in records:
        name = record.key
        if options.group_pattern is not None:
            match = re.search(options.group_pattern, record.run)
            if not match:
                raise TomoscoutError(
                    f"split.group_pattern: '{options.group_pattern}' does not match run '{record.run}'"
                )
            name = match[1]
        groups.setdefault(name, []).append(record.key)
    return [groups[name] for name in sorted(groups, key=lambda name: _rank(options.seed, name))]


def _refuse_divided_groups(explicit: dict[str, list[str]], groups: list[list[str]]) -> None:
    for group in groups:
        parts = [part for part, keys in explicit.items() if set(group) & set(keys)]
        if len(parts) > 1:
            raise TomoscoutError(f"split: {', '.join(group)} belong to one group but are in {' and '.join(parts)}")


def _divide(
    options: Split,
    explicit: dict[str, list[str]],
    measurable: list[list[str]],
    others: list[list[str]],
    held: Mapping[str, frozenset[str]],
) -> list[Fold]:
    """Folds from what is listed and the free groups: those that can validate and test, and those that cannot. `held`:
    the classes that a run holds."""
    train, validate, test = (explicit[part] for part in PARTS)
    if options.folds or options.leave_one_out:
        count = options.folds or len(measurable)
        if len(measurable) < count or count < 2:
            raise TomoscoutError(
                f"split: {count} folds need at least {max(count, 2)} runs or groups, found {len(measurable)}"
            )
        starts = [len(measurable) * fold // count for fold in range(count + 1)]
        return [
            Fold(_join(measurable[:start] + measurable[end:] + others), _join(measurable[start:end]), tuple(test))
            for start, end in pairwise(starts)
        ]
    free = measurable + others
    shares = _shares(options.ratios, [not given for given in (train, validate, test)])
    counts = _counts(len(free), len(measurable), shares)
    if not train:
        free = _with_all_classes_in_training(free, sum(counts[:2]), sum(counts), len(measurable), held)
    chosen: list[tuple[str, ...]] = []
    for count in counts:
        chosen.append(_join(free[:count]))
        free = free[count:]
    drawn_test, drawn_validate, drawn_train = chosen
    return [Fold(tuple(train) or drawn_train, tuple(validate) or drawn_validate, tuple(test) or drawn_test)]


def _with_all_classes_in_training(
    groups: list[list[str]], start: int, end: int, measurable: int, held: Mapping[str, frozenset[str]]
) -> list[list[str]]:
    """The groups with as few of them exchanged as it takes for those from `start` to `end`, which train, to hold every
    class that any of them holds. The first `measurable` alone can take the place of one that validates or tests."""
    placed = [(group, frozenset(name for key in group for name in held[key])) for group in groups]
    everything = {name for _, names in placed for name in names}
    counts = Counter(name for _, names in placed[start:end] for name in names)
    while missing := {name for name in everything if not counts[name]}:
        # The group that brings most; of equals the first.
        new = max([*range(start), *range(end, len(placed))], key=lambda number: len(placed[number][1] & missing))
        brought = placed[new][1]
        replaceable = [
            number
            for number in range(start, end)
            if (number < measurable or new >= end) and all(counts[name] > 1 for name in placed[number][1] - brought)
        ]
        if not replaceable:
            break
        counts.subtract(placed[replaceable[0]][1])
        counts.update(brought)
        placed[new], placed[replaceable[0]] = placed[replaceable[0]], placed[new]
    return [group for group, _ in placed]


def _shares(ratios: list[float], wanted: list[bool]) -> list[float]:
    """Shares of the free runs for train, validation and test: the ratios, with those of parts that are listed
    explicitly divided among the others."""
    given = [ratios[0], 1 - ratios[0], 0.0] if len(ratios) == 1 else [*ratios, 1 - sum(ratios)][:3]
    shares = [share if want and share > 1e-6 else 0.0 for share, want in zip(given, wanted, strict=True)]
    total = sum(shares) + max(0.0, 1 - sum(given))
    return [share / total for share in shares] if total else shares


def _counts(total: int, measurable: int, shares: list[float]) -> tuple[int, int, int]:
    """Whole numbers of test, validation and training groups. A part with a share gets at least one while there are
    enough: training first, then validation; rounding goes to training, or to the test where training is listed."""
    train, validate, test = (max(1, round(total * share)) if share else 0 for share in shares)
    spare = min(measurable, total - (1 if train else 0))
    validate = min(validate, max(spare, 0))
    test = min(test, max(spare - validate, 0))
    complete = sum(shares) > 1 - 1e-6
    if train and (complete or train > total - validate - test):
        train = total - validate - test
    elif test and complete:
        test = measurable - validate
    return test, validate, train


def _join(groups: Iterable[list[str]]) -> tuple[str, ...]:
    return tuple(key for group in groups for key in group)


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


def _holds(record: RunRecord, entry: TargetClass) -> bool:
    """Whether a run has something of a class: a pick, or a segmentation."""
    if entry.is_particle:
        return any(record.picks[source].total for source in entry.sources if source in record.picks)
    return is_annotated(entry, record)


def _refuse_absent_classes(
    config: Config, plan: TargetPlan, records: list[RunRecord], fold: Fold, number: int, excluded: dict[str, str]
) -> None:
    by_key = {record.key: record for record in records}
    for entry in plan.classes:
        if any(_holds(by_key[key], entry) for key in fold.train):
            continue
        having = [record.key for record in records if _holds(record, entry)]
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
    """The split file's content."""
    return {
        "name": options.name,
        "seed": options.seed,
        "folds": [fold.to_json() for fold in result.folds],
        "excluded": result.excluded,
    }


def chosen_fold(options: Split, result: SplitResult, number: int | None = None) -> Fold:
    """A fold by its number; without one, that of a single training.

    Raises:
        TomoscoutError: there are fewer folds.
    """
    number = options.fold if number is None else number
    if not 0 <= number < len(result.folds):
        raise TomoscoutError(f"split.fold: {number} asked for, but there are folds 0 to {len(result.folds) - 1}")
    return result.folds[number]


def training_tomograms(config: Config, records: Iterable[RunRecord], fold: Fold) -> list[tuple[RunRecord, str]]:
    """What a fold trains on: every kind of tomogram (its URI) that each of the runs has."""
    by_key = {record.key: record for record in records}
    return [(by_key[key], uri) for key in fold.train for uri in config.tomograms if uri in by_key[key].tomograms]


def write_split(config: Config, result: SplitResult, output: Path) -> None:
    """Write the split file."""
    write_json(output, split_to_json(config.split, result))
