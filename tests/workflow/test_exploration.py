"""A study as users run it: the same trials however many run at once, more of them later, and its best models."""

from __future__ import annotations

import json
import os
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

from support.exploration import TRIALS, digest_of, digest_of_one_process, explored, study_session
from support.snakemake_session import Session
from tomoscout.tasks.picking.model import PickingModel

pytestmark = [pytest.mark.workflow, pytest.mark.long]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which a study has run, four jobs at once."""
    made = study_session(tmp_path_factory.mktemp("explore"))
    made.snakemake("explore", "--cores", "4")
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


def test_four_at_once_are_the_study_of_one_process(session: Session, tmp_path: Path) -> None:
    assert digest_of(explored(session)) == digest_of_one_process(tmp_path)


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
