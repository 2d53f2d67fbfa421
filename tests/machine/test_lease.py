"""Leases of GPUs that need not exist: CUDA_VISIBLE_DEVICES names them, or an nvidia-smi that only lists."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import pytest

from tomoscout.machine import lease
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.lease import find_pool, leased_gpu

WORKER = Path(__file__).parents[1] / "support/lease_worker.py"
NOBODY = "65534"
LISTING = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa1111-0000)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa2222-0000)
  MIG 3g.20gb     Device  0: (UUID: MIG-cccc1111-0000)
  MIG 3g.20gb     Device  1: (UUID: MIG-cccc2222-0000)
GPU 2: NVIDIA RTX A6000 (Ada) (UUID: GPU-bbbb1111-0000)
"""
FIRST, SLICE_0, SLICE_1, LAST = "GPU-aaaa1111-0000", "MIG-cccc1111-0000", "MIG-cccc2222-0000", "GPU-bbbb1111-0000"
ONLY_FIRST = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa1111-0000)\n"
ONLY_LAST = "GPU 0: NVIDIA RTX A6000 (Ada) (UUID: GPU-bbbb1111-0000)\n"
NO_DRIVER = "echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9"

CLUSTERS = ["SLURM_JOB_ID", "PBS_JOBID", "SGE_TASK_ID", "LSB_JOBID", "_CONDOR_JOB_AD", "FLUX_JOB_ID", "OAR_JOB_ID"]
CLOUDS = ["KUBERNETES_SERVICE_HOST", "AWS_BATCH_JOB_ID", "BATCH_JOB_UID", "AZ_BATCH_TASK_ID"]


class Machine:
    """A machine without GPUs, scheduler and nvidia-smi, for this process and those it starts."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.locks = folder / "locks"
        self.programs = folder / "programs"
        self.locks.mkdir()
        self.programs.mkdir()
        self._patch = patch
        for name in lease.SCHEDULERS:
            patch.delenv(name, raising=False)
        self.show(None)
        patch.setenv("PATH", str(self.programs))
        self.lock_in(self.locks)

    def show(self, gpus: str | None) -> None:
        if gpus is None:
            self._patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            self._patch.setenv("CUDA_VISIBLE_DEVICES", gpus)

    def be_job_of(self, scheduler: str) -> None:
        self._patch.setenv(scheduler, "17")

    def lock_in(self, folder: Path) -> None:
        self._patch.setenv("TOMOSCOUT_LOCK_FOLDER", str(folder))

    def install_nvidia_smi(self, script: str) -> None:
        program = self.programs / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def list_gpus(self, listing: str) -> None:
        self.install_nvidia_smi(f'[ "$1" = -L ] && printf %s {shlex.quote(listing)}')


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


class Holder:
    """A process that holds a lease until it is told to go."""

    def __init__(self, *arguments: str, mask: int = -1) -> None:
        command = [sys.executable, str(WORKER), *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, umask=mask, **pipes)

    def gpu(self) -> str:
        return self._line(self.process.stdout)

    def complaint(self) -> str:
        return self._line(self.process.stderr)

    def _line(self, stream: IO[str] | None) -> str:
        assert stream
        ready, _, _ = select.select([stream], [], [], 60)
        assert ready, "nothing said"
        return stream.readline().rstrip("\n")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def go(self) -> str:
        """End it; returns what else it said on standard error."""
        return self.process.communicate()[1]


@pytest.fixture
def hold() -> Iterator[Callable[..., Holder]]:
    holders = []

    def start(*arguments: str, mask: int = -1) -> Holder:
        holders.append(Holder(*arguments, mask=mask))
        return holders[-1]

    yield start
    for holder in holders:
        holder.process.kill()
        holder.process.communicate()


# Many jobs, few GPUs


class Contest:
    """Jobs that compete for GPUs, each under a number of its own."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.killed: dict[int, int] = {}
        self.started = 0
        journal.touch()

    def start(self) -> None:
        command = [sys.executable, str(WORKER), "work", str(self.journal), str(self.started), "6"]
        self.running[self.started] = subprocess.Popen(command)
        self.started += 1

    def kill_one(self, chance: random.Random) -> None:
        """Kill a running job, half of the time one that has a GPU, and start another in its place."""
        alive = [job for job, process in self.running.items() if process.poll() is None]
        holding = sorted(self.holds().keys() & alive)
        job = chance.choice(holding if holding and chance.random() < 0.5 else alive)
        self.killed[job] = time.monotonic_ns()
        process = self.running.pop(job)
        process.kill()
        process.wait()
        self.start()

    def records(self) -> list[tuple[str, int, str, int]]:
        words = [line.split() for line in self.journal.read_text().splitlines()]
        return [(what, int(job), gpu, int(when)) for what, job, gpu, when in words]

    def holds(self) -> dict[int, tuple[str, int]]:
        """Jobs that took a GPU and have not given it back: which, and since when."""
        holds = {}
        for what, job, gpu, when in self.records():
            if what == "take":
                holds[job] = gpu, when
            else:
                del holds[job]
        return holds

    def times(self) -> list[tuple[str, int, int]]:
        """GPU, from when, until when; a job that was killed had its GPU no longer than it lived."""
        times = [(gpu, since, self.killed[job]) for job, (gpu, since) in self.holds().items()]
        taken: dict[int, int] = {}
        for what, job, gpu, when in self.records():
            if what == "take":
                taken[job] = when
            else:
                times.append((gpu, taken[job], when))
        return sorted(times)


