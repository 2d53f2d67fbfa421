"""Files that cannot be used end in one line that names the file, what was found and what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import emfile
import numpy as np
import pytest

from support.formats import frame, some_sets
from tomoscout.data.formats import FORMATS, format_of
from tomoscout.data.formats.star import read_tilt_series
from tomoscout.data.formats.tables import read_indices, read_pairs
from tomoscout.machine.errors import TomoscoutError

HEAD = "data_particles\n\nloop_\n"


def star(*columns: str, rows: str) -> str:
    return HEAD + "".join(f"_rln{name}\n" for name in columns) + rows + "\n"


XYZ = ("CoordinateX", "CoordinateY", "CoordinateZ")
CENTRED = tuple(f"CenteredCoordinate{axis}Angst" for axis in "XYZ")


def refused(name: str, content: str | bytes, tmp_path: Path, **facts: object) -> str:
    """The message with which a file is refused, without the folder."""
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TomoscoutError) as caught:
        format_of(path).read(path, frame(**facts))
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            star("TomoName", "AngleRot", rows="TS_01 3"),
            "p.star: no coordinates: found rlnTomoName, rlnAngleRot; expected rlnCenteredCoordinateXAngst, … or "
            "rlnCoordinateX, … in its particles",
        ),
        (
            star("TomoName", *CENTRED[:2], rows="TS_01 3 4"),
            "p.star: no column rlnCenteredCoordinateZAngst; found rlnTomoName, rlnCenteredCoordinateXAngst, "
            "rlnCenteredCoordinateYAngst",
        ),
        (
            star("TomoName", *CENTRED, "AngleRot", "AnglePsi", rows="TS_01 1 2 3 4 5"),
            "p.star: no column rlnAngleTilt; found rlnTomoName, rlnCenteredCoordinateXAngst, "
            "rlnCenteredCoordinateYAngst, rlnCenteredCoordinateZAngst, rlnAngleRot, rlnAnglePsi",
        ),
        (
            star("TomoName", *CENTRED, rows="TS_01 1 2 3\nTS_01 1 nan 3"),
            "p.star: row 2: rlnCenteredCoordinateYAngst is nan, expected a finite number",
        ),
        (
            star("TomoName", *CENTRED, rows="TS_01 1 2 3\nTS_01 1 two 3"),
            "p.star: row 2: rlnCenteredCoordinateYAngst is 'two', expected a finite number",
        ),
        (
            star("TomoName", *CENTRED, "AutopickFigureOfMerit", rows="TS_01 1 2 3 inf"),
            "p.star: row 1: rlnAutopickFigureOfMerit is inf, expected a finite number",
        ),
        (
            # Cut in the middle of a row.
            star("TomoName", *CENTRED, rows="TS_01 1 2 3\nTS_01 4 5"),
            "p.star: row 2: rlnCenteredCoordinateZAngst is nan, expected a finite number",
        ),
        (star("TomoName", *CENTRED, rows="TS_01 1 2 3\nTS_9 1 2 3"), "no run TS_9"),
        (
            star("TomoName", *XYZ, rows="TS_2 1 2 3"),
            "p.star: rlnCoordinateX, … are in pixels of the tilt series",
        ),
        ("", "p.star: not a STAR file (no line begins with data_)"),
        ("data_particles\n", "p.star: not a STAR file ("),
        (HEAD, "p.star: "),
        (b"\x00\xff\xfe\x80 data", "p.star: text that is not UTF-8: byte 0xff at position 1"),
        (
            2 * star("TomoName", *CENTRED, rows="TS_01 1 2 3\n"),
            "p.star: two blocks are called data_particles",
        ),
        (
            star("TomoName", *CENTRED, "TomoName", rows="TS_01 1 2 3 TS_2"),
            "p.star: two columns are called rlnTomoName",
        ),
        (star("TomoName", *CENTRED, rows="TS_01 1 2 3 4"), "p.star: not a STAR file ("),
    ],
)
def test_star(content: str | bytes, expected: str, tmp_path: Path) -> None:
    from support.formats import WITHOUT

    path = tmp_path / "p.star"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TomoscoutError) as caught:
        FORMATS["relion5"].read(path, frame(WITHOUT))
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(expected)


def test_an_optics_group_that_is_not_there(tmp_path: Path) -> None:
    optics = "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnTomoTiltSeriesPixelSize\n1 3.3\n2 4.4\n\n"
    text = optics + star("TomoName", "OpticsGroup", *XYZ, rows="TS_01 3 1 2 3")
    assert refused("p.star", text, tmp_path) == "p.star: no optics group 3, which particles have"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            star("TomoName", "TomoSizeX", rows="TS_01 3"),
            "no column rlnTomoSizeY, rlnTomoSizeZ, rlnTomoTiltSeriesPixelSize",
        ),
        (star("TomoSizeX", rows="3"), "no column rlnTomoName; found rlnTomoSizeX"),
    ],
)
def test_tomograms_star(content: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "tomograms.star"
    path.write_text(content)
    with pytest.raises(TomoscoutError, match=expected):
        read_tilt_series(path)


def dynamo_row(tomogram: int = 1, x: str = "10") -> str:
    row = ["0"] * 42
    row[19], row[23], row[24], row[25] = str(tomogram), x, "20", "30"
    return " ".join(row) + "\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (dynamo_row(x="nan"), "TS_01.tbl: row 1: x is nan, expected a finite number"),
        ("1 2 3\n", "TS_01.tbl: no column tomo; found tag, aligned_value, averaged_value"),
        (dynamo_row()[:48], "TS_01.tbl: no column "),
        ("", "TS_01.tbl: not a Dynamo table (No columns to parse from file)"),
        (
            dynamo_row(1) + dynamo_row(2),
            "TS_01.tbl: particles of tomograms 1, 2 and no TS_01.doc beside it; give a table number → run as `indices`",
        ),
    ],
)
def test_dynamo(content: str, expected: str, tmp_path: Path) -> None:
    assert refused("TS_01.tbl", content, tmp_path).startswith(expected)


def test_a_number_that_the_table_of_tomograms_does_not_name(tmp_path: Path) -> None:
    (tmp_path / "all.doc").write_text("1 TS_01\n3 TS_2\n")
    message = refused("all.tbl", dynamo_row(1) + dynamo_row(2), tmp_path)
    assert message == ("all.tbl: particles of tomograms 2, which the table of tomograms does not name; it has 1, 3")


def test_motive_lists(tmp_path: Path) -> None:
    path = tmp_path / "TS_01.em"
    FORMATS["em"].write(path, some_sets()[:1], frame())
    whole = path.read_bytes()
    for cut in (10, 300, 512, len(whole) - 40, len(whole) - 2):
        assert refused("TS_01.em", whole[:cut], tmp_path).startswith("TS_01.em: not an EM file, or a truncated one (")
    emfile.write(path, np.zeros((1, 3, 7), np.float32), overwrite=True)
    message = refused("TS_01.em", path.read_bytes(), tmp_path)
    assert message == "TS_01.em: not a motive list: 3×7 numbers, expected particles × 20"
    data = np.ones((1, 2, 20), np.float32)
    data[0, 1, 8] = np.nan
    emfile.write(path, data, overwrite=True)
    assert refused("TS_01.em", path.read_bytes(), tmp_path) == "TS_01.em: particle 2: row 9 is nan"


def test_imod_models(tmp_path: Path) -> None:
    path = tmp_path / "TS_01.mod"
    FORMATS["imod"].write(path, some_sets()[:2], frame())
    whole = path.read_bytes()
    for cut in (4, 100, 300, 420, len(whole) - 30, len(whole) - 4):
        assert refused("TS_01.mod", whole[:cut], tmp_path).startswith(
            "TS_01.mod: not an IMOD model, or a truncated one ("
        )
    assert refused("TS_01.mod", b"JUNK" + whole[4:], tmp_path).startswith("TS_01.mod: not an IMOD model (it begins")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{}", "not EMAN2's information on a tomogram with boxes (no list 'boxes_3d')"),
        ('{"boxes_3d": []', "not valid JSON"),
        ('{"boxes_3d": [[1, 2, 3]]}', "apix_unbin is None, expected Å per unbinned pixel"),
        ('{"boxes_3d": [[1, 2]], "apix_unbin": 2}', "a box or a class is malformed"),
        ('{"boxes_3d": [[1, 2, "x"]], "apix_unbin": 2}', "a box or a class is malformed"),
        ('{"boxes_3d": [[1, 2, NaN]], "apix_unbin": 2}', "not valid JSON"),
    ],
)
def test_eman2(content: str, expected: str, tmp_path: Path) -> None:
    assert refused("TS_01_info.json", content, tmp_path).startswith(f"TS_01_info.json: {expected}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"location": {"x": 1, "y": 2', "line 2: not a point ("),
        ('{"location": {"x": 1, "y": 2}}', "line 2: not a point ('z')"),
        ('{"location": {"x": 1, "y": 2, "z": NaN}}', "line 2: a value is NaN or infinite"),
        ('{"location": {"x": 1, "y": 2, "z": 3}, "xyz_rotation_matrix": [[1, 0], [0, 1]]}', "line 2: not a point ("),
        ("3", "line 2: not a point ("),
    ],
)
def test_ndjson(line: str, expected: str, tmp_path: Path) -> None:
    good = json.dumps({"location": {"x": 1, "y": 2, "z": 3}})
    assert refused("TS_01.ndjson", f"{good}\n{line}\n", tmp_path).startswith(f"TS_01.ndjson: {expected}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("x,y\n1,2\n", "t.csv: no column z; found x, y"),
        ("", "t.csv: not a table (No columns to parse from file)"),
        ("run,x,y,z\nTS_01,1,2,\n", "t.csv: row 1: z is '', expected a finite number"),
        ("run,x,y,z,instance_id\nTS_01,1,2,3,1.5\n", "t.csv: instance_id is 1.5, expected a whole number"),
        ("run,x,y,z,instance_id\nTS_01,1,2,3,1e30\n", "t.csv: instance_id is 1e+30, expected a whole number"),
        ("run,x,y,z\nTS_01,1,2,3,4\n", "t.csv: a row has more values than there are columns"),
        ("run;x;y;z\nTS_01;1;2;3\n", "t.csv: no column x, y, z; found run;x;y;z"),
        ("run,x,y,z,transform_00\nTS_01,1,2,3,1\n", "t.csv: no column transform_01, "),
    ],
)
def test_csv(content: str, expected: str, tmp_path: Path) -> None:
    assert refused("t.csv", content, tmp_path).startswith(expected)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_files_that_are_not_there(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"nothing{FORMATS[name].suffix}"
    with pytest.raises(TomoscoutError, match=f"^{path}: no such file$"):
        FORMATS[name].read(path, frame())


def test_endings_that_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(TomoscoutError, match=r"picks\.box: its ending tells no format of picks; expected \.star, "):
        format_of(tmp_path / "picks.box")


@pytest.mark.parametrize(
    ("read", "content", "expected"),
    [
        (read_pairs, "a\tb\nc\n", "line 2 is 'c', expected two values"),
        (read_pairs, "a,b\na,c\n", "line 2: 'a' is there twice"),
        (read_indices, "one TS_01\n", "expected the number of a tomogram and its name in each line"),
    ],
)
def test_tables_of_names(read: Callable, content: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "names.tsv"
    path.write_text(content)
    with pytest.raises(TomoscoutError, match=expected):
        read(path)


def test_names_that_star_cannot_hold(tmp_path: Path) -> None:
    [entry, *_] = some_sets()
    named = entry._replace(run="TS#1")
    grids = {"TS#1": frame().grids(["TS_01"])["TS_01"]}
    with pytest.raises(TomoscoutError, match="'TS#1' cannot be written into a STAR file; no # and no quotes"):
        FORMATS["relion5"].write(tmp_path / "p.star", [named], frame(grids))


def test_relion_4_needs_the_pixel_size_of_the_tilt_series(tmp_path: Path) -> None:
    from support.formats import WITHOUT

    with pytest.raises(TomoscoutError, match=r"is not known; give export\.tomograms_star, or export\.pixel_size"):
        FORMATS["relion4"].write(tmp_path / "p.star", some_sets()[:1], frame(WITHOUT))
