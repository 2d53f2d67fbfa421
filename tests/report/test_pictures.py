"""Slices and cut-outs with marks: where they lie, which there are, and what they show of orientations."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from support.project import SmallProject
from tomoscout.data.open_tomogram import OpenTomogram
from tomoscout.data.picks import Picks
from tomoscout.report.colours import FALSE, FOUND, MISSED, Colour, signs
from tomoscout.report.marks import Spheres, marks_path
from tomoscout.report.pictures import Marked, cut_out, marked_slice, outlines, telling_slices
from tomoscout.report.worst import Compared, caption, false_cases, missed_cases
from tomoscout.tasks.picking.options import Evaluate
from tomoscout.tasks.picking.scores import match_picks

SHAPE = (40, 60, 50)
RED: Colour = (255, 0, 0)


@pytest.fixture
def tomogram(small: SmallProject) -> OpenTomogram:
    small.add_run("TS_1", shape=SHAPE)
    return small.project().open_tomogram("TS_1", "wbp@10.0")


def spheres(*centres: tuple[float, float, float], radius: float = 4.0, rotations: np.ndarray | None = None) -> Spheres:
    """Spheres at z, y, x in voxels of 10 Å."""
    positions = 10 * np.array(centres, dtype=float).reshape(-1, 3)[:, ::-1]
    return Spheres.of([(Picks.at(positions, rotations=rotations), 10 * radius)], 10.0)


def read(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def circles(path: str) -> list[tuple[float, float, float]]:
    """Centre and radius of every circle of a path."""
    found = re.findall(r"M([\d.-]+) ([\d.-]+)a([\d.]+) ", path)
    return [(float(left) + float(radius), float(y), float(radius)) for left, y, radius in found]


# Marks


def test_a_sphere_is_cut_where_the_slice_is() -> None:
    one = spheres((10, 20, 30), radius=5)
    # The middle of voxel 30 is at 30.5.
    assert circles(marks_path(one.cut(10), "circle", 1)) == [(30.5, 20.5, 5)]
    assert circles(marks_path(one.cut(13), "dashed", 1)) == [(30.5, 20.5, 4)]
    assert len(one.cut(15).radii) == len(one.cut(4).radii) == 0
    assert len(one.cut(10, (20, 10, 10, 10.6)).radii) == 0
    assert len(one.cut(10, (20, 10, 11, 11)).radii) == 1


def test_sets_of_picks_differ_in_colour_and_shape() -> None:
    marks = signs(["tomoscout/unet", "octopi/1", "alice/2", "bob/3"])
    assert len({mark.colour for mark in marks}) == len({mark.shape for mark in marks}) == 4
    paths = [marks_path(spheres((1, 2, 3)).cut(1), mark.shape, 2) for mark in marks]
    assert paths[0] == "M1.5 2.5h4M3.5 0.5v4" and len(set(paths)) == 4


def about(axis: str, degrees: float) -> np.ndarray:
    """A rotation about an axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(3)
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    turn[first, first] = turn[second, second] = c
    turn[first, second], turn[second, first] = -s, s
    return turn


@pytest.mark.parametrize(
    ("turn", "end"),
    [
        # Object to tomogram: turned about y by 90°, the object's z axis lies along x; about x, along -y.
        (about("y", 90), (4, 0)),
        (about("x", 90), (0, -4)),
        (about("y", 30), (2, 0)),
        (about("z", 90) @ about("y", 90), (0, 4)),
        (about("z", 90), None),
        (about("y", 180), None),
    ],
)
def test_an_arrow_is_the_z_axis_of_a_particle(turn: np.ndarray, end: tuple[float, float] | None) -> None:
    path = marks_path(spheres((10, 20, 30), rotations=turn[None]).cut(12), "plus", 1)
    arrow = re.search(r"M30\.5 20\.5L([\d.]+) ([\d.]+)l", path)
    if end is None:
        assert arrow is None
    else:
        assert arrow is not None
        assert (float(arrow[1]) - 30.5, float(arrow[2]) - 20.5) == pytest.approx(end, abs=0.06)


# Slices


def test_the_slices_shown_are_those_with_particles(tomogram: OpenTomogram) -> None:
    groups = [
        Marked(spheres((10, 20, 20), (10.4, 40, 30)), FOUND),
        Marked(spheres((30, 15, 25)), MISSED),
        Marked(spheres((11, 50, 10)), FALSE),
    ]
    # Two slices show everything, so that is all there are.
    assert telling_slices(groups, 40, 9) == telling_slices(groups, 40, 2) == [10, 30]
    assert telling_slices(groups, 40, 1) == [10]
    assert telling_slices([Marked(spheres(), FOUND)], 40, 3) == telling_slices([], 40, 3) == [20]
    first, second = (marked_slice(tomogram, groups, z, "p/TS_1", 10.0) for z in (10, 30))
    assert first.caption == "p/TS_1, slice z = 10 (mean of 5 slices, 5 nm): 2 found, 0 missed, 1 false"
    assert second.caption == "p/TS_1, slice z = 30 (mean of 5 slices, 5 nm): 0 found, 1 missed, 0 false"
    assert [len(circles(layer.path)) for layer in first.layers] == [2, 0, 1]
    assert [len(circles(layer.path)) for layer in second.layers] == [0, 1, 0]
    assert first.box == first.place == (0, 0, 50, 60) and read(first.png).shape == (60, 50)


