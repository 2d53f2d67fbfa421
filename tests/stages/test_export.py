"""The export stage: which picks are written, where, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starfile

from support.formats import frame, some_picks
from support.project import SHAPE, SmallProject, error_of, succeeded
from tomoscout import api
from tomoscout.data.formats import FORMATS
from tomoscout.data.formats.base import Grid
from tomoscout.data.picks import Picks
from tomoscout.machine.files import digest_file, read_json
from tomoscout.options.names import Source

RUNS = ("TS_01", "TS_2", "007")
GRID = Grid(SHAPE, 10.0)


@pytest.fixture
def project(small: SmallProject) -> SmallProject:
    """Three runs with ribosomes by Alice, two with ferritin; one run in which she has found none."""
    for number, run in enumerate(RUNS):
        small.add_run(run)
        small.project().write_picks(run, Source("ribosome", "alice", "1"), some_picks(6, GRID, number))
    small.add_run("empty")
    small.project().write_picks("empty", Source("ribosome", "alice", "1"), Picks.at(np.zeros((0, 3))))
    for run in RUNS[:2]:
        small.project().write_picks(run, Source("ferritin", "alice", "1"), some_picks(4, GRID, 9))
    small.project().write_picks("TS_01", Source("ribosome", "bob", "1"), some_picks(2, GRID, 8))
    return small


def configure(small: SmallProject, **options: Any) -> None:
    small.configure(targets={}, export={"picks": "alice/1"} | options)
    succeeded(small.list_runs())


def export(small: SmallProject, form: str):
    output = small.folder / f"results/export/{form}/export.json"
    return small.command("export", "--format", form, "--output", output)


def exported(small: SmallProject, form: str, **options: Any) -> dict[str, Any]:
    configure(small, **options)
    succeeded(export(small, form))
    return read_json(small.folder / f"results/export/{form}/export.json")


def files(small: SmallProject, form: str) -> list[str]:
    folder = small.folder / f"results/export/{form}"
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return sorted(name for name in names if name not in ("export.json", ".written.json"))


ONE_FOR_ALL = {
    **{form: ["ferritin.star", "ribosome.star"] for form in ("relion5", "relion3", "warp")},
    "dynamo": ["ferritin.doc", "ferritin.tbl", "ribosome.doc", "ribosome.tbl"],
    "em": ["ferritin.doc", "ferritin.em", "ribosome.doc", "ribosome.em"],
    "csv": ["picks.csv"],
    "czii": ["picks.csv"],
    "imod": ["007.mod", "TS_01.mod", "TS_2.mod"],
    "eman2": ["007_info.json", "TS_01_info.json", "TS_2_info.json"],
    "ndjson": [
        f"{name}.ndjson" for name in ("ferritin/TS_01", "ferritin/TS_2", *(f"ribosome/{run}" for run in sorted(RUNS)))
    ],
}


@pytest.mark.parametrize("form", ONE_FOR_ALL)
def test_each_format(project: SmallProject, form: str) -> None:
    facts = exported(project, form)
    assert files(project, form) == ONE_FOR_ALL[form] == list(facts["files"])
    kind, folder = FORMATS[form], project.folder / f"results/export/{form}"
    for name, value in facts["files"].items():
        assert digest_file(folder / name) == value
    assert facts["format"] == form and facts["coordinates"] == kind.coordinates
    assert facts["unit"] == ("pixels" if kind.in_pixels else "Å")
    assert facts["first_voxel"] == (1 if form in ("dynamo", "em") else 0)
    assert facts["picks"] == "alice/1" and facts["tomogram"] == "wbp@10.0"
    counts = {run: {name: n["written"] for name, n in entry["picks"].items()} for run, entry in facts["runs"].items()}
    both = {"ribosome": 6, "ferritin": 4}
    assert counts == {"demo/TS_01": both, "demo/TS_2": both, "demo/007": {"ribosome": 6}, "demo/empty": {"ribosome": 0}}
    assert all(("pixel_size" in entry) == kind.in_pixels for entry in facts["runs"].values())
    assert all(entry.get("pixel_size", 10.0) == 10.0 for entry in facts["runs"].values())


def test_numbers_of_tomograms_are_the_same_in_all_tables(project: SmallProject) -> None:
    exported(project, "dynamo")
    folder = project.folder / "results/export/dynamo"
    ribosome, ferritin = ((folder / f"{name}.doc").read_text().splitlines() for name in ("ribosome", "ferritin"))
    assert {*ferritin} < {*ribosome}
    assert sorted(line.split()[1] for line in ribosome) == sorted(RUNS)


def test_a_file_for_each_run(project: SmallProject) -> None:
    facts = exported(project, "relion5", per_run=True)
    assert (
        files(project, "relion5")
        == list(facts["files"])
        == [
            "ferritin-import.star",
            "ferritin/TS_01.star",
            "ferritin/TS_2.star",
            "ribosome-import.star",
            "ribosome/007.star",
            "ribosome/TS_01.star",
            "ribosome/TS_2.star",
        ]
    )
    folder = project.folder / "results/export/relion5"
    listed = starfile.read(folder / "ribosome-import.star", parse_as_string=["rlnTomoName"])
    assert dict(listed.to_numpy()) == {run: str(folder / f"ribosome/{run}.star") for run in RUNS}
    [found] = FORMATS["relion5"].read(
        Path(listed["rlnTomoImportParticleFile"].iloc[0]), frame(dict.fromkeys(RUNS, GRID))
    )
    assert len(found.picks) == 6
    exported(project, "csv", per_run=True)
    assert files(project, "csv") == ["007.csv", "TS_01.csv", "TS_2.csv"]


def test_files_of_another_export_go_and_those_of_others_stay(project: SmallProject) -> None:
    exported(project, "dynamo", per_run=True)
    folder = project.folder / "results/export/dynamo"
    (folder / "ferritin" / "notes.txt").write_text("mine")
    exported(project, "dynamo", objects=["ribosome"])
    assert files(project, "dynamo") == ["ferritin/notes.txt", "ribosome.doc", "ribosome.tbl"]
    assert not (folder / "ribosome").exists()


def test_a_killed_export_leaves_nothing_to_the_next(project: SmallProject, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(project, per_run=True)
    with monkeypatch.context() as patch:
        patch.setattr("tomoscout.stages.export.write_import_list", _killed)
        assert isinstance(export(project, "relion5").exception, SystemExit)
    assert "ribosome/TS_01.star" in files(project, "relion5")
    assert not (project.folder / "results/export/relion5/export.json").exists()
    exported(project, "relion5", objects=["ferritin"])
    assert files(project, "relion5") == ["ferritin.star"]


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_files_that_others_have_changed_are_told_by_verify(project: SmallProject) -> None:
    exported(project, "dynamo")
    results = ("--results", project.folder / "results")
    assert succeeded(project.command("verify", *results)).output == "4 digests compared, 0 problems\n"
    folder = project.folder / "results/export/dynamo"
    (folder / "ribosome.tbl").write_text("1 2 3\n")
    (folder / "ferritin.doc").unlink()
    result = project.command("verify", *results)
    assert f"{folder}/export.json: file ferritin.doc is gone" in result.output
    assert f"{folder}/export.json: file ribosome.tbl has changed since it was written" in result.output


def test_only_above_a_threshold(project: SmallProject) -> None:
    scores = {run: project.project().read_picks(run, Source("ribosome", "alice", "1")).scores for run in RUNS}
    middle = float(np.median(np.concatenate(list(scores.values()))))
    for threshold in (middle, {"ribosome": middle}):
        facts = exported(project, "csv", threshold=threshold)
        for run in RUNS:
            kept = int((scores[run] >= middle).sum())
            assert facts["runs"][f"demo/{run}"]["picks"]["ribosome"] == {"written": kept, "below_threshold": 6 - kept}
    assert facts["runs"]["demo/TS_01"]["picks"]["ferritin"] == {"written": 4, "below_threshold": 0}
    sets = FORMATS["csv"].read(project.folder / "results/export/csv/picks.csv", frame())
    assert all((s.picks.scores >= middle - 1e-6).all() for s in sets if s.name == "ribosome")


def test_these_objects_and_runs_alone(project: SmallProject) -> None:
    facts = exported(project, "relion5", objects=["ferritin"], runs=["TS_01", "007"])
    assert {run: list(entry["picks"]) for run, entry in facts["runs"].items()} == {
        "demo/TS_01": ["ferritin"],
        "demo/007": [],
    }
    assert files(project, "relion5") == ["ferritin.star"]
    facts = exported(project, "relion5", picks=["ribosome:bob/1"])
    assert list(facts["runs"]) == ["demo/TS_01"]


def test_no_pick_at_all(project: SmallProject) -> None:
    facts = exported(project, "relion5", runs=["empty"])
    assert facts["files"] == {} and files(project, "relion5") == []


def write_sizes(small: SmallProject, runs: tuple[str, ...]) -> Path:
    """tomograms.star with unbinned sizes that no binning of 4 gives."""
    columns = ["TomoName", "TomoSizeX", "TomoSizeY", "TomoSizeZ", "TomoTiltSeriesPixelSize"]
    rows = [f"{run} 161 127 97 2.5" for run in runs]
    path = small.folder / "tomograms.star"
    path.write_text("\n".join(["data_global", "", "loop_", *(f"_rln{name}" for name in columns), *rows, ""]))
    return path


def test_tomograms_star(project: SmallProject) -> None:
    path = write_sizes(project, (*RUNS, "empty", "other"))
    configure(project, tomograms_star=str(path))
    result = succeeded(export(project, "relion5"))
    assert "warning" not in result.stderr
    facts = read_json(project.folder / "results/export/relion5/export.json")
    assert facts["runs"]["demo/TS_01"]["centre"] == [201.25, 158.75, 121.25]
    assert facts["tomograms_star"] == str(path)
    table = starfile.read(project.folder / "results/export/relion5/ribosome.star", parse_as_string=["rlnTomoName"])
    rows = table["particles"][table["particles"]["rlnTomoName"] == "007"]
    centred = rows[[f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]].to_numpy()
    expected = project.project().read_picks("007", Source("ribosome", "alice", "1")).positions
    np.testing.assert_allclose(centred + np.array([161, 127, 97]) / 2 * 2.5, expected, atol=1e-5)
    facts = exported(project, "relion4", tomograms_star=str(path))
    assert facts["runs"]["demo/TS_01"]["pixel_size"] == 2.5
    facts = exported(project, "dynamo", tomograms_star=str(path), pixel_size=5.0, origin=0)
    assert facts["runs"]["demo/TS_01"]["pixel_size"] == 5.0 and facts["first_voxel"] == 0


def test_without_tomograms_star_it_is_said_which_centre_is_taken(project: SmallProject) -> None:
    configure(project)
    result = succeeded(export(project, "relion5"))
    assert "half of the size of wbp@10.0 is taken" in result.stderr
    facts = read_json(project.folder / "results/export/relion5/export.json")
    assert facts["runs"]["demo/TS_01"]["centre"] == [200.0, 160.0, 120.0]


def test_a_second_export_writes_the_same_bytes(project: SmallProject) -> None:
    def content() -> dict[str, bytes]:
        folder = project.folder / "results/export/relion5"
        return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    exported(project, "relion5")
    first = content()
    exported(project, "relion5")
    assert content() == first


@pytest.mark.parametrize(
    ("form", "options", "expected"),
    [
        ("relion5", {"picks": "nobody/1"}, "export.picks: no run has picks of nobody/1"),
        ("relion5", {"runs": ["TS_9"]}, "export.runs: no run 'TS_9' in the projects; there are 4 runs, such as 007, "),
        (
            "relion5",
            {"objects": ["ribosom"]},
            "export.objects: no project has an object 'ribosom'; objects: ferritin, ",
        ),
        ("relion5", {"threshold": {"ribosom": 1}}, "export.threshold: no project has an object 'ribosom'"),
        ("relion5", {"tomogram": "ctf@5.0"}, "export.tomogram: demo/007 has no tomogram ctf@5.0; found: wbp@10.0"),
        (
            "relion5",
            {"picks": ["ribosome:alice/1", "ribosome:bob/1"]},
            "export.picks: demo/TS_01 has ribosome:alice/1 and",
        ),
        ("relion5", {"tomograms_star": "none.star"}, "none.star: no such file"),
        ("relion4", {}, "relion4: the pixel size of the tilt series (rlnTomoTiltSeriesPixelSize) is not known; give "),
    ],
)
def test_what_cannot_be_exported(project: SmallProject, form: str, options: dict, expected: str) -> None:
    configure(project, **options)
    assert error_of(export(project, form)).startswith(expected)
    assert not (project.folder / f"results/export/{form}/export.json").exists()


def test_names_of_tomograms_star_that_are_not_those_of_the_runs(project: SmallProject) -> None:
    configure(project, tomograms_star=str(write_sizes(project, ("Position_1", "Position_2"))))
    message = error_of(export(project, "relion5"))
    assert "tomograms.star has no 007, TS_01, TS_2, empty; it has Position_1, Position_2; its tomograms must" in message


def test_broken_picks_are_named(project: SmallProject) -> None:
    path = project.overlay / "ExperimentRuns/TS_2/Picks/alice_1_ribosome.json"
    path.write_text(path.read_text()[:50])
    configure(project)
    assert error_of(export(project, "relion5")).startswith("export.picks: ")


def test_a_mirror_image_has_no_angles(project: SmallProject) -> None:
    picks = some_picks(1, GRID)
    picks.transforms[0, 2, 2] = -1
    project.project().write_picks("007", Source("ribosome", "alice", "1"), picks)
    configure(project)
    assert "demo/007: picks ribosome:alice/1: a transform mirrors or stretches" in error_of(export(project, "relion5"))


def test_two_runs_of_one_name(project: SmallProject, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    other = SmallProject(tmp_path / "two", "other")
    other.add_run("TS_01")
    other.project().write_picks("TS_01", Source("ribosome", "alice", "1"), some_picks(2, GRID))
    project.configure(
        targets={},
        projects={"demo": str(project.copick), "other": str(other.copick)},
        export={"picks": "alice/1"},
    )
    succeeded(project.list_runs())
    assert "demo/TS_01 and other/TS_01 have one name" in error_of(export(project, "csv"))


def test_picks_of_localize_need_its_manifests(project: SmallProject) -> None:
    project.configure(targets={}, segment={"models": ["nothing"]})
    succeeded(project.list_runs())
    assert "neither is the folder of the localize stage (--localized)" in error_of(export(project, "relion5"))


def test_from_python_out_and_in_again(project: SmallProject) -> None:
    configure(project, formats=["csv", "ndjson"])
    out = api.export(project.settings, project.folder / "results")
    assert list(out) == ["csv", "ndjson"] and len(out["ndjson"]["files"]) == 5
    table = {"table": {"files": [str(project.folder / "results/export/csv/picks.csv")]}}
    project.configure(targets={}, import_picks=table)
    brought = api.import_picks(project.settings, project.folder / "results")
    assert brought == {"table": ["demo/007", "demo/TS_01", "demo/TS_2"]}
    for run in RUNS:
        one, other = (
            project.project().read_picks(run, Source("ribosome", *of)) for of in (("alice", "1"), ("imported", "table"))
        )
        np.testing.assert_allclose(one.positions, other.positions, rtol=1e-7)


def test_the_side_car_is_plain_json(project: SmallProject) -> None:
    exported(project, "eman2")
    facts = json.loads((project.folder / "results/export/eman2/export.json").read_text())
    assert facts["angles"] is None and facts["score"] == "boxes_3d, fifth value"
