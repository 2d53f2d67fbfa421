"""Volumes that are read and written part by part by threads of their own, while something is computed."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tomoscout.machine.heap import own_pages

Window = tuple[slice, ...]
"""A region of a volume."""


def pieces(shape: Sequence[int], lengths: Sequence[int]) -> Iterator[Window]:
    """The regions of `lengths` (*space) that a volume of `shape` (*space) consists of, smaller ones at its ends."""
    spans = [
        [slice(start, min(start + length, size)) for start in range(0, size, length)]
        for size, length in zip(shape, lengths, strict=True)
    ]
    return itertools.product(*spans)


PIECE = 256
"""Largest side, along the other axes, of what is read at once of a plane."""


class ReadAhead:
    """Regions of a volume, asked for in planes that follow each other along one axis. The rows of a plane are kept, and
    those after it are read ahead."""

    def __init__(self, read: Callable[[Window], NDArray[Any]], shape: Sequence[int], axis: int) -> None:
        """`read`: reads a region of a volume of `shape` (*space)."""
        self._read, self._shape, self._axis = read, shape, axis
        self._end = 0
        self._kept: list[tuple[int, NDArray[Any]]] = []
        self._ahead: Future[NDArray[Any]] | None = None
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def part(self, window: Window) -> NDArray[Any]:
        """A region, (*space). It must not begin before the regions that were asked for earlier."""
        rows = window[self._axis]
        if rows.stop > self._end:
            self._go_on_to(rows)
        found = []
        for first, kept in self._kept:
            here = slice(max(rows.start - first, 0), max(rows.stop - first, 0))
            part = kept[tuple(here if axis == self._axis else place for axis, place in enumerate(window))]
            if part.shape[self._axis]:
                found.append(part)
        return found[0] if len(found) == 1 else np.concatenate(found, axis=self._axis)

    def _go_on_to(self, rows: slice) -> None:
        self._kept = list(self._from(rows.start))
        if self._ahead is not None:
            self._keep(self._ahead.result())
            self._ahead = None
        if self._end < rows.stop:
            self._end = max(self._end, rows.start)
            self._keep(self._read_rows(self._end, rows.stop))
        following = min(self._end + rows.stop - rows.start, self._shape[self._axis])
        if following > self._end:
            self._ahead = self._pool.submit(self._read_rows, self._end, following)

    def _keep(self, rows: NDArray[Any]) -> None:
        self._kept.append((self._end, rows))
        self._end += rows.shape[self._axis]

    def _from(self, start: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """What is kept from a row on. Of rows that begin before a copy, so that these leave."""
        for first, kept in self._kept:
            if start <= first:
                yield first, kept
                continue
            rest = kept[(slice(None),) * self._axis + (slice(start - first, None),)]
            if rest.shape[self._axis]:
                copy = own_pages(rest.shape, rest.dtype)
                copy[...] = rest
                yield start, copy

    def _read_rows(self, start: int, stop: int) -> NDArray[Any]:
        across = [1 if axis == self._axis else size for axis, size in enumerate(self._shape)]
        rows: NDArray[Any] | None = None
        for piece in pieces(across, [PIECE] * len(across)):
            part = self._read(tuple(slice(start, stop) if n == self._axis else at for n, at in enumerate(piece)))
            if rows is None:
                shape = [stop - start if axis == self._axis else size for axis, size in enumerate(self._shape)]
                rows = own_pages(shape, part.dtype)
            rows[tuple(slice(None) if n == self._axis else at for n, at in enumerate(piece))] = part
        assert rows is not None
        return rows


class ChunkBuffer:
    """Collects blocks of a volume until they fill chunks, which are handed on.

    In a `with` block. At its end every chunk was handed on.
    """

    LONGEST_QUEUE = 2
    """Complete chunks that may wait for the thread that handles them."""

    def __init__(
        self,
        shape: Sequence[int],
        chunks: Sequence[int],
        kind: DTypeLike,
        handle: Callable[[Window, NDArray[Any]], None],
    ) -> None:
        """`shape`: (channels, *space). `chunks`: voxels (*space) of a chunk. `handle`: called in another thread with
        the place (*space) of a chunk and its values (channels, *space) in dtype `kind`."""
        self._shape, self._chunks, self._kind, self._handle = tuple(shape), tuple(chunks), kind, handle
        self._filling: dict[tuple[int, ...], tuple[NDArray[Any], int]] = {}
        self._waiting: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=error is not None)
        if error is None:
            while self._waiting:
                self._waiting.popleft().result()
            assert not self._filling

    def add(self, window: Window, block: NDArray[Any]) -> None:
        """Add values (channels, *space) at a place that had none."""
        spans = [
            range(part.start // chunk, math.ceil(part.stop / chunk))
            for part, chunk in zip(window, self._chunks, strict=True)
        ]
        for number in itertools.product(*spans):
            place = tuple(
                slice(n * chunk, min((n + 1) * chunk, size))
                for n, chunk, size in zip(number, self._chunks, self._shape[1:], strict=True)
            )
            values, missing = self._filling.pop(number) if number in self._filling else self._empty(place)
            common = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(window, place, strict=True)]
            here = tuple(slice(c.start - p.start, c.stop - p.start) for c, p in zip(common, place, strict=True))
            there = tuple(slice(c.start - w.start, c.stop - w.start) for c, w in zip(common, window, strict=True))
            values[(slice(None), *here)] = block[(slice(None), *there)]
            missing -= math.prod(c.stop - c.start for c in common)
            if missing:
                self._filling[number] = values, missing
            else:
                self._hand_on(place, values)

    def _empty(self, place: Window) -> tuple[NDArray[Any], int]:
        sizes = [part.stop - part.start for part in place]
        return own_pages((self._shape[0], *sizes), self._kind), math.prod(sizes)

    def _hand_on(self, place: Window, values: NDArray[Any]) -> None:
        if len(self._waiting) >= self.LONGEST_QUEUE:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._handle, place, values))
