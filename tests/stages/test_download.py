from __future__ import annotations

from pathlib import Path
from typing import Any

import copick
import numpy as np
import pytest
from copick.ops.croissant import export_croissant

from support.project import SHAPE, SmallProject, error_of, succeeded, tomoscout
from tomoscout.data.written import Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.names import Source

PLACES = [[100.0, 120.0, 80.0], [250.0, 200.0, 120.0]]
MASK = np.zeros(SHAPE, dtype=np.uint8)
MASK[5:9] = 1
RIBOSOMES = Source("ribosome", "expert", "7")
MEMBRANE = Segmentation("membrane", "expert", "0", 10.0, is_multilabel=False)


@pytest.fixture
def other(tmp_path: Path) -> SmallProject:
    """A project of two runs, of which things are brought."""
    folder = tmp_path / "other"
    folder.mkdir()
    project = SmallProject(folder, "other")
    for run in ("TS-1", "TS-2"):
        project.add_run(run)
        project.add_run(run, uri="denoised@10.0")
        project.add_picks(run, str(RIBOSOMES), PLACES)
        project.add_picks(run, "ferritin:expert/0", PLACES)
        project.add_segmentation(run, "membrane:expert/0", MASK)
    return project


def manifest_of(project: SmallProject, **more: Any) -> Path:
    """The copick config of a project's Croissant manifest, as copick writes both."""
    export_croissant(
        copick.from_file(str(project.copick)),
        str(project.overlay),
        base_url=f"file://{project.overlay}",
        dataset_name="made up",
        license="CC0-1.0",
        validate=False,
    )
    path = project.folder / "croissant.json"
    manifest = project.overlay / "Croissant" / "metadata.json"
    copick.from_croissant(str(manifest), overlay_fs_args={"auto_mkdir": True}, output_path=str(path), **more)
    return path


def download(receiving: SmallProject, source: Path, **asked: Any) -> Any:
    receiving.configure(download={"some": {"source": str(source), **asked}})
    output = receiving.folder / "results" / "download" / "some" / "runs.json"
    return tomoscout("download", "--config", receiving.settings, "--name", "some", "--output", output)


@pytest.mark.parametrize("croissant", [False, True])
def test_brings_what_is_asked_for_alone(tmp_path: Path, other: SmallProject, croissant: bool) -> None:
    source = manifest_of(other, overlay_root=f"local://{tmp_path}/unused") if croissant else other.copick
    project = SmallProject(tmp_path)
    asked: dict[str, Any] = {
        "runs": ["TS-*"],
        "tomograms": ["wbp@*"],
        "picks": ["ribosome:expert/*"],
        "segmentations": ["membrane:*"],
    }
    succeeded(download(project, source, **asked))

    theirs, ours = other.project(), project.project()
    assert ours.run_names() == ["TS-1", "TS-2"]
    for run in ours.run_names():
        assert list(ours.tomograms(run)) == ["wbp@10.0"]
        assert np.array_equal(ours.read_tomogram(run, "wbp@10.0"), theirs.read_tomogram(run, "wbp@10.0"))
        assert ours.pick_sources(run) == [RIBOSOMES]
        assert np.array_equal(ours.read_picks(run, RIBOSOMES).positions, PLACES)
        assert np.array_equal(ours.read_segmentation(run, MEMBRANE), MASK)


def test_goes_on_where_it_was_stopped(tmp_path: Path, other: SmallProject) -> None:
    project = SmallProject(tmp_path)
    broken = next((other._run("TS-2") / "VoxelSpacing10.000" / "wbp.zarr" / "0").glob("*/*/*"))
    content = broken.read_bytes()
    broken.write_bytes(b"damaged")
    failed = error_of(download(project, other.copick, tomograms=["wbp@10.0"]))
    assert "TS-2: tomogram wbp@10.0: a chunk cannot be decoded" in failed
    assert list(project.project().tomograms("TS-1")) == ["wbp@10.0"]
    assert list(project.project().tomograms("TS-2")) == []

    broken.write_bytes(content)
    [kept] = (project.overlay / "ExperimentRuns" / "TS-1").rglob("wbp.zarr")
    before = kept.stat().st_ino
    again = succeeded(download(project, other.copick, tomograms=["wbp@10.0"], picks=["ferritin:*"]))
    assert "demo/TS-1: wbp@10.0 is there already" in again.output
    assert kept.stat().st_ino == before
    assert list(project.project().tomograms("TS-2")) == ["wbp@10.0"]

    # What changed there is brought again; what this download brought is replaced.
    other.write_tomogram("TS-1", np.random.default_rng(5).normal(size=SHAPE).astype(np.float32))
    succeeded(download(project, other.copick, tomograms=["wbp@10.0"]))
    assert np.array_equal(
        project.project().read_tomogram("TS-1", "wbp@10.0"), other.project().read_tomogram("TS-1", "wbp@10.0")
    )


