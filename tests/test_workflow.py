"""The workflow as users run it: dry runs of every target, what a change makes again, and the chain itself."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import yaml

from snakemake_session import CONFIG, OTHER_TARGETS, ROOT, TARGETS, Session
from tomoscout.config import Source
from tomoscout.project import Picks

NO_TRACEBACK = "Traceback (most recent call last)"

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which the whole chain has run."""
    session = Session(tmp_path_factory.mktemp("workflow"))
    session.snakemake("phantom")
    session.snakemake()
    return session


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Put a file back as it was, its time included."""
    content, facts = path.read_bytes(), path.stat()
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@contextmanager
def configured(session: Session, changes: dict) -> Iterator[None]:
    """Change the configuration for a while."""
    session.configure(changes)
    try:
        yield
    finally:
        session.configure({})


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


def test_a_second_run_has_nothing_to_do(session: Session) -> None:
    assert session.would_run() == []


def test_an_object_named_alone_is_not_confused_with_its_predictions(session: Session) -> None:
    with configured(session, {"targets": {"picks": ["apo-ferritin", "hemoglobin"]}}):
        assert "train_model" in session.would_run()


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_asked_for_alone(tmp_path: Path, session: Session, target: str) -> None:
    fresh = Session(tmp_path)
    fresh.configure({"projects": {"phantom": str(session.folder / "results/phantom/copick.json")}})
    jobs = {job.split()[0] for job in fresh.would_run(target)}
    last = {
        "targets": "draw_targets",
        "splits": "make_split",
        "train": "train_model",
        "segment": "segment_runs",
        "localize": "localize_runs",
        "evaluate": "evaluate_picks",
        "report": "write_report",
        "all": "write_report",
    }[target]
    assert last in jobs
    assert ("train_model" in jobs) == (target not in ("targets", "splits"))


def test_changed_picks_of_a_training_run(session: Session) -> None:
    path = picks_file(session, "phantom-000", "apo-ferritin")
    with kept(path):
        move_a_pick(path)
        jobs = session.would_run()
    batch = session.batch_of("phantom-000")
    assert [job for job in jobs if job.startswith(("make_targets", "draw_targets"))] == [
        f"draw_targets {batch}",
        f"make_targets {batch}",
    ]
    # What follows: the training and all that comes of the model, but not the split.
    assert "train_model" in jobs
    assert "make_split" not in jobs
    assert session.would_run() == []


def test_changed_picks_of_a_test_run_do_not_train_again(session: Session) -> None:
    path = picks_file(session, "phantom-003", "apo-ferritin")
    with kept(path):
        move_a_pick(path)
        jobs = session.would_run()
    batch = session.batch_of("phantom-003")
    assert jobs == [f"draw_targets {batch}", "evaluate_picks", f"make_targets {batch}", "write_report"]


def test_an_added_run_leaves_the_others_alone(session: Session) -> None:
    project = session.project()
    project.write_tomogram("phantom-new", "wbp@10.0", project.read_tomogram("phantom-000", "wbp@10.0"))
    folder = session.folder / "results/phantom/ExperimentRuns/phantom-new"
    try:
        jobs = session.would_run()
        batch = session.batch_of("phantom-new")
        # Without picks of its own it is only segmented; the split file says why it is left out.
        assert jobs == sorted([f"segment_runs {batch}", f"localize_runs {batch}", "make_split", "write_report"])
        project.write_picks("phantom-new", Source("apo-ferritin", "phantom", "0"), Picks.at([[100.0, 100.0, 100.0]]))
        jobs = session.would_run()
        assert [job for job in jobs if "targets" in job] == [f"draw_targets {batch}", f"make_targets {batch}"]
        assert "train_model" not in jobs
    finally:
        subprocess.run(["rm", "-r", str(folder)], check=True)
    assert "segment_runs" not in " ".join(session.would_run())


def test_a_changed_comment_in_the_package_reruns_nothing(session: Session) -> None:
    path = ROOT / "src/tomoscout/trainer.py"
    with kept(path):
        path.write_bytes(path.read_bytes() + b"# a remark\n")
        assert session.would_run() == []


def test_a_changed_radius_scale_reruns_from_the_targets_on(session: Session) -> None:
    with configured(session, {"targets": {"radius_scale": 0.7}}):
        jobs = {job.split()[0] for job in session.would_run()}
    assert jobs == {
        "make_targets",
        "draw_targets",
        "train_model",
        "segment_runs",
        "localize_runs",
        "evaluate_picks",
        "write_report",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"localize": {"threshold": 0.3}}, {"localize_runs", "evaluate_picks", "write_report"}),
        ({"localize": {"smoothing": 0.3, "separation": 0.8}}, {"localize_runs", "evaluate_picks", "write_report"}),
        ({"evaluate": {"beta": 1.0, "distance": 0.8, "runs": "all"}}, {"evaluate_picks", "write_report"}),
        ({"report": {"title": "Another"}}, {"write_report"}),
        ({"segment": {"flips": 2}}, {"segment_runs", "localize_runs", "evaluate_picks", "write_report"}),
        ({"train": {"checkpoint_seconds": 1}, "runs_per_job": 3}, set()),
    ],
)
def test_a_changed_option_reruns_what_it_touches(session: Session, changes: dict, expected: set[str]) -> None:
    with configured(session, changes):
        assert {job.split()[0] for job in session.would_run()} == expected


def test_only_the_changed_run_of_a_batch_is_made_again(tmp_path: Path) -> None:
    session = Session(tmp_path)
    session.configure({"runs_per_job": 4})
    session.snakemake("phantom")
    session.snakemake("targets")
    manifests = sorted((session.folder / "results/targets/targets/phantom").glob("*.json"))
    before = {path.stem: path.stat().st_mtime_ns for path in manifests}
    assert len(before) == 4
    move_a_pick(picks_file(session, "phantom-002", "apo-ferritin"))
    session.snakemake("targets")
    after = {path.stem: path.stat().st_mtime_ns for path in manifests}
    assert [run for run in before if before[run] != after[run]] == ["phantom-002"]
    assert session.would_run("targets") == []


@pytest.mark.parametrize("example", sorted((ROOT / "config/examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_runs_dry(tmp_path: Path, session: Session, example: Path) -> None:
    fresh = Session(tmp_path)
    values = yaml.safe_load(example.read_text())
    source = session.folder / "results/phantom/copick.json"
    values["projects"] = dict.fromkeys(values["projects"], str(source))
    values["tomograms"] = ["wbp@10.0"]
    model = str(session.folder / "results/models/tiny")
    if "targets" in values:
        values["targets"]["picks"] = "phantom/0"
    else:
        values["segment"]["models"] = [model]
    if "base" in values.get("train", {}):
        values["train"]["base"] = model
    split = values.get("split", {})
    if "test" in split:
        split["test"] = ["phantom-003"]
    if "folds" in split:
        split["folds"] = 2
        # Of some objects there is none in the few runs of a fold.
        values["targets"]["picks"] = ["apo-ferritin", "hemoglobin"]
    fresh.config.write_text(yaml.safe_dump(values))
    targets = [target for target in OTHER_TARGETS if f"snakemake {target}" in example.read_text()]
    models = values.get("segment", {}).get("models")
    made_by = {"explored": "trial", "folds": "train_model"}.get(
        str(models), "segment_runs" if models else "train_model"
    )
    jobs = fresh.would_run("all", *targets)
    assert any(job.startswith(made_by) for job in jobs)
    assert ("targets" in values) == any(job.startswith("make_targets") for job in jobs)


def test_a_bad_configuration_ends_in_one_clear_line(session: Session) -> None:
    with configured(session, {"targets": {"radius_scal": 0.7}}):
        output = session.snakemake("--dry-run", check=False)
    assert "config: targets: unknown key 'radius_scal'; did you mean 'radius_scale'?" in output
    assert NO_TRACEBACK not in output


def test_a_failed_job_ends_its_log_with_the_reason(session: Session) -> None:
    tomogram = session.folder / "results/phantom/ExperimentRuns/phantom-003/VoxelSpacing10.000/wbp.zarr/0/0/0/0"
    with configured(session, {"segment": {"flips": 2, "runs": ["phantom-003"]}}), kept(tomogram):
        tomogram.unlink()
        output = session.snakemake("segment", "--keep-going", check=False)
    assert "segment_runs" in output
    log = session.folder / f"logs/segment/{session.batch_of('phantom-003')}.log"
    assert re.match(r"error: phantom/phantom-003: tomogram wbp@10.0 is truncated: 0 of 1 chunks", log.read_text())
    session.snakemake()


def test_the_workflow_can_be_imported_by_another(tmp_path: Path, session: Session) -> None:
    config = CONFIG | {"projects": {"phantom": str(session.folder / "results/phantom/copick.json")}}
    (tmp_path / "Snakefile").write_text(
        f"""
