"""A training's state on disk, whole or not at all."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import atomic_path
from tomoscout.machine.messages import say, warn


class Checkpoint:
    """The checkpoint file of one training, and the one before it.

    `fingerprint` stands for everything the result depends on: a checkpoint of another training is not taken up. The
    exception is one of the same `kind`, the fingerprint of all but how long the training is, that may be gone on from.
    """

    def __init__(self, path: Path, fingerprint: str, seconds: float, kind: str | None = None) -> None:
        """`seconds`: time between two checkpoints."""
        self.path = path
        self.previous = path.with_name(f"{path.stem}.previous{path.suffix}")
        self.fingerprint = fingerprint
        self.kind = kind
        self._seconds = seconds
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write the state. The last one is kept beside it, and untouched until the new file is complete.

        Raises:
            TomoscoutError: it cannot be written; the disk may be full.
        """
        try:
            with atomic_path(self.path) as temporary:
                with temporary.open("wb") as handle:
                    torch.save({**state, "fingerprint": self.fingerprint, "kind": self.kind}, handle)
                    os.fsync(handle.fileno())
                if self.path.exists():
                    self.path.replace(self.previous)
        except (OSError, RuntimeError) as error:
            # PyTorch covers what the system said with an error of its own.
            cause = (isinstance(error, RuntimeError) and error.__context__) or error
            reason = getattr(cause, "strerror", None) or " ".join(str(cause).split())
            raise TomoscoutError(
                f"{self.path}: the checkpoint cannot be written ({reason}); make room and give the same command "
                "again: it goes on from the last one"
            ) from None
        self._saved = time.monotonic()

    def load(self, obstacle: Callable[[dict[str, Any]], str | None] = lambda state: None) -> dict[str, Any] | None:
        """The last state saved by this training, or None. Where the file is damaged, the one before it. `obstacle`: why
        the state of a training of the same kind and another length cannot be gone on from, if it cannot."""
        for path in (self.path, self.previous):
            state = self._read(path)
            if state is not None and self._serves(path, state, obstacle):
                return state
        return None

    def _serves(self, path: Path, state: dict[str, Any], obstacle: Callable[[dict[str, Any]], str | None]) -> bool:
        if state["fingerprint"] == self.fingerprint:
            return True
        if self.kind is None or state.get("kind") != self.kind:
            say(f"{path}: checkpoint of other settings or data, not used")
            return False
        reason = obstacle(state)
        if reason:
            say(f"{path}: the training starts anew: {reason}")
        return not reason

    def remove_previous(self) -> None:
        """Delete the checkpoint before the last, of no use to a training that is complete."""
        self.previous.unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            # PyTorch does not compare the checksums in its files.
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"wrong checksum of {damaged}")
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if "fingerprint" not in state:
                raise KeyError("fingerprint")
        except Exception as error:
            # Whatever the reader trips over, the training can still be done, from an earlier step.
            reason = " ".join(str(error).split())[:100]
            warn(f"{path}: damaged checkpoint, not used ({type(error).__name__}: {reason})")
            return None
        return state
