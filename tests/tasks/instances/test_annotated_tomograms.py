"""Annotated tomograms of copick projects, and the instances that are written into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.instances import TRAIN, UNTRAINED
from tomoscout.data.inventory import read_inventory
from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.options.config import Config, parse_config
from tomoscout.phantom.options import Phantom
from tomoscout.phantom.project import make_phantom
from tomoscout.plan.fingerprints import annotated_tomograms
from tomoscout.plan.plan import Plan
from tomoscout.stages.divide_cells import run_divide_cells
from tomoscout.stages.evaluate_cells import run_evaluate_cells
from tomoscout.stages.segment_instances import run_segment_instances
from tomoscout.stages.train_cells import run_train_cells
from tomoscout.tasks.instances.annotations import find_annotations
from tomoscout.tasks.instances.model import CellModel
from tomoscout.tasks.instances.options import CellVolumeTraining

SPACING = 20.0
TOMOGRAM = f"wbp@{SPACING}"
VESICLES = Segmentation("vesicles", "phantom", "0", SPACING, is_multilabel=True)
FOUND = Segmentation("vesicles", "tomoscout", "m", SPACING, is_multilabel=True)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = Phantom(runs=3, shape=[16, 48, 48], voxel_spacing=SPACING, membranes=3, particles=0, signal_to_noise=5)
    return make_phantom(tmp_path_factory.mktemp("phantom"), options)


def configure(phantom: Path, train: dict[str, Any] | None = None, **changes: Any) -> Config:
    section = {
        "dimensions": 3,
        "annotations": {"vesicles": {"segmentation": "vesicles", "tomogram": TOMOGRAM}},
        "train": {**TRAIN, "name": "m", "patch": [16, 32, 32], "batch_size": 2, **(train or {})},
        "segment": {"tomogram": TOMOGRAM, "segmentation": "vesicles", "device": "cpu"},
        **changes,
    }
    values = {"projects": {"p": str(phantom)}, "tomograms": [TOMOGRAM], "cells": section}
    return parse_config({**values, "tracking": {"enabled": False}}, "test")


def inventory(config: Config, folder: Path) -> Path:
    from tomoscout.data.inventory_refresh import refresh

    refresh(folder / "inventory.tsv", config.projects, config.runs_per_job)
    return folder / "inventory.tsv"


def test_tomograms_with_instances_are_found(phantom: Path) -> None:
    config = configure(phantom)
    found = find_annotations(config.cells, config.projects)
    assert [entry.key for entry in found] == [f"vesicles/p/phantom-00{number}" for number in range(3)]
    assert {(entry.shape, entry.calibration, entry.channels) for entry in found} == {
        ((16, 48, 48), 0.002, ("tomogram",))
    }
    project = Project("p", phantom)
    np.testing.assert_array_equal(found[1].read_image()[0], project.read_tomogram("phantom-001", TOMOGRAM))
    labels = found[1].read_labels()
    np.testing.assert_array_equal(labels, project.read_segmentation("phantom-001", VESICLES))
    assert labels.max() == 3
    assert len({entry.inputs for entry in found}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": 2, "train": {}}, r"^cells\.annotations\.vesicles: tomograms are volumes; set .*dimensions: 3$"),
        (
            {"annotations": {"vesicles": {"segmentation": "no:a/1", "tomogram": TOMOGRAM}}},
            r"^cells\.annotations\.vesicles: no run has both tomogram wbp@20\.0 and a segmentation no:a/1 .*spacing$",
        ),
        (
            {"annotations": {"vesicles": {"segmentation": "vesicles", "tomogram": "wbp@10.0"}}},
            r"no run has both tomogram wbp@10\.0",
        ),
    ],
)
def test_annotations_that_are_not_there_are_one_line(phantom: Path, changes: dict[str, Any], message: str) -> None:
    config = configure(phantom)
    cells = type(config.cells).model_validate({**config.cells.model_dump(by_alias=True), **changes})
    with pytest.raises(TomoscoutError, match=message):
        find_annotations(cells, config.projects)


def test_of_several_segmentations_one_must_be_named(tmp_path: Path) -> None:
    options = Phantom(runs=2, shape=[16, 32, 32], voxel_spacing=SPACING, membranes=1, particles=0)
    config = configure(make_phantom(tmp_path, options))
    project = Project("p", tmp_path / "copick.json")
    labels = project.read_segmentation("phantom-000", VESICLES)
    other = Segmentation("vesicles", "alice", "1", SPACING, is_multilabel=True)
    project.write_segmentation("phantom-000", other, labels, {})
    with pytest.raises(TomoscoutError, match=r"^p/phantom-000: several segmentations vesicles: .*; name one \(cells"):
        find_annotations(config.cells, config.projects)
    project.write_segmentation("phantom-001", VESICLES, labels[:8], {})
    named = {"vesicles": {"segmentation": "vesicles:phantom/0", "tomogram": TOMOGRAM}}
    found = find_annotations(configure(tmp_path / "copick.json", annotations=named).cells, config.projects)
    with pytest.raises(TomoscoutError, match=r"^p/phantom-001: segmentation vesicles:.* its shape is \(8, 32, 32\)"):
        found[1].read_labels()


@pytest.mark.parametrize("source", [{}, {"folder": "x", "sample": "nuclei"}, {"segmentation": "x"}])
def test_a_source_is_of_one_kind(phantom: Path, source: dict[str, str]) -> None:
    with pytest.raises(TomoscoutError, match=r"cells\.annotations\.vesicles: (give one of|segmentation and tomogram)"):
        configure(phantom, annotations={"vesicles": source})


def test_another_segmentation_divides_again(phantom: Path, tmp_path: Path) -> None:
    config = configure(phantom)
    records = read_inventory(inventory(config, tmp_path))
    before = annotated_tomograms(config.cells, lambda: records)
    assert len(before) == 3
    uri = next(uri for uri in records[0].segmentations if uri.startswith("vesicles"))
    records[0].segmentations[uri] = "another"
    assert annotated_tomograms(config.cells, lambda: records) != before


@pytest.mark.parametrize("head", ["flow", "star"])
def test_instances_are_written_into_the_projects(phantom: Path, tmp_path: Path, head: str) -> None:
    config = configure(phantom, {**UNTRAINED, "head": head, **({"rays": 16} if head == "star" else {})})
    assert isinstance(config.cells.train, CellVolumeTraining)
    run_divide_cells(config, tmp_path / "division.json")
    folder = tmp_path / "models/m"
    run_train_cells(config, tmp_path / "division.json", folder)
    assert CellModel.read(folder).dimensions == 3
    scores = run_evaluate_cells(config, tmp_path / "division.json", folder, tmp_path / "scores/scores.json")
    assert scores["images"] == 1 and (tmp_path / "scores/report.html").exists()
    plan = Plan(config, read_inventory(inventory(config, tmp_path)), tmp_path)
    output = plan.results.instances("m") / "batch-0000.json"
    try:
        run_segment_instances(plan, folder, 0, output)
        manifest = read_json(plan.results.instances("m") / "p/phantom-002.json")
        labels = Project("p", phantom).read_segmentation("phantom-002", FOUND)
        assert labels.shape == (16, 48, 48)
        assert labels.max() == manifest["segmentation"]["objects"] == len(np.unique(labels)) - 1
        written = output.read_bytes()
        run_segment_instances(plan, folder, 0, output)
        assert output.read_bytes() == written
        # What others have put there is not written over.
        Project("p", phantom).write_segmentation("phantom-002", FOUND, labels, {})
        with pytest.raises(TomoscoutError, match=r"phantom-002: segmentation vesicles:tomoscout/m.* not written over"):
            run_segment_instances(plan, folder, 0, output)
    finally:
        for run in ("phantom-000", "phantom-001", "phantom-002"):
            Project("p", phantom).delete(run, FOUND)


def test_a_model_of_images_is_refused(phantom: Path, tmp_path: Path) -> None:
    from tomoscout.tasks.instances.made_up import make_annotations

    make_annotations(tmp_path / "annotations", 6, (64, 64), 0, cells=4)
    annotations = {"cells": str(tmp_path / "annotations")}
    images = configure(
        phantom, {**UNTRAINED, "patch": [64, 64]}, dimensions=2, annotations=annotations, channels=["nuclei"]
    )
    run_divide_cells(images, tmp_path / "division.json")
    run_train_cells(images, tmp_path / "division.json", tmp_path / "models/m")
    config = configure(phantom)
    plan = Plan(config, read_inventory(inventory(config, tmp_path)), tmp_path)
    with pytest.raises(TomoscoutError, match=r"models/m: a model of images; tomograms need one with .*dimensions: 3$"):
        run_segment_instances(plan, tmp_path / "models/m", 0, tmp_path / "batch-0000.json")
