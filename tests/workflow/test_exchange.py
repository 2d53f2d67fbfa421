"""Picks out to other programs and in again, as snakemake does it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
import yaml

from support.model import MODEL
from support.snakemake_session import NO_TRACEBACK, Session, copy_of, kept
from tomoscout.data.copick_config import read_objects
from tomoscout.data.formats import FORMATS
from tomoscout.data.project import Project
from tomoscout.machine.files import read_json, write_json
from tomoscout.models.folder import save_weights
from tomoscout.networks import build_network
from tomoscout.options.names import Source
from tomoscout.plan.classes import TargetClass

pytestmark = pytest.mark.workflow

RUNS = [f"phantom-00{number}" for number in range(4)]
PROJECT_TOMOGRAMS = {"tomograms": ["wbp@10.0"], "runs_per_job": 2}
PROJECT = {"projects": {"phantom": "results/phantom/copick.json"}, **PROJECT_TOMOGRAMS}
OUT = {"picks": "phantom/0", "formats": ["csv", "relion5", "imod"]}


def configure(session: Session, **sections: Any) -> None:
    session.config.write_text(yaml.safe_dump(PROJECT | sections))


@pytest.fixture(scope="module")
def exported(phantom: Session, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The phantom's own picks, exported."""
    session = copy_of(phantom, tmp_path_factory.mktemp("exchange"))
    configure(session, export=OUT)
    session.snakemake("export")
    return session


def test_each_format_is_a_job(exported: Session) -> None:
    configure(exported, export=OUT)
    assert exported.would_run("export") == []
    counts = {}
    for form in OUT["formats"]:
        facts = read_json(exported.folder / f"results/export/{form}/export.json")
        counts[form] = {run: sum(n["written"] for n in of["picks"].values()) for run, of in facts["runs"].items()}
    assert counts["csv"] == counts["relion5"] == counts["imod"]
    assert sorted(counts["csv"]) == [f"phantom/{run}" for run in RUNS] and min(counts["csv"].values()) > 3


def test_another_format_is_one_more_job_and_a_threshold_makes_all_anew(exported: Session) -> None:
    configure(exported, export=OUT | {"formats": [*OUT["formats"], "dynamo"]})
    assert exported.job_counts("export")["export_files"] == 1
    configure(exported, export=OUT | {"threshold": 0.5})
    assert exported.job_counts("export")["export_files"] == 3


def test_what_is_exported_comes_in_again(exported: Session) -> None:
    objects = read_objects(exported.folder / "results/phantom/copick.json")
    names = [name for name, entry in objects.items() if entry.is_particle]
    stars = {
        f"relion-{name}": {"files": [f"results/export/relion5/{name}.star"], "object": name, "session": "relion"}
        for name in names
        if (exported.folder / f"results/export/relion5/{name}.star").exists()
    }
    table = {"table": {"files": "results/export/csv/picks.csv"}}
    models = {"models": {"files": "results/export/imod/*.mod"}}
    configure(exported, import_picks=table | models | stars)
    assert exported.job_counts("import_picks")["import_picks_files"] == 2 + len(stars)
    exported.snakemake("import_picks")
    assert exported.would_run("import_picks") == []
    project = exported.project()
    for run in RUNS:
        for source in project.pick_sources(run):
            if (source.user, source.session) != ("phantom", "0"):
                continue
            expected = project.read_picks(run, source)
            for session in ("table", "relion", "models"):
                found = project.read_picks(run, Source(source.name, "imported", session))
                np.testing.assert_allclose(found.positions, expected.positions, atol=0.01)
    # A changed file is read again, and no other.
    path = exported.folder / "results/export/csv/picks.csv"
    with kept(path):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        assert exported.job_counts("import_picks")["import_picks_files"] == 1