def test_four_gpus_sixteen_jobs_and_kills(machine: Machine, tmp_path: Path, hold: Callable[..., Holder]) -> None:
    machine.show("0,1,2,3")
    contest = Contest(tmp_path / "journal")
    chance = random.Random(4)
    try:
        for _ in range(16):
            contest.start()
        while not contest.holds():
            time.sleep(0.01)
        for _ in range(20):
            time.sleep(chance.uniform(0.0, 0.08))
            contest.kill_one(chance)
        assert [process.wait(60) for process in contest.running.values()] == [0] * 16
    finally:
        for process in contest.running.values():
            process.kill()
            process.wait()

    assert len(contest.holds()) >= 3, "hardly any job was killed while it had a GPU"
    times = contest.times()
    assert {gpu for gpu, _, _ in times} == {"0", "1", "2", "3"}
    for (gpu, _, until), (next_gpu, since, _) in itertools.pairwise(times):
        assert gpu != next_gpu or until <= since, f"two jobs on GPU {gpu}"

    holders = [hold("hold") for _ in range(4)]
    assert sorted(holder.gpu() for holder in holders) == ["0", "1", "2", "3"]
    assert [holder.go() for holder in holders] == [""] * 4


def test_a_job_waits_for_the_first_free_gpu_and_says_so_once(machine: Machine, hold: Callable[..., Holder]) -> None:
    machine.show("0,1")
    first, second = hold("hold"), hold("hold")
    holders = {holder.gpu(): holder for holder in (first, second)}
    third = hold("hold")
    assert third.complaint().startswith("waiting for a GPU: 0, 1 taken")
    assert (machine.locks / "tomoscout-gpu-1.lock").read_text() == f"{holders['1'].process.pid}\n"
    time.sleep(3 * lease._PAUSE)
    holders["1"].go()
    assert third.gpu() == "1"
    assert third.go() == ""


# Processes that fork and start others


@pytest.mark.parametrize("child", ["fork", "start"])
def test_a_child_that_lives_on_does_not_keep_the_gpu(machine: Machine, hold: Callable[..., Holder], child: str) -> None:
    machine.show("0")
    parent = hold(child)
    assert parent.gpu() == "0"
    parent.kill()
    # Its standard output ends with the last process that has it, the child.
    assert parent.process.stdout
    assert not select.select([parent.process.stdout], [], [], 0)[0]
    heir = hold("hold")
    assert heir.gpu() == "0"
    assert heir.go() == ""


def test_a_forked_child_does_not_give_the_gpu_of_its_parent_back(machine: Machine, hold: Callable[..., Holder]) -> None:
    machine.show("0")
    parent = hold("leave")
    assert parent.gpu() == "0"
    other = hold("hold")
    assert other.complaint().startswith("waiting")
    parent.go()
    assert other.gpu() == "0"


# Where there is nothing to lease


def test_no_gpu_no_lease(machine: Machine) -> None:
    assert_left_alone(machine, "auto")


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles", "-1,0", " "])
@pytest.mark.parametrize("scheduler", [None, *CLUSTERS, *CLOUDS])
def test_gpus_that_are_hidden_are_not_leased(machine: Machine, scheduler: str | None, visible: str) -> None:
    machine.list_gpus(LISTING)
    machine.show(visible)
    if scheduler:
        machine.be_job_of(scheduler)
    assert_left_alone(machine, "auto")


def test_a_job_on_cpu_takes_no_gpu(machine: Machine) -> None:
    machine.show("0,1")
    assert_left_alone(machine, "cpu")


