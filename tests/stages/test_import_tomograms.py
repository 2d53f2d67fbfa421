"""Tomograms of other programs brought into a project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tifffile

from support.training import Workspace, trained
from tomoscout.data.project import Project
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.stages.import_tomograms import run_import_tomograms


@pytest.fixture
def workspace(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Workspace:
    return trained(tmp_path_factory.getbasetemp()).copy(tmp_path / "workspace")


def made_up(shape: tuple[int, int, int] = (12, 15, 18), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write_mrc(path: Path, values: np.ndarray, voxel_size: float = 7.84) -> Path:
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(values)
        file.set_volume()
        file.voxel_size = voxel_size
    return path


def bring(workspace: Workspace, **entry: Any) -> Project:
    config = workspace.configure(import_tomograms={"mine": entry})
    run_import_tomograms(config, "mine", workspace.folder / "results/import_tomograms/mine/runs.json")
    return workspace.project()


def test_they_have_the_spacing_and_the_values_of_the_files(workspace: Workspace, tmp_path: Path) -> None:
    one = write_mrc(tmp_path / "TS_01_7.84Apx.mrc", made_up())
    two = tmp_path / "TS 02.tif"
    tifffile.imwrite(two, (made_up(seed=1) * 100).astype(np.int16))
    project = bring(workspace, files=[str(one)])
    np.testing.assert_array_equal(project.read_tomogram("TS_01", "wbp@7.84"), made_up())
    project = bring(workspace, files=[str(tmp_path / "TS*.tif")], voxel_spacing=5, algorithm="denoised")
    found = project.read_tomogram("TS-02", "denoised@5.0")
    np.testing.assert_array_equal(found, (made_up(seed=1) * 100).astype(np.int16))
    assert {"phantom-000", "TS_01", "TS-02"} <= set(workspace.project().run_names())


def test_a_table_names_the_runs(workspace: Workspace, tmp_path: Path) -> None:
    one = write_mrc(tmp_path / "a.rec", made_up())
    table = tmp_path / "runs.tsv"
    table.write_text("name\trun\na\tlamella-7\n")
    project = bring(workspace, files=[str(one)], runs=str(table))
    np.testing.assert_array_equal(project.read_tomogram("lamella-7", "wbp@7.84"), made_up())
    table.write_text("name\trun\nb\tlamella-7\n")
    with pytest.raises(TomoscoutError, match=r"runs\.tsv: no run for .*a\.rec"):
        bring(workspace, files=[str(one)], runs=str(table))


def test_a_coarser_one_has_the_same_places_and_intensities(workspace: Workspace, tmp_path: Path) -> None:
    """A slow wave stays where it is in Å, whatever the spacing; one that the coarse grid cannot hold is gone."""
    places = [np.arange(n) * 5.0 for n in (40, 44, 48)]
    z, y, x = np.meshgrid(*places, indexing="ij")
    values = (7 + np.cos(2 * np.pi * (x + 0.5 * y + 0.3 * z) / 150) + np.cos(np.pi * x / 5)).astype(np.float32)
    project = bring(workspace, files=[str(write_mrc(tmp_path / "a.mrc", values, 5.0))], also_at=[12.5])
    coarse = project.read_tomogram("a", "wbp@12.5")
    assert coarse.shape == (16, 18, 19)
    places = [np.arange(n) * 12.5 for n in coarse.shape]
    z, y, x = np.meshgrid(*places, indexing="ij")
    expected = 7 + np.cos(2 * np.pi * (x + 0.5 * y + 0.3 * z) / 150)
    assert abs(coarse - expected)[3:-3, 3:-3, 3:-3].max() < 0.05


def test_what_is_there_is_left_alone_and_another_file_is_brought_again(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_mrc(tmp_path / "a.mrc", made_up())
    project = bring(workspace, files=[str(path)])
    capsys.readouterr()
    bring(workspace, files=[str(path)])
    assert "phantom/a: up to date" in capsys.readouterr().err
    write_mrc(path, made_up(seed=5))
    bring(workspace, files=[str(path)])
    np.testing.assert_array_equal(project.read_tomogram("a", "wbp@7.84"), made_up(seed=5))


def test_a_killed_job_goes_on(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mrc(tmp_path / "a.mrc", made_up())
    with monkeypatch.context() as patch:
        patch.setattr("tomoscout.stages.import_tomograms.check_values", _killed)
        with pytest.raises(KeyboardInterrupt):
            bring(workspace, files=[str(path)])
    assert not workspace.project().tomograms("a")
    project = bring(workspace, files=[str(path)])
    # Its manifest lost as if it were killed between the tomogram and that.
    manifest = workspace.folder / "results/import_tomograms/mine/phantom/a.json"
    facts = read_json(manifest)
    manifest.write_text(str({"claims": facts["claims"], "inputs": None}).replace("'", '"').replace("None", "null"))
    bring(workspace, files=[str(path)])
    assert read_json(manifest)["tomograms"] == facts["tomograms"]
    np.testing.assert_array_equal(project.read_tomogram("a", "wbp@7.84"), made_up())


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_tomograms_of_others_are_not_written_over(workspace: Workspace, tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "phantom-001.mrc", made_up(), 20.0)
    before = workspace.project().read_tomogram("phantom-001", "wbp@20.0")
    with pytest.raises(
        TomoscoutError, match=r"phantom/phantom-001: tomogram wbp@20\.0: there already, and not of this"
    ):
        bring(workspace, files=[str(path)])
    np.testing.assert_array_equal(workspace.project().read_tomogram("phantom-001", "wbp@20.0"), before)


@pytest.mark.filterwarnings("ignore:Data array contains NaN values")
def test_one_that_fails_stops_no_other(workspace: Workspace, tmp_path: Path) -> None:
    good = write_mrc(tmp_path / "good.mrc", made_up())
    broken = made_up()
    broken[3, 3, 3] = np.nan
    for name, values, size in (("nan", broken, 7.84), ("flat", np.ones((4, 5, 6), "f4"), 7.84), ("zero", made_up(), 0)):
        write_mrc(tmp_path / f"{name}.mrc", values, size)
    (tmp_path / "cut.mrc").write_bytes(good.read_bytes()[:2000])
    with pytest.raises(TomoscoutError) as refused:
        bring(workspace, files=[str(tmp_path / "*.mrc")])
    message = str(refused.value)
    assert message.startswith("4 of 5 tomograms failed; the others are done: ")
    for expected in (
        "nan.mrc: it holds NaN or infinite values",
        "flat.mrc: it is constant (every voxel is 1)",
        "zero.mrc: says no voxel size; give import_tomograms.mine.voxel_spacing",
        "cut.mrc: not a tomogram",
    ):
        assert expected in message
    project = workspace.project()
    assert "wbp@7.84" in project.tomograms("good")
    assert not any(project.tomograms(run) for run in ("nan", "flat") if run in project.run_names())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"also_at": [7.84]},
            r"import_tomograms\.mine\.also_at: 7\.84 Å is not coarser than .*a\.mrc, which has 7\.84 Å",
        ),
        ({"project": "other"}, r"import_tomograms\.mine\.project: no project 'other'; there are phantom"),
        ({"files": ["nowhere/*.mrc"]}, r"import_tomograms\.mine\.files: nowhere/\*\.mrc: no such file"),
    ],
)
def test_options_that_do_not_go_with_the_files(
    workspace: Workspace, entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_mrc(tmp_path / "a.mrc", made_up())
    with pytest.raises(TomoscoutError, match=message):
        bring(workspace, **{"files": [str(path)], **entry})


def test_two_files_for_one_run(workspace: Workspace, tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", made_up())
    write_mrc(tmp_path / "a.rec", made_up())
    with pytest.raises(TomoscoutError, match=r"a\.mrc and .*a\.rec would both be run a; give a table as `runs`"):
        bring(workspace, files=[str(tmp_path / "a.*")])
