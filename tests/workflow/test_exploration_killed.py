"""A study in which everything is killed, again and again: the same trials."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.exploration import (
    TRIALS,
    digest_of,
    digest_of_one_process,
    explored,
    kill_again_and_again,
    study_session,
)

pytestmark = [pytest.mark.workflow, pytest.mark.long]


def test_everything_killed_and_started_again_is_the_same_study(tmp_path: Path) -> None:
    fresh = study_session(tmp_path / "killed")
    command = ("explore", "--cores", "2", "--nolock", "--rerun-incomplete")
    assert kill_again_and_again(fresh, *command, trials=TRIALS, kills=3) >= 2
    fresh.snakemake(*command)
    assert digest_of(explored(fresh)) == digest_of_one_process(tmp_path / "alone")
