"""A study as users run it: the same trials however many run at once and however often everything is killed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.snakemake_session import CONFIG, Session
from tomoscout.machine.files import digest
from tomoscout.tasks.picking.model import PickingModel

pytestmark = [pytest.mark.workflow, pytest.mark.long]

TRIALS = 6
STUDY: dict[str, Any] = CONFIG | {
    "phantom": {"runs": 4, "shape": [24, 48, 48], "voxel_spacing": 20.0, "particles": 3, "signal_to_noise": 1.0},
    "tomograms": ["wbp@20.0"],
    "runs_per_job": 10,
    "train": {"name": "tiny", "device": "cpu", "steps": 12, "batch_size": 2, "patch": [16, 16, 16]},
    "tracking": {"enabled": False},
    "explore": {
        "trials": TRIALS,
        "window": 3,
        "startup_trials": 2,
        "pruner_startup_trials": 1,
        "pruner_warmup": 1,
        "validations": 4,
        "threads": 1,
        "networks": {
            "UNet": {"width": {"choices": [4, 8]}, "levels": 2, "bottleneck_levels": 0},
            "SegResNet": {"init_filters": 8, "blocks_down": {"choices": [[1, 1], [1, 2]]}, "deep_supervision": 1},
        },
        "space": {"patch": {"choices": [16, 24]}, "batch_size": {"choices": [1, 2]}},
    },
}


def explored(session: Session) -> Path:
    """The folder of the only study."""
    [folder] = (session.folder / "results/explore").iterdir()
    return folder


def digest_of(study: Path) -> str:
    """One digest of all that was asked and of all that came of it."""
    files = [study / "study.json", *sorted(study.glob("*/ask.json")), *sorted(study.glob("*/result.json"))]
    assert len(files) == 1 + 2 * TRIALS
    return digest([[str(path.relative_to(study)), path.read_text()] for path in files])


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which a study has run on one core."""
    made = Session(tmp_path_factory.mktemp("explore"), STUDY)
    made.snakemake("phantom")
    made.snakemake("explore", "--cores", "1")
    return made


@pytest.fixture
def fresh(session: Session) -> Iterator[Session]:
    """The same session without its study, which comes back afterwards."""
    results = session.folder / "results"
    kept = session.folder / "kept"
    (results / "explore").rename(kept)
    yield session
    shutil.rmtree(results / "explore", ignore_errors=True)
    kept.rename(results / "explore")


def kept_study(session: Session) -> Path:
    [folder] = (session.folder / "kept").iterdir()
    return folder


def test_a_study_ends_in_a_model_a_table_and_a_page(session: Session) -> None:
    study = explored(session)
    rows = (study / "trials.csv").read_text().splitlines()
    assert len(rows) == 1 + TRIALS
    results = [json.loads((study / f"{number:04d}/result.json").read_text()) for number in range(TRIALS)]
    best = max((r for r in results if r["state"] == "COMPLETE"), key=lambda r: (r["value"], -r["number"]))
    model = PickingModel.read(study / "best")
    assert model.name == f"{study.name}-{best['number']:04d}"
    assert model.made_from["score"] == best["value"]
    assert (study / "report.html").stat().st_size > 1000
    assert not list(study.glob("*/checkpoint*"))
    assert session.would_run("explore") == []


def test_four_at_once_are_the_same_study(fresh: Session) -> None:
    fresh.snakemake("explore", "--cores", "4")
    assert digest_of(explored(fresh)) == digest_of(kept_study(fresh))


def test_everything_killed_and_started_again_is_the_same_study(fresh: Session) -> None:
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
    assert digest_of(explored(fresh)) == digest_of(kept_study(fresh))


def test_more_trials_are_added_to_those_that_are_done(session: Session) -> None:
    study = explored(session)
    done = {path: path.read_bytes() for path in study.glob("[0-9]*/*.json")}
    session.configure({"explore": {"trials": TRIALS + 2}, "tracking": {"enabled": True}})
    try:
        counts = session.job_counts("explore")
        assert counts["suggest"] == counts["trial"] == 2
        session.snakemake("explore")
        assert len((study / "trials.csv").read_text().splitlines()) == 1 + TRIALS + 2
        for path, content in done.items():
            assert path.read_bytes() == content
        # Each trial is a run of MLflow.
        recorded = json.loads((session.folder / f"results/tracking/explore/{study.name}.json").read_text())
        assert len(set(recorded.values())) == TRIALS + 2
    finally:
        session.configure({})
        for number in (TRIALS, TRIALS + 1):
            shutil.rmtree(study / f"{number:04d}", ignore_errors=True)


@pytest.mark.parametrize(
    "change",
    [{"window": 4}, {"seed": 1}, {"space": {"batch_size": {"choices": [1, 2, 3]}}}, {"sampler": "random"}],
    ids=["window", "seed", "space", "sampler"],
)
def test_other_settings_are_another_study(session: Session, change: dict[str, Any]) -> None:
    study = explored(session)
    session.configure({"explore": change})
    try:
        counts = session.job_counts("explore")
    finally:
        session.configure({})
    assert counts["suggest"] == counts["trial"] == TRIALS
    assert explored(session) == study


def test_new_targets_of_the_same_data_leave_a_study_alone(session: Session) -> None:
    [manifest] = (session.folder / "results/targets/targets").glob("batch-*.json")
    os.utime(manifest)
    assert "trial" not in session.would_run("explore")


def test_what_was_asked_and_what_came_of_it_stays(session: Session) -> None:
    study = explored(session)
    before = digest_of(study)
    # As after a new version with another command, or where a mark of Snakemake's was left behind.
    session.snakemake("explore", "--forcerun", "suggest", "trial")
    assert digest_of(study) == before
    # A result that is lost is trained again and nothing else.
    (study / "0001/result.json").unlink()
    session.snakemake("explore")
    assert digest_of(study) == before


def test_the_best_models_segment_together(session: Session) -> None:
    session.configure({"explore": {"top": 2}, "segment": {"models": "explored"}})
    try:
        jobs = session.would_run("localize")
        session.snakemake("localize")
    finally:
        session.configure({})
    study = explored(session)
    assert "trial" not in jobs and "train_model" not in jobs and "summarise_study" in jobs
    assert PickingModel.read(study / "best-2").name != PickingModel.read(study / "best").name
    picked = [source for source in session.project().pick_sources("phantom-003") if source.session == "search-best"]
    assert len(picked) == 5


def test_a_trial_that_hangs_is_given_up(fresh: Session) -> None:
    study = fresh.folder / "results/explore" / kept_study(fresh).name
    result, lock = study / "0000/result.json", study / "0000/.lock"
    running = fresh.start(str(result.relative_to(fresh.folder)), "--retries", "1")
    while not (lock.exists() and lock.read_text()):
        assert running.poll() is None
        time.sleep(0.01)
    [process] = re.findall(r"process (\d+) on", lock.read_text())
    os.kill(int(process), signal.SIGSTOP)
    tool = [sys.executable, "-m", "tomoscout", "trial", "give-up", "0000"]
    said = subprocess.run(tool, cwd=fresh.folder, capture_output=True, text=True, check=True).stderr
    assert said.endswith("trial 0000 is given up; it ends after its next validation, or once its job is ended\n")
    assert not result.exists()
    os.kill(int(process), signal.SIGKILL)
    output, _ = running.communicate()
    assert running.returncode == 0, output
    assert json.loads(result.read_text())["reason"] == "given up"
    again = subprocess.run(tool, cwd=fresh.folder, capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "its result stays" in again.stderr