def test_a_project_is_made_of_files(exported: Session) -> None:
    folder = exported.folder / "fresh"
    (folder / "overlay").mkdir(parents=True)
    objects = [{"name": "ribosome", "is_particle": True, "label": 1, "radius": 150}]
    copick = {"config_type": "filesystem", "name": "fresh", "version": "1.31.0", "pickable_objects": objects}
    storage = {"overlay_root": f"local://{folder}/overlay", "overlay_fs_args": {"auto_mkdir": True}}
    write_json(folder / "copick.json", copick | storage)
    for number in range(2):
        with mrcfile.new(folder / f"TS_{number}.mrc") as file:
            file.set_data(np.random.default_rng(number).normal(size=(10, 12, 14)).astype(np.float32))
            file.voxel_size = 10.0
    (folder / "picks.csv").write_text("run_name,object,x,y,z\nTS_1,ribosome,50,60,40\n")
    files = {
        "import_tomograms": {"mrc": {"files": [f"{folder}/*.mrc"]}},
        "import_picks": {"table": {"files": [f"{folder}/picks.csv"]}},
    }
    exported.config.write_text(
        yaml.safe_dump({"projects": {"fresh": f"{folder}/copick.json"}, **PROJECT_TOMOGRAMS, **files})
    )
    output = exported.snakemake("import")
    assert "note: tomograms are imported now; the same command then imports picks" in output
    assert exported.job_counts("import") == {"import": 1, "import_picks_files": 1, "total": 2}
    exported.snakemake("import")
    assert exported.would_run("import") == []
    project = Project("fresh", folder / "copick.json")
    assert project.run_names() == ["TS_0", "TS_1"]
    assert project.read_tomogram("TS_1", "wbp@10.0").shape == (10, 12, 14)
    [position] = project.read_picks("TS_1", Source("ribosome", "imported", "table")).positions
    np.testing.assert_allclose(position, [50, 60, 40])

    # What is there may be brought into another project.
    write_json(folder / "second.json", copick | storage | {"overlay_root": f"local://{folder}/second"})
    asked = {"source": f"{folder}/copick.json", "tomograms": ["wbp@*"], "picks": ["*:imported/*"], "runs": ["TS_1"]}
    exported.config.write_text(
        yaml.safe_dump(
            {"projects": {"second": f"{folder}/second.json"}, **PROJECT_TOMOGRAMS, "download": {"it": asked}}
        )
    )
    exported.snakemake("download")
    assert exported.would_run("download") == []
    second = Project("second", folder / "second.json")
    assert second.run_names() == ["TS_1"]
    assert second.pick_sources("TS_1") == [Source("ribosome", "imported", "table")]


def test_what_cannot_be_done_is_told_in_one_line(exported: Session) -> None:
    for sections, target, expected in [
        ({}, "import_picks", "error: import_picks: nothing to import; give a name of yours and, below it, its files"),
        (
            {"import_picks": {"a": {"files": "b.star"}}},
            "import_picks",
            "error: import_picks.a.files: b.star: no such file",
        ),
        ({"export": {"picks": "bob/1"}}, "export", "error: export.picks: no run has picks of bob/1"),
        ({"export": {"formats": "relion6"}}, "export", "export.formats.0: Input should be 'relion5', 'relion4', "),
        (
            {"export": {"picks": ["ribosome"]}},
            "export",
            "'ribosome' names no user and session; expected name:user/session",
        ),
    ]:
        configure(exported, **sections)
        output = exported.snakemake("--dry-run", target, check=False)
        assert expected in output and NO_TRACEBACK not in output


def test_before_anything_is_picked_the_picks_are_made(exported: Session, phantom: Session) -> None:
    with_targets = {"targets": {"picks": "phantom/0"}, "train": {"device": "cpu"}}
    configure(exported, **with_targets)
    jobs = {job.split()[0] for job in exported.would_run("export")}
    assert {"train_model", "segment_runs", "localize_runs", "export_files"} <= jobs


@pytest.mark.long
def test_predicted_picks(phantom: Session, tmp_path: Path) -> None:
    session = copy_of(phantom, tmp_path)
    objects = read_objects(session.folder / "results/phantom/copick.json").values()
    particles = [entry for entry in objects if entry.is_particle]
    classes = tuple(
        TargetClass(entry.name, label, entry.radius, entry.radius, MODEL.classes[0].sources)
        for label, entry in enumerate(particles, 1)
    )
    torch.manual_seed(0)
    network = build_network(MODEL.network, len(classes) + 1)
    weights = save_weights(tmp_path / "unet", network.state_dict())
    thresholds = {entry.name: 0.0 for entry in classes}
    replace(MODEL, weights_digest=weights, classes=classes, thresholds=thresholds).write(tmp_path / "unet")
    model = {"models": [str(tmp_path / "unet")], "device": "cpu", "tile": [32, 64, 64]}
    name = particles[0].name
    export = {"formats": ["relion5", "dynamo"], "objects": [name]}
    configure(session, segment=model, export=export)
    session.snakemake("export")
    facts = read_json(session.folder / "results/export/dynamo/export.json")
    project = session.project()
    for run in RUNS:
        predicted = project.read_picks(run, Source(name, "tomoscout", "unet"))
        assert facts["runs"][f"phantom/{run}"]["picks"] == {name: {"written": len(predicted), "below_threshold": 0}}
    assert sum(of["picks"][name]["written"] for of in facts["runs"].values()) > 0
    assert FORMATS["dynamo"].suffix == ".tbl" and list(facts["files"]) == [f"{name}.doc", f"{name}.tbl"]
    assert session.would_run("export") == []
    # Other picks are other files.
    configure(session, segment=model, localize={"threshold": 0.9}, export=export)
    assert session.job_counts("export")["export_files"] == 2
