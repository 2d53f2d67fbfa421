"""Damaged inputs, a few of the many that `tests/endurance/fuzz.py` tries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).with_name("fuzz.py")


def test_damaged_inputs_end_in_one_line_or_in_what_is_right(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--inputs", "25", "--seed", "1", "--folder", str(tmp_path / "fuzz")]
    # A process of its own: it forks, and imports all that a command may need.
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
