"""The request to finish a training early: it becomes complete with the best model so far."""

from __future__ import annotations

from pathlib import Path

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json, write_json
from tomoscout.machine.locks import owner_of
from tomoscout.machine.messages import say
from tomoscout.tracking.record import read_record

FINISH = "finish.json"
"""Name of the file in the folder of a training that requests its end. It holds the fingerprint of the training, so that
it has no effect on one with other settings or data. If it is removed, the training continues."""


def finish_training(folder: Path) -> str | None:
    """Request the end of the training in a folder: a running training ends after its current step, another one when it
    is started again. Returns the process at work in the folder, or None.

    Raises:
        TomoscoutError: no training was started there, it is complete, or it is a trial.
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
    """Tells, when called, whether the end of a training is requested."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._path = folder / FINISH
        self._fingerprint = fingerprint
        if self._path.exists() and not self():
            say(f"{self._path}: asked for with other settings or data, without effect")
            self._path.unlink()

    def __call__(self) -> bool:
        return self._path.exists() and read_json(self._path).get("fingerprint") == self._fingerprint
