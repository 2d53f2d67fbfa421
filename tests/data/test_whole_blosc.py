"""Chunks that Blosc would read on behind their end."""

from __future__ import annotations

import numpy as np
import pytest
from numcodecs import Blosc

from tomoscout.data.whole_blosc import WholeBlosc

VOLUME = np.random.default_rng(0).normal(size=(12, 16, 20)).astype(np.float32)


@pytest.mark.parametrize("settings", [{}, {"cname": "zstd", "shuffle": 2}, {"clevel": 0}], ids=str)
def test_a_whole_chunk_is_read_as_blosc_reads_it(settings: dict) -> None:
    chunk = Blosc(**settings).encode(VOLUME)
    assert bytes(WholeBlosc(**settings).decode(chunk)) == VOLUME.tobytes()
    out = np.empty_like(VOLUME)
    WholeBlosc(**settings).decode(chunk, out)
    np.testing.assert_array_equal(out, VOLUME)


@pytest.mark.parametrize("length", [0, 8, 16, 1000, -1])
def test_a_chunk_that_is_cut_short_is_refused_though_the_rest_lies_behind_it(length: int) -> None:
    """The memory behind it holds what is missing: Blosc itself would not notice."""
    chunk = memoryview(Blosc().encode(VOLUME))[:length]
    if length > 16 or length < 0:
        assert bytes(Blosc().decode(chunk)) == VOLUME.tobytes()
    with pytest.raises(ValueError, match="where its header says"):
        WholeBlosc().decode(chunk)
