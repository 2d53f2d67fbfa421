"""The best model so far of a running training: a model folder that is replaced atomically."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

SO_FAR = "so-far"
"""Name of a symbolic link in the folder of the training. It points to one of two folders, which are written in turn."""

_FOLDERS = (f".{SO_FAR}-1", f".{SO_FAR}-2")


def replace_so_far(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then point the link to it. The previous folder stays until the next call, for
    processes that still read it."""
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
        # Copying the results may have replaced the link by a folder.
        shutil.rmtree(link)
    temporary.replace(link)


def remove_so_far(folder: Path) -> None:
    """Remove the link and its folders: a complete training has its model in its own folder."""
    link = folder / SO_FAR
    if link.is_symlink():
        link.unlink()
    for name in (SO_FAR, *_FOLDERS):
        shutil.rmtree(folder / name, ignore_errors=True)
