"""The memory that the C library has set aside for this process."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> None:
    """Let freed memory stay with this process.

    glibc asks the system for each array of more than 32 MB anew, and the system clears every page of it: when a network
    predicts a tomogram on a CPU, this takes more than half of the time. Other C libraries have no such call, and
    nothing is done.
    """
    options = getattr(ctypes.CDLL(None), "mallopt", None)
    if options is not None:
        options(_M_TRIM_THRESHOLD, 2**30)
        # Whole tomograms are larger. They come and go seldom, and would leave gaps.
        options(_M_MMAP_THRESHOLD, 2**28)


def own_pages(shape: Sequence[int], kind: DTypeLike) -> NDArray[Any]:
    """An array of zeros in pages of its own, which the system has back as soon as the array is gone.

    For large arrays that threads pass on to each other: what glibc keeps for each thread that has freed some adds up to
    more than the arrays.
    """
    wanted = np.dtype(kind)
    count = math.prod(shape)
    if not count:
        return np.empty(shape, dtype=wanted)
    return np.frombuffer(mmap.mmap(-1, count * wanted.itemsize), dtype=wanted).reshape(shape)


def return_freed_memory() -> None:
    """Give memory that was freed back to the system.

    glibc keeps it for later. Where large arrays come and go beside small objects that stay, the gaps that they leave
    are often just too small for the next ones, and the process grows with each of them. Other C libraries have no such
    call, and nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
