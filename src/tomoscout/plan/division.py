"""Random division of runs into folds, or into training, validation and test runs."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise

from tomoscout.data.inventory import RunRecord
from tomoscout.machine.errors import TomoscoutError
from tomoscout.plan.folds import PARTS, Fold
from tomoscout.plan.options import Split


def groups_of(options: Split, records: list[RunRecord]) -> list[list[str]]:
    """Groups of runs (`project/run`) that must not be divided, in the random order given by the seed."""
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


def _rank(seed: int, name: str) -> str:
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).hexdigest()


def divide(
    options: Split,
    explicit: dict[str, list[str]],
    measurable: list[list[str]],
    others: list[list[str]],
    held: Mapping[str, frozenset[str]],
) -> list[Fold]:
    """The folds of a split, or a single one.

    Args:
        options: the options of the split.
        explicit: the runs listed for each part.
        measurable: the other groups that can validate and test.
        others: the other groups, which can only train.
        held: run → names of the classes that it holds.

    Raises:
        TomoscoutError: there are fewer groups than folds.
    """
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
    """The groups, with a few exchanged so that the training groups, from `start` to `end`, hold every class that any
    group holds, as far as possible (greedy set cover). Only the first `measurable` groups can be moved to validation or
    test."""
    placed = [(group, frozenset(name for key in group for name in held[key])) for group in groups]
    everything = {name for _, names in placed for name in names}
    counts = Counter(name for _, names in placed[start:end] for name in names)
    while missing := {name for name in everything if not counts[name]}:
        # The group with most of the missing classes; of equal ones the first.
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
    """Shares of the free runs for training, validation and test: the ratios, with those of listed parts distributed
    over the other parts."""
    given = [ratios[0], 1 - ratios[0], 0.0] if len(ratios) == 1 else [*ratios, 1 - sum(ratios)][:3]
    shares = [share if want and share > 1e-6 else 0.0 for share, want in zip(given, wanted, strict=True)]
    total = sum(shares) + max(0.0, 1 - sum(given))
    return [share / total for share in shares] if total else shares


def _counts(total: int, measurable: int, shares: list[float]) -> tuple[int, int, int]:
    """Numbers of test, validation and training groups. A part with a share gets at least one group while there are
    enough: training first, then validation. The remainder of rounding goes to training, or to test if training runs are
    listed."""
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
