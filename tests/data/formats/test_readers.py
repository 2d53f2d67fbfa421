"""Files as other programs read them, and files as other programs write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import copick
import dynamotable
import emfile
import imodmodel
import numpy as np
import pandas as pd
import pytest
import starfile
from copick.ops.export import export_picks
from copick.util.formats import (
    read_copick_csv,
    read_relion5_tomogram_centers,
    read_star_particles_with_optics,
    relion_coordinates_to_angstrom,
)
from scipy.spatial.transform import Rotation

from support.formats import GRIDS, WITHOUT, frame, some_picks, some_sets, turned_by
from support.project import SmallProject
from tomoscout.data.formats import FORMATS, format_of
from tomoscout.data.formats.base import Grid, PickSet
from tomoscout.data.picks import Picks
from tomoscout.options.names import Source

RIBOSOMES = [entry for entry in some_sets() if entry.name == "ribosome"]
NAMES = ["rlnTomoName", "rlnMicrographName"]
ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]


def euler_matrices(angles: np.ndarray) -> np.ndarray:
    """RELION's matrices of rot, tilt, psi: a turn about z, then y, then z, of the coordinate system."""
    found = []
    for rot, tilt, psi in np.radians(angles):
        z1 = np.array([[np.cos(rot), np.sin(rot), 0], [-np.sin(rot), np.cos(rot), 0], [0, 0, 1]])
        y = np.array([[np.cos(tilt), 0, -np.sin(tilt)], [0, 1, 0], [np.sin(tilt), 0, np.cos(tilt)]])
        z2 = np.array([[np.cos(psi), np.sin(psi), 0], [-np.sin(psi), np.cos(psi), 0], [0, 0, 1]])
        found.append(z2 @ y @ z1)
    return np.array(found)


def written(name: str, tmp_path: Path, sets: list[PickSet] = RIBOSOMES, **facts: object) -> Path:
    path = tmp_path / f"ribosome{FORMATS[name].suffix}"
    FORMATS[name].write(path, sets, frame(**facts))
    return path


# As others read


def test_relion_5(tmp_path: Path) -> None:
    blocks = starfile.read(written("relion5", tmp_path), parse_as_string=NAMES)
    particles, optics = blocks["particles"], blocks["optics"].set_index("rlnOpticsGroup")
    assert list(blocks) == ["optics", "particles"]
    for run, _, picks, _ in RIBOSOMES:
        rows = particles[particles["rlnTomoName"] == run]
        series = GRIDS[run].tilt_series
        assert series is not None
        pixel_size = optics.loc[rows["rlnOpticsGroup"].iloc[0], "rlnTomoTiltSeriesPixelSize"]
        # RELION: in pixels from the corner, the centre being half of the size, a fraction where that is odd.
        in_pixels = rows[[f"rlnCenteredCoordinate{a}Angst" for a in "XYZ"]] / pixel_size + np.array(series.size) / 2.0
        np.testing.assert_allclose(in_pixels * pixel_size, picks.positions, atol=1e-5)
        assert turned_by(euler_matrices(rows[ANGLES].to_numpy()), picks.rotations).max() < 1e-4
        np.testing.assert_allclose(rows["rlnAutopickFigureOfMerit"], picks.scores, atol=1e-6)
    assert (optics["rlnOpticsGroupName"] == "one").all()
    assert particles["rlnTomoParticleName"].is_unique


def test_relion_4(tmp_path: Path) -> None:
    blocks = starfile.read(written("relion4", tmp_path), parse_as_string=NAMES)
    particles, optics = blocks["particles"], blocks["optics"].set_index("rlnOpticsGroup")
    sizes = optics.loc[particles["rlnOpticsGroup"], "rlnTomoTiltSeriesPixelSize"].to_numpy()
    positions = particles[[f"rlnCoordinate{axis}" for axis in "XYZ"]].to_numpy() * sizes[:, None]
    np.testing.assert_allclose(positions, np.concatenate([s.picks.positions for s in RIBOSOMES]), atol=1e-5)
    assert set(particles["rlnTomoName"]) == set(GRIDS)