module picking:
    snakefile: {str(ROOT / "workflow/Snakefile")!r}
    config: {config!r}
    pathvars:
        results="elsewhere"

use rule * from picking as picking_*

rule everything:
    input: rules.picking_all.input
    default_target: True
"""
    )
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--directory", str(tmp_path)]
    finished = subprocess.run(
        [*command, "--snakefile", str(tmp_path / "Snakefile")], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "rule picking_train_model:" in finished.stdout
    assert "elsewhere/models/tiny/model.yaml" in finished.stdout


# Cross-validation, fine-tuning, models from elsewhere


FOLDS = {
    "runs_per_job": 4,
    "targets": {"picks": ["apo-ferritin", "hemoglobin"]},
    "split": {"folds": 2, "train": None, "validate": None},
    "train": {"steps": 2, "validate_every": 2},
    "tracking": {"enabled": False},
    "segment": {"models": "folds", "runs": ["phantom-003"]},
}


def with_changes(**changes: dict) -> dict:
    """`FOLDS`, with some sections changed."""
    return FOLDS | {name: {**FOLDS.get(name, {}), **options} for name, options in changes.items()}


def trainings(output: str) -> dict[str, str]:
    """The trainings that snakemake announces: what it says of each, by model."""
    blocks = re.split(r"\n\n|\n(?=\[)", output)
    found = {match[1]: block for block in blocks if (match := re.search(r"wildcards: model=(\S+)", block))}
    return {model: block for model, block in found.items() if "rule train_model:" in block}


@pytest.fixture(scope="module")
def folds(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which a cross-validation has run, and its models together."""
    made = Session(tmp_path_factory.mktemp("folds"))
    phantom = made.folder / "results/phantom"
    shutil.copytree(session.folder / "results/phantom", phantom)
    config = phantom / "copick.json"
    config.write_text(config.read_text().replace(str(session.folder), str(made.folder)))
    made.configure(FOLDS)
    announced = trainings(made.snakemake("cross_validate", "evaluate"))
    assert sorted(announced) == ["tiny-fold-0", "tiny-fold-1"]
    for model, block in announced.items():
        # Jobs that can run side by side: neither needs anything of the other.
        assert re.search(r"input: (.*)", block)[1] == f"results/models/{model}/targets.made"
    return made


