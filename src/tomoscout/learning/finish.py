"""Ending a training early: it becomes complete with the best model so far."""

from __future__ import annotations

from pathlib import Path

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json, write_json
from tomoscout.machine.locks import owner_of
from tomoscout.machine.messages import say
from tomoscout.tracking.record import read_record

FINISH = "finish.json"
"""The file in the folder of a training that asks for its end. It names the training by its fingerprint, so that it has
no effect on one of other settings or data; removed, the training goes on."""


def finish_training(folder: Path) -> str | None:
    """Ask the training in a folder to end: one that runs after the step it is at, another when it is next started.
    Returns who is at work on it.

    Raises:
        TomoscoutError: no training was begun there, or it is complete, or it is a trial.
    """
    if (folder / "ask.json").exists():
        raise TomoscoutError(f"{folder}: a trial of an exploration; `tomoscout trial give-up` ends one")
    if not (folder / "training.json").exists():
        raise TomoscoutError(f"{folder}: no training.json; expected the folder of a training that has begun")
    record = read_record(folder)
    if record.finished:
        raise TomoscoutError(f"{folder}: the training is complete")
    write_json(folder / FINISH, {"fingerprint": record.fingerprint})
    return owner_of(folder)


class FinishRequest:
    """Whether the end of a training is asked for."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._path = folder / FINISH
        self._fingerprint = fingerprint
        if self._path.exists() and not self():
            say(f"{self._path}: asked for with other settings or data, without effect")
            self._path.unlink()

    def __call__(self) -> bool:
        return self._path.exists() and read_json(self._path).get("fingerprint") == self._fingerprint