def test_relion_3(tmp_path: Path) -> None:
    blocks = starfile.read(written("relion3", tmp_path), parse_as_string=NAMES)
    particles, optics = blocks["particles"], blocks["optics"].set_index("rlnOpticsGroup")
    sizes = optics.loc[particles["rlnOpticsGroup"], "rlnImagePixelSize"].to_numpy()
    assert set(sizes) == {grid.voxel_spacing for grid in GRIDS.values()}
    positions = particles[[f"rlnCoordinate{axis}" for axis in "XYZ"]].to_numpy() * sizes[:, None]
    np.testing.assert_allclose(positions, np.concatenate([s.picks.positions for s in RIBOSOMES]), atol=1e-4)
    assert set(particles["rlnMicrographName"]) == set(GRIDS)


def test_warp(tmp_path: Path) -> None:
    table = starfile.read(written("warp", tmp_path, RIBOSOMES[:1]))
    assert set(table["rlnMicrographName"]) == {"TS_01.tomostar"}
    positions = table[[f"rlnCoordinate{axis}" for axis in "XYZ"]].to_numpy() * 10
    np.testing.assert_allclose(positions, RIBOSOMES[0].picks.positions, atol=1e-4)
    assert (tmp_path / "ribosome.star").read_text().startswith("data_\n\nloop_\n_rlnMicrographName #1\n")


@pytest.mark.parametrize("origin", [None, 0, 1])
def test_dynamo(origin: int | None, tmp_path: Path) -> None:
    path = written("dynamo", tmp_path, origin=origin)
    table = dynamotable.read(str(path), str(path.with_suffix(".doc")))
    assert len(path.read_text().splitlines()[0].split()) == 42
    for run, _, picks, _ in RIBOSOMES:
        rows = table[table["tomo_file"] == run]
        voxels = rows[["x", "y", "z"]].to_numpy() - (1 if origin is None else origin)
        np.testing.assert_allclose(voxels * rows[["apix"]].to_numpy(), picks.positions, atol=1e-3)
        turned = Rotation.from_euler("zxz", rows[["tdrot", "tilt", "narot"]], degrees=True).inv()
        assert turned_by(turned.as_matrix(), picks.rotations).max() < 1e-3
        np.testing.assert_allclose(rows["cc"], picks.scores, atol=1e-6)
    assert not table[["dx", "dy", "dz"]].to_numpy().any()


def test_em(tmp_path: Path) -> None:
    header, data = emfile.read(written("em", tmp_path))
    assert (header["xdim"], header["ydim"], header["zdim"]) == (20, sum(len(s.picks) for s in RIBOSOMES), 1)
    rows = data[0]
    assert rows[:, 3].tolist() == rows[:, 5].tolist() == list(range(1, len(rows) + 1))
    for number, (run, _, picks, _) in enumerate(RIBOSOMES, 1):
        own = rows[rows[:, 4] == number]
        np.testing.assert_allclose((own[:, 7:10] - 1) * GRIDS[run].voxel_spacing, picks.positions, atol=0.01)
        turned = Rotation.from_euler("zxz", own[:, [16, 18, 17]], degrees=True)
        assert turned_by(turned.as_matrix(), picks.rotations).max() < 0.001
        np.testing.assert_allclose(own[:, 0], picks.scores, atol=1e-6)


def test_imod(tmp_path: Path) -> None:
    sets = [entry for entry in some_sets() if entry.run == "TS_2"]
    path = written("imod", tmp_path, sets)
    points = imodmodel.read(path)
    for number, entry in enumerate(sets):
        own = points[points["object_id"] == number][["x", "y", "z"]].to_numpy()
        np.testing.assert_allclose((own - [0.5, 0.5, 0]) * 13.48, entry.picks.positions, atol=0.01)
    model = imodmodel.ImodModel.from_file(path)
    assert [entry.header.name for entry in model.objects] == ["ribosome", "beta-amylase"]
    assert all(entry.header.flags.scattered for entry in model.objects)
    assert (model.header.xmax, model.header.ymax, model.header.zmax) == (232, 315, 93)
    assert model.header.pixelsize * 10.0**model.header.units == pytest.approx(13.48e-10)
    assert model.objects[0].header.pdrawsize == round(150 / 13.48)
    values = [item.value for item in model.objects[0].contours[0].extra]
    np.testing.assert_allclose(values, sets[0].picks.scores, atol=1e-6)
    for entry, written_set in zip(model.objects, sets, strict=True):
        [found] = entry.extra
        scores = written_set.picks.scores
        assert (found.type, found.index, found.value) == pytest.approx((11, scores.min(), scores.max()), abs=1e-6)
    assert path.read_bytes().startswith(b"IMODV1.2") and path.read_bytes().endswith(b"IEOF")