def test_a_cross_validation_ends_in_models_and_a_table(folds: Session) -> None:
    results = folds.folder / "results"
    assert not (results / "models/tiny").exists()
    for fold in range(2):
        folder = results / f"models/tiny-fold-{fold}"
        assert yaml.safe_load((folder / "model.yaml").read_text())["name"] == f"tiny-fold-{fold}"
    with (results / "cross_validation/tiny.csv").open(newline="") as handle:
        rows = {row["object"]: row for row in csv.DictReader(handle)}
    assert list(rows) == ["all", "apo-ferritin", "hemoglobin"]
    for fold in range(2):
        found = json.loads((results / f"models/tiny-fold-{fold}/results.json").read_text())
        assert float(rows["all"][f"fold {fold}"]) == found["score"]
    assert folds.would_run("cross_validate", "evaluate") == []


def test_the_folds_serve_together_as_an_ensemble(folds: Session) -> None:
    results = folds.folder / "results"
    scores = json.loads((results / "evaluate/tiny-folds/scores.json").read_text())
    assert {row["run"] for row in scores["runs"]} == {"phantom/phantom-003"}
    project = folds.project()
    sessions = {source.session for source in project.pick_sources("phantom-003") if source.user == "tomoscout"}
    assert "tiny-folds" in sessions


def test_without_folds_there_is_no_cross_validation(session: Session) -> None:
    output = session.snakemake("--dry-run", "cross_validate", check=False)
    assert "cross-validation needs split.folds (such as 5) or split.leave_one_out: true" in output
    assert NO_TRACEBACK not in output


def test_models_from_elsewhere_train_nothing(tmp_path: Path, session: Session) -> None:
    fresh = Session(tmp_path)
    model = session.folder / "results/models/tiny"
    projects = {"phantom": str(session.folder / "results/phantom/copick.json")}
    fresh.configure({"projects": projects, "segment": {"models": [str(model)]}})
    jobs = {job.split()[0] for job in fresh.would_run()}
    assert jobs >= {"segment_runs", "localize_runs", "evaluate_picks", "write_report"}
    assert "train_model" not in jobs


def test_a_fine_tuning_follows_its_base(folds: Session) -> None:
    base = folds.folder / "results/models/tiny-fold-0"
    # Relative to the working directory, as any path in a configuration.
    changes = with_changes(train={"name": "tuned", "base": "results/models/tiny-fold-0"}, segment={"models": None})
    with configured(folds, changes):
        folds.snakemake("finetune")
        results = json.loads((folds.folder / "results/models/tuned/results.json").read_text())
        assert results["base_score"] == json.loads((base / "results.json").read_text())["score"]
        weights = base / "weights.safetensors"
        with kept(weights):
            weights.touch()
            assert folds.would_run("finetune") == []
            weights.write_bytes(weights.read_bytes()[::-1])
            assert folds.would_run("finetune") == ["train_model"]


def test_a_fine_tuning_needs_a_base(folds: Session) -> None:
    output = folds.snakemake("--dry-run", "finetune", check=False)
    assert "fine-tuning needs train.base: a model folder, or octopi's model_config.yaml" in output
    assert NO_TRACEBACK not in output


def test_told_to_stop_a_training_writes_its_checkpoint(folds: Session) -> None:
    """The signal goes to all processes of the job at once, as a batch system sends it, or Ctrl-C in a terminal."""
    endless = {"name": "stopped", "steps": 10**6, "checkpoint_seconds": 10**6}
    with configured(folds, with_changes(train=endless, segment={"models": None})):
        running = folds.start("train", "--nolock")
        folder = folds.folder / "results/models/stopped"
        while not (folder / "metrics.csv").exists():
            try:
                running.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(running.communicate()[0])
        os.killpg(running.pid, signal.SIGTERM)
        running.communicate()
    assert (folder / "checkpoint.pt").exists()
    last = (folds.folder / "logs/train/stopped.log").read_text().splitlines()[-1]
    assert last == "stopped; results/models/stopped/checkpoint.pt is written, the same command goes on from it"


# Tracking


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
