"""A search over both heads as users run it: killed and started again the same, and its best model used at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from support.exploration import (
    CELL_TRIALS,
    cell_session,
    cells_explored_in_one_process,
    digest_of,
    explored,
    kill_again_and_again,
)
from support.project import succeeded, tomoscout
from tomoscout.options.config import parse_config
from tomoscout.tasks.instances.model import CellModel

pytestmark = [pytest.mark.workflow, pytest.mark.long]


def test_everything_killed_and_started_again_is_the_same_study(tmp_path: Path) -> None:
    session = cell_session(tmp_path / "killed")
    command = ("explore_cells", "segment_cells", "--nolock", "--rerun-incomplete")
    assert kill_again_and_again(session, *command, trials=CELL_TRIALS, kills=2)
    session.snakemake(*command)
    study, alone = explored(session), cells_explored_in_one_process(tmp_path / "alone")
    assert digest_of(study, CELL_TRIALS) == digest_of(alone, CELL_TRIALS)
    asks = [json.loads(path.read_text()) for path in sorted(study.glob("*/ask.json"))]
    assert {ask["train"]["head"] for ask in asks} == {"star", "flow"}
    for path in alone.glob("*/weights.safetensors"):
        assert (study / path.relative_to(alone)).read_bytes() == path.read_bytes()

    # Its best model is used at once, and its recipe trains longer.
    best = CellModel.read(study / "best")
    segmented = json.loads((session.folder / "results/cells/segment/best.json").read_text())
    assert len(segmented["images"]) == 4
    recipe = yaml.safe_load((study / "best/train.yaml").read_text())
    assert parse_config({"cells": {**recipe["cells"], "annotations": {"a": "a"}}}, "recipe").cells.train.head == (
        best.told_apart_by
    )
    assert "by measure" in (study / "report.html").read_text()
    status = succeeded(tomoscout("explore", "status", "--results", session.folder / "results")).stdout
    assert f"{CELL_TRIALS} of {CELL_TRIALS} trials done" in status

    # Other images are refused, and the study stays as it is.
    before = (study / "study.json").read_bytes()
    [sidecar, *_] = sorted((session.folder / "results/cells/annotations").glob("*.json"))
    values = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps(values | {"spatial_calibration": 0.66}))
    output = session.snakemake("explore_cells", check=False)
    assert f"error: results/explore/{study.name}: started with other annotated images" in output
    assert "check_cell_study" in session.would_run("explore_cells")
    sidecar.write_text(json.dumps(values))
    assert session.would_run("explore_cells") == ["check_cell_study", "divide_cells"]
    assert (study / "study.json").read_bytes() == before