def assert_left_alone(machine: Machine, device: str) -> None:
    before = dict(os.environ)
    with leased_gpu(device) as gpu:
        assert gpu is None
        assert dict(os.environ) == before
    assert dict(os.environ) == before
    assert list(machine.locks.iterdir()) == []


@pytest.mark.parametrize("visible", [None, "2,0"])
def test_the_environment_is_as_it_was_whatever_happens(machine: Machine, visible: str | None) -> None:
    machine.list_gpus(LISTING)
    machine.show(visible)
    before = dict(os.environ)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), leased_gpu("auto") as gpu:
            assert (
                gpu == os.environ["CUDA_VISIBLE_DEVICES"] == ("GPU-bbbb1111-0000" if visible else "GPU-aaaa1111-0000")
            )
            assert dict(os.environ) == before | {"CUDA_VISIBLE_DEVICES": gpu}
            raise ZeroDivisionError
        assert dict(os.environ) == before


# In the jobs of schedulers


@pytest.mark.parametrize("scheduler", [*CLUSTERS, *CLOUDS])
@pytest.mark.parametrize(
    ("visible", "pool"), [("0", [FIRST]), (LAST, [LAST]), ("GPU-b", [LAST]), ("2,0", [LAST, FIRST])]
)
def test_what_a_scheduler_gave_is_leased(machine: Machine, scheduler: str, visible: str, pool: list[str]) -> None:
    machine.list_gpus(LISTING)
    machine.show(visible)
    machine.be_job_of(scheduler)
    assert find_pool(os.environ) == pool


@pytest.mark.parametrize("scheduler", CLUSTERS)
def test_a_job_of_a_cluster_that_was_given_no_gpu_takes_none(machine: Machine, scheduler: str) -> None:
    machine.list_gpus(LISTING)
    machine.be_job_of(scheduler)
    assert_left_alone(machine, "auto")


@pytest.mark.parametrize("scheduler", CLOUDS)
def test_a_container_leases_all_gpus_it_sees(machine: Machine, scheduler: str) -> None:
    machine.list_gpus(LISTING)
    machine.be_job_of(scheduler)
    assert find_pool(os.environ) == [FIRST, SLICE_0, SLICE_1, LAST]


def test_a_job_of_a_cluster_whose_machines_are_containers_is_one_of_the_cluster(machine: Machine) -> None:
    machine.list_gpus(LISTING)
    machine.be_job_of("SLURM_JOB_ID")
    machine.be_job_of("KUBERNETES_SERVICE_HOST")
    assert_left_alone(machine, "auto")


@pytest.mark.parametrize("visible", [None, "1", "1,1", "1,-1,0", "GPU-aaaa1111-0000"])
@pytest.mark.parametrize("scheduler", [*CLUSTERS, *CLOUDS])
@pytest.mark.parametrize("installed", [False, True])
def test_one_gpu_that_nvidia_smi_does_not_list_is_left_alone(
    machine: Machine, installed: bool, scheduler: str, visible: str | None
) -> None:
    if installed:
        machine.install_nvidia_smi(NO_DRIVER)
    machine.show(visible)
    machine.be_job_of(scheduler)
    assert_left_alone(machine, "cuda")


@pytest.mark.parametrize("scheduler", ["SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST"])
def test_several_gpus_that_nvidia_smi_does_not_list_are_leased_by_name(
    machine: Machine, scheduler: str, hold: Callable[..., Holder]
) -> None:
    machine.show("2,5")
    machine.be_job_of(scheduler)
    assert sorted(hold("hold").gpu() for _ in range(2)) == ["2", "5"]


def test_processes_in_a_job_with_one_gpu_wait_in_line(machine: Machine, hold: Callable[..., Holder]) -> None:
    machine.list_gpus(ONLY_LAST)
    machine.show("0")
    machine.be_job_of("SLURM_JOB_ID")
    first = hold("hold")
    assert first.gpu() == LAST
    second = hold("hold")
    lock_files = machine.locks / "tomoscout-gpu-*.lock"
    assert second.complaint() == f"waiting for a GPU: {LAST} taken, the processes stand in {lock_files}"
    first.go()
    assert second.gpu() == LAST
    assert second.go() == ""


