"""The chain as users run it, and what a change makes again."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from support.snakemake_session import CONFIG, ROOT, Session, configured, copy_of, kept, killed_in_training
from tomoscout.data.picks import Picks
from tomoscout.options.names import Source

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def session(phantom: Session, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which the whole chain has run: killed once, and given again."""
    base = {**CONFIG, "train": {**CONFIG["train"], "steps": 60, "checkpoint_seconds": 0}}
    session = copy_of(phantom, tmp_path_factory.mktemp("workflow"), base)
    killed_in_training(session, lambda running: os.killpg(running.pid, signal.SIGKILL))
    assert not (session.folder / "results/models/tiny/model.yaml").exists()
    session.snakemake()
    return session


def picks_file(session: Session, run: str, name: str) -> Path:
    return session.folder / f"results/phantom/ExperimentRuns/{run}/Picks/phantom_0_{name}.json"


def move_a_pick(path: Path) -> None:
    content = json.loads(path.read_text())
    content["points"][0]["location"]["x"] += 20.0
    path.write_text(json.dumps(content))


def test_the_chain_ends_in_scored_picks_and_a_report(session: Session) -> None:
    results = session.folder / "results"
    assert (results / "report/tiny.html").stat().st_size > 1000
    scores = json.loads((results / "evaluate/tiny/scores.json").read_text())
    assert list(scores["runs_scored"] if "runs_scored" in scores else scores["runs"])
    project = session.project()
    for run in project.run_names():
        found = [source.name for source in project.pick_sources(run) if source.user == "tomoscout"]
        assert len(found) == 5
    verified = subprocess.run(
        [sys.executable, "-m", "tomoscout", "verify", "--config", "results/config.json"],
        cwd=session.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    # A target, labels, probabilities and five sets of picks per run, and the weights.
    assert verified.stdout == "33 digests compared, 0 problems\n"


def test_a_killed_training_went_on(session: Session) -> None:
    assert "resumed at step" in (session.folder / "logs/train/tiny.log").read_text()


def test_a_second_run_has_nothing_to_do(session: Session) -> None:
    assert session.would_run() == []


def test_an_object_named_alone_is_not_confused_with_its_predictions(session: Session) -> None:
    with configured(session, {"targets": {"picks": ["apo-ferritin", "hemoglobin"]}}):
        assert "train_model" in session.would_run()


def test_changed_picks_of_a_training_run(session: Session) -> None:
    path = picks_file(session, "phantom-000", "apo-ferritin")
    with kept(path):
        move_a_pick(path)
        jobs = session.would_run()
    batch = session.batch_of("phantom-000")
    assert [job for job in jobs if job.startswith(("targets_runs", "overlays_runs"))] == [
        f"overlays_runs {batch}",
        f"targets_runs {batch}",
    ]
    # What follows: the training and all that comes of the model, but not the split.
    assert "train_model" in jobs
    assert "split_runs" not in jobs
    assert session.would_run() == []


def test_changed_picks_of_a_test_run_do_not_train_again(session: Session) -> None:
    path = picks_file(session, "phantom-003", "apo-ferritin")
    with kept(path):
        move_a_pick(path)
        jobs = session.would_run()
    batch = session.batch_of("phantom-003")
    assert jobs == ["evaluate_picks", f"overlays_runs {batch}", "report_page", f"targets_runs {batch}"]


def test_what_is_changed_beside_picks_of_a_test_run_is_seen_all_the_same(session: Session) -> None:
    of_test_run = {"targets_runs", "overlays_runs", "evaluate_picks", "report_page"}
    moved = picks_file(session, "phantom-003", "apo-ferritin")
    with kept(moved):
        move_a_pick(moved)
        with configured(session, {"localize": {"smoothing": 0.3}}):
            assert {job.split()[0] for job in session.would_run()} == of_test_run | {"localize_runs"}
        with configured(session, {"train": {"steps": 61}}):
            assert "train_model" in session.would_run()
        # Of a training run in the same batch.
        beside = picks_file(session, "phantom-002", "apo-ferritin")
        batch = session.batch_of("phantom-002")
        assert batch == session.batch_of("phantom-003")
        with kept(beside):
            move_a_pick(beside)
            assert {"train_model", f"segment_runs {batch}", "evaluate_picks"} <= set(session.would_run())


def test_a_real_run_does_what_the_dry_run_said(session: Session) -> None:
    """Of the batch in which a test run changed, that run's target alone is made again, and no model."""
    results = session.folder / "results"
    manifests = sorted((results / "targets/targets/phantom").glob("*.json"))
    assert len(manifests) == 4
    files = [*manifests, results / "models/tiny/weights.safetensors"]
    made = {path: path.stat().st_mtime_ns for path in files}
    move_a_pick(picks_file(session, "phantom-003", "apo-ferritin"))
    session.snakemake()
    assert [path.stem for path in files if path.stat().st_mtime_ns != made[path]] == ["phantom-003"]
    assert session.would_run() == []


def test_an_added_run_leaves_the_others_alone(session: Session) -> None:
    project = session.project()
    project.write_tomogram("phantom-new", "wbp@10.0", project.read_tomogram("phantom-000", "wbp@10.0"))
    folder = session.folder / "results/phantom/ExperimentRuns/phantom-new"
    try:
        jobs = session.would_run()
        batch = session.batch_of("phantom-new")
        # Without picks of its own it is only segmented; the split file says why it is left out.
        assert jobs == sorted([f"segment_runs {batch}", f"localize_runs {batch}", "split_runs", "report_page"])
        project.write_picks("phantom-new", Source("apo-ferritin", "phantom", "0"), Picks.at([[100.0, 100.0, 100.0]]))
        jobs = session.would_run()
        assert [job for job in jobs if job.startswith(("targets", "overlays"))] == [
            f"overlays_runs {batch}",
            f"targets_runs {batch}",
        ]
        assert "train_model" not in jobs
    finally:
        shutil.rmtree(folder)
    assert "segment_runs" not in " ".join(session.would_run())


def test_a_changed_comment_in_the_package_reruns_nothing(session: Session) -> None:
    path = ROOT / "src/tomoscout/learning/trainer.py"
    with kept(path):
        path.write_bytes(path.read_bytes() + b"# a remark\n")
        assert session.would_run() == []


def test_a_changed_radius_scale_reruns_from_the_targets_on(session: Session) -> None:
    with configured(session, {"targets": {"radius_scale": 0.7}}):
        jobs = {job.split()[0] for job in session.would_run()}
    assert jobs == {
        "targets_runs",
        "overlays_runs",
        "train_model",
        "segment_runs",
        "localize_runs",
        "evaluate_picks",
        "report_page",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"localize": {"threshold": 0.3}}, {"localize_runs", "evaluate_picks", "report_page"}),
        ({"localize": {"smoothing": 0.3, "separation": 0.8}}, {"localize_runs", "evaluate_picks", "report_page"}),
        ({"evaluate": {"beta": 1.0, "distance": 0.8, "runs": "all"}}, {"evaluate_picks", "report_page"}),
        ({"report": {"title": "Another"}}, {"report_page"}),
        ({"segment": {"flips": 2}}, {"segment_runs", "localize_runs", "evaluate_picks", "report_page"}),
        ({"train": {"checkpoint_seconds": 1}, "runs_per_job": 3}, set()),
    ],
)
def test_a_changed_option_reruns_what_it_touches(session: Session, changes: dict, expected: set[str]) -> None:
    with configured(session, changes):
        assert {job.split()[0] for job in session.would_run()} == expected


