from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import copick
import numpy as np
import pytest
import s3fs
from copick.ops.croissant import export_croissant

from support import portal
from support.project import SHAPE, SmallProject, error_of, succeeded, tomoscout
from tomoscout.data.project import Project
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


IDENTIFIER = "GO:0022626"


@pytest.fixture
def of_the_portal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The copick config of a dataset with one run: a tomogram, oriented ribosomes and a membrane."""
    files = tmp_path / "files"
    whole = SmallProject(tmp_path, "files")
    tomogram = whole.write_tomogram("run", np.random.default_rng(1).normal(size=SHAPE).astype(np.float32))
    mask = whole.add_segmentation("run", "membrane:expert/0", MASK)
    files.mkdir()
    tomogram.rename(files / "tomogram.zarr")
    mask.rename(files / "membrane.zarr")
    turn = [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    places = [{"x": x / 10, "y": y / 10, "z": z / 10} for x, y, z in PLACES]
    lines = [json.dumps({"type": "orientedPoint", "location": p, "xyz_rotation_matrix": turn}) for p in places]
    (files / "ribosome.ndjson").write_text("\n".join(lines))

    objects = [
        {"name": "ribosome", "is_particle": True, "label": 1, "radius": 60.0, "identifier": IDENTIFIER},
        {"name": "membrane", "is_particle": False, "label": 2, "identifier": "GO:0016020"},
    ]
    config: dict[str, Any] = {
        "config_type": "cryoet_data_portal",
        "name": "portal",
        "version": "1.31.0",
        "dataset_ids": [10440],
        "overlay_root": f"local://{tmp_path}/portal-overlay",
        "overlay_fs_args": {"auto_mkdir": True},
        "pickable_objects": objects,
        "portal_cache_dir": str(tmp_path / "answers"),
    }
    path = tmp_path / "portal.json"
    path.write_text(json.dumps(config))
    kinds = {"reconstruction_method": "WBP", "processing": "raw", "processing_software": None, "ctf_corrected": False}
    annotations = [
        {"id": 1, "run_id": 7, "object_id": IDENTIFIER, "object_name": "ribosome"},
        {"id": 2, "run_id": 7, "object_id": "GO:0016020", "object_name": "membrane"},
    ]
    shapes = [
        {"id": 3, "annotation_id": 1, "shape_type": "OrientedPoint"},
        {"id": 4, "annotation_id": 2, "shape_type": "SegmentationMask"},
    ]
    spacing = {"tomogram_voxel_spacing_id": 8}
    annotated = [
        {"id": 5, "annotation_shape_id": 3, "format": "ndjson", "s3_path": "s3://portal/ribosome.ndjson", **spacing},
        {"id": 6, "annotation_shape_id": 4, "format": "zarr", "s3_path": "s3://portal/membrane.zarr", **spacing},
    ]
    tomograms = [{"id": 9, **spacing, **kinds, "s3_omezarr_dir": "s3://portal/tomogram.zarr"}]
    answers = {
        "runs": [{"id": 7, "name": "TS_7", "dataset_id": 10440}],
        "voxel_spacings": [{"id": 8, "run_id": 7, "voxel_spacing": 10.0}],
        "annotations": annotations,
        "annotation_shapes": shapes,
        "annotation_files": annotated,
        "tomograms": tomograms,
    }
    portal.keep_answers(config, answers, tmp_path / "answers")
    with portal.storage(files) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        # The client of an earlier test knows another address.
        s3fs.S3FileSystem.clear_instance_cache()
        yield path


def test_a_dataset_of_the_portal_is_a_project_and_is_brought(tmp_path: Path, of_the_portal: Path) -> None:
    there = Project("there", of_the_portal)
    assert list(there.tomograms("7")) == ["wbp-raw@10.0"]
    assert list(map(str, there.pick_sources("7"))) == ["ribosome:data-portal/5"]

    project = SmallProject(tmp_path)
    asked = {"tomograms": ["wbp-raw@10.0"], "picks": ["ribosome:*"], "segmentations": ["membrane:*"], "runs": [7]}
    succeeded(download(project, of_the_portal, **asked))
    ours = project.project()
    assert np.array_equal(ours.read_tomogram("7", "wbp-raw@10.0"), there.read_tomogram("7", "wbp-raw@10.0"))
    picks = ours.read_picks("7", Source("ribosome", "data-portal", "5"))
    assert np.allclose(picks.positions, PLACES)
    assert np.allclose(picks.rotations @ [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    [membrane] = ours.segmentations("7")
    assert np.array_equal(ours.read_segmentation("7", membrane), MASK)


def test_a_dataset_of_the_portal_without_its_storage_is_one_line(
    tmp_path: Path, of_the_portal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    # Its clients try again for half a minute.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    project = SmallProject(tmp_path)
    for asked in ({"tomograms": ["*"]}, {"picks": ["*"]}, {"segmentations": ["*"]}):
        said = error_of(download(project, of_the_portal, **asked))
        assert said.startswith("remote storage cannot be reached or read; is there a network? (")
        assert "http://127.0.0.1:9/portal" in said