def test_writes_over_nothing_of_others(tmp_path: Path, other: SmallProject) -> None:
    project = SmallProject(tmp_path)
    project.add_picks("TS-1", str(RIBOSOMES), [[1.0, 2.0, 3.0]])
    project.add_run("TS-2")
    failed = error_of(download(project, other.copick, tomograms=["wbp@10.0"], picks=["ribosome:*"]))
    assert "demo/TS-1: picks ribosome:expert/7: there already, and not written by tomoscout" in failed
    assert "demo/TS-2: tomogram wbp@10.0: there already, and not written by tomoscout" in failed
    assert len(project.project().read_picks("TS-1", RIBOSOMES)) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tomograms": ["aretomo@10.0"]}, "nothing that is asked for is in 2 runs of {source}; TS-1 has denoised@10.0"),
        ({"runs": ["TS-9"], "picks": ["*"]}, "download.some.runs: no run 'TS-9' in {source}; it has 2, such as TS-1"),
        ({"picks": ["*"], "project": "another"}, "download.some.project: no project 'another'; there are demo"),
    ],
)
def test_says_what_is_not_there(tmp_path: Path, other: SmallProject, asked: dict[str, Any], message: str) -> None:
    project = SmallProject(tmp_path)
    result = download(project, other.copick, **asked)
    assert message.format(source=other.copick) in error_of(result)
    assert not (project.folder / "results" / "download" / "some" / "runs.json").exists()


def test_a_croissant_manifest_is_a_project(tmp_path: Path, other: SmallProject) -> None:
    project = SmallProject(tmp_path)
    project.copick = manifest_of(other, overlay_root=f"local://{project.overlay}")
    project.configure(targets={"picks": [str(RIBOSOMES)]})
    succeeded(project.make_targets())
    assert project.target("TS-1")["classes"][0]["picks"]["used"] == len(PLACES)
    assert project.target_folder("TS-1").is_dir()
    # Its own data is only read.
    assert not list(other.overlay.rglob("*targets*"))

    # New picks in its folders are noticed.
    project.project().write_picks(
        "TS-2", Source("ribosome", "me", "0"), project.project().read_picks("TS-1", RIBOSOMES)
    )
    assert Source("ribosome", "me", "0") in {source for record in project.refresh() for source in record.picks}


def test_a_croissant_manifest_without_an_overlay_is_refused(tmp_path: Path, other: SmallProject) -> None:
    project = SmallProject(tmp_path)
    project.copick = manifest_of(other)
    project.configure()
    assert f"{project.copick}: overlay_root is missing; give a folder" in error_of(project.list_runs())


def test_without_a_network_the_portal_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing listens there, on this machine alone.
    monkeypatch.setattr("cryoet_data_portal._client.DEFAULT_URL", "http://127.0.0.1:9/graphql")
    monkeypatch.setattr("time.sleep", lambda _: None)
    project = SmallProject(tmp_path)
    project.write_copick_config(config_type="cryoet_data_portal", dataset_ids=[10440])
    project.configure()
    result = project.list_runs()
    assert f"{project.copick}: the CryoET data portal cannot be reached or read; is there a network?" in error_of(
        result
    )
    assert len(result.stderr.splitlines()) == 1


def test_a_download_that_asks_for_nothing_is_refused(tmp_path: Path, other: SmallProject) -> None:
    with pytest.raises(TomoscoutError, match=r"download.some: .*asks for nothing: give tomograms, picks or seg"):
        SmallProject(tmp_path).configure(download={"some": {"source": str(other.copick)}})
