"""Extraction as users start it: from picks that are there, and from those that a training has yet to make."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest

from support.snakemake_session import CONFIG, NO_TRACEBACK, Session, announced_jobs, configured
from tomoscout.machine.files import read_json
from tomoscout.options.names import Source

pytestmark = pytest.mark.workflow

PHANTOM = {**CONFIG["phantom"], "shape": [48, 64, 64], "runs": 4, "membranes": 1, "particles": 3}
BOUND = {"kind": "near", "picks": "phantom/0", "segmentation": "membrane:phantom/0", "surface": "middle"}
EXTRACT: dict[str, Any] = {
    "bound": {**BOUND, "distance": 150, "orient": True},
    "pairs": {"kind": "midpoints", "picks": "tomoscout/bound", "distance": 400, "object": "ribosome"},
}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session with a phantom that has a vesicle in each run."""
    session = Session(tmp_path_factory.mktemp("extract"), {**CONFIG, "phantom": PHANTOM})
    session.snakemake("phantom")
    return session


def test_picks_near_a_membrane_are_extracted(session: Session) -> None:
    # What is exported is extracted first.
    with configured(session, {"extract": EXTRACT, "export": {"picks": "tomoscout/bound", "formats": ["csv"]}}):
        jobs = announced_jobs(session.snakemake("export"))
        assert jobs == ["export_files", "extract_runs 0000", "extract_runs 0001"]
        assert session.would_run("extract", "export") == []
    exported = read_json(session.folder / "results/export/csv/export.json")["runs"]
    project, written = session.project(), 0
    for run in project.run_names():
        with (session.folder / f"results/extract/bound/phantom/{run}.csv").open() as handle:
            rows = [row for row in csv.DictReader(handle) if row["object"] == "hemoglobin"]
        picks = project.read_picks(run, Source("hemoglobin", "tomoscout", "bound"))
        near = [row for row in rows if row["written"]]
        assert len(rows) == 3 and all(abs(float(row["distance"])) <= 150 for row in near)
        assert len(picks) == len(near) == exported[f"phantom/{run}"]["picks"]["hemoglobin"]["written"]
        normals = [[float(row[f"normal_{axis}"]) for axis in "xyz"] for row in near]
        assert picks.rotations @ [0, 0, 1] == pytest.approx(np.reshape(normals, (-1, 3)), abs=1e-3)
        written += len(near)
    assert written


def test_a_change_of_one_extraction_is_made(session: Session) -> None:
    other = {**EXTRACT, "bound": {**EXTRACT["bound"], "distance": 90}}
    with configured(session, {"extract": other}):
        assert session.would_run("extract") == ["extract_runs 0000", "extract_runs 0001"]


def test_what_is_predicted_is_made_first(session: Session) -> None:
    own = {"bound": {**EXTRACT["bound"], "picks": None}}
    with configured(session, {"extract": own}):
        assert {"train_model", "localize_runs", "extract_runs"} <= {
            job.split()[0] for job in session.would_run("extract")
        }
        assert {"extract_runs", "report_page"} <= {job.split()[0] for job in session.would_run("all")}


def test_what_is_scored_beside_is_made_first(session: Session) -> None:
    beside = {"also": ["tomoscout/bound"], "segmentations": ["predicted:tomoscout/tiny"]}
    with configured(session, {"extract": {"bound": {**EXTRACT["bound"], "distance": 80}}, "evaluate": beside}):
        jobs = session.would_run("evaluate")
    # The run that is tested is in the second batch.
    assert {"extract_runs 0001", "targets_runs 0001", "evaluate_picks"} <= set(jobs)
    assert "extract_runs 0000" not in jobs


@pytest.mark.parametrize(
    ("extract", "message"),
    [
        ({}, "extract: nothing to extract; give a name of yours and, below it, the kind"),
        ({"x": {**BOUND, "distance": 9, "picks": "me/1"}}, "extract.x.picks: no run has me/1"),
        ({"x": {**BOUND, "distance": 9, "session": "tiny"}}, "extract.x.session: tomoscout/tiny is that of localize"),
    ],
)
def test_what_cannot_be_extracted_ends_in_one_line(session: Session, extract: dict, message: str) -> None:
    with configured(session, {"extract": extract}):
        output = session.snakemake("--dry-run", "extract", check=False)
    assert output.splitlines()[-1].startswith(f"error: {message}") and NO_TRACEBACK not in output
