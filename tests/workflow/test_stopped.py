"""Stopped and started again: the same command goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from support.snakemake_session import Session, copy_of, killed_in_training

pytestmark = [pytest.mark.workflow, pytest.mark.long]

LONG = {
    "runs_per_job": 4,
    "tracking": {"enabled": False},
    "train": {"steps": 150, "validate_every": 25, "checkpoint_seconds": 0},
}


@pytest.mark.parametrize(
    ("number", "target"),
    [(signal.SIGINT, ["train"]), (signal.SIGKILL, [])],
    ids=["Ctrl-C of train", "SIGKILL of all"],
)
def test_the_same_command_goes_on(tmp_path: Path, phantom: Session, number: signal.Signals, target: list[str]) -> None:
    again = copy_of(phantom, tmp_path)
    again.configure(LONG)
    killed_in_training(again, lambda running: os.killpg(running.pid, number), *target)
    assert not (again.folder / "results/models/tiny/model.yaml").exists()
    locks = sorted((again.folder / ".snakemake/locks").glob("*.lock"))
    # A look changes nothing.
    assert "train_model" in again.would_run(*target)
    assert sorted((again.folder / ".snakemake/locks").glob("*.lock")) == locks
    again.snakemake(*target)
    assert (again.folder / "results/models/tiny/model.yaml").exists()
    assert "resumed at step" in (again.folder / "logs/train/tiny.log").read_text()
    assert again.would_run(*target) == []


def test_who_is_still_at_work_is_told_and_let_alone(tmp_path: Path, phantom: Session) -> None:
    again = copy_of(phantom, tmp_path)
    again.configure(LONG | {"train": {"steps": 10**6}})
    killed = killed_in_training(again, subprocess.Popen.kill, "train")
    locks = sorted((again.folder / ".snakemake/locks").glob("*.lock"))
    try:
        output = again.snakemake("train", check=False)
        assert re.search(r"^at work in this folder: tomoscout train \(process \d+ on \S+\)$", output, re.M)
        assert "Directory cannot be locked" in output
        assert sorted((again.folder / ".snakemake/locks").glob("*.lock")) == locks != []
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
    again.configure(LONG | {"train": {"steps": 4}})
    again.snakemake("train")