def test_processes_in_a_pod_spread_over_its_gpus(machine: Machine, hold: Callable[..., Holder]) -> None:
    machine.list_gpus(LISTING)
    machine.be_job_of("KUBERNETES_SERVICE_HOST")
    assert {hold("hold").gpu() for _ in range(4)} == {FIRST, SLICE_0, SLICE_1, LAST}
    fifth = hold("hold")
    assert fifth.complaint().startswith(f"waiting for a GPU: {FIRST}, {SLICE_0}, {SLICE_1}, {LAST} taken")


def test_number_0_of_two_jobs_that_see_only_their_own_is_two_gpus(
    machine: Machine, hold: Callable[..., Holder]
) -> None:
    machine.show("0")
    machine.be_job_of("SLURM_JOB_ID")
    for listing, gpu in ((ONLY_FIRST, FIRST), (ONLY_LAST, LAST)):
        machine.list_gpus(listing)
        assert hold("hold").gpu() == gpu


def test_a_gpu_is_the_same_in_a_job_that_sees_it_alone_and_in_one_that_sees_all(
    machine: Machine, hold: Callable[..., Holder]
) -> None:
    machine.be_job_of("SLURM_JOB_ID")
    machine.list_gpus(LISTING)
    machine.show("2")
    first = hold("hold")
    assert first.gpu() == LAST
    machine.list_gpus(ONLY_LAST)
    machine.show("0")
    second = hold("hold")
    assert second.complaint().startswith(f"waiting for a GPU: {LAST} taken")
    first.go()
    assert second.gpu() == LAST


# Names of GPUs


@pytest.mark.parametrize(
    ("visible", "pool"),
    [
        (None, [FIRST, SLICE_0, SLICE_1, LAST]),
        ("2,0", [LAST, FIRST]),
        (" 02 , 0", [LAST, FIRST]),
        ("0,0,GPU-aaaa1111-0000", [FIRST]),
        ("1", [SLICE_0, SLICE_1]),
        ("GPU-aaaa2222-0000", [SLICE_0, SLICE_1]),
        ("MIG-cccc2222-0000,0", [SLICE_1, FIRST]),
        ("GPU-b,0", [LAST, FIRST]),
        # CUDA sees nothing from the first wrong entry on.
        ("2,-1,0", [LAST]),
        ("2,3,0", [LAST]),
        ("2,,0", [LAST]),
        ("2,GPU-aaaa,0", [LAST]),
        ("GPU-dddd", []),
    ],
)
def test_gpus_as_nvidia_smi_lists_them(machine: Machine, visible: str | None, pool: list[str]) -> None:
    machine.list_gpus(LISTING)
    machine.show(visible)
    assert find_pool(os.environ) == pool


@pytest.mark.parametrize(
    ("visible", "pool"),
    [
        (None, []),
        ("0,2", ["0", "2"]),
        ("1,-1,0", ["1"]),
        ("1,1", ["1"]),
        ("GPU-aaaa1111,MIG-GPU-cccc/1/0", ["GPU-aaaa1111", "MIG-GPU-cccc/1/0"]),
        ("../../etc/passwd", []),
    ],
)
@pytest.mark.parametrize("installed", [False, True])
def test_gpus_by_name_where_nvidia_smi_lists_none(
    machine: Machine, installed: bool, visible: str | None, pool: list[str]
) -> None:
    if installed:
        machine.install_nvidia_smi(NO_DRIVER)
    machine.show(visible)
    assert find_pool(os.environ) == pool


