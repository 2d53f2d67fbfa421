"""The best model so far of a training that goes on: a model folder that readers only ever see whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

SO_FAR = "so-far"
"""Its name in the folder of the training: a link to one of two folders, written in turn."""

_FOLDERS = (f".{SO_FAR}-1", f".{SO_FAR}-2")


def replace_so_far(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder and then let the link point to it. The folder before it stays until the next time,
    for whoever is reading it."""
    link = folder / SO_FAR
    current = link.readlink().name if link.is_symlink() else None
    new = folder / next(name for name in _FOLDERS if name != current)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    write(new)
    temporary = folder / f".{SO_FAR}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(new.name)
    if link.is_dir() and not link.is_symlink():
        # A copy of the results has a folder in place of the link.
        shutil.rmtree(link)
    temporary.replace(link)


def remove_so_far(folder: Path) -> None:
    """Remove it: a complete training has its model in its own folder."""
    link = folder / SO_FAR
    if link.is_symlink():
        link.unlink()
    for name in (SO_FAR, *_FOLDERS):
        shutil.rmtree(folder / name, ignore_errors=True)
