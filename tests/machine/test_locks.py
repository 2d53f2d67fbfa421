"""One process at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tomoscout.machine import locks
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.locks import alone_in, owner_of, release, take

HOLD = """
import sys
from pathlib import Path
from tomoscout.machine.locks import alone_in
with alone_in(Path(sys.argv[1])):
    print("alone", flush=True)
    sys.stdin.read()
"""


class Process:
    """A process of its own, and what it says."""

    def __init__(self, *command: str | Path) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, *map(str, command)], text=True, **pipes)

    def said(self) -> str:
        return self._line("stdout")

    def complained(self) -> str:
        return self._line("stderr")

    def _line(self, name: str) -> str:
        stream = getattr(self.process, name)
        ready, _, _ = select.select([stream], [], [], 60)
        assert ready, "nothing said"
        line: str = stream.readline()
        return line.rstrip("\n")

    def is_silent(self) -> bool:
        return not select.select([self.process.stdout, self.process.stderr], [], [], 0.5)[0]

    def end(self) -> str:
        """Let it end; returns what else it complained of."""
        return self.process.communicate(timeout=60)[1]


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    processes = []

    def started(*command: str | Path) -> Process:
        processes.append(Process(*command))
        return processes[-1]

    yield started
    for entry in processes:
        entry.process.kill()
        entry.process.communicate()


def test_the_second_waits_for_the_first_and_says_so(tmp_path: Path, start: Callable[..., Process]) -> None:
    folder = tmp_path / "models/default"
    first = start("-c", HOLD, folder)
    assert first.said() == "alone"
    second = start("-c", HOLD, folder)
    holder = f"process {first.process.pid} on {platform.node()}"
    said = second.complained()
    assert said.startswith(f"waiting: {holder} is at work in {folder}; ")
    assert said.endswith(f"remove {folder}/.lock")
    assert second.is_silent()
    first.end()
    assert second.said() == "alone"
    second.end()
    assert list(folder.iterdir()) == []


def test_a_killed_process_leaves_nothing_to_wait_for(tmp_path: Path, start: Callable[..., Process]) -> None:
    first = start("-c", HOLD, tmp_path)
    assert first.said() == "alone"
    first.process.kill()
    first.process.wait()
    assert (tmp_path / ".lock").exists()
    with alone_in(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {platform.node()}"
    assert not (tmp_path / ".lock").exists()


def test_other_folders_are_not_waited_for(tmp_path: Path, start: Callable[..., Process]) -> None:
    assert start("-c", HOLD, tmp_path / "a").said() == "alone"
    assert start("-c", HOLD, tmp_path / "b").said() == "alone"


def test_a_file_system_without_locks_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with alone_in(tmp_path):
        assert owner_of(tmp_path) == f"process {os.getpid()} on {platform.node()}, perhaps gone"
    assert owner_of(tmp_path) is None
    warning = f"warning: {tmp_path}/.lock: no lock (No locks available); let nothing else work in this folder\n"
    assert capsys.readouterr().err == warning


def test_a_lock_given_up_while_it_is_asked_for_is_still_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process ends after this one has found its lock and before it reads whose it was."""
    held = take(tmp_path / ".lock", "another")
    assert held
    read_text = Path.read_text

    def after_the_end(path: Path, encoding: str) -> str:
        if path.exists():
            path.unlink()
            release(held)
        return read_text(path, encoding)

    monkeypatch.setattr(Path, "read_text", after_the_end)
    monkeypatch.setattr(locks, "_PAUSE", 0.0)
    with alone_in(tmp_path):
        assert take(tmp_path / ".lock", "a third") is None
        assert owner_of(tmp_path) == f"process {os.getpid()} on {platform.node()}"


def test_a_lock_file_that_was_replaced_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, where a file removed while it is open keeps a name."""
    path = tmp_path / ".lock"
    plain_flock = fcntl.flock

    def replaced(*arguments: int) -> None:
        monkeypatch.setattr(fcntl, "flock", plain_flock)
        path.rename(tmp_path / ".nfs0001")
        path.touch()
        plain_flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", replaced)
    assert take(path, "too late") is None
    assert take(path, "in time")


def test_a_passing_error_is_no_reason_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of NFS, whose server was away."""
    plain_flock = fcntl.flock
    errors = iter([errno.ESTALE, errno.EIO])

    def away(*arguments: int) -> None:
        for number in errors:
            raise OSError(number, os.strerror(number))
        plain_flock(*arguments)

    monkeypatch.setattr(fcntl, "flock", away)
    monkeypatch.setattr(locks, "_PAUSE", 0.0)
    with alone_in(tmp_path):
        assert owner_of(tmp_path) == f"process {os.getpid()} on {platform.node()}"


def test_a_lock_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    message = rf"^{tmp_path}/\.lock: cannot be locked \(.*\); remove it$"
    with pytest.raises(TomoscoutError, match=message), alone_in(tmp_path):
        pass
    assert owner_of(tmp_path) == "another process, perhaps gone"


def test_the_lock_of_another_stays(tmp_path: Path) -> None:
    """After somebody has removed that of a process that was still at work."""
    with alone_in(tmp_path):
        (tmp_path / ".lock").unlink()
        other = take(tmp_path / ".lock", "another")
        assert other
    assert owner_of(tmp_path) == "another"
    release(other)


def test_whose_lock_it_is_need_not_be_known(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        (tmp_path / ".lock").write_text("")
        assert owner_of(tmp_path) == "another process"
