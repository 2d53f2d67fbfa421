"""The formats of tomograms in files of other programs."""

from __future__ import annotations

from typing import Literal

VolumeFormat = Literal["mrc", "tiff", "ome-zarr"]
ENDINGS: dict[str, VolumeFormat] = {
    **dict.fromkeys([".mrc", ".mrcs", ".rec", ".map", ".st", ".mrc.gz", ".mrc.bz2", ".map.gz"], "mrc"),
    **dict.fromkeys([".tif", ".tiff"], "tiff"),
    **dict.fromkeys([".zarr", ".ome.zarr"], "ome-zarr"),
}
"""The formats by the endings of files."""
