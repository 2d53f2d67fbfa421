"""A study in which everything is killed, again and again: the same trials."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from support.exploration import TRIALS, digest_of, digest_of_one_process, explored, study_session

pytestmark = [pytest.mark.workflow, pytest.mark.long]


def test_everything_killed_and_started_again_is_the_same_study(tmp_path: Path) -> None:
    fresh = study_session(tmp_path / "killed")
    generator = random.Random(1)
    command = ("explore", "--cores", "2", "--nolock", "--rerun-incomplete")
    killed = 0
    for _ in range(3):
        running = fresh.start(*command)
        # Somewhere in the life of the trial that is asked for next. A fast machine may end the study before.
        asked = len(list(fresh.folder.glob("results/explore/*/*/ask.json"))) + generator.randint(1, 2)
        while len(list(fresh.folder.glob("results/explore/*/*/ask.json"))) < min(asked, TRIALS):
            assert running.poll() is None
            time.sleep(0.02)
        with_delay = time.monotonic() + generator.uniform(0, 4)
        while time.monotonic() < with_delay and running.poll() is None:
            time.sleep(0.02)
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            killed += 1
            assert not list(fresh.folder.glob("results/explore/*/trials.csv"))
        running.communicate()
    assert killed >= 2
    fresh.snakemake(*command)
    assert digest_of(explored(fresh)) == digest_of_one_process(tmp_path / "alone")
