"""A GPU of its own for every job on a workstation, where no scheduler hands them out.

A lock file per GPU, in a folder common to all users of the machine: whoever holds the lock (flock) has the GPU, and the
system takes the lock from a process that dies, however it dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tomoscout.errors import TomoscoutError

VISIBLE = "CUDA_VISIBLE_DEVICES"

LOCK_FOLDER = "TOMOSCOUT_LOCK_FOLDER"
"""Environment variable that names another folder for the lock files than /tmp: where /tmp is not common to all users
of a machine, or to all containers on it."""

SCHEDULERS = (
    "SLURM_JOB_ID",
    "PBS_JOBID",
    "SGE_TASK_ID",
    "LSB_JOBID",
    "_CONDOR_JOB_AD",
    "FLUX_JOB_ID",
    "OAR_JOB_ID",
    "KUBERNETES_SERVICE_HOST",
    "AWS_BATCH_JOB_ID",
    "BATCH_JOB_UID",
    "AZ_BATCH_TASK_ID",
)
"""Environment variables that jobs of schedulers have: Slurm, PBS, Grid Engine, LSF, HTCondor, Flux, OAR, Kubernetes and
the batch services of AWS, Google and Azure."""

_PAUSE = 0.25
_LISTING_TIME = 120

_held: set[io.FileIO] = set()


@contextlib.contextmanager
def leased_gpu(device: str) -> Iterator[str | None]:
    """Show this process, and those it starts, one GPU that no other job has; waits where all are taken.

    To be entered once, before CUDA is used. Within, CUDA_VISIBLE_DEVICES is the GPU that is yielded; afterwards it is
    what it was. Yields None and changes nothing where `device` (`auto`, `cpu` or `cuda`) is `cpu`, or where `find_pool`
    finds nothing to choose from.

    Raises:
        TomoscoutError: a lock file cannot be used, or nvidia-smi does not answer.
    """
    pool = [] if device == "cpu" else find_pool(os.environ)
    if not pool:
        yield None
        return
    gpu, lock = _first_free(pool)
    earlier = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = gpu
    try:
        yield gpu
    finally:
        if earlier is None:
            os.environ.pop(VISIBLE, None)
        else:
            os.environ[VISIBLE] = earlier
        _release(lock)


# Which GPUs there are


def find_pool(environment: Mapping[str, str]) -> list[str]:
    """The GPUs to choose from, by UUID where nvidia-smi lists them: those that CUDA_VISIBLE_DEVICES names, or else all.

    Numbers count as nvidia-smi counts. A GPU that is cut into MIG devices stands for these. As with CUDA, the first
    entry that is no GPU ends the list. Without nvidia-smi, GPUs go by the names that CUDA_VISIBLE_DEVICES gives them.

    Empty in a scheduler's job, which has its GPU already, unless CUDA_VISIBLE_DEVICES names several: then jobs share
    them, as those of a Snakemake inside an allocation do.

    Raises:
        TomoscoutError: nvidia-smi does not answer.
    """
    given = _named(environment[VISIBLE]) if VISIBLE in environment else None
    if given == [] or (any(name in environment for name in SCHEDULERS) and len(given or []) < 2):
        return []
    gpus = _list_gpus()
    if given is None:
        return [device for devices in gpus.values() for device in devices]
    return list(dict.fromkeys(_devices(given, gpus) if gpus else given))


def _named(visible: str) -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES up to the first that cannot be a GPU, such as -1."""
    names = []
    for name in map(str.strip, visible.split(",")):
        if not re.fullmatch(r"[0-9]+|(GPU|MIG)-[\w/-]+", name):
            break
        names.append(str(int(name)) if name.isdecimal() else name)
    return names


def _list_gpus() -> dict[str, list[str]]:
    """The UUID of every GPU, in the order of their numbers → those of its MIG devices, or its own where it has none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    try:
        listing = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=_LISTING_TIME).stdout
    except subprocess.TimeoutExpired:
        raise TomoscoutError(f"{command} -L: no answer within {_LISTING_TIME} s, expected a list of GPUs") from None
    slices: dict[str, list[str]] = {}
    for kind, uuid in re.findall(r"^\s*(GPU|MIG)\b.*\(UUID: (\S+)\)", listing, re.MULTILINE):
        if kind == "GPU":
            slices[uuid] = []
        else:
            slices[list(slices)[-1]].append(uuid)
    return {gpu: devices or [gpu] for gpu, devices in slices.items()}


def _devices(names: Sequence[str], gpus: Mapping[str, list[str]]) -> Iterator[str]:
    """What the numbers, UUIDs or beginnings of UUIDs mean, up to the first that means nothing or too much."""
    numbered = {str(number): devices for number, devices in enumerate(gpus.values())}
    every = {**gpus, **{device: [device] for devices in gpus.values() for device in devices}}
    for name in names:
        found = [numbered[name]] if name in numbered else [every[uuid] for uuid in every if uuid.startswith(name)]
        if len(found) != 1:
            return
        yield from found[0]


# Locks


def _first_free(pool: Sequence[str]) -> tuple[str, io.FileIO]:
    folder = Path(os.environ.get(LOCK_FOLDER) or "/tmp")
    paths = {gpu: folder / f"tomoscout-gpu-{gpu.replace('/', '-')}.lock" for gpu in pool}
    told = False
    while True:
        for gpu, path in paths.items():
            lock = _take(path)
            if lock:
                return gpu, lock
        if not told:
            taken = f"{', '.join(pool)} taken, the processes stand in {folder}/tomoscout-gpu-*.lock"
            print(f"waiting for a GPU: {taken}", file=sys.stderr, flush=True)
            told = True
        time.sleep(_PAUSE)


def _take(path: Path) -> io.FileIO | None:
    """The lock file, open and locked, or None where another process holds it.

    Raises:
        TomoscoutError: the file cannot be used.
    """
    try:
        with contextlib.ExitStack() as closing:
            lock = closing.enter_context(open(path, "r+b", buffering=0, opener=_open_or_create))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(lock.fileno())
            if status.st_nlink == 0:  # Removed since it was opened: others lock the file that comes after it.
                return None
            if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a plain file of one name")
            closing.pop_all()
    except BlockingIOError:
        return None
    except OSError as error:
        raise TomoscoutError(
            f"{path}: cannot be the lock of a GPU ({error.strerror}); remove it, or let the environment variable "
            f"{LOCK_FOLDER} name a folder in which every user of this machine may write"
        ) from None
    _held.add(lock)
    with contextlib.suppress(OSError):
        # For people to read; and what cleans the folder of old files goes by the last change.
        lock.truncate()
        lock.write(b"%d\n" % os.getpid())
    return lock


def _open_or_create(path: str, flags: int) -> int:
    # Linux lets nobody open another user's file in /tmp who would also create it (fs.protected_regular).
    flags |= os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    mask = os.umask(0)
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return os.open(path, flags)
    finally:
        os.umask(mask)


def _release(lock: io.FileIO) -> None:
    if lock in _held:
        _held.remove(lock)
        # Closing alone would not do it while a process forked behind Python's back has the file open too.
        fcntl.flock(lock, fcntl.LOCK_UN)
        lock.close()


def _leave_to_parent() -> None:
    """In a forked process: close the parent's locks, or they would last as long as the fork."""
    for lock in _held:
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