def test_eman2(tmp_path: Path) -> None:
    sets = [entry for entry in some_sets() if entry.run == "007"]
    info = json.loads(written("eman2", tmp_path, sets).read_text())
    assert info["apix_unbin"] == 1.5678
    assert info["class_list"] == {
        "0": {"name": "ribosome", "boxsize": 288},
        "1": {"name": "beta-amylase", "boxsize": 32},
    }
    # Of a binned tomogram of 102 × 101 × 64 voxels: bins of unbinned pixels, from the voxel in the middle.
    for number, entry in enumerate(sets):
        boxes = [box for box in info["boxes_3d"] if box[5] == number]
        voxels = np.array([box[:3] for box in boxes]) * 1.5678 / 7.84 + [102 // 2, 101 // 2, 64 // 2]
        np.testing.assert_allclose(voxels * 7.84, entry.picks.positions, atol=1e-4)
        np.testing.assert_allclose([box[4] for box in boxes], entry.picks.scores)


def test_ndjson(tmp_path: Path) -> None:
    picks = RIBOSOMES[0].picks
    points = [json.loads(line) for line in written("ndjson", tmp_path, RIBOSOMES[:1]).read_text().splitlines()]
    assert {point["type"] for point in points} == {"orientedPoint"}
    places = np.array([[point["location"][axis] for axis in "xyz"] for point in points])
    np.testing.assert_allclose(places * 10.0, picks.positions, atol=1e-4)
    np.testing.assert_allclose([point["xyz_rotation_matrix"] for point in points], picks.rotations)


def test_the_challenge(tmp_path: Path) -> None:
    table = pd.read_csv(written("czii", tmp_path, some_sets()), dtype={"experiment": str})
    assert list(table) == ["id", "experiment", "particle_type", "x", "y", "z"]
    assert table["id"].tolist() == list(range(len(table)))
    own = table[(table["experiment"] == "007") & (table["particle_type"] == "beta-amylase")]
    [expected] = [s.picks for s in some_sets() if (s.run, s.name) == ("007", "beta-amylase")]
    np.testing.assert_allclose(own[["x", "y", "z"]], expected.positions, atol=1e-4)


# The same places as copick's own exporter


@pytest.fixture
def exported(small: SmallProject, tmp_path: Path) -> dict[str, Path]:
    """The same picks, written by copick in the formats that it has."""
    small.add_run("TS_01", shape=(21, 32, 43))
    picks = some_picks(12, Grid((21, 32, 43), 10.0), 3)
    small.project().write_picks("TS_01", Source("ribosome", "alice", "1"), picks)
    [entry] = copick.from_file(str(small.copick)).get_run("TS_01").get_picks("ribosome", "alice", "1")
    paths = {name: tmp_path / f"copick.{name}" for name in ("star", "dynamo", "em", "csv")}
    for name, path in paths.items():
        path = paths[name] = path.with_suffix(".tbl") if name == "dynamo" else path
        options = {"voxel_spacing": 10.0} | ({"tilt_series_pixel_size": 2.5} if name == "star" else {})
        export_picks(entry, str(path), name, **options)
    return paths


@pytest.mark.filterwarnings("ignore:Gimbal lock")
@pytest.mark.parametrize(
    ("name", "theirs", "facts"),
    [
        ("relion5", "star", {}),
        # copick counts Dynamo's voxels from 0.
        ("dynamo", "dynamo", {"origin": 0}),
        ("em", "em", {}),
        ("csv", "csv", {}),
    ],
)
def test_copick_names_the_same_places(
    name: str, theirs: str, facts: dict, exported: dict[str, Path], tmp_path: Path
) -> None:
    grid = Grid((21, 32, 43), 10.0)
    run = "copick" if name in ("dynamo", "em") else "TS_01"
    picks = some_picks(12, grid, 3)
    out = tmp_path / f"ours{FORMATS[name].suffix}"
    FORMATS[name].write(out, [PickSet(run, "ribosome", picks)], frame({run: grid}, **facts))
    for path in (exported[theirs], out):
        [found] = FORMATS[name].read(path, frame({run: grid}, **facts))
        np.testing.assert_allclose(found.picks.positions, picks.positions, atol=1e-3)
        assert turned_by(found.picks.rotations, picks.rotations).max() < 0.001


@pytest.mark.parametrize("name", ["relion5", "relion4"])
def test_copick_reads_relion(name: str, tmp_path: Path) -> None:
    # Without the name that copick takes for a number.
    sets = [entry for entry in RIBOSOMES if entry.run != "007"]
    tomograms = {"rlnTomoName": [entry.run for entry in sets]}
    series = [found for entry in sets if (found := GRIDS[entry.run].tilt_series)]
    tomograms |= {f"rlnTomoSize{axis}": [found.size[n] for found in series] for n, axis in enumerate("XYZ")}
    tomograms |= {"rlnTomoTiltSeriesPixelSize": [found.pixel_size for found in series]}
    star(tmp_path / "tomograms.star", "global", tomograms)
    table, optics = read_star_particles_with_optics(str(written(name, tmp_path, sets)))
    centres = read_relion5_tomogram_centers(str(tmp_path / "tomograms.star"))
    positions = relion_coordinates_to_angstrom(table, optics=optics, tomogram_centers=centres, relion_version=name)
    np.testing.assert_allclose(positions, np.concatenate([entry.picks.positions for entry in sets]), atol=1e-4)


def test_copick_reads_tables(tmp_path: Path) -> None:
    positions, transforms, scores, runs = read_copick_csv(str(written("csv", tmp_path, RIBOSOMES[:2])))
    picks = [entry.picks for entry in RIBOSOMES[:2]]
    np.testing.assert_allclose(positions, np.concatenate([part.positions for part in picks]))
    np.testing.assert_allclose(transforms, np.concatenate([part.transforms for part in picks]))
    np.testing.assert_allclose(scores, np.concatenate([part.scores for part in picks]))
    assert runs.tolist() == [entry.run for entry in RIBOSOMES[:2] for _ in entry.picks.scores]


# As others write


def star(path: Path, block: str, columns: dict[str, list], optics: dict[str, list] | None = None) -> Path:
    tables = {block: pd.DataFrame(columns)}
    starfile.write(({"optics": pd.DataFrame(optics)} if optics else {}) | tables, path)
    return path


def read_one(path: Path, **facts: object) -> Picks:
    [found] = FORMATS["relion5"].read(path, frame(WITHOUT if facts.pop("binned", False) else GRIDS, **facts))
    return found.picks


XYZ = {f"rlnCoordinate{axis}": [value] for axis, value in zip("XYZ", (100.0, 200.0, 50.0), strict=True)}
CENTRED = {f"rlnCenteredCoordinate{axis}Angst": [value] for axis, value in zip("XYZ", (-7.0, 5.0, 3.0), strict=True)}
SHIFT = {f"rlnOrigin{axis}Angst": [value] for axis, value in zip("XYZ", (4.0, -6.0, 10.0), strict=True)}


def angles(name: str, *values: float) -> dict[str, list[float]]:
    return {f"{name}{angle}": [value] for angle, value in zip(("Rot", "Tilt", "Psi"), values, strict=True)}


def test_shifts_and_angles_of_subtomograms(tmp_path: Path) -> None:
    """Position = coordinate − A_subtomogram · shift; rotation = A_subtomogram · A_particle."""
    columns = {"rlnTomoName": ["TS_2"]} | CENTRED | SHIFT
    columns |= angles("rlnTomoSubtomogram", 30, 60, -20) | angles("rlnAngle", 10, 90, 45)
    picks = read_one(star(tmp_path / "p.star", "particles", columns))
    [subtomogram], [particle] = euler_matrices(np.array([[30, 60, -20]])), euler_matrices(np.array([[10, 90, 45]]))
    centre = np.array([928, 1259, 371]) / 2.0 * 3.37
    np.testing.assert_allclose(picks.positions, [centre + np.array([-7, 5, 3]) - subtomogram @ [4, -6, 10]], atol=1e-4)
    np.testing.assert_allclose(picks.rotations, [subtomogram @ particle], atol=1e-6)


def test_centred_coordinates_win(tmp_path: Path) -> None:
    both = read_one(star(tmp_path / "p.star", "particles", {"rlnTomoName": ["TS_2"]} | CENTRED | XYZ))
    alone = read_one(star(tmp_path / "q.star", "particles", {"rlnTomoName": ["TS_2"]} | CENTRED))
    np.testing.assert_array_equal(both.positions, alone.positions)


@pytest.mark.parametrize("where", ["particles", "optics", "one group", "tomograms", "given"])
def test_relion_4_counts_in_pixels_of_the_tilt_series(where: str, tmp_path: Path) -> None:
    size = {"rlnTomoTiltSeriesPixelSize": [3.37]}
    columns: dict[str, list] = {"rlnTomoName": ["TS_2"]} | XYZ
    optics = None
    if where == "particles":
        columns |= size
    elif where == "optics":
        columns |= {"rlnOpticsGroup": [2]}
        optics = {"rlnOpticsGroup": [1, 2], "rlnTomoTiltSeriesPixelSize": [9.9, 3.37]}
    elif where == "one group":
        optics = {"rlnOpticsGroup": [1]} | size
    path = star(tmp_path / "p.star", "particles", columns, optics)
    facts = {"binned": where != "tomograms"} | ({"pixel_size": 3.37} if where == "given" else {})
    np.testing.assert_allclose(read_one(path, **facts).positions, [[337.0, 674.0, 168.5]])


@pytest.mark.parametrize(
    ("columns", "size"),
    [
        ({}, 10.0),
        ({"rlnDetectorPixelSize": [7.5]}, 7.5),
        ({"rlnDetectorPixelSize": [5.0], "rlnMagnification": [10000.0]}, 5.0),
        # Micrometres at a magnification.
        ({"rlnDetectorPixelSize": [14.0], "rlnMagnification": [20000.0]}, 7.0),
        ({"rlnPixelSize": [6.5]}, 6.5),
    ],
    ids=lambda value: "-".join(value) or "none" if isinstance(value, dict) else "",
)
def test_relion_3_counts_in_pixels_of_the_tomogram(
    columns: dict, size: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = star(tmp_path / "p.star", "", {"rlnMicrographName": ["TS_01"]} | XYZ | columns)
    np.testing.assert_allclose(read_one(path).positions, np.array([[100, 200, 50]]) * size)
    assert f"pixels of {size:g} Å" in capsys.readouterr().err
    np.testing.assert_allclose(read_one(path, pixel_size=3.0).positions, [[300, 600, 150]])


def test_relion_3_shifts_in_pixels(tmp_path: Path) -> None:
    shifts = {f"rlnOrigin{axis}": [value] for axis, value in zip("XYZ", (1.0, 2.0, 3.0), strict=True)}
    path = star(tmp_path / "p.star", "", {"rlnMicrographName": ["TS_01"]} | XYZ | shifts)
    np.testing.assert_allclose(read_one(path).positions, [[990.0, 1980.0, 470.0]])


def test_scores_of_pytom_match_pick(tmp_path: Path) -> None:
    path = star(tmp_path / "p.star", "", {"rlnMicrographName": ["TS_01"], "rlnLCCmax": [0.37]} | XYZ)
    assert read_one(path).scores.tolist() == [0.37]


def test_filaments_are_instances(tmp_path: Path) -> None:
    path = star(tmp_path / "p.star", "particles", {"rlnTomoName": ["TS_01"], "rlnHelicalTubeID": [3]} | CENTRED)
    assert read_one(path).instances.tolist() == [3]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text.lstrip(),
        lambda text: text.replace("007", '"007"'),
        lambda text: text.replace("\t", "   ").replace("007", "# of mine\n 007", 1),
        lambda text: text.rstrip() + "  # of mine",
        lambda text: text.replace("\n007", "\n\n007").rstrip(),
    ],
    ids=["Windows", "BOM", "quoted", "comment before", "comment after", "empty line"],
)
def test_the_same_star_file_written_otherwise(change: Callable[[str], str], tmp_path: Path) -> None:
    path = star(tmp_path / "P.STAR", "particles", {"rlnTomoName": ["007"]} | CENTRED)
    plain = read_one(path)
    path.write_bytes(change(path.read_text().partition("\n")[2]).encode())
    [found] = format_of(path).read(path, frame())
    assert found.run == "007"
    np.testing.assert_array_equal(found.picks.positions, plain.positions)


