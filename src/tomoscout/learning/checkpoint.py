"""Checkpoints of a training, written atomically."""

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
    """The checkpoint file of one training, and the previous checkpoint.

    `fingerprint`: digest of everything that the result depends on; a checkpoint of another training is not used. The
    exception is a checkpoint with the same `kind` (the digest without the length of the training), if the training can
    be continued from it.
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
        """Whether it is time for the next checkpoint."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write the state. The previous checkpoint is kept beside it, untouched until the new file is complete.

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
            # PyTorch replaces the error of the operating system by one of its own.
            cause = (isinstance(error, RuntimeError) and error.__context__) or error
            reason = getattr(cause, "strerror", None) or " ".join(str(cause).split())
            raise TomoscoutError(
                f"{self.path}: the checkpoint cannot be written ({reason}); make room and give the same command "
                "again: it goes on from the last one"
            ) from None
        self._saved = time.monotonic()

    def load(self, obstacle: Callable[[dict[str, Any]], str | None] = lambda state: None) -> dict[str, Any] | None:
        """The last state saved by this training, or None. If the file is damaged, the previous checkpoint is used.
        `obstacle`: says why the state of a training of the same kind and another length cannot be continued; None if it
        can."""
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
        """Delete the previous checkpoint, which a complete training does not need."""
        self.previous.unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            # PyTorch does not verify the checksums in its files.
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"wrong checksum of {damaged}")
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if "fingerprint" not in state:
                raise KeyError("fingerprint")
        except Exception as error:
            # On any error the training can still continue from an earlier step.
            reason = " ".join(str(error).split())[:100]
            warn(f"{path}: damaged checkpoint, not used ({type(error).__name__}: {reason})")
            return None
        return state