def test_nvidia_smi_that_does_not_answer(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install_nvidia_smi("while :; do :; done")
    monkeypatch.setattr(lease, "_LISTING_TIME", 0.1)
    with pytest.raises(TomoscoutError, match=f"^{machine.programs / 'nvidia-smi'} -L: no answer within 0.1 s"):
        find_pool(os.environ)


@pytest.mark.parametrize(("scheduler", "visible"), [("SLURM_JOB_ID", None), ("KUBERNETES_SERVICE_HOST", "-1")])
def test_a_job_without_gpu_does_not_wait_for_nvidia_smi(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, scheduler: str, visible: str | None
) -> None:
    machine.install_nvidia_smi("while :; do :; done")
    monkeypatch.setattr(lease, "_LISTING_TIME", 0.1)
    machine.show(visible)
    machine.be_job_of(scheduler)
    assert find_pool(os.environ) == []


def test_one_gpu_has_one_lock_whatever_it_is_called(machine: Machine, hold: Callable[..., Holder]) -> None:
    machine.list_gpus(LISTING)
    machine.show("2")
    first = hold("hold")
    assert first.gpu() == LAST
    machine.show("GPU-bbbb")
    second = hold("hold")
    assert second.complaint().startswith(f"waiting for a GPU: {LAST} taken")
    first.go()
    assert second.gpu() == LAST


# Lock files


def just_before(patch: pytest.MonkeyPatch, module: ModuleType, name: str, happens: Callable[[], None]) -> None:
    """Let something happen, once, before a function of a module does what it always does."""
    function = getattr(module, name)
    moments = iter([happens])

    def delayed(*arguments: Any) -> Any:
        for happen in moments:
            happen()
        return function(*arguments)

    patch.setattr(module, name, delayed)


def test_a_file_removed_between_opening_and_locking_is_no_lock(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.show("0")
    path = machine.locks / "tomoscout-gpu-0.lock"
    just_before(monkeypatch, fcntl, "flock", path.unlink)
    with leased_gpu("auto"):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_file_that_another_job_makes_at_the_same_time_is_shared(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.show("0")
    path = machine.locks / "tomoscout-gpu-0.lock"
    plain_open = os.open

    def open_after_another(name: str, flags: int, *mode: int) -> int:
        if flags & os.O_EXCL:
            path.touch()
        return plain_open(name, flags, *mode)

    monkeypatch.setattr(os, "open", open_after_another)
    with leased_gpu("auto") as gpu:
        assert gpu == "0"
        assert path.read_text() == f"{os.getpid()}\n"


def missing_folder(folder: Path) -> Path:
    return folder / "missing"


def file_for_folder(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


def symlink(folder: Path) -> Path:
    (folder / "victim").write_text("precious")
    (folder / "tomoscout-gpu-0.lock").symlink_to(folder / "victim")
    return folder


def hard_link(folder: Path) -> Path:
    (folder / "victim").write_text("precious")
    (folder / "tomoscout-gpu-0.lock").hardlink_to(folder / "victim")
    return folder


def subfolder(folder: Path) -> Path:
    (folder / "tomoscout-gpu-0.lock").mkdir()
    return folder


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "tomoscout-gpu-0.lock")
    return folder


@pytest.mark.parametrize("trap", [missing_folder, file_for_folder, symlink, hard_link, subfolder, pipe])
def test_what_cannot_be_a_lock_is_named(machine: Machine, trap: Callable[[Path], Path]) -> None:
    machine.show("0")
    folder = trap(machine.locks)
    machine.lock_in(folder)
    before = {path: path.read_text() for path in machine.locks.iterdir() if path.is_file()}
    with pytest.raises(TomoscoutError) as caught, leased_gpu("auto"):
        pass
    message = str(caught.value)
    assert message.startswith(f"{folder}/tomoscout-gpu-0.lock: cannot be the lock of a GPU (")
    assert "TOMOSCOUT_LOCK_FOLDER" in message
    assert "\n" not in message
    assert {path: path.read_text() for path in machine.locks.iterdir() if path.is_file()} == before


def test_a_job_with_one_gpu_goes_on_without_a_lock(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """As in a container whose /tmp is read-only."""
    machine.be_job_of("SLURM_JOB_ID")
    machine.list_gpus(LISTING)
    machine.show("0")
    machine.lock_in(missing_folder(machine.locks))
    with leased_gpu("auto") as gpu:
        assert gpu is None
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert capsys.readouterr().err.startswith(
        f"warning: {machine.locks}/missing/tomoscout-gpu-GPU-aaaa1111-0000.lock: "
    )


needs_users = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture
def common_folder(machine: Machine) -> Iterator[Path]:
    """A folder that other users reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        machine.lock_in(Path(name))
        machine.show("0")
        yield Path(name)


@needs_users
def test_users_share_the_locks_whatever_their_masks(common_folder: Path, hold: Callable[..., Holder]) -> None:
    common_folder.chmod(0o1777)
    for users in ((NOBODY, "65533"), ("65533", NOBODY)):
        first = hold("hold", users[0], mask=0o077)
        assert first.gpu() == "0"
        second = hold("hold", users[1], mask=0o077)
        assert second.complaint().startswith("waiting")
        first.go()
        assert second.gpu() == "0"
        second.go()


@needs_users
def test_a_folder_that_others_may_not_write_to_is_named(common_folder: Path, hold: Callable[..., Holder]) -> None:
    common_folder.chmod(0o755)
    refused = hold("hold", NOBODY)
    message = refused.go()
    assert refused.process.returncode == 1
    assert message.startswith(
        f"error: {common_folder}/tomoscout-gpu-0.lock: cannot be the lock of a GPU (Permission denied)"
    )
    assert message.count("\n") == 1
