"""Cross-validation, its models together, fine-tuning, and a training that a batch system ends."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess

import pytest
import yaml

from support.snakemake_session import Session, announced_trainings, configured, copy_of, kept

pytestmark = [pytest.mark.workflow, pytest.mark.long]

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


@pytest.fixture(scope="module")
def folds(phantom: Session, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which a cross-validation has run, and its models together."""
    made = copy_of(phantom, tmp_path_factory.mktemp("folds"))
    made.configure(FOLDS)
    announced = announced_trainings(made.snakemake("cross_validate", "evaluate"))
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
