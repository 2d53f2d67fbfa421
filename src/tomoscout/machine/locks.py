"""Lock files (flock): the operating system releases the lock of a process that ends, even if it is killed.

filelock 4.2 was tried instead of `take` and `release`, and rejected. It takes 35 ms to import (a command starts in 60
ms), 0.5 ms for a lock (here 0.3 ms) and 95 µs for a refusal (here 5 µs). It does not tell who holds a lock, accepts a
file that was replaced on NFS or that has several names (hard links), and fails at transient errors (ESTALE): the code
for these cases would remain.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import platform
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.messages import say, warn

LOCK = ".lock"
"""Name of the lock file in a folder. The process that works in the folder holds the lock."""

_PAUSE = 1.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_PASSING = (errno.ESTALE, errno.EIO, errno.EINTR)

_held: set[io.FileIO] = set()


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Work in a folder while no other process does, on this machine or another. Waits until the other process ends.

    When Snakemake is killed, its jobs on a cluster continue: without the lock, the same command given again would start
    a second training on the checkpoint of the first. On a file system without locks this only warns.

    Raises:
        TomoscoutError: the lock file cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    owner = f"process {os.getpid()} on {platform.node()}"
    lock = _wait_for(path, owner)
    try:
        yield
    finally:
        # Remove only the own file: a user may have removed it, as the message of a waiting process advises, and another
        # process may have created a new one.
        with contextlib.suppress(OSError):
            if _is_at(path, os.fstat(lock.fileno())) if lock else path.read_text(encoding="utf-8") == owner:
                path.unlink()
        if lock:
            release(lock)


def owner_of(folder: Path) -> str | None:
    """The process at work in a folder, as text for messages; None if there is none. See `holder_of`."""
    return holder_of(folder / LOCK)


def holder_of(path: Path) -> str | None:
    """The process that holds a lock file, as text for messages; None if there is none. On a file system without locks
    the process may have ended."""
    owner = ""
    try:
        with path.open("rb") as lock:
            owner = lock.read().decode(errors="replace")
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return owner or "another process"
    except OSError:
        return f"{owner or 'another process'}, perhaps gone"
    return None


def _wait_for(path: Path, owner: str) -> io.FileIO | None:
    """The lock, or None on a file system without locks."""
    told = False
    while True:
        try:
            lock = take(path, owner)
        except OSError as error:
            if error.errno in _NO_LOCKS and not told:
                warn(f"{path}: no lock ({error.strerror}); let nothing else work in this folder")
                path.write_text(owner, encoding="utf-8")
                return None
            if error.errno not in _PASSING + _NO_LOCKS:
                raise TomoscoutError(f"{path}: cannot be locked ({error.strerror}); remove it") from None
            lock = None
        if lock:
            return lock
        told = told or _tell_holder(path)
        time.sleep(_PAUSE)


def _tell_holder(path: Path) -> bool:
    """Print which process is waited for. Returns whether the file could be read."""
    try:
        holder = path.read_text(encoding="utf-8") or "another process"
    except OSError:
        return False
    say(f"waiting: {holder} is at work in {path.parent}; where it is not, as its machine is gone, remove {path}")
    return True


def take(path: Path, owner: str) -> io.FileIO | None:
    """Lock a file and write `owner` into it for people to read. Returns it open, or None if another process holds it.

    Raises:
        OSError: the file cannot be used.
    """
    try:
        with contextlib.ExitStack() as closing:
            lock = closing.enter_context(open(path, "r+b", buffering=0, opener=_open_or_create))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(lock.fileno())
            if not _is_at(path, status):  # It was removed after it was opened: other processes lock the new file.
                return None
            if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a plain file of one name")
            closing.pop_all()
    except BlockingIOError:
        return None
    _held.add(lock)
    with contextlib.suppress(OSError):
        # Writing updates the modification time, which also keeps cleaners of /tmp from removing the file.
        lock.truncate()
        lock.write(owner.encode())
        # Make the text visible to other machines (NFS).
        os.fsync(lock.fileno())
    return lock


def _is_at(path: Path, status: os.stat_result) -> bool:
    # NFS renames a file that is removed while it is open, and its number of names (st_nlink) stays 1. So compare the
    # inodes.
    try:
        return os.path.samestat(path.stat(), status)
    except FileNotFoundError:
        return False


def release(lock: io.FileIO) -> None:
    """Unlock the file, so that another process can lock it."""
    if lock in _held:
        _held.remove(lock)
        # Closing the file does not unlock it while a forked process still has it open.
        fcntl.flock(lock, fcntl.LOCK_UN)
        lock.close()


def _open_or_create(path: str, flags: int) -> int:
    # With O_CREAT, Linux refuses to open another user's file in /tmp (fs.protected_regular).
    flags |= os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return os.open(path, flags)


def _leave_to_parent() -> None:
    """In a forked process: close the lock files of the parent. Otherwise the locks would last until the child ends."""
    for lock in _held:
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
