"""Picks and a page of a project that somebody else has segmented: no model, nothing trained, nothing segmented."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from support.snakemake_session import NO_TRACEBACK, Session, announced_jobs, copy_of
from tomoscout.data.geometry import to_voxels
from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation
from tomoscout.options.names import Source
from tomoscout.tasks.picking.spheres import Spheres, rasterise

pytestmark = [pytest.mark.workflow, pytest.mark.long]

THEIRS = Segmentation("predict", "octopi", "1", 10.0, True)
SHAPE = (32, 64, 64)


def write_labels(project: Project, run: str, *, scale: float = 0.8) -> None:
    """Labels in spheres at the true places, with the labels of the copick config."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for entry in project.objects.values():
        if entry.is_particle and entry.radius and entry.label:
            centres = to_voxels(project.read_picks(run, Source(entry.name, "phantom", "0")).positions, 10.0)
            radii = np.full(len(centres), scale * entry.radius / 10)
            rasterise(labels, Spheres(centres, radii, np.full(len(centres), entry.label)))
    project.write_segmentation(run, THEIRS, labels, {})


@pytest.fixture
def theirs(phantom: Session, tmp_path: Path) -> Session:
    """A phantom with labels in every run, and a configuration without targets and models."""
    session = copy_of(phantom, tmp_path)
    configure(session)
    for run in session.project().run_names():
        write_labels(session.project(), run)
    return session


def configure(session: Session, **sections: object) -> None:
    values = {name: session.base[name] for name in ("projects", "tomograms", "runs_per_job")}
    session.config.write_text(yaml.safe_dump({**values, "localize": {"segmentation": "predict:octopi/1"}, **sections}))


def test_labels_become_picks_without_a_model(theirs: Session) -> None:
    assert {job.split()[0] for job in announced_jobs(theirs.snakemake("localize"))} == {"localize_runs"}
    project = theirs.project()
    for run in project.run_names():
        for name, entry in project.objects.items():
            truth = project.read_picks(run, Source(name, "phantom", "0")).positions
            found = project.read_picks(run, Source(name, "tomoscout", "predict-octopi-1"))
            if not entry.is_particle:
                assert len(found) == 0
                continue
            assert len(found) == len(truth)
            for place in truth:
                assert np.linalg.norm(found.positions - place, axis=1).min() < 0.3 * (entry.radius or 0)
    assert theirs.would_run("localize") == []
    # Other labels in one run: its batch alone.
    write_labels(project, "phantom-002", scale=0.6)
    assert theirs.would_run("localize") == [f"localize_runs {theirs.batch_of('phantom-002')}"]


def test_the_page_and_the_scores_need_no_model_either(theirs: Session) -> None:
    jobs = {job.split()[0] for job in announced_jobs(theirs.snakemake())}
    assert jobs == {"localize_runs", "report_page"}
    page = (theirs.folder / "results/report/predict-octopi-1.html").read_text()
    assert "<h2>What was found</h2>" in page and "<h2>Picks in the tomograms</h2>" in page
    assert "<h2>Model</h2>" not in page
    assert theirs.would_run() == []
    configure(theirs, evaluate={"reference": "phantom/0"})
    theirs.snakemake()
    scores = json.loads((theirs.folder / "results/evaluate/predict-octopi-1/scores.json").read_text())
    assert scores["mean"]["f"] > 0.95
    assert len(scores["runs_scored"]) == 4


def test_a_segmentation_that_is_not_there_ends_in_a_line(theirs: Session) -> None:
    configure(theirs, localize={"segmentation": "predict:nobody/1"})
    output = theirs.snakemake("localize", "--dry-run", check=False)
    assert (
        "localize.segmentation: no multilabel segmentation predict:nobody/1 in any run; found: predict:octopi" in output
    )
    assert NO_TRACEBACK not in output


def test_a_training_is_not_waited_for(theirs: Session) -> None:
    configure(theirs, targets={"picks": "phantom/0"})
    assert {job.split()[0] for job in theirs.would_run("localize")} == {"localize_runs"}
