"""Blosc, the codec of most volumes, for chunks that may be cut short. Imported where a volume is opened, as it loads
numcodecs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numcodecs import Blosc, register_codec

_HEADER = 16


class WholeBlosc(Blosc):  # type: ignore[misc]
    """Blosc that refuses a chunk which is cut short. numcodecs reads on behind its end, where the memory may happen to
    hold what is missing, or anything else."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The decoded bytes.

        Raises:
            ValueError: the chunk has not as many bytes as its header says.
        """
        content = np.frombuffer(buf, np.uint8)
        # The last four bytes of the header are the size of all, header included (c-blosc, README_CHUNK_FORMAT).
        stated = int.from_bytes(content[_HEADER - 4 : _HEADER].tobytes(), "little")
        if len(content) < _HEADER or len(content) != stated:
            raise ValueError(f"{len(content)} bytes, where its header says {stated}")
        return super().decode(buf, out)


def refuse_cut_chunks() -> None:
    """Let all volumes that are opened from now on be read by `WholeBlosc`."""
    register_codec(WholeBlosc)
