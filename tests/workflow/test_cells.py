"""Instances of cells as users run them: from annotated images to labels, and what is made again after a change."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.snakemake_session import CELL_TARGETS, NO_TRACEBACK, ROOT, Session, configured

pytestmark = pytest.mark.workflow

CELLS: dict[str, Any] = {
    "cells": {
        "annotations": {"made-up": "results/cells/annotations"},
        "channels": ["nuclei"],
        "train": {
            "steps": 60,
            "validate_every": 30,
            "batch_size": 2,
            "patch": [64, 64],
            "device": "cpu",
            "checkpoint_seconds": 0,
            "network": {"channels": [8, 16, 16], "strides": [2, 2]},
        },
        "library": "library",
        "segment": {
            "images": ["results/cells/images"],
            "channels": ["nuclei", "cytoplasm"],
            "calibration": 0.65,
            "device": "cpu",
        },
    },
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session with made-up annotated images."""
    made = Session(tmp_path_factory.mktemp("cells"), CELLS)
    made.snakemake("phantom_cells")
    return made


@pytest.mark.parametrize("target", [*CELL_TARGETS, "all"])
def test_a_configuration_of_cells_alone_is_planned(session: Session, target: str) -> None:
    jobs = session.would_run(target)
    assert any(job.startswith("divide_cells") for job in jobs) == (target != "check_annotations")
    trains = target not in ("check_annotations", "split_cells", "explore_cells")
    assert any(job.startswith("train_cell_model") for job in jobs) == trains
    assert any(job.startswith("cell_trial") for job in jobs) == (target == "explore_cells")
    assert not any(job.startswith(("targets", "segment_runs", "report_page")) for job in jobs)


def test_a_folder_that_is_not_there_ends_in_one_line(session: Session) -> None:
    with configured(session, {"cells": {"annotations": {"mine": "no/such/folder"}}}):
        output = session.snakemake("cells", "--dry-run", check=False)
    assert "cells.annotations.mine: no/such/folder: no such folder" in output
    assert NO_TRACEBACK not in output


@pytest.mark.long
def test_from_annotations_to_labels(session: Session) -> None:
    session.snakemake("all")
    results = session.folder / "results"
    assert (results / "cells/check/index.html").exists()
    assert (session.folder / "library/cells/model.yaml").exists()
    scores = json.loads((results / "cells/evaluate/cells/scores.json").read_text())
    assert scores["part"] == "test" and scores["scores"][0]["annotated"] > 20
    images = json.loads((results / "cells/segment/cells.json").read_text())["images"]
    assert [Path(entry["labels"]).name for entry in images] == [f"image_{number}_cells.tif" for number in range(4)]
    assert session.would_run("all") == []
    # What is segmented does not train again; how it is trained does.
    with configured(session, {"cells": {**CELLS["cells"], "segment": {**CELLS["cells"]["segment"], "format": "zarr"}}}):
        assert {job.split()[0] for job in session.would_run("cells")} == {"segment_cell_images"}
    with configured(session, {"cells": {**CELLS["cells"], "train": {**CELLS["cells"]["train"], "steps": 61}}}):
        jobs = {job.split()[0] for job in session.would_run("cells")}
    assert jobs == {"train_cell_model", "evaluate_cell_model", "segment_cell_images"}


PATCH = [16, 32, 32]
EXAMPLE = yaml.safe_load((ROOT / "config/examples/vesicles.yaml").read_text())
VESICLES: dict[str, Any] = {
    **EXAMPLE,
    "phantom": {**EXAMPLE["phantom"], "runs": 3, "shape": [16, 48, 48], "membranes": 3, "particles": 0},
    "cells": {
        **EXAMPLE["cells"],
        "train": {
            **CELLS["cells"]["train"],
            "name": "vesicles",
            "steps": 4,
            "validate_every": 2,
            "patch": [16, 32, 32],
        },
        "segment": {**EXAMPLE["cells"]["segment"], "device": "cpu"},
    },
}


@pytest.mark.long
def test_vesicles_in_tomograms(tmp_path: Path) -> None:
    session = Session(tmp_path / "vesicles", VESICLES)
    session.snakemake("phantom")
    session.snakemake("segment_instances")
    manifests = sorted((session.folder / "results/segment_instances/vesicles/phantom").glob("*.json"))
    assert [json.loads(path.read_text())["run"] for path in manifests] == [f"phantom-00{n}" for n in range(3)]
    assert session.would_run("segment_instances") == []
    session.snakemake("cells")
    assert (session.folder / "results/cells/check/index.html").exists()
    # An option of the segmentation does not train again; another kind of tomogram that no run has is one line.
    section = VESICLES["cells"]
    with configured(
        session, {**VESICLES, "cells": {**section, "segment": {**section["segment"], "segmentation": "v"}}}
    ):
        assert {job.split()[0] for job in session.would_run("segment_instances")} == {"segment_instances_runs"}
    with configured(session, {**VESICLES, "cells": {**section, "segment": {"tomogram": "wbp@10.0"}}}):
        output = session.snakemake("segment_instances", check=False)
    assert "cells.segment.tomogram: no run has a tomogram wbp@10.0" in output
    assert NO_TRACEBACK not in output


@pytest.mark.long
def test_killed_again_and_again_the_weights_are_the_same(session: Session, tmp_path: Path) -> None:
    alone = Session(tmp_path / "alone", CELLS)
    alone.snakemake("phantom_cells")
    alone.snakemake("train_cells")
    killed = Session(tmp_path / "killed", CELLS)
    killed.snakemake("phantom_cells")
    checkpoint = killed.folder / "results/models/cells/checkpoint.pt"
    for _ in range(2):
        running = killed.start("train_cells", "--nolock", "--rerun-incomplete")
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while running.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns != before):
            time.sleep(0.02)
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
    killed.snakemake("train_cells", "--nolock", "--rerun-incomplete")
    for name in ("weights.safetensors", "model.yaml", "metrics.csv"):
        place = f"results/models/cells/{name}"
        assert (killed.folder / place).read_bytes() == (alone.folder / place).read_bytes(), name


@pytest.mark.parametrize(("backend", "weights"), [("stardist", "weights_best.h5"), ("cellpose", "cells")])
def test_a_back_end_writes_its_own_weights(session: Session, backend: str, weights: str) -> None:
    train = {"backend": backend, "patch": [64, 64], "python": "/no/such/python"}
    with configured(session, {"cells": {**CELLS["cells"], "train": train}}):
        planned = session.snakemake("train_cells", "--dry-run")
        assert f"results/models/cells/{weights}" in planned
        assert "weights.safetensors" not in planned
        refused = session.snakemake("train_cells", check=False)
    assert f"error: cells.train.backend: {backend}: /no/such/python: no such Python" in refused
    assert NO_TRACEBACK not in refused