def test_large_slices_are_made_smaller(small: SmallProject) -> None:
    small.add_run("wide", shape=(2, 100, 2000))
    tomogram = small.project().open_tomogram("wide", "wbp@10.0")
    picture = marked_slice(tomogram, [], 0, "p/wide", 10.0)
    assert picture.box == (0, 0, 2000, 100)
    assert read(picture.png).shape == (51, 1024) and len(np.unique(read(picture.png))) <= 64


def test_a_cut_out_has_its_particle_in_the_middle(tomogram: OpenTomogram) -> None:
    groups = [Marked(spheres((20, 30, 25), (20, 33, 25), (20, 55, 25)), FALSE)]
    picture = cut_out(tomogram, groups, np.array([20.0, 30.0, 25.0]), 4.0, "here")
    # 14 voxels to either side; what lies farther away has no mark.
    assert picture.box == picture.place == (11, 16, 29, 29)
    assert circles(picture.layers[0].path) == [(25.5, 30.5, 4), (25.5, 33.5, 4)]
    edge = cut_out(tomogram, groups, np.array([1.0, 58.0, 3.0]), 4.0, "edge")
    assert edge.box == (-11, 44, 29, 29) and edge.place == (0, 44, 18, 16)
    assert read(edge.png).shape == (16, 18)
    outside = cut_out(tomogram, groups, np.array([20.0, 30.0, 90.0]), 4.0, "outside")
    assert outside.place == (49, 16, 1, 29)


def test_a_cut_out_reads_no_more_than_it_shows(small: SmallProject) -> None:
    folder = small.add_run("TS_1", shape=SHAPE)
    tomogram = small.project().open_tomogram("TS_1", "wbp@10.0")
    # All chunks but the first, which holds the lower half of each axis.
    for chunk in (path for path in (folder / "0").rglob("*") if path.is_file() and path.name.isdigit()):
        if str(chunk.relative_to(folder / "0")) != "0/0/0":
            chunk.write_bytes(b"damaged")
    assert cut_out(tomogram, [], np.array([10.0, 15.0, 12.0]), 2.0, "here").place == (5, 8, 15, 15)


def test_outlines_fit_a_slice_of_another_voxel_spacing() -> None:
    labels = np.zeros((30, 25), dtype=np.uint8)
    labels[10:20, 5:15] = 3
    labels[0, 0] = 7
    # A voxel of the labels, at 20 Å, covers two of the tomogram, each of which is drawn as 12 pixels.
    image = Image.open(io.BytesIO(outlines(labels, 3, RED, SHAPE, 10.0 / 20.0))).convert("RGBA")
    drawn = np.asarray(image)
    assert image.size == (600, 720)
    rows, columns = np.nonzero(drawn[..., 3])
    assert (drawn[rows, columns] == (*RED, 255)).all()
    # The middles of voxels 10 and 19 lie at those of voxels 20 and 38 of the tomogram.
    assert (rows.min(), rows.max()) == pytest.approx((12 * 19.5, 12 * 39.5), abs=12)
    assert (columns.min(), columns.max()) == pytest.approx((12 * 9.5, 12 * 29.5), abs=12)
    inner = (rows > rows.min()) & (rows < rows.max()) & (columns > columns.min()) & (columns < columns.max())
    assert not inner.any()


# The worst picks


def compared(predicted: list, scores: list[float], reference: list) -> Compared:
    """Picks along x, in Å, of an object whose radius is 100 Å."""
    ours, theirs = (
        np.array([[x, 0, 0] for x in places], dtype=float).reshape(-1, 3) for places in (predicted, reference)
    )
    picks, truth = Picks.at(ours, np.array(scores)), Picks.at(theirs)
    return Compared("ribosome", 100.0, picks, truth, match_picks(picks, truth, 100.0, Evaluate()))


def test_the_worst_picks_come_first() -> None:
    runs = {
        "p/a": compared([0, 300, 900], [0.9, 0.4, 0.7], [10, 500, 2000]),
        "p/b": compared([5000], [0.8], [0]),
        "p/c": compared([], [], [70]),
        "p/d": compared([20], [0.99], [20]),
    }
    false = [(case.run, case.position[0], case.value) for case in false_cases(runs)]
    assert false == [("p/b", 5000, 0.8), ("p/a", 900, 0.7), ("p/a", 300, 0.4)]
    missed = [(case.run, case.position[0], case.value) for case in missed_cases(runs)]
    assert missed == [("p/c", 70, np.inf), ("p/b", 0, 5000), ("p/a", 2000, 1100), ("p/a", 500, 200)]
    texts = [caption("false", false_cases(runs)[1]), *(caption("missed", case) for case in missed_cases(runs)[:2])]
    assert [text.replace("\u00a0", " ") for text in texts] == [
        "p/a, x 900, y 0, z 0 Å: score 0.700",
        "p/c, x 70, y 0, z 0 Å: no pick in the run",
        "p/b, x 0, y 0, z 0 Å: nearest pick 5000 Å away",
    ]
