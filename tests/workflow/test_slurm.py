"""The workflow on a real Slurm, of one machine with two pretended GPUs, under the profile that users have."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil
import pytest

from support.exploration import (
    CELL_STUDY,
    cell_session,
    cells_explored_in_one_process,
    digest_of,
    explored,
)
from support.slurm import SOON, running_slurm, site_profile
from support.snakemake_session import CONFIG, ROOT, Session

T = TypeVar("T")

pytestmark = [pytest.mark.workflow, pytest.mark.slurm]

DEADLINE = 900
NO_SUMMARY = ("--omit-from", "summarise_study")

TRIALS = [f"{number:04d}" for number in range(7)]
# `auto`: on Slurm it asks for a GPU, and computes on the CPU where there is none behind it.
STUDY: dict[str, Any] = CONFIG | {
    "phantom": {"runs": 4, "shape": [24, 48, 48], "voxel_spacing": 20.0, "particles": 3, "signal_to_noise": 1.0},
    "tomograms": ["wbp@20.0"],
    "runs_per_job": 10,
    "train": {
        "name": "tiny",
        "device": "auto",
        "steps": 16,
        "batch_size": 2,
        "patch": [16, 16, 16],
        "checkpoint_seconds": 10**6,
    },
    "segment": {"device": "auto"},
    "tracking": {"enabled": False},
    "explore": {
        "trials": len(TRIALS),
        "window": 4,
        "baseline": False,
        "startup_trials": 2,
        "pruner": "none",
        "validations": 4,
        "threads": 1,
        # Of all families the quickest to import.
        "networks": {"ResidualEncoderUNet": {"width": {"choices": [4, 8]}, "levels": 2, "deep_supervision": 1}},
        "space": {"patch": 16, "batch_size": {"choices": [1, 2]}},
    },
}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a Slurm that lives as long as the tests."""
    with running_slurm(tmp_path_factory.mktemp("slurm")) as folder:
        yield folder


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session with a phantom and nothing else."""
    made = Session(tmp_path_factory.mktemp("session"), STUDY)
    made.snakemake("phantom")
    return made


@pytest.fixture(scope="module")
def undisturbed(session: Session, slurm: Path) -> dict[str, str]:
    """What is asked and what comes of it in a study without Slurm, which is gone afterwards."""
    session.snakemake("explore", *NO_SUMMARY)
    outcome = outcome_of(session)
    assert len(outcome) == 1 + 2 * len(TRIALS)
    shutil.rmtree(session.folder / "results/explore")
    shutil.rmtree(session.folder / "results/splits")
    return outcome


def outcome_of(session: Session) -> dict[str, str]:
    """The files of the study that must not depend on where and how it ran."""
    [study] = (session.folder / "results/explore").iterdir()
    files = [study / "study.json", *study.glob("*/ask.json"), *study.glob("*/result.json")]
    return {str(file.relative_to(study)): file.read_text() for file in files}


def start(session: Session, profile: Path, output: IO[str], *arguments: str) -> subprocess.Popen[bytes]:
    """Start snakemake with a profile."""
    command = [sys.executable, "-m", "snakemake", *arguments, "--profile", str(profile)]
    command += ["--directory", str(session.folder), "--configfile", str(session.config)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for(running: subprocess.Popen[bytes], find: Callable[[], T]) -> T:
    """What is found in time while a process runs."""
    deadline = time.monotonic() + DEADLINE
    while not (found := find()):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


# Slurm


def command(*words: str) -> str:
    """What a command of Slurm prints."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def jobs_by_name() -> dict[str, list[dict[str, str]]]:
    """What Slurm says of all jobs: the attempts of each rule or trial."""
    jobs = defaultdict(list)
    for line in command("scontrol", "show", "job", "--oneliner").splitlines():
        job = dict(re.findall(r"(\w+)=(\S*)", line))
        rule, trial = re.fullmatch(r"rule_(\w+?)(?:_wildcards_.*_(\d+))?", job["Comment"]).groups()
        jobs[f"{rule} {trial}" if trial else rule].append(job)
    return jobs


