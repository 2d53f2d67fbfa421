"""The command line as a whole: what it lists, and that light stages stay light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tomoscout.cli import main

HEAVY = ("torch", "monai", "mlflow", "optuna", "matplotlib", "snakemake")
LIGHT_STAGES = (
    "phantom",
    "inventory",
    "targets",
    "overlays",
    "splits",
    "localize",
    "evaluate",
    "report.stage",
    "verify",
)


def test_help_lists_the_stages_in_their_order() -> None:
    output = CliRunner().invoke(main, ["--help"]).output
    stages = [
        "phantom",
        "inventory",
        "targets",
        "split",
        "train",
        "segment",
        "localize",
        "evaluate",
        "report",
        "verify",
    ]
    places = [output.index(f"\n  {stage} ") for stage in stages]
    assert places == sorted(places)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_explains_itself_and_its_options(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    documented = [option for option in main.commands[command].params if getattr(option, "help", None)]
    options = [option for option in main.commands[command].params if option.param_type_name == "option"]
    assert len(documented) >= len(options)
    assert main.commands[command].help


@pytest.mark.parametrize("module", [*LIGHT_STAGES, "workflow", "cli"])
def test_light_stages_import_nothing_heavy(module: str) -> None:
    program = f"import sys, tomoscout.{module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_parsing_the_workflow_imports_neither_copick_nor_zarr() -> None:
    program = "import sys, tomoscout.workflow; print([name for name in ('copick', 'zarr') if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_a_missing_configuration_ends_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inventory", "--config", str(tmp_path / "none.yaml")])
    assert result.exit_code == 1
    assert result.output == f"error: {tmp_path / 'none.yaml'}: no such configuration file\n"
