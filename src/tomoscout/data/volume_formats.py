"""The formats of tomograms in files of other programs."""

from __future__ import annotations

from itertools import product
from typing import Literal

VolumeFormat = Literal["mrc", "tiff", "ome-zarr"]
COMPRESSED = (".gz", ".bz2")
"""Further endings of compressed MRC files."""
ENDINGS: dict[str, VolumeFormat] = {
    **{"".join(parts): "mrc" for parts in product([".mrc", ".mrcs", ".rec", ".map", ".st"], ["", *COMPRESSED])},
    **dict.fromkeys([".tif", ".tiff"], "tiff"),
    **dict.fromkeys([".zarr", ".ome.zarr"], "ome-zarr"),
}
"""The formats by the endings of files."""
