"""Where a study is: read from files of known content and age, whole, half-written and vanishing."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tomoscout.explore.records import Ask, Result, trial_folder
from tomoscout.explore.status import find_study, status_lines
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import write_json
from tomoscout.machine.locks import alone_in

METRICS = """step,loss,learning_rate,score,ribosome
100,0.9,0.001,,
200,0.8,0.001,0.5,0.4
300,0.7,0.001,0.45,0.4
400,0.6,,,
"""
PARAMS = {"UNet.width": 16, "learning_rate": 0.00123456, "network": "UNet"}
HOUR = 3600.0


class Made:
    """A study whose files are as old as they are said to be."""

    def __init__(self, results: Path, name: str = "search-0a1b2c3d") -> None:
        self.processes = ExitStack()
        self.folder = results / "explore" / name
        self.now = time.time()
        order = ["network", "UNet.width", "learning_rate", "batch_size"]
        write_json(self.folder / "study.json", {"space": [{"name": name} for name in order]})

    def age(self, path: Path, seconds: float) -> None:
        os.utime(path, (self.now - seconds,) * 2)

    def ask(self, number: int, seconds: float = HOUR) -> Path:
        folder = trial_folder(self.folder, number)
        Ask(number, PARAMS, {}, {"steps": 2000}).write(folder / "ask.json")
        self.age(folder / "ask.json", seconds)
        return folder

    def result(self, number: int, seconds: float, value: float | None = 0.5, state: Any = "COMPLETE") -> None:
        folder = trial_folder(self.folder, number)
        Result(number, PARAMS, {}, state, value, {}, {}).write(folder / "result.json")
        self.age(folder / "result.json", seconds)

    def run(self, number: int) -> None:
        """Let this process be at work on a trial."""
        self.processes.enter_context(alone_in(trial_folder(self.folder, number)))

    def file(self, number: int, name: str, content: str = "", seconds: float = 3 * HOUR) -> None:
        path = trial_folder(self.folder, number) / name
        path.write_text(content)
        self.age(path, seconds)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Made]:
    made = Made(tmp_path)
    with made.processes:
        yield made


def test_what_is_done_runs_and_waits(study: Made) -> None:
    for number in range(7):
        study.ask(number)
    study.result(0, 100)
    study.result(1, 90, 0.9, "PRUNED")
    study.result(2, 80, None, "PRUNED")
    study.file(3, "metrics.csv", METRICS)
    study.run(3)
    study.run(4)
    study.file(5, ".ask.json.tmp")
    counts = "3{} trials done (1 complete, 2 pruned), 2 running, {} waiting"
    assert status_lines(study.folder)[0] == f"search-0a1b2c3d: {counts.format('', 2)}"
    assert status_lines(study.folder, 48)[0] == f"search-0a1b2c3d: {counts.format(' of 48', 43)}"
    # Fewer are planned than there are: those asked wait all the same.
    assert status_lines(study.folder, 4)[0] == f"search-0a1b2c3d: {counts.format(' of 4', 2)}"


def test_what_is_interrupted_does_not_run(study: Made) -> None:
    for number in range(4):
        study.ask(number)
    study.file(0, "metrics.csv", METRICS)
    study.file(1, "checkpoint.pt")
    # As left by a process that was killed.
    study.file(1, ".lock", "process 1 on node7")
    study.run(2)
    lines = status_lines(study.folder, 8)
    assert lines[0].endswith(": 0 of 8 trials done (0 complete, 0 pruned), 1 running, 2 interrupted, 5 waiting")
    process = f"process {os.getpid()} on {platform.node()}"
    assert lines[3:6] == [
        f"trial 0002: before its first validation, last sign of life 0 s ago, {process}",
        "trial 0000: interrupted, step 400 of 2,000, score 0.4500 (best 0.5000), last sign of life 3 h 00 min ago",
        "trial 0001: interrupted, before its first validation, last sign of life 3 h 00 min ago",
    ]


def test_where_a_file_system_knows_no_locks_what_began_runs(study: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    study.ask(0)
    study.run(0)
    assert "1 running, 0 waiting" in status_lines(study.folder)[0]


def test_the_best_is_complete_and_its_parameters_are_in_order(study: Made) -> None:
    for number, (value, state) in enumerate([(0.7, "COMPLETE"), (0.81236, "COMPLETE"), (0.9, "PRUNED")]):
        study.ask(number)
        study.result(number, 100, value, state)
    study.ask(3)
    study.result(3, 100, 0.81236)
    assert status_lines(study.folder)[1] == (
        "best so far 0.8124, trial 0001: network UNet, UNet.width 16, learning_rate 0.00123"
    )
    (study.folder / "study.json").write_text("{")
    assert "UNet.width 16, learning_rate 0.00123, network UNet" in status_lines(study.folder)[1]


def test_long_lines_are_folded_between_parameters(study: Made) -> None:
    study.ask(0)
    params = {f"augmentation.parameter{n}": n / 7 for n in range(12)}
    Result(0, params, {}, "COMPLETE", 0.5, {}, {}).write(trial_folder(study.folder, 0) / "result.json")
    lines = [line for line in status_lines(study.folder) if "parameter" in line]
    assert len(lines) > 3 and max(map(len, lines)) <= 110
    text = " ".join(line.strip() for line in lines)
    assert text.endswith(", ".join(f"{name} {value:.3g}" for name, value in sorted(params.items())))
    assert all(re.search(r"parameter\d+ [\d.]+,?$", line) for line in lines)


def test_nothing_is_known_of_a_study_that_has_just_begun(study: Made) -> None:
    nothing = ["search-0a1b2c3d: 0 trials done (0 complete, 0 pruned), 0 running, 0 waiting", "best so far –"]
    assert status_lines(study.folder) == [*nothing, "rate –, no trial runs, time left –"]
    assert status_lines(study.folder.parent / "gone")[1:] == status_lines(study.folder)[1:]
    study.ask(0)
    study.run(0)
    assert status_lines(study.folder, 8)[2] == "rate –, time left –"


def test_the_rate_is_that_of_the_last_trials(study: Made) -> None:
    for number in range(4):
        study.ask(number, 5 * HOUR)
        study.result(number, (4 - number) * HOUR)
    study.ask(4)
    study.run(4)
    # Four since the first was asked, which is four hours before the last ended.
    assert status_lines(study.folder, 10)[2] == "rate 1 per hour, time left about 6 h 00 min"
    assert status_lines(study.folder)[2] == "rate 1 per hour, time left –"
    for number in range(5, 16):
        study.ask(number)
        study.result(number, (16 - number) * 60)
    # Ten that ended a minute apart.
    assert status_lines(study.folder, 17)[2] == "rate 60 per hour, time left about 2 min"


def test_without_running_trials_no_time_is_told(study: Made) -> None:
    for number in range(3):
        study.ask(number, 4 * HOUR)
        study.result(number, (3 - number) * HOUR)
    assert status_lines(study.folder, 3)[2] == "rate 1 per hour, nothing left to do"
    assert status_lines(study.folder, 9)[2] == "rate 1 per hour, no trial runs, time left –"


def test_copied_files_tell_no_rate(study: Made) -> None:
    for number in range(3):
        study.ask(number, HOUR)
        study.result(number, HOUR)
    study.ask(3, HOUR)
    study.run(3)
    assert status_lines(study.folder, 9)[2] == "rate –, time left –"


def test_a_line_for_every_running_trial(study: Made) -> None:
    for number in range(12):
        study.ask(number, 2 * HOUR)
    study.file(1, "metrics.csv", METRICS)
    study.file(0, "checkpoint.pt", seconds=26 * HOUR)
    study.file(2, "metrics.csv", "step,loss,learning_rate,score\n100,0.9,0.001,\n", seconds=-HOUR)
    for number in range(3):
        study.run(number)
    lines = status_lines(study.folder)[3:]
    process = f"process {os.getpid()} on {platform.node()}"
    assert lines[0] == f"trial 0000: before its first validation, last sign of life 1 d 2 h ago, {process}"
    progress = "step 400 of 2,000, score 0.4500 (best 0.5000), last sign of life 3 h 00 min ago"
    assert lines[1] == f"trial 0001: {progress}, {process}"
    # Another machine's clock may be ahead.
    assert lines[2] == f"trial 0002: step 100 of 2,000, last sign of life 0 s ago, {process}"
    asked = ", ".join(f"{number:04d} (2 h 00 min ago)" for number in range(3, 11))
    assert lines[3:] == [f"asked, not begun: {asked} and 1 more"]


@pytest.mark.parametrize("content", ["", "{", '{"number": 0}', "[]", "null", "\x00\xff", '{"number": 0, "params"'])
def test_half_written_files_are_passed_over(study: Made, content: str) -> None:
    for number in range(3):
        study.ask(number)
    study.result(0, 100)
    study.file(1, "result.json", content)
    study.file(2, "ask.json", content)
    study.file(2, "metrics.csv", content)
    (study.folder / "study.json").write_text(content)
    lines = status_lines(study.folder, 8)
    assert "1 of 8 trials done (1 complete, 0 pruned), 0 running, 2 interrupted, 5 waiting" in lines[0]
    assert lines[-1].startswith("trial 0002: interrupted, before its first validation, ")


def test_metrics_may_end_anywhere(study: Made) -> None:
    study.ask(0)
    for length in range(len(METRICS)):
        study.file(0, "metrics.csv", METRICS[:length])
        assert status_lines(study.folder)[3].startswith("trial 0000: ")


def test_files_that_cannot_be_read_are_passed_over(study: Made) -> None:
    for number in range(3):
        study.ask(number)
    (trial_folder(study.folder, 0) / "result.json").symlink_to(study.folder / "gone")
    (trial_folder(study.folder, 1) / "result.json").mkdir()
    (trial_folder(study.folder, 2) / "metrics.csv").mkdir()
    assert "0 trials done" in status_lines(study.folder)[0]


def test_trials_may_come_and_go_meanwhile(study: Made) -> None:
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for number in range(4):
                study.ask(number)
                study.file(number, "metrics.csv", METRICS)
                study.result(number, 100)
            for number in range(4):
                shutil.rmtree(trial_folder(study.folder, number))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(50):
            assert len(status_lines(study.folder, 8)) >= 3
            assert find_study(study.folder.parents[1]) == study.folder
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join()


def test_nothing_is_written(study: Made) -> None:
    study.ask(0)
    study.file(0, "metrics.csv", METRICS)

    def files() -> dict[Path, float]:
        return {path: path.stat().st_mtime for path in study.folder.rglob("*")}

    before = files()
    status_lines(study.folder, 8)
    find_study(study.folder.parents[1])
    assert files() == before


def test_the_study_meant(tmp_path: Path) -> None:
    made = {}
    for name, hours in {"search-11111111": 3, "search-22222222": 1, "other-one-33333333": 2}.items():
        made[name] = Made(tmp_path, name)
        made[name].age(made[name].folder / "study.json", 0)
        made[name].ask(0, 0)
        made[name].ask(1, hours * HOUR)
    (tmp_path / "explore" / "no-study").mkdir()
    # The newest trial counts, whatever was done to older ones.
    assert find_study(tmp_path).name == find_study(tmp_path, "search").name == "search-22222222"
    assert find_study(tmp_path, "search-11111111").name == "search-11111111"
    assert find_study(tmp_path, "other-one").name == "other-one-33333333"
    made["search-11111111"].result(1, 60)
    assert find_study(tmp_path).name == "search-11111111"


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TomoscoutError, match=r"explore: no study \(a folder with study\.json\)$"):
        find_study(tmp_path)
    Made(tmp_path)
    for name in ("sear", "no-study", "0a1b2c3d"):
        with pytest.raises(TomoscoutError, match=rf"no study {name} .*; there are search-0a1b2c3d$"):
            find_study(tmp_path, name)


def test_it_starts_without_the_heavy_packages() -> None:
    check = """
import sys, tomoscout.explore.status
sys.exit(", ".join(sorted({"torch", "optuna", "numpy", "scipy", "jinja2"} & set(sys.modules))) or 0)"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
