"""The import of picks: names matched with runs and objects, sessions of their own, nothing of others written over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import copick
import numpy as np
import pytest

from support.formats import some_picks, turned_by
from support.project import SHAPE, SmallProject, error_of, succeeded
from tomoscout.data.formats import FORMATS
from tomoscout.data.formats.base import Grid, PickSet
from tomoscout.data.picks import Picks
from tomoscout.machine.files import read_json
from tomoscout.options.names import Source

RUNS = ("TS_01", "TS_2", "007")
GRID = Grid(SHAPE, 10.0)
RIBOSOMES = Source("ribosome", "imported", "mine")


@pytest.fixture
def project(small: SmallProject) -> SmallProject:
    """Three runs without picks."""
    for run in RUNS:
        small.add_run(run)
    return small


def within(count: int, seed: int = 0) -> Picks:
    """Picks in the tomogram."""
    picks = some_picks(count, GRID, seed)
    size = np.array(SHAPE[::-1]) * 10.0
    return Picks.at(
        np.clip(picks.positions, 0, size - 10), picks.scores, rotations=picks.rotations, instances=picks.instances
    )


def configure(small: SmallProject, **entry: Any) -> None:
    small.configure(targets={}, import_picks={"mine": entry})
    succeeded(small.list_runs())


def bring(small: SmallProject):
    output = small.folder / "results/import_picks/mine/runs.json"
    return small.command("import-picks", "--name", "mine", "--output", output)


def write(form: str, path: Path, runs: dict[str, Picks], name: str = "ribosome") -> Path:
    from support.formats import frame

    sets = [PickSet(run, name, picks) for run, picks in runs.items()]
    FORMATS[form].write(path, sets, frame(dict.fromkeys(runs, GRID)))
    return path


def csv(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["run_name,object,x,y,z,score", *rows, ""]))
    return path


def placed(small: SmallProject, run: str, source: Source = RIBOSOMES) -> list[list[float]]:
    return small.project().read_picks(run, source).positions.tolist()


@pytest.mark.parametrize(
    ("form", "given"),
    [
        ("relion5", {"object": "ribosome"}),
        ("relion3", {"object": "ribosome"}),
        ("warp", {"object": "ribosome"}),
        ("dynamo", {"object": "ribosome"}),
        ("em", {"object": "ribosome"}),
        ("csv", {}),
        ("czii", {}),
    ],
)
def test_one_file_for_all_runs(project: SmallProject, form: str, given: dict, tmp_path: Path) -> None:
    expected = {run: within(5, number) for number, run in enumerate(RUNS)}
    path = write(form, tmp_path / f"all{FORMATS[form].suffix}", expected)
    configure(project, files=[str(path)], **given)
    result = succeeded(bring(project))
    assert "outside" not in result.stderr
    for run, picks in expected.items():
        found = project.project().read_picks(run, RIBOSOMES)
        np.testing.assert_allclose(found.positions, picks.positions, atol=0.05)
        if FORMATS[form].angles:
            assert turned_by(found.rotations, picks.rotations).max() < 0.01
        [entry] = copick.from_file(str(project.copick)).get_run(run).get_picks("ribosome", "imported", "mine")
        assert len(entry.points) == 5
        facts = read_json(project.folder / f"results/import_picks/mine/demo/{run}.json")
        assert facts["picks"]["ribosome"]["count"] == 5 and facts["files"] == [str(path)]
    assert list(read_json(project.folder / "results/import_picks/mine/runs.json")["runs"]) == sorted(
        f"demo/{run}" for run in RUNS
    )
    succeeded(project.command("verify"))


@pytest.mark.parametrize("form", ["imod", "eman2", "ndjson"])
def test_a_file_for_each_run(project: SmallProject, form: str, tmp_path: Path) -> None:
    expected = {run: within(4, number) for number, run in enumerate(RUNS)}
    suffix = FORMATS[form].suffix
    for run, picks in expected.items():
        write(form, tmp_path / f"{run}{suffix}", {run: picks})
    given = {"object": "ribosome"} if form == "ndjson" else {}
    configure(project, files=[f"{tmp_path}/*{suffix}"], **given)
    succeeded(bring(project))
    for run, picks in expected.items():
        np.testing.assert_allclose(project.project().read_picks(run, RIBOSOMES).positions, picks.positions, atol=0.01)


def test_scores_and_instances_are_kept(project: SmallProject, tmp_path: Path) -> None:
    picks = within(5)
    configure(project, files=[str(write("csv", tmp_path / "all.csv", {"TS_01": picks}))])
    succeeded(bring(project))
    found = project.project().read_picks("TS_01", RIBOSOMES)
    np.testing.assert_allclose(found.scores, picks.scores, atol=1e-6)
    np.testing.assert_array_equal(found.instances, picks.instances)


@pytest.mark.parametrize(
    "name", ["TS_2", "TS_2.tomostar", "recs/TS_2.mrc", "/data/TS_2_10.00Apx.mrc", "demo/TS_2", "TS_2.rec", "TS_2.MRC"]
)
def test_names_that_programs_make_of_those_of_runs(project: SmallProject, name: str, tmp_path: Path) -> None:
    configure(project, files=[str(csv(tmp_path / "p.csv", f"{name},ribosome,10,20,30,1"))])
    succeeded(bring(project))
    assert placed(project, "TS_2") == [[10, 20, 30]]


def test_a_table_of_names(project: SmallProject, tmp_path: Path) -> None:
    path = csv(
        tmp_path / "p.csv", "Position_7,ribosome,10,20,30,1", "Position_8,ribosome,40,50,60,1", "007,ribosome,1,2,3,1"
    )
    (tmp_path / "names.tsv").write_text("# mine\nPosition_7\tTS_01\nPosition_8\tdemo/TS_2\n")
    configure(project, files=[str(path)], runs=str(tmp_path / "names.tsv"))
    succeeded(bring(project))
    assert placed(project, "TS_01") == [[10, 20, 30]]
    assert placed(project, "TS_2") == [[40, 50, 60]]
    assert placed(project, "007") == [[1, 2, 3]]


def test_all_of_one_run(project: SmallProject, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("x,y,z\n10,20,30\n")
    configure(project, files=[str(tmp_path / "points.csv")], run="TS_2", object="ribosome", user="bob", session="7")
    succeeded(bring(project))
    assert placed(project, "TS_2", Source("ribosome", "bob", "7")) == [[10, 20, 30]]


def test_names_of_objects(project: SmallProject, tmp_path: Path) -> None:
    info = {
        "apix_unbin": 10.0,
        "boxes_3d": [[0, 0, 0, "", 1, 0], [1, 0, 0, "", 1, 1]],
        "class_list": {"0": {"name": "80S", "boxsize": 32}, "1": {"name": "particles_01", "boxsize": 32}},
    }
    (tmp_path / "TS_01_info.json").write_text(json.dumps(info))
    entry = {"files": [str(tmp_path / "TS_01_info.json")]}
    configure(project, **entry)
    assert "has no pickable object '80S'; it has ribosome, ferritin, proteasome, membrane; give" in error_of(
        bring(project)
    )
    configure(project, **entry, object={"80S": "ribosome"})
    assert "picks of 'particles_01', of which `object` says nothing; it has 80S" in error_of(bring(project))
    configure(project, **entry, object={"80S": "ribosome", "particles_01": "ferritin"})
    succeeded(bring(project))
    assert placed(project, "TS_01") == [[200, 160, 120]]
    assert placed(project, "TS_01", Source("ferritin", "imported", "mine")) == [[210, 160, 120]]


def test_a_file_that_names_no_object(project: SmallProject, tmp_path: Path) -> None:
    configure(project, files=[str(write("relion5", tmp_path / "p.star", {"TS_01": within(1)}))])
    assert "p.star: says not of which object its picks are; give `object`" in error_of(bring(project))


def test_picks_of_several_files_are_joined(project: SmallProject, tmp_path: Path) -> None:
    one, two = (csv(tmp_path / f"{n}.csv", f"TS_01,ribosome,{n}0,20,30,1") for n in (1, 2))
    configure(project, files=[str(one), str(two)])
    succeeded(bring(project))
    assert placed(project, "TS_01") == [[10, 20, 30], [20, 20, 30]]


def test_names_of_no_run_end_in_one_line(project: SmallProject, tmp_path: Path) -> None:
    configure(project, files=[str(csv(tmp_path / "p.csv", *(f"Position_{n},ribosome,1,2,3,1" for n in range(3))))])
    assert error_of(bring(project)) == (
        "import_picks.mine: no run for 3 of 3 names in the files: Position_0, Position_1, Position_2; the projects "
        "have 3 runs, such as 007, TS_01, TS_2; give a table name → run as `runs`"
    )
    assert not (project.folder / "results/import_picks").exists()


def test_names_that_tomograms_star_lacks(project: SmallProject, tmp_path: Path) -> None:
    path = write("relion5", tmp_path / "p.star", {"TS_01": within(1)})
    star = tmp_path / "tomograms.star"
    columns = "".join(f"_rlnTomo{name}\n" for name in ("Name", "SizeX", "SizeY", "SizeZ", "TiltSeriesPixelSize"))
    star.write_text(f"data_global\n\nloop_\n{columns}Position_1 160 128 96 2.5\n\n")
    configure(project, files=[str(path)], object="ribosome", tomograms_star=str(star))
    message = error_of(bring(project))
    assert message == "import_picks.mine.tomograms_star: no tomogram TS_01, which the files name; it has Position_1"
    star.write_text(star.read_text().replace("Position_1 160 128 96", "TS_01 161 127 97"))
    result = succeeded(bring(project))
    assert "half of the size" not in result.stderr
    expected = within(1).positions + np.array([1.25, -1.25, 1.25])
    np.testing.assert_allclose(placed(project, "TS_01"), expected, atol=1e-4)


def test_without_tomograms_star_it_is_said_which_centre_is_taken(project: SmallProject, tmp_path: Path) -> None:
    configure(project, files=[str(write("relion5", tmp_path / "p.star", {"TS_01": within(1)}))], object="ribosome")
    assert "half of the size of the tomogram at 10 Å is taken" in succeeded(bring(project)).stderr


def test_picks_outside_are_told(project: SmallProject, tmp_path: Path) -> None:
    path = csv(tmp_path / "p.csv", "TS_01,ribosome,4000,20,30,1", "TS_01,ribosome,40,20,30,1")
    configure(project, files=[str(path)])
    assert (
        "1 of 2 picks lie outside of demo/TS_01 wbp@10.0, such as at 4000, 20, 30 Å (x, y, z) of 400×320×240: are "
        "pixel size (of which binning?) and origin right?"
    ) in bring(project).stderr
    configure(project, files=[str(csv(path))])
    assert "p.csv: holds no pick" in succeeded(bring(project)).stderr


def test_pixel_size_and_origin_go_before_the_file(project: SmallProject, tmp_path: Path) -> None:
    path = write("dynamo", tmp_path / "p.tbl", {"TS_01": Picks.at(np.array([[50.0, 60.0, 70.0]]))})
    configure(project, files=[str(path)], object="ribosome", pixel_size=5.0, origin=0)
    result = succeeded(bring(project))
    assert placed(project, "TS_01") == [[30.0, 35.0, 40.0]]
    assert "counted from 1" not in result.stderr
    configure(project, files=[str(path)], object="ribosome")
    assert "voxels are counted from 1, as in MATLAB; import_picks.mine.origin: 0" in succeeded(bring(project)).stderr


def test_a_table_of_numbers(project: SmallProject, tmp_path: Path) -> None:
    path = write("em", tmp_path / "p.em", {"TS_01": within(1), "TS_2": within(2)})
    path.with_suffix(".doc").unlink()
    configure(project, files=[str(path)], object="ribosome")
    assert "particles of tomograms 1, 2 and no p.doc beside it" in error_of(bring(project))
    (tmp_path / "numbers.csv").write_text("1,TS_2\n2,rec/007.mrc\n")
    configure(project, files=[str(path)], object="ribosome", indices=str(tmp_path / "numbers.csv"))
    succeeded(bring(project))
    assert [len(placed(project, run)) for run in RUNS] == [0, 1, 2]


def test_a_second_import_does_nothing(project: SmallProject, tmp_path: Path) -> None:
    path = csv(tmp_path / "p.csv", "TS_01,ribosome,10,20,30,1")
    configure(project, files=[str(path)])
    succeeded(bring(project))
    assert "demo/TS_01: up to date" in succeeded(bring(project)).stderr
    csv(path, "TS_01,ribosome,11,20,30,1")
    succeeded(bring(project))
    assert placed(project, "TS_01") == [[11, 20, 30]]


def test_what_the_files_no_longer_have_goes(project: SmallProject, tmp_path: Path) -> None:
    path = csv(tmp_path / "p.csv", "TS_01,ribosome,10,20,30,1", "TS_2,ribosome,10,20,30,1", "TS_2,ferritin,1,2,3,1")
    configure(project, files=[str(path)])
    succeeded(bring(project))
    csv(path, "TS_2,ferritin,1,2,3,1")
    succeeded(bring(project))
    assert [placed(project, run) for run in RUNS] == [[], [], []]
    assert placed(project, "TS_2", Source("ferritin", "imported", "mine")) == [[1, 2, 3]]
    succeeded(project.command("verify"))


def test_picks_of_others_are_never_written_over(project: SmallProject, tmp_path: Path) -> None:
    file = project.add_picks("TS_2", "ribosome:imported/mine", [(1.0, 2.0, 3.0)])
    before = file.read_bytes()
    path = csv(tmp_path / "p.csv", "TS_01,ribosome,10,20,30,1", "TS_2,ribosome,10,20,30,1")
    for overwrite in (False, True):
        project.configure(targets={}, import_picks={"mine": {"files": [str(path)]}}, overwrite=overwrite)
        succeeded(project.list_runs())
        message = error_of(bring(project))
        assert message.startswith(
            "demo/TS_2: picks ribosome:imported/mine: there already, and not written by tomoscout"
        )
        assert "choose another import_picks.mine.session" in message
        assert file.read_bytes() == before
    # The other run was brought in.
    assert placed(project, "TS_01") == [[10, 20, 30]]


def test_imported_picks_that_a_human_has_corrected_are_not_written_over(project: SmallProject, tmp_path: Path) -> None:
    path = csv(tmp_path / "p.csv", "TS_01,ribosome,10,20,30,1")
    configure(project, files=[str(path)])
    succeeded(bring(project))
    [entry] = copick.from_file(str(project.copick)).get_run("TS_01").get_picks("ribosome", "imported", "mine")
    entry.from_numpy(np.array([[7.0, 8.0, 9.0]]))
    csv(path, "TS_01,ribosome,11,20,30,1")
    assert "demo/TS_01: picks ribosome:imported/mine: there already" in error_of(bring(project))
    assert placed(project, "TS_01") == [[7, 8, 9]]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"files": ["nothing.star"]}, "import_picks.mine.files: nothing.star: no such file"),
        ({"files": ["none/*.star"]}, "import_picks.mine.files: none/*.star: no such file"),
        ({"files": ["{folder}/p.csv"], "run": "TS_9"}, "import_picks.mine.run: no run 'TS_9' in the projects; "),
        (
            {"files": ["{folder}/p.csv"], "tomogram": "ctf@5.0", "format": "ndjson"},
            "{folder}/p.csv: line 1: not a point (",
        ),
        ({"files": ["{folder}/p.csv"], "runs": "{folder}/names.csv"}, "import_picks.mine.runs: no run "),
        ({"files": ["{folder}/p.box"]}, "{folder}/p.box: its ending tells no format of picks"),
        (
            {"files": ["{folder}/TS_01.ndjson"], "tomogram": "ctf@5.0"},
            "import_picks.mine.tomogram: demo/TS_01 has no tomogram",
        ),
    ],
)
def test_what_cannot_be_imported(project: SmallProject, entry: dict, expected: str, tmp_path: Path) -> None:
    csv(tmp_path / "p.csv", "run_name,ribosome,10,20,30,1")
    (tmp_path / "names.csv").write_text("run_name,TS_9\n")
    (tmp_path / "p.box").touch()
    (tmp_path / "TS_01.ndjson").touch()
    values = json.loads(json.dumps(entry).replace("{folder}", str(tmp_path)))
    configure(project, **values)
    assert error_of(bring(project)).startswith(expected.replace("{folder}", str(tmp_path)))


def test_two_projects_with_runs_of_one_name(project: SmallProject, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    other = SmallProject(tmp_path / "two", "other")
    other.add_run("TS_01")
    path = csv(tmp_path / "p.csv", "TS_01,ribosome,10,20,30,1")
    projects = {"demo": str(project.copick), "other": str(other.copick)}
    project.configure(targets={}, projects=projects, import_picks={"mine": {"files": [str(path)]}})
    succeeded(project.list_runs())
    assert "'TS_01' could be demo/TS_01 or other/TS_01; give a table" in error_of(bring(project))
    csv(path, "other/TS_01,ribosome,10,20,30,1")
    succeeded(bring(project))
    assert placed(other, "TS_01") == [[10, 20, 30]]
