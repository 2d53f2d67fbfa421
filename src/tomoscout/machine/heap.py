"""The memory that the C library has set aside for this process."""

from __future__ import annotations

import ctypes


def return_freed_memory() -> None:
    """Give memory that was freed back to the system.

    glibc keeps it for later. Where large arrays come and go beside small objects that stay, the gaps that they leave
    are often just too small for the next ones, and the process grows with each of them. Other C libraries have no such
    call, and nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
