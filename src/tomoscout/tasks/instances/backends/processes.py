"""The Python of a back end as a child process: found, started, and stopped with this one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.learning.trainer import Interrupted
from tomoscout.machine.errors import TomoscoutError, cut
from tomoscout.tasks.instances.backends import worker


def python_of(backend: str, named: str | None) -> str:
    """The Python that has the package of a back end: the one that an option names, else that of the environment which
    lies in tomoscout's own, on a machine as in an image.

    Raises:
        TomoscoutError: there is none.
    """
    place = named or str(Path(sys.prefix) / backend / "bin" / "python")
    found = shutil.which(place)
    if not found:
        raise TomoscoutError(f"cells.train.backend: {backend}: {place}: no such Python; {_remedy(backend)}")
    return found


def train(
    python: str, backend: str, folder: Path, tell: Callable[[Sequence[Mapping[str, float]]], None]
) -> dict[str, Any]:
    """Train on the prepared images in `folder`; returns facts about the training. `tell`: called with the rows
    of the history before a restart, then with each new one.

    Raises:
        TomoscoutError: the package is missing, or the training failed.
        Interrupted: a signal stopped it.
    """
    facts: dict[str, Any] = {}
    with (folder / "output.txt").open("wb+") as output, _child(python, backend, output, "train", folder) as child:
        with _signals_raise():
            assert child.stdout
            for line in child.stdout:
                entry = json.loads(line)
                if "rows" in entry:
                    tell(entry["rows"])
                else:
                    facts = entry["facts"]
            child.wait()
        _check_end(child, python, backend, output)
    return facts


class Predictor:
    """A model of a back end at work in its own process, with as many threads as this one; `close` ends it."""

    def __init__(self, python: str, backend: str, folder: Path, device: str) -> None:
        self._python, self._backend = python, backend
        with contextlib.ExitStack() as stack:
            self._output = stack.enter_context(tempfile.TemporaryFile())
            self._child = stack.enter_context(
                _child(python, backend, self._output, "predict", folder, device, str(torch.get_num_threads()))
            )
            self.close = stack.pop_all().close

    def labels(self, image: NDArray[np.float32]) -> NDArray[np.int32]:
        """Labels (y, x) of a prepared image (channels, y, x).

        Raises:
            TomoscoutError: the package is missing, or failed.
        """
        assert self._child.stdin and self._child.stdout
        shape = image.shape[1:]
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(" ".join(map(str, image.shape)).encode() + b"\n")
            self._child.stdin.write(np.ascontiguousarray(image, np.float32).tobytes())
            self._child.stdin.flush()
        answer = self._child.stdout.read(4 * math.prod(shape))
        if len(answer) < 4 * math.prod(shape):
            self._child.wait()
            _check_end(self._child, self._python, self._backend, self._output)
        return np.frombuffer(answer, np.int32).reshape(shape)


@contextlib.contextmanager
def _child(
    python: str, backend: str, output: IO[bytes], what: str, folder: Path, *more: str
) -> Iterator[subprocess.Popen[bytes]]:
    # -I: nothing of this process's Python path or of the user's own packages reaches the other Python.
    command = [python, "-I", worker.__file__, backend, what, str(folder.absolute()), *more]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, env=environment
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def _check_end(child: subprocess.Popen[bytes], python: str, backend: str, output: IO[bytes]) -> None:
    if child.returncode == worker.MISSING:
        raise TomoscoutError(f"cells.train.backend: {python} has no {backend}; {_remedy(backend)}")
    if child.returncode:
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
        raise TomoscoutError(
            f"{backend} ended with exit code {child.returncode} ({cut((lines or ['no word'])[-1], 300)})"
        )


def _remedy(backend: str) -> str:
    return (
        f"make it with `make .venv/{backend}`, name one that has the package with cells.train.python, or run in the "
        "image or conda environment of the back end (--sdm)"
    )


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Let the signals by which schedulers and users end a job raise `Interrupted`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Interrupted

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
