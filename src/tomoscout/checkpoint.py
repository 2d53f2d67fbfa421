"""A training's state on disk, whole or not at all."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from tomoscout.errors import TomoscoutError
from tomoscout.files import atomic_path


class Checkpoint:
    """The checkpoint file of one training. `fingerprint` stands for everything the result depends on: a checkpoint
    of another training is not taken up."""

    def __init__(self, path: Path, fingerprint: str, seconds: float) -> None:
        """`seconds`: time between two checkpoints."""
        self.path = path
        self.fingerprint = fingerprint
        self._seconds = seconds
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._saved >= self._seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write the state. Until the new file is complete the old one stays.

        Raises:
            TomoscoutError: it cannot be written; the disk may be full.
        """
        try:
            with atomic_path(self.path) as temporary, temporary.open("wb") as handle:
                torch.save({**state, "fingerprint": self.fingerprint}, handle)
        except (OSError, RuntimeError) as error:
            # PyTorch covers what the system said with an error of its own.
            reason = (isinstance(error, RuntimeError) and error.__context__) or error
            raise TomoscoutError(f"{self.path}: the checkpoint cannot be written ({reason})") from None
        self._saved = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The last state saved by this training, or None."""
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:
            # Whatever the reader trips over, the training can still be done, from the start.
            print(
                f"warning: {self.path}: damaged checkpoint, starting afresh ({type(error).__name__})", file=sys.stderr
            )
            return None
        if state.get("fingerprint") != self.fingerprint:
            print(f"{self.path}: checkpoint of other settings or data, starting afresh", file=sys.stderr)
            return None
        return state
