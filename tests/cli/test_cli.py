"""The command line as a whole: what it lists, and that light stages stay light."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from support.project import SmallProject, error_of, largest_file, tomoscout
from tomoscout.cli import main
from tomoscout.machine.errors import TomoscoutError, foreseen

SLOW = ("copick", "matplotlib", "mlflow", "monai", "optuna", "snakemake", "torch", "zarr")


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


@pytest.mark.parametrize("module", ["workflow", "cli", "api"])
def test_nothing_slow_is_loaded_by_other_libraries_either(module: str) -> None:
    """What the package itself imports is a contract of import-linter's."""
    program = f"import sys, tomoscout.{module}; print([name for name in {SLOW!r} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_a_missing_configuration_ends_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inventory", "--config", str(tmp_path / "none.yaml")])
    assert result.exit_code == 1
    assert result.output == f"error: {tmp_path / 'none.yaml'}: no such configuration file\n"


# Errors that are foreseen end in one line


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "tomoscout", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False, **options)


def test_a_folder_in_place_of_a_file_ends_in_one_line(tmp_path: Path) -> None:
    assert error_of(tomoscout("inventory", "--config", tmp_path)) == f"{tmp_path}: Is a directory"


def test_a_name_that_is_too_long_ends_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300)
    assert error_of(tomoscout("inventory", "--config", path)) == f"{path}: File name too long"


def test_a_full_disk_ends_in_one_line(small: SmallProject) -> None:
    small.add_run("TS_1")
    with largest_file(10):
        assert error_of(small.list_runs()).endswith("inventory.tsv: File too large")


def test_a_full_disk_where_the_system_names_no_file() -> None:
    with Path("/dev/full").open("w") as full:
        finished = subprocess.run(
            [sys.executable, "-m", "tomoscout", "options", "yaml"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert finished.stderr.splitlines()[0] == "error: No space left on device"
    assert "Traceback" not in finished.stderr


def test_who_has_read_enough_hears_nothing_more() -> None:
    writing, reading = [sys.executable, "-m", "tomoscout", "options", "markdown"], ["head", "-c", "10"]
    with subprocess.Popen(writing, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        subprocess.run(reading, stdin=process.stdout, capture_output=True, check=True)
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


def test_ctrl_c_ends_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    os.mkfifo(path)
    # Started in the background, a process inherits that it ignores the signal.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program += "; import sys; from tomoscout.cli import main; main(['inventory', '--config', sys.argv[1]])"
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, path.open("w"):
        # Opening waits until the command reads; it is then at work.
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == "stopped\n"
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (TomoscoutError("a: b"), "a: b"),
        (PermissionError(13, "Permission denied", "/a"), "/a: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("4096 requested and 100 written"), "4096 requested and 100 written"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "I/O error: No space left on device (os"),
        (sqlite3.OperationalError("database or disk is full"), "database or disk is full"),
        (UnicodeEncodeError("ascii", "Zürich", 1, 2, "ordinal not in range(128)"), "'Zürich' holds letters that the"),
        (ValueError("a fault of the program"), None),
        (RuntimeError("another"), None),
    ],
    ids=repr,
)
def test_what_is_foreseen(error: Exception, line: str | None) -> None:
    found = foreseen(error)
    assert found == line or (found or "").startswith(line or "never")


def test_what_the_system_said_is_found_below_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        try:
            raise OSError(28, "No space left on device", "weights.pt")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904
    assert foreseen(caught.value) == "weights.pt: No space left on device"


def test_what_is_not_foreseen_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("tomoscout.options.config.load_config", fail)
    assert isinstance(tomoscout("inventory", "--config", tmp_path).exception, ZeroDivisionError)


# Locales


LATIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "iso8859-1"}


def test_files_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "Zürich.yaml"
    path.write_text("projects: {Zürich: a}\ntomograms: [wbp@10]\nreport: {title: Ω}\n", encoding="utf-8")
    environment = os.environ | LATIN
    assert run("explore", "space", "--config", path, env=environment).returncode == 0
    options = run("options", "yaml", env=environment)
    assert options.stdout == tomoscout("options", "yaml").stdout
    error = run("inventory", "--config", path, cwd=tmp_path, env=environment).stderr
    assert error.startswith("error: a: no such copick config")


def test_letters_that_the_locale_lacks_are_question_marks() -> None:
    program = r"from tomoscout.cli import main; main.callback = lambda: print('\u2500 \u03a9 \xfc')"
    program += "; main(['options', 'schema'])"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, env=os.environ | LATIN, check=True)
    assert finished.stdout.startswith("? ? ü\n".encode("latin-1"))
