"""Kills and readers, a few of the many that the scripts in `tests/endurance` try."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ENDURANCE = Path(__file__).parent


def endure(script: str, folder: Path, *arguments: str) -> None:
    # A process of its own: it forks, and imports all that a command may need.
    command = [sys.executable, str(ENDURANCE / script), "--folder", str(folder / "work"), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_a_killed_stage_given_again_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    endure("kills.py", tmp_path, "--kills", "9", "--seed", "1", "--workflow-share", "0")


def test_readers_of_the_overlay_see_the_old_or_the_new(tmp_path: Path) -> None:
    endure("readers.py", tmp_path, "--seconds", "2")
