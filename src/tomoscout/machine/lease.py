"""Leases of GPUs: each job gets a GPU of its own, on a workstation and inside the job of a scheduler.

Each GPU has a lock file in a folder common to all users of the machine. The process that holds the lock (flock, see
machine/locks.py) may use the GPU. The operating system releases the lock when the process ends, even if it is killed.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.locks import release, take
from tomoscout.machine.messages import say, warn

VISIBLE = "CUDA_VISIBLE_DEVICES"

LOCK_FOLDER = "TOMOSCOUT_LOCK_FOLDER"
"""Environment variable that names a folder for the lock files in place of /tmp. Set it to a folder common to all users
of a machine, or to all containers on it, where /tmp is not common. Set it to a folder of the scheduler's job where the
scheduler lets several jobs compute on one GPU (shards of Slurm): they would wait for each other otherwise."""

CLUSTER_SCHEDULERS = (
    "SLURM_JOB_ID",
    "PBS_JOBID",
    "SGE_TASK_ID",
    "LSB_JOBID",
    "_CONDOR_JOB_AD",
    "FLUX_JOB_ID",
    "OAR_JOB_ID",
)
"""Environment variables that jobs of Slurm, PBS, Grid Engine, LSF, HTCondor, Flux and OAR have. nvidia-smi may list
GPUs of other jobs, too: CUDA_VISIBLE_DEVICES tells a job which are its own."""

CLOUD_SCHEDULERS = (
    "KUBERNETES_SERVICE_HOST",
    "AWS_BATCH_JOB_ID",
    "BATCH_JOB_UID",
    "AZ_BATCH_TASK_ID",
)
"""Environment variables that jobs of Kubernetes and of the batch services of AWS, Google and Azure have. All GPUs that
nvidia-smi lists in the container or on the machine are the job's; CUDA_VISIBLE_DEVICES is seldom set."""

SCHEDULERS = CLUSTER_SCHEDULERS + CLOUD_SCHEDULERS

_PAUSE = 0.25
_LISTING_TIME = 120


@contextlib.contextmanager
def leased_gpu(device: str) -> Iterator[str | None]:
    """Lease a GPU for this process and those it starts; waits while other jobs hold all of them.

    Enter it once, before CUDA is used. Within, CUDA_VISIBLE_DEVICES names the GPU that is yielded; afterwards it has
    its earlier value. Yields None and changes nothing if `device` (`auto`, `cpu` or `cuda`) is `cpu` or `find_pool`
    returns nothing.

    Raises:
        TomoscoutError: a lock file cannot be used (in a scheduler's job with one GPU only a warning), or nvidia-smi
            does not answer.
    """
    pool = [] if device == "cpu" else find_pool(os.environ)
    if not pool:
        yield None
        return
    try:
        gpu, lock = _first_free(pool)
    except TomoscoutError as error:
        if len(pool) > 1 or not _has_any(os.environ, SCHEDULERS):
            raise
        # With one GPU, the lock only separates processes of the same job: continue without it.
        warn(str(error))
        yield None
        return
    earlier = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = gpu
    try:
        yield gpu
    finally:
        if earlier is None:
            os.environ.pop(VISIBLE, None)
        else:
            os.environ[VISIBLE] = earlier
        release(lock)


# Which GPUs there are


def find_pool(environment: Mapping[str, str]) -> list[str]:
    """The GPUs to choose from: those that CUDA_VISIBLE_DEVICES names, or else all. By UUID if nvidia-smi lists them, or
    else by the name in CUDA_VISIBLE_DEVICES.

    Numbers are those of nvidia-smi. A GPU that is divided into MIG devices stands for these. As with CUDA, the first
    entry that is no GPU ends the list.

    Processes inside a scheduler's job lease GPUs as well, since several of them may share the job's GPUs (those that a
    Snakemake inside an allocation starts do). But the list is empty in a cluster's job without CUDA_VISIBLE_DEVICES, as
    the GPUs may be those of other jobs, and in any scheduler's job without nvidia-smi, unless CUDA_VISIBLE_DEVICES
    names several.

    Raises:
        TomoscoutError: nvidia-smi does not answer.
    """
    given = _named(environment[VISIBLE]) if VISIBLE in environment else None
    if given == [] or (given is None and _has_any(environment, CLUSTER_SCHEDULERS)):
        return []
    gpus = _list_gpus()
    if given is None:
        return [device for devices in gpus.values() for device in devices]
    pool = list(dict.fromkeys(_devices(given, gpus) if gpus else given))
    # Without UUIDs, index 0 may mean different GPUs in two jobs, which must not wait for each other.
    unclear = not gpus and len(pool) < 2 and _has_any(environment, SCHEDULERS)
    return [] if unclear else pool


def _has_any(environment: Mapping[str, str], names: Sequence[str]) -> bool:
    return any(name in environment for name in names)


def _named(visible: str) -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES up to the first that cannot be a GPU, such as -1."""
    names = []
    for name in map(str.strip, visible.split(",")):
        if not re.fullmatch(r"[0-9]+|(GPU|MIG)-[\w/-]+", name):
            break
        names.append(str(int(name)) if name.isdecimal() else name)
    return names


def _list_gpus() -> dict[str, list[str]]:
    """Map the UUID of every GPU, in the order of their indices, to the UUIDs of its MIG devices, or to its own if it
    has none."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    try:
        listing = subprocess.run(
            [command, "-L"], capture_output=True, encoding="utf-8", errors="replace", timeout=_LISTING_TIME
        ).stdout
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
    """The GPUs that indices, UUIDs or beginnings of UUIDs name, up to the first name that matches no GPU or several."""
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
            say(f"waiting for a GPU: {taken}")
            told = True
        time.sleep(_PAUSE)


def _take(path: Path) -> io.FileIO | None:
    mask = os.umask(0)  # Other users of the machine must be able to open the file.
    try:
        return take(path, f"{os.getpid()}\n")
    except OSError as error:
        raise TomoscoutError(
            f"{path}: cannot be the lock of a GPU ({error.strerror}); remove it, or let the environment variable "
            f"{LOCK_FOLDER} name a folder in which every user of this machine may write"
        ) from None
    finally:
        os.umask(mask)
