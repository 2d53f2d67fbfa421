"""Memory that was freed goes back to the system, or stays where it is needed again."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import numpy as np
import pytest

from tomoscout.machine.device import own_memory
from tomoscout.machine.heap import own_pages

PROGRAM = """
from pathlib import Path
from tomoscout.machine.heap import return_freed_memory

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024

large, small = [], []
for _ in range(2000):
    large.append(bytearray(b"x" * 100_000))
    small.append(bytearray(700))
del large
before = held()
return_freed_memory()
print(before, held())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not the C library of GNU")
def test_memory_between_small_objects_is_returned() -> None:
    before, after = map(int, subprocess.check_output([sys.executable, "-c", PROGRAM], text=True).split())
    assert before > 150
    assert after < before - 100


REPEATED = """
import resource, sys
import numpy as np
from tomoscout.machine.heap import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(2**24)  # The first time the system has to give it in any case.
before = faults()
for _ in range(5):
    np.ones(2**24)
print(faults() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not the C library of GNU")
def test_memory_that_is_kept_needs_no_pages_again() -> None:
    otherwise, kept = (
        int(subprocess.check_output([sys.executable, "-c", REPEATED, what], text=True)) for what in ("", "keep")
    )
    assert otherwise > 100
    assert kept < otherwise / 10


def test_pages_of_an_array_are_returned_at_once() -> None:
    before = own_memory()
    array = own_pages((4, 2**22), np.float32)
    assert array.shape == (4, 2**22) and array.dtype == np.float32 and not array.any()
    array[...] = 1
    view = array[1:]
    held = own_memory() - before
    assert held > 0.9 * 2**26
    del array
    assert view.all()
    del view
    assert own_memory() - before < held / 2
    assert own_pages((0, 3), np.uint8).shape == (0, 3)