def recorded(database: Path) -> tuple[list[tuple[str, str]], int]:
    """The runs in MLflow's database, with their states, and how many points of the loss there are."""
    with closing(sqlite3.connect(database)) as connection:
        runs = connection.execute("SELECT name, status FROM runs").fetchall()
        [(points,)] = connection.execute("SELECT count(*) FROM metrics WHERE key = 'loss'").fetchall()
    return runs, points


def test_a_training_is_recorded_and_recorded_again_if_that_is_lost(session: Session) -> None:
    database = session.folder / "results/mlflow.db"
    with (session.folder / "results/models/tiny/metrics.csv").open(newline="") as handle:
        losses = sum(bool(row["loss"]) for row in csv.DictReader(handle))
    assert recorded(database) == ([("tiny", "FINISHED")], losses)
    database.unlink()
    session.snakemake("track")
    assert recorded(database) == ([("tiny", "FINISHED")], losses)
    assert session.would_run("track") == []


def test_a_failed_job_ends_its_log_with_the_reason(session: Session) -> None:
    tomogram = session.folder / "results/phantom/ExperimentRuns/phantom-003/VoxelSpacing10.000/wbp.zarr/0/0/0/0"
    with configured(session, {"segment": {"flips": 2, "runs": ["phantom-003"]}}), kept(tomogram):
        tomogram.unlink()
        output = session.snakemake("segment", "--keep-going", check=False)
    assert "segment_runs" in output
    log = session.folder / f"logs/segment/{session.batch_of('phantom-003')}.log"
    last = log.read_text().splitlines()[-1]
    assert last.startswith("error: phantom/phantom-003: tomogram wbp@10.0: truncated: 0 of 1 chunks are there")