def log_of(session: Session, trial: str) -> str:
    """What a trial has printed; Snakemake removes it before another attempt."""
    with contextlib.suppress(FileNotFoundError):
        for log in (session.folder / "logs/explore").glob(f"*/{trial}.log"):
            return log.read_text()
    return ""


class Trial:
    """A trial that runs in a job of Slurm."""

    def __init__(self, process: psutil.Process, session: Session) -> None:
        environment = process.environ()
        self.process = process
        self.number = process.cmdline()[4]
        self.gpu = environment["CUDA_VISIBLE_DEVICES"]
        self.job = environment["SLURM_JOB_ID"]
        [study] = (session.folder / "results/explore").iterdir()
        self.metrics = study / self.number / "metrics.csv"

    @staticmethod
    def all_of(session: Session) -> list[Trial]:
        """Those that run at this moment."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            # One that ends meanwhile has no command line any more.
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                if words[2:4] == ["trial", "run"] and Path(process.cwd()) == session.folder:
                    found.append(Trial(process, session))
        return found

    def stop_amid(self) -> None:
        """Make it stand still as soon as there is something to lose; Slurm lets it go on when it tells it to end."""
        while not self.metrics.exists():
            assert self.process.is_running()
            time.sleep(0.005)
        self.process.suspend()


# What happens to trials


def cancelled(trial: Trial) -> None:
    trial.stop_amid()
    command("scancel", trial.job)


def timed_out(trial: Trial) -> None:
    trial.stop_amid()
    command("scontrol", "update", f"JobId={trial.job}", "EndTime=now")


def warned(trial: Trial) -> None:
    """The time limit is nearer than the five minutes at which the profile has trainings told to end."""
    trial.stop_amid()
    command("scontrol", "update", f"JobId={trial.job}", "EndTime=now+299")


def requeued(trial: Trial) -> None:
    trial.stop_amid()
    command("scontrol", "requeue", trial.job)
    # Slurm would wait for two minutes.
    for _ in range(1000):
        if "BeginTime" in command("squeue", "--noheader", "--format=%r", f"--jobs={trial.job}"):
            break
        time.sleep(0.1)
    command("scontrol", "update", f"JobId={trial.job}", "StartTime=now")


DISTURBED = {"0001": warned, "0003": timed_out, "0004": cancelled, "0006": requeued}
OUT_OF_MEMORY = "0005"
# How their first jobs end; the requeued one's is its last.
FIRST_ENDS = {"0001": "FAILED", "0003": "TIMEOUT", "0004": "CANCELLED", "0005": "FAILED"}


def watch(session: Session, running: subprocess.Popen[bytes]) -> list[dict[str, str]]:
    """Let things happen to trials until all is done; returns which trials had which GPU, from moment to moment."""
    seen = []
    happening: dict[str, Future[None]] = {}
    deadline = time.monotonic() + DEADLINE
    with ThreadPoolExecutor() as threads:
        while running.poll() is None:
            assert time.monotonic() < deadline
            trials = Trial.all_of(session)
            seen.append({trial.number: trial.gpu for trial in trials})
            for trial in trials:
                if trial.number in DISTURBED.keys() - happening.keys():
                    happening[trial.number] = threads.submit(DISTURBED[trial.number], trial)
            time.sleep(0.25)
    for happened in happening.values():
        happened.result()
    return seen


def test_a_disturbed_study_is_the_undisturbed_one(
    session: Session, undisturbed: dict[str, str], slurm: Path, tmp_path: Path
) -> None:
    # At its first attempt one trial gets less memory than PyTorch takes.
    memory = f"300 if wildcards.trial == '{OUT_OF_MEMORY}' and attempt == 1 else 8000"
    profile = site_profile(tmp_path, mem_mb=memory)
    with (tmp_path / "output").open("w+") as output:
        running = start(session, profile, output, "explore", *NO_SUMMARY, *SOON)
        try:
            seen = watch(session, running)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGINT)
            failed = running.wait()
        output.seek(0)
        assert not failed, output.read()

    assert outcome_of(session) == undisturbed

    for gpus in seen:
        assert len(gpus) <= 2
        assert len(set(gpus.values())) == len(gpus)
    assert {gpu for gpus in seen for gpu in gpus.values()} == {"0", "1"}
    assert {trial for gpus in seen for trial in gpus} == set(TRIALS)

    jobs = jobs_by_name()
    assert {name: [job["JobState"] for job in attempts] for name, attempts in jobs.items()} == {
        "split_runs": ["COMPLETED"],
        **{f"trial {trial}": [*filter(None, [FIRST_ENDS.get(trial)]), "COMPLETED"] for trial in TRIALS},
    }
    assert [name for name, attempts in jobs.items() if attempts[-1]["Restarts"] != "0"] == ["trial 0006"]
    [killed, _] = jobs[f"trial {OUT_OF_MEMORY}"]
    assert f"StepId={killed['JobId']}.0 exceeded memory limit" in (slurm / "log/slurmd.log").read_text()
    for name, attempts in jobs.items():
        expected = ("cpu", None) if name == "split_runs" else ("gpu", "gres:gpu:pretended:1")
        assert {(job["Partition"], job.get("TresPerJob")) for job in attempts} == {expected}

    # There are no checkpoints but those of trainings that were told to end.
    for trial in DISTURBED:
        assert "resumed at step" in log_of(session, trial)


def test_jobs_that_outlive_snakemake_are_waited_for(
    session: Session, undisturbed: dict[str, str], slurm: Path, tmp_path: Path
) -> None:
    shutil.rmtree(session.folder / "results/explore", ignore_errors=True)
    arguments = ("explore", *NO_SUMMARY, *SOON, "--config", "explore={trials: 1}")
    with (tmp_path / "output").open("w+") as output:
        killed = start(session, site_profile(tmp_path), output, *arguments)
        [first] = wait_for(killed, lambda: Trial.all_of(session))
        first.stop_amid()
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        assert not start(session, site_profile(tmp_path), output, *arguments, "--unlock").wait()
        again = start(session, site_profile(tmp_path), output, *arguments)
        # Slurm has a second GPU.
        waits = f"waiting: process {first.process.pid} on "
        wait_for(again, lambda: waits in log_of(session, "0000"))
        first.process.resume()
        failed = again.wait()
        output.seek(0)
        assert not failed, output.read()
    assert "training search" not in log_of(session, "0000")
    assert outcome_of(session).items() <= undisturbed.items()


def test_trials_of_cells_have_a_gpu_each_and_go_on(slurm: Path, tmp_path: Path) -> None:
    cells = CELL_STUDY["cells"]
    train = cells["train"] | {"device": "auto", "checkpoint_seconds": 10**6}
    study = CELL_STUDY | {"cells": cells | {"train": train, "explore": cells["explore"] | {"trials": 2}}}
    session = cell_session(tmp_path / "cells", study)
    session.snakemake("split_cells")
    with (tmp_path / "output").open("w+") as output:
        omitted = ("--omit-from", "summarise_cell_study")
        running = start(session, site_profile(tmp_path), output, "explore_cells", *omitted, *SOON)
        [trial, *_] = wait_for(running, lambda: Trial.all_of(session))
        requeued(trial)
        failed = running.wait()
        output.seek(0)
        assert not failed, output.read()
    assert "resumed at step" in log_of(session, trial.number)
    jobs = {name: attempts for name, attempts in jobs_by_name().items() if name.startswith("cell_trial")}
    assert jobs.keys() == {"cell_trial 0000", "cell_trial 0001"}
    for name, [job] in jobs.items():
        assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1" if name.endswith(trial.number) else "0")
        assert (job["Partition"], job["TresPerJob"]) == ("gpu", "gres:gpu:pretended:1")
    alone = cells_explored_in_one_process(tmp_path / "alone", study)
    assert digest_of(explored(session), 2) == digest_of(alone, 2)
