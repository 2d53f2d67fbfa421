"""Random division of annotated images, by groups, into those that train, validate and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import write_json
from tomoscout.options.forms import read_form
from tomoscout.plan.folds import PARTS
from tomoscout.tasks.instances.annotation import Annotation
from tomoscout.tasks.instances.annotation_options import Division

Name = tuple[str, str]
"""The source and the name of an image."""


@dataclass(frozen=True)
class Member:
    """An image in the manifest of a division. `inputs`: the digest of it and its labels."""

    source: str
    name: str
    inputs: str


@dataclass(frozen=True)
class _Manifest:
    train: list[Member]
    validate: list[Member]
    test: list[Member]


def divide(annotations: Iterable[Annotation], options: Division) -> dict[str, list[Name]]:
    """The images of each part (`train`, `validate`, `test`), sorted.

    Groups are taken in an order that only the seed and their names decide, and fill first the test set, then the
    validation set, as nearly as whole groups can. A new group thus moves few others. Training and validation get at
    least a group, and the test set does where there are three.

    Raises:
        TomoscoutError: there are fewer than two groups.
    """
    groups: dict[str, list[Name]] = {}
    for entry in annotations:
        groups.setdefault(f"{entry.source}/{entry.group}", []).append((entry.source, entry.name))
    if len(groups) < 2:
        raise TomoscoutError(
            f"cells.division: all images are of one group ({', '.join(groups)}), expected two at least; "
            "cells.annotations.….group: '.+' divides image by image"
        )
    parts = _fill(groups, options)
    _leave_none_empty(parts, groups, options)
    return {part: sorted(name for group in parts[part] for name in groups[group]) for part in PARTS}


def _fill(groups: Mapping[str, Sequence[Name]], options: Division) -> dict[str, list[str]]:
    """The groups of each part."""
    total = sum(map(len, groups.values()))
    free = {"test": options.test * total, "validate": options.validate_ * total}
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for group in sorted(groups, key=lambda group: _rank(options.seed, group)):
        size = len(groups[group])
        part = next((part for part, left in free.items() if size / 2 <= left), "train")
        parts[part].append(group)
        if part in free:
            free[part] -= size
    return parts


def _leave_none_empty(parts: dict[str, list[str]], groups: Mapping[str, Sequence[Name]], options: Division) -> None:
    """Move the smallest group of the largest part to each part that has none and should have one."""
    wanted = ["train", "validate", *(["test"] if options.test and len(groups) > 2 else [])]
    for part in wanted:
        if parts[part]:
            continue
        giver = max(PARTS, key=lambda other: len(parts[other]) - (other in wanted))
        moved = min(parts[giver], key=lambda group: (len(groups[group]), _rank(options.seed, group)))
        parts[giver].remove(moved)
        parts[part].append(moved)


def _rank(seed: int, group: str) -> str:
    return hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).hexdigest()


def write_division(path: Path, division: Mapping[str, Sequence[Name]], annotations: Iterable[Annotation]) -> None:
    """Write the images of each part with the digests of their files."""
    by_name = {(entry.source, entry.name): entry for entry in annotations}
    write_json(
        path,
        {
            part: [
                {"source": source, "name": name, "inputs": by_name[source, name].inputs}
                for source, name in division[part]
            ]
            for part in PARTS
        },
    )


def read_division(path: Path) -> dict[str, list[Member]]:
    """The images of each part (`train`, `validate`, `test`).

    Raises:
        TomoscoutError: the file is missing, or is no division.
    """
    return vars(read_form(_Manifest, path, "a division of annotated images"))


def annotations_of(members: Iterable[Member], annotations: Iterable[Annotation]) -> list[Annotation]:
    """The images of a part.

    Raises:
        TomoscoutError: one is missing, or its files have changed since the division was written.
    """
    by_name = {(entry.source, entry.name): entry for entry in annotations}
    found = []
    for member in members:
        entry = by_name.get((member.source, member.name))
        if entry is None:
            raise TomoscoutError(f"{member.source}/{member.name}: no such image; divide the annotations again")
        if entry.inputs != member.inputs:
            raise TomoscoutError(f"{entry.place}: it or its labels have changed; divide the annotations again")
        found.append(entry)
    return found