def test_a_table_without_rows_has_no_picks(tmp_path: Path) -> None:
    (tmp_path / "p.star").write_text("data_particles\n\nloop_\n_rlnTomoName\n" + "".join(f"_{c}\n" for c in CENTRED))
    assert FORMATS["relion5"].read(tmp_path / "p.star", frame()) == []


def test_a_file_without_names_is_of_the_run_that_its_name_is(tmp_path: Path) -> None:
    np.testing.assert_allclose(
        read_one(star(tmp_path / "TS_01.star", "", XYZ), pixel_size=1).positions, [[100, 200, 50]]
    )


def test_dynamo_shifts_are_added(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"x": [100.0], "y": [200.0], "z": [50.0], "dx": [1.5], "dy": [-2.0], "dz": [0.25], "tomo": [4]}
    )
    path = tmp_path / "TS_01.tbl"
    dynamotable.write(table, str(path))
    [found] = FORMATS["dynamo"].read(path, frame())
    np.testing.assert_allclose(found.picks.positions, [[1005.0, 1970.0, 492.5]])
    [found] = FORMATS["dynamo"].read(path, frame(indices={4: "TS_2"}, pixel_size=2.0))
    assert found.run == "TS_2"
    np.testing.assert_allclose(found.picks.positions, [[201.0, 394.0, 98.5]])


