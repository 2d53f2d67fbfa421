"""The files of annotated images, and those of images to segment, as the workflow watches them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tomoscout.data.image_names import ending_of
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.tasks.instances.annotation_options import Annotations

EXPORTED = "_labelled"
"""End of the name of exported labels."""
LABEL_MARKS = (EXPORTED, "_labels", "_mask")
"""Ends of names of labels that lie beside their image."""
WRITTEN = ".written.json"
"""End of the name of a list of the files that segmentations with a model wrote."""


def annotation_files(options: Annotations) -> list[str]:
    """All files of the folders of annotated images, sorted; tomograms are in the inventory, and samples in a package.

    Raises:
        TomoscoutError: there is no such folder, or no folder at all.
    """
    if not options.annotations:
        raise TomoscoutError("cells.annotations: no folder; give name: folder")
    files: list[str] = []
    for name, source in options.annotations.items():
        if source.folder is None:
            continue
        folder = Path(source.folder)
        if not folder.is_dir():
            raise TomoscoutError(f"cells.annotations.{name}: {folder}: no such folder")
        files += sorted(str(path) for path in (*folder.glob("*.*"), *folder.glob("*/*.*")) if path.suffix)
    return files


def images_of(paths: Sequence[str], records: Path) -> list[Path]:
    """The images that are named, and those in the folders that are named, sorted; not labels, whether exported or
    written by a segmentation.

    Args:
        paths: images, and folders of images.
        records: the folder with the lists of what segmentations wrote (`WRITTEN`).

    Raises:
        TomoscoutError: none is named, one does not exist, or a folder has none.
    """
    if not paths:
        raise TomoscoutError("cells.segment.images: nothing to segment; name images, or folders of images")
    written = {file for record in records.glob(f"*{WRITTEN}") for file in read_json(record)}
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise TomoscoutError(f"cells.segment.images: {path}: no such file or folder")
        inside = [path] if ending_of(path) else sorted(path.iterdir())
        images = [entry for entry in inside if _is_image(entry) and str(entry) not in written]
        if not images:
            raise TomoscoutError(f"cells.segment.images: {path}: no image (tif, png, zarr)")
        found += images
    return list(dict.fromkeys(found))


def _is_image(path: Path) -> bool:
    ending = ending_of(path)
    return ending is not None and not path.name.removesuffix(ending).endswith(LABEL_MARKS)
