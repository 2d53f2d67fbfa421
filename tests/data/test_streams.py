"""Volumes that are read and written part by part."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.data.streams import ChunkBuffer, ReadAhead

few = settings(deadline=None, max_examples=50, derandomize=True)


@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.integers(0, 2),
    st.integers(1, 7),
    st.integers(1, 7),
)
@few
def test_regions_are_those_of_the_volume(shape: tuple[int, int, int], axis: int, length: int, step: int) -> None:
    volume = np.random.default_rng(0).normal(size=shape)
    read: list[slice] = []

    def region(window: tuple[slice, ...]) -> np.ndarray:
        read.append(window[axis])
        return volume[window].copy()

    with ReadAhead(region, shape, axis) as ahead:
        for start in range(0, shape[axis], min(step, length)):
            rows = slice(start, min(start + length, shape[axis]))
            for other in range(shape[(axis + 1) % 3]):
                window = [slice(0, size) for size in shape]
                window[axis], window[(axis + 1) % 3] = rows, slice(other, other + 1)
                np.testing.assert_array_equal(ahead.part(tuple(window)), volume[tuple(window)])
    # Every row is read once.
    assert sorted(itertools.chain(*(range(rows.start, rows.stop) for rows in read))) == list(range(shape[axis]))


def test_a_failure_of_reading_ahead_is_told() -> None:
    def fails_later(window: tuple[slice, ...]) -> np.ndarray:
        if window[0].start:
            raise OSError("gone")
        return np.zeros((2, 3))

    with ReadAhead(fails_later, (6, 3), 0) as ahead:
        ahead.part((slice(0, 2), slice(0, 3)))
        with pytest.raises(OSError, match="gone"):
            ahead.part((slice(2, 4), slice(0, 3)))


@given(
    st.tuples(*[st.integers(1, 11)] * 3),
    st.tuples(*[st.integers(1, 6)] * 3),
    st.tuples(*[st.integers(1, 5)] * 3),
)
@few
def test_chunks_are_filled_from_blocks(shape: tuple[int, ...], chunks: tuple[int, ...], block: tuple[int, ...]) -> None:
    volume = np.random.default_rng(1).integers(0, 255, size=(2, *shape), dtype=np.uint8)
    found = np.zeros_like(volume)
    handled: list[tuple[int, ...]] = []

    def handle(place: tuple[slice, ...], values: np.ndarray) -> None:
        assert threading.current_thread() is not threading.main_thread()
        handled.append(tuple(part.start for part in place))
        found[(slice(None), *place)] = values

    with ChunkBuffer(volume.shape, chunks, np.uint8, handle) as buffer:
        for corner in itertools.product(*(range(0, n, b) for n, b in zip(shape, block, strict=True))):
            window = tuple(slice(c, min(c + b, n)) for c, b, n in zip(corner, block, shape, strict=True))
            buffer.add(window, volume[(slice(None), *window)])
    np.testing.assert_array_equal(found, volume)
    assert sorted(handled) == list(itertools.product(*(range(0, n, c) for n, c in zip(shape, chunks, strict=True))))


def test_a_failure_of_handling_is_told() -> None:
    def full(place: tuple[slice, ...], values: np.ndarray) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), ChunkBuffer((1, 4), (2,), np.uint8, full) as buffer:
        buffer.add((slice(0, 2),), np.zeros((1, 2), dtype=np.uint8))
        buffer.add((slice(2, 4),), np.zeros((1, 2), dtype=np.uint8))


def test_after_an_exception_nothing_is_waited_for() -> None:
    with pytest.raises(KeyError), ChunkBuffer((1, 4), (2,), np.uint8, lambda place, values: None) as buffer:
        buffer.add((slice(0, 1),), np.zeros((1, 1), dtype=np.uint8))
        raise KeyError
