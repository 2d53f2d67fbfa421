"""A trained model on a project that teaches nothing: the plain command segments, localises and reports."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from support.octopi import UNET, write_model
from support.project import succeeded, tomoscout
from support.snakemake_session import CONFIG, NO_TRACEBACK, Session, announced_jobs, copy_of, copy_project
from tomoscout.data.copick_config import read_objects
from tomoscout.data.project import Project

NEW = {"projects": {"new": "data/copick.json"}, "tomograms": ["wbp@10.0"], "runs_per_job": 2}
SEGMENT: dict[str, Any] = {"device": "cpu", "tile": [32, 64, 64]}

pytestmark = [pytest.mark.workflow, pytest.mark.long]


@pytest.fixture(scope="module")
def model(phantom: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained on a phantom."""
    session = copy_of(phantom, tmp_path_factory.mktemp("trained"))
    session.configure({"tracking": {"enabled": False}})
    session.snakemake("train")
    return session.folder / "results/models/tiny"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copick config of another phantom."""
    folder = tmp_path_factory.mktemp("other") / "phantom"
    base = Session(folder.parent, {**CONFIG, "phantom": {**CONFIG["phantom"], "runs": 3, "seed": 7}})
    succeeded(tomoscout("phantom", folder, "--config", base.config))
    return folder / "copick.json"


@pytest.fixture
def new(tmp_path: Path, other: Path, model: Path) -> Session:
    """Another phantom, which lost its picks, and a configuration that only applies the model."""
    session = Session(tmp_path)
    copy_project(other, session.folder / "data")
    for run in (session.folder / "data/ExperimentRuns").iterdir():
        (run / "Picks").rename(session.folder / f"kept-{run.name}")
    apply(session, models=[str(model)])
    return session


def apply(session: Session, models: list[str], **sections: Any) -> None:
    session.config.write_text(yaml.safe_dump({**NEW, "segment": {**SEGMENT, "models": models}, **sections}))


def give_back_picks(session: Session, run: str) -> None:
    shutil.copytree(session.folder / f"kept-{run}", session.folder / f"data/ExperimentRuns/{run}/Picks")


def project(session: Session) -> Project:
    return Project("new", session.folder / "data/copick.json")


def failure(session: Session, *arguments: str) -> str:
    output = session.snakemake(*arguments, check=False)
    assert NO_TRACEBACK not in output
    return output


def test_the_plain_command_reports_what_was_found(new: Session) -> None:
    jobs = {job.split()[0] for job in announced_jobs(new.snakemake())}
    assert jobs == {"segment_runs", "localize_runs", "report_page"}
    opened, names = project(new), list(read_objects(new.folder / "data/copick.json"))
    page = (new.folder / "results/report/tiny.html").read_text()
    total = 0
    for run in opened.run_names():
        manifest = json.loads((new.folder / f"results/localize/tiny/new/{run}.json").read_text())
        counts = [manifest["picks"][name]["count"] for name in names if name in manifest["picks"]]
        total += sum(counts)
        cells = "".join(f'<td class="number">{count}</td>' for count in counts)
        assert f'<tr><th scope="row">new/{run}</th>{cells}</tr>' in page
    assert f"<b>{total:,}</b><span>picks found" in page
    for heading in ("What was found", "Picks in the tomograms", "Model"):
        assert f"<h2>{heading}</h2>" in page
    for heading in ("Scores", "Data"):
        assert f"<h2>{heading}</h2>" not in page
    assert new.would_run() == []
    assert not (new.folder / "results/targets").exists() and not (new.folder / "results/splits").exists()


@pytest.mark.parametrize(("target", "last"), [("segment", "segment_runs"), ("localize", "localize_runs")])
def test_its_targets_can_be_asked_for_alone(new: Session, target: str, last: str) -> None:
    jobs = {job.split()[0] for job in new.would_run(target)}
    assert jobs == ({"segment_runs"} | {last})


def test_what_cannot_be_done_says_what_is_missing(new: Session) -> None:
    for target in ("train", "splits", "targets"):
        assert "targets.picks: nothing to learn; give user/session or a list of objects" in failure(new, "-n", target)
    assert "evaluate.reference: nothing to score against; give user/session" in failure(new, "-n", "evaluate")
    apply(new, models=["nowhere/unet"])
    assert "nowhere/unet/model.yaml: no model there" in failure(new, "-n")


def test_runs_with_reference_picks_are_scored(new: Session, model: Path) -> None:
    give_back_picks(new, "phantom-001")
    apply(new, models=[str(model)], evaluate={"reference": "phantom/0"})
    new.snakemake()
    scores = json.loads((new.folder / "results/evaluate/tiny/scores.json").read_text())
    assert scores["runs_scored"] == ["new/phantom-001"]
    page = (new.folder / "results/report/tiny.html").read_text()
    assert "<h2>Scores</h2>" in page and "<h2>What was found</h2>" in page
    # Listed runs are scored whether they have picks or not.
    apply(new, models=[str(model)], evaluate={"reference": "phantom/0", "runs": ["phantom-000", "phantom-001"]})
    new.snakemake("evaluate")
    scores = json.loads((new.folder / "results/evaluate/tiny/scores.json").read_text())
    assert scores["runs_scored"] == ["new/phantom-000", "new/phantom-001"]
    assert scores["runs_without_references"] == ["new/phantom-000"]


def test_an_object_that_copick_lacks_is_named_before_segmenting(new: Session) -> None:
    path = new.folder / "data/copick.json"
    values = json.loads(path.read_text())
    [gone] = [entry for entry in values["pickable_objects"] if entry["name"] == "ribosome"]
    values["pickable_objects"].remove(gone)
    path.write_text(json.dumps(values))
    output = failure(new, "-n")
    assert "data/copick.json: no object 'ribosome', which the model" in output
    assert 'add {"name": "ribosome", "is_particle": true, "label": ' in output
    assert f'"radius": {gone["radius"]}}} to pickable_objects' in output


def octopi_model(folder: Path, project: Path) -> Path:
    """A model of octopi's that finds three objects of a project; returns its configuration."""
    folder.mkdir(parents=True)
    names = [name for name, entry in read_objects(project).items() if entry.is_particle][:3]
    return write_model(folder, UNET, labels={name: label for label, name in enumerate(names, 1)})


