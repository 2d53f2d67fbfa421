"""The contracts between the rooms of the package, which `make lint` checks: each can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the copy of the package in a folder."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "tests")])}
    command = [sys.executable, "-c", program, "--no-logo", "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("data/geometry.py", "from tomoscout.plan import plan", "A room imports from its own or from those below it"),
        ("learning/tiles.py", "def late():\n    import tomoscout.tasks.picking.peaks", "knows of none BROKEN"),
        ("machine/files.py", "import torch", "Parsing the workflow and starting a command load nothing slow BROKEN"),
        ("data/picks.py", "import matplotlib.pyplot", "Stages that use no network load none of its libraries BROKEN"),
    ],
)
def test_each_contract_can_fail(tmp_path: Path, file: str, line: str, broken: str) -> None:
    shutil.copytree(ROOT / "src/tomoscout", tmp_path / "tomoscout", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "tomoscout" / file).open("a", encoding="utf-8") as handle:
        handle.write(f"\n{line}\n")
    finished = lint(tmp_path)
    assert finished.returncode == 1, finished.stdout + finished.stderr
    assert broken in " ".join(finished.stdout.split()), finished.stdout


def test_the_package_keeps_them() -> None:
    finished = lint(ROOT / "src")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "0 broken" in finished.stdout


def test_a_slow_library_inside_a_function_is_allowed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src/tomoscout", tmp_path / "tomoscout", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "tomoscout/machine/files.py").open("a", encoding="utf-8") as handle:
        handle.write("\ndef late() -> None:\n    import torch\n")
    assert lint(tmp_path).returncode == 0