def test_em_shifts_are_added(tmp_path: Path) -> None:
    data = np.zeros((1, 1, 20), np.float32)
    data[0, 0, 7:10], data[0, 0, 10:13], data[0, 0, 4] = (101, 201, 51), (0.5, -1, 2), 1
    emfile.write(tmp_path / "TS_01.em", data)
    [found] = FORMATS["em"].read(tmp_path / "TS_01.em", frame())
    np.testing.assert_allclose(found.picks.positions, [[1005.0, 1990.0, 520.0]])
    assert found.picks.scores.tolist() == [1.0]


def test_imod_models_without_a_unit_have_pixels_of_the_tomogram(tmp_path: Path) -> None:
    points = pd.DataFrame({"x": [10.5, 20.5], "y": [11.5, 21.5], "z": [12.0, 22.0], "contour_id": [0, 1]})
    imodmodel.write(points, tmp_path / "TS_01.mod")
    [found] = FORMATS["imod"].read(tmp_path / "TS_01.mod", frame())
    np.testing.assert_allclose(found.picks.positions, [[100.0, 110.0, 120.0], [200.0, 210.0, 220.0]])
    assert (found.name, found.picks.scores.tolist()) == ("", [1.0, 1.0])


def test_eman2_boxes_may_be_short_and_classes_plain(tmp_path: Path) -> None:
    info = {"apix_unbin": 2.5, "boxes_3d": [[0, 0, 0], [4, 8, -4, "manual", 0.5, 1]], "class_list": {"1": "ribosome"}}
    (tmp_path / "TS_01_info.json").write_text(json.dumps(info))
    found = FORMATS["eman2"].read(tmp_path / "TS_01_info.json", frame())
    assert [(entry.run, entry.name) for entry in found] == [("TS_01", ""), ("TS_01", "ribosome")]
    np.testing.assert_allclose(found[0].picks.positions, [[2400.0, 2560.0, 1000.0]])
    np.testing.assert_allclose(found[1].picks.positions, [[2410.0, 2580.0, 990.0]])
    assert found[1].picks.scores.tolist() == [0.5]


def test_points_of_the_portal_need_no_orientation(tmp_path: Path) -> None:
    (tmp_path / "TS_2.ndjson").write_text('{"type": "point", "location": {"x": 1, "y": 2, "z": 3}}\n\n')
    [found] = FORMATS["ndjson"].read(tmp_path / "TS_2.ndjson", frame())
    np.testing.assert_allclose(found.picks.positions, [[13.48, 26.96, 40.44]])
    np.testing.assert_array_equal(found.picks.rotations, [np.eye(3)])


def test_tables_need_three_columns(tmp_path: Path) -> None:
    path = tmp_path / "TS_01.tsv"
    path.write_text("x\ty\tz\n1\t2\t3\n")
    [found] = FORMATS["csv"].read(path, frame())
    assert (found.run, found.name, found.picks.positions.tolist()) == ("TS_01", "", [[1.0, 2.0, 3.0]])
    [found] = FORMATS["csv"].read(path, frame(pixel_size=10.0))
    assert found.picks.positions.tolist() == [[10.0, 20.0, 30.0]]
