"""Which marks of Snakemake's a start removes, and which it leaves."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BEGIN = "from tomoscout.machine.at_work import *; let_jobs_tell(); begin_work(); begin_work()"
JOB = "from tomoscout.machine.at_work import *; let_jobs_tell(); job = at_work_as('tomoscout train'); job.__enter__()"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory."""
    (tmp_path / ".snakemake/locks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / ".snakemake"


def mark(folder: Path) -> Path:
    path = folder / "locks/0.output.lock"
    path.write_text("results/report/unet.html\n")
    return path


@contextmanager
def running(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process at work, killed in the end."""
    command = [sys.executable, "-c", f"{code}; print('at work', flush=True); import time; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
        try:
            yield process
        finally:
            process.kill()


def begin() -> str:
    """What a start says."""
    return subprocess.run([sys.executable, "-c", BEGIN], stderr=subprocess.PIPE, text=True, check=True).stderr


def said_of(name: str, process: subprocess.Popen[str]) -> str:
    return f"at work in this folder: {name} (process {process.pid} on {os.uname().nodename})\n"


def test_marks_of_a_killed_snakemake_are_removed(folder: Path) -> None:
    with running(BEGIN):
        path = mark(folder)
    assert begin() == ""
    assert not path.exists()
    assert list((folder / "at_work").iterdir()) == []


def test_whole_files_of_trials_are_not_incomplete(folder: Path) -> None:
    study = "results/explore/" + "a-long-name-of-a-study-" * 10
    names = [f"{study}/0000/ask.json", f"{study}/0001/ask.json", "results/report/unet.html"]
    for name in (names[0], names[2]):
        Path(name).parent.mkdir(parents=True)
        Path(name).touch()
    marks = []
    with running(BEGIN):
        for name in names:
            text = base64.urlsafe_b64encode(name.encode()).decode()
            parts = [text[start : start + 254] for start in range(0, len(text), 254)]
            marks.append((folder / "incomplete").joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1]))
            marks[-1].parent.mkdir(parents=True, exist_ok=True)
            marks[-1].touch()
    begin()
    # The second is not there, the third may be half written.
    assert [path.exists() for path in marks] == [False, True, True]


def test_marks_of_somebody_unknown_stay(folder: Path) -> None:
    path = mark(folder)
    begin()
    assert path.exists()


def test_marks_older_than_the_killed_stay(folder: Path) -> None:
    path = mark(folder)
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    with running(BEGIN):
        pass
    begin()
    assert path.exists()


def test_while_another_snakemake_is_at_work_marks_stay(folder: Path) -> None:
    with running(BEGIN) as other:
        path = mark(folder)
        assert begin() == said_of("snakemake", other)
        assert path.exists()


def test_while_a_job_outlives_its_snakemake_marks_stay(folder: Path) -> None:
    with running(JOB) as job:
        with running(BEGIN):
            path = mark(folder)
        assert begin() == said_of("tomoscout train", job)
        assert path.exists()
    assert begin() == ""
    assert not path.exists()


def test_a_command_that_snakemake_did_not_start_leaves_no_trace(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "tomoscout", "options", "yaml"], stdout=subprocess.DEVNULL, check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["locks"]
