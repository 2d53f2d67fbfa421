"""Names of image files that can be read."""

from __future__ import annotations

from pathlib import Path

ENDINGS = (".ome.zarr", ".zarr", ".ome.tiff", ".ome.tif", ".tiff", ".tif", ".png")
"""How the names of files end that can be read; the longer endings first."""


def ending_of(path: Path) -> str | None:
    """The ending of a file that can be read, None of any other."""
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
