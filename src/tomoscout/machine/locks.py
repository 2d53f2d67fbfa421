"""Lock files (flock): the system takes the lock from a process that dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import platform
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tomoscout.machine.errors import TomoscoutError

LOCK = ".lock"
"""The file in a folder that is locked by who is alone in it."""

_PAUSE = 1.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_PASSING = (errno.ESTALE, errno.EIO, errno.EINTR)

_held: set[io.FileIO] = set()


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Have a folder for this process alone; waits for another, on whatever machine. Where Snakemake is killed its jobs
    on a cluster go on, and the same command given again would start a second training on the checkpoint of the first.

    Where the file system knows no locks, a warning is all there is.

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
        # Not another's: somebody may have removed this one, as a waiting process advises.
        with contextlib.suppress(OSError):
            if _is_at(path, os.fstat(lock.fileno())) if lock else path.read_text(encoding="utf-8") == owner:
                path.unlink()
        if lock:
            release(lock)


def owner_of(folder: Path) -> str | None:
    """Who is alone in a folder now, if anybody is. Where the file system knows no locks, it may be gone."""
    return holder_of(folder / LOCK)


def holder_of(path: Path) -> str | None:
    """Who holds a lock file, if anybody does. Where the file system knows no locks, it may be gone."""
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
    """The lock, or None where there are none."""
    told = False
    while True:
        try:
            lock = take(path, owner)
        except OSError as error:
            if error.errno in _NO_LOCKS and not told:
                _warn(f"warning: {path}: no lock ({error.strerror}); let nothing else work in this folder")
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
    """Say who is waited for, where the file is there to be read."""
    try:
        holder = path.read_text(encoding="utf-8") or "another process"
    except OSError:
        return False
    _warn(f"waiting: {holder} is at work in {path.parent}; where it is not, as its machine is gone, remove {path}")
    return True


def _warn(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def take(path: Path, owner: str) -> io.FileIO | None:
    """The lock file, open and locked, with `owner` in it for people to read, or None where another process holds it.

    Raises:
        OSError: the file cannot be used.
    """
    try:
        with contextlib.ExitStack() as closing:
            lock = closing.enter_context(open(path, "r+b", buffering=0, opener=_open_or_create))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(lock.fileno())
            if not _is_at(path, status):  # Removed since it was opened: others lock the file that comes after it.
                return None
            if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a plain file of one name")
            closing.pop_all()
    except BlockingIOError:
        return None
    _held.add(lock)
    with contextlib.suppress(OSError):
        # What cleans /tmp of old files goes by the last change.
        lock.truncate()
        lock.write(owner.encode())
        # For other machines to read.
        os.fsync(lock.fileno())
    return lock


def _is_at(path: Path, status: os.stat_result) -> bool:
    # NFS gives a file that is removed while it is open another name: the number of its names says nothing.
    try:
        return os.path.samestat(path.stat(), status)
    except FileNotFoundError:
        return False


def release(lock: io.FileIO) -> None:
    """Let others have it."""
    if lock in _held:
        _held.remove(lock)
        # Closing alone would not do it while a process forked behind Python's back has the file open too.
        fcntl.flock(lock, fcntl.LOCK_UN)
        lock.close()


def _open_or_create(path: str, flags: int) -> int:
    # Linux lets nobody open another user's file in /tmp who would also create it (fs.protected_regular).
    flags |= os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return os.open(path, flags)


def _leave_to_parent() -> None:
    """In a forked process: close the parent's locks, or they would last as long as the fork."""
    for lock in _held:
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