def test_models_of_octopi_are_applied_as_they_are(new: Session) -> None:
    copick = new.folder / "data/copick.json"
    paths = [octopi_model(new.folder / part / "best", copick) for part in ("a", "b")]
    apply(new, models=["a/best/model_config.yaml", "b/best/model_config.yaml"], localize={"session": "both"})
    assert {"import_model", "segment_runs 0000"} <= set(announced_jobs(new.snakemake()))
    folders = sorted((new.folder / "results/models").iterdir())
    assert [folder.name.rpartition("-")[0] for folder in folders] == ["best", "best"]
    page = (new.folder / "results/report/both.html").read_text()
    assert "What was found" in page and "octopi" in page
    assert new.would_run() == []
    # Other weights: another model.
    weights = torch.load(paths[0].with_name("best_model.pth"))
    torch.save({name: value * 1.5 for name, value in weights.items()}, paths[0].with_name("best_model.pth"))
    assert "import_model" in new.would_run()
    shutil.rmtree(new.folder / "results")
    paths[0].with_name("best_model.pth").unlink()
    assert "a/best/best_model.pth: no such file; expected what octopi wrote" in failure(new, "-n")


def test_thresholds_of_octopis_models_are_chosen_on_validation_runs(new: Session) -> None:
    for run in ("phantom-000", "phantom-001", "phantom-002"):
        give_back_picks(new, run)
    copick = new.folder / "data/copick.json"
    path = octopi_model(new.folder / "theirs", copick)
    names = list(yaml.safe_load(path.read_text())["labels"])
    split = {"train": ["phantom-000"], "validate": ["phantom-001"], "test": ["phantom-002"]}
    apply(new, models=["theirs/model_config.yaml"], targets={"picks": names}, split=split)
    new.snakemake()
    [folder] = (new.folder / "results/models").iterdir()
    values = yaml.safe_load((folder / "model.yaml").read_text())
    assert values["made_from"]["thresholds_chosen_on"] == ["new/phantom-001"]
    with (new.folder / f"results/evaluate/{folder.name}/objects.csv").open(newline="") as handle:
        assert [row["object"] for row in csv.DictReader(handle)] == names
    assert new.would_run() == []
