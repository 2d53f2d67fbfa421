"""Labels of classes: 1 to C in training; on disk those of the copick config, as copick's programs read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.copick_config import read_objects
from tomoscout.machine.errors import TomoscoutError


def stored_labels(config: Path, names: Sequence[str]) -> dict[str, int]:
    """The label on disk of each class: that of the copick config; a class without one there gets the next number above
    all of them.

    Raises:
        TomoscoutError: two of the classes have one label.
    """
    objects = read_objects(config)
    labels: dict[str, int] = {}
    following = max((entry.label or 0 for entry in objects.values()), default=0)
    for name in names:
        label = objects[name].label if name in objects else None
        if label is None:
            label = following = following + 1
        for other, value in labels.items():
            if value == label:
                raise TomoscoutError(f"{config}: objects '{other}' and '{name}' have one label, {label}; expected two")
        labels[name] = label
    return labels


def label_type(largest: int) -> type[np.unsignedinteger[Any]]:
    """The smallest unsigned integer type that holds labels up to `largest`."""
    return np.uint8 if largest <= 255 else np.uint16


def stored_type(stored: Mapping[str, int]) -> type[np.unsignedinteger[Any]]:
    """The type of the labels on disk."""
    return label_type(max(stored.values(), default=0))


def to_stored(labels: NDArray[np.integer], stored: Mapping[str, int]) -> NDArray[np.integer]:
    """Labels 1 to C, in the order of `stored`, replaced by the labels on disk."""
    return _replaced(labels, np.array([0, *stored.values()], dtype=stored_type(stored)))


def from_stored(labels: NDArray[Any], stored: Mapping[str, int], what: str) -> NDArray[np.integer]:
    """Labels on disk replaced by 1 to C, in the order of `stored`.

    Raises:
        TomoscoutError: `what` holds a value that is not the label of a class.
    """
    if labels.dtype.kind not in "biu":
        raise TomoscoutError(f"{what}: holds {labels.dtype}, expected whole numbers")
    labels = labels.view(np.uint8) if labels.dtype.kind == "b" else labels
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    unknown = len(stored) + 1
    if lowest >= 0 and highest < 2**16:
        table = np.full(max(highest, *stored.values(), 0) + 1, unknown, dtype=label_type(unknown))
        table[[0, *stored.values()]] = np.arange(unknown)
        found = _replaced(labels, table)
        if found.max(initial=0) < unknown:
            return found
    wrong = np.setdiff1d(labels, [0, *stored.values()])[0]
    known = ", ".join(f"{value} {name}" for name, value in stored.items())
    raise TomoscoutError(f"{what}: holds the label {wrong}, expected 0 for background or {known}")


def _replaced(labels: NDArray[np.integer], table: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.integer]:
    """Every label replaced by its entry in the table."""
    if labels.dtype == table.dtype and np.array_equal(table, np.arange(len(table))):
        return labels
    if labels.dtype == table.dtype == np.uint8:
        # Bytes are translated ten times as fast as by indexing.
        bytewise = table.tobytes().ljust(256, b"\0")
        return np.frombuffer(labels.tobytes().translate(bytewise), dtype=np.uint8).reshape(labels.shape)
    replaced: NDArray[np.integer] = table[labels]
    return replaced
