"""The report: pictures checked pixel by pixel, the page by parsing it."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.pictures import marked, noise
from tomoscout.data.picks import Picks
from tomoscout.learning.history import draw_history, series
from tomoscout.report.colours import FOUND, MISSED, Mark, readable_colours
from tomoscout.report.page import flatten, summarise_targets, tables, write_report
from tomoscout.report.pictures import Layer, Pictures, slice_image
from tomoscout.report.plots import Chart, Line, history_charts, precision_recall_charts, thin, ticks
from tomoscout.report.target_overlay import best_slice, target_overlay
from tomoscout.tasks.picking.options import Evaluate
from tomoscout.tasks.picking.scores import evaluate

NOISE = np.random.default_rng(0).normal(size=(40, 60, 50)).astype(np.float32)
ODD = Mark("<b>&", (0, 0, 255), "outline")


# Slices


def test_a_slice_is_grey_with_its_contrast_set_by_the_bulk() -> None:
    slab = np.linspace(0, 1, 10_000).reshape(100, 100)
    slab[0, 0], slab[99, 99] = -1e6, 1e6
    picture = slice_image(slab)
    assert picture.shape == (100, 100) and picture.dtype == np.uint8
    values = picture.ravel().astype(int)
    assert (np.diff(values[1:-1]) >= 0).all()
    assert values.min() == 0 and values.max() >= 250
    assert abs(values[5000] - 127) <= 4


def test_a_constant_slice_is_plain_grey() -> None:
    assert (slice_image(np.full((5, 6), 3.0)) == 128).all()


# Targets


def blobs() -> np.ndarray:
    labels = np.zeros((24, 20), dtype=np.uint8)
    labels[4:12, 3:11] = 1
    labels[8:16, 8:16] = 2
    labels[20:, :6] = 3
    labels[2, 17] = 3
    return labels


def expected_outline(fine: np.ndarray) -> np.ndarray:
    """Pixels of a label with another label, or background, at most three pixels away along an axis."""
    outline = np.zeros(fine.shape, dtype=bool)
    for row, column in np.ndindex(fine.shape):
        for step in (-3, -2, -1, 1, 2, 3):
            for r, c in ((row + step, column), (row, column + step)):
                if 0 <= r < fine.shape[0] and 0 <= c < fine.shape[1] and fine[r, c] != fine[row, column]:
                    outline[row, column] |= fine[row, column] > 0
    return outline


COLOURS = [(230, 30, 30, 255), (30, 200, 60, 255), (40, 90, 240, 255)]
STRIP = 30


def test_outlines_lie_exactly_on_the_borders_of_labels(tmp_path: Path) -> None:
    labels = blobs()
    target_overlay(NOISE[0, :24, :20], labels, COLOURS, ["a", "b", "c"], tmp_path / "t.png", "title")
    picture = np.asarray(Image.open(tmp_path / "t.png").convert("RGB"))
    scale = picture.shape[1] // 20
    view = picture[STRIP : STRIP + 24 * scale]
    fine = np.kron(labels, np.ones((scale, scale), dtype=np.uint8))
    outline = expected_outline(fine)
    assert outline.any() and not outline[fine == 0].any()
    for label, colour in enumerate(COLOURS, start=1):
        assert (view[outline & (fine == label)] == colour[:3]).all()
    grey = np.kron(slice_image(NOISE[0, :24, :20]), np.ones((scale, scale)))[..., None]
    assert np.abs(view[~outline].astype(int) - grey[~outline]).max() <= 4


def test_the_overlay_has_a_legend_and_a_side_view(tmp_path: Path) -> None:
    side = np.zeros((8, 20), dtype=np.uint8)
    side[2:6, 5:15] = 2
    names = ["ribosome", "apo-ferritin", "membrane"]
    arguments = (NOISE[0, :24, :20], np.zeros((24, 20), dtype=np.uint8), COLOURS, names)
    target_overlay(*arguments, tmp_path / "t.png", "title", side=(NOISE[1, :8, :20], side))
    picture = np.asarray(Image.open(tmp_path / "t.png").convert("RGB"))
    scale, gap = picture.shape[1] // 20, 4
    top = STRIP + 24 * scale + gap
    own = (picture[top : top + 8 * scale] == COLOURS[1][:3]).all(axis=2)
    rows, columns = np.nonzero(own)
    assert (rows.min(), rows.max()) == (2 * scale, 6 * scale - 1)
    assert (columns.min(), columns.max()) == (5 * scale, 15 * scale - 1)
    legend = picture[top + 8 * scale + gap :]
    for colour in COLOURS:
        assert (legend == colour[:3]).all(axis=2).sum() == 17 * 17
    assert not (picture[: top - gap] == COLOURS[1][:3]).all(axis=2).any()
    # A third view, on the right, has the rows of the first.
    end = np.zeros((24, 8), dtype=np.uint8)
    end[3:11, 1:6] = 1
    target_overlay(
        *arguments, tmp_path / "three.png", "title", side=(NOISE[1, :8, :20], side), end=(NOISE[2, :24, :8], end)
    )
    three = np.asarray(Image.open(tmp_path / "three.png").convert("RGB"))
    assert three.shape == (picture.shape[0], 28 * scale + gap, 3)
    rows, columns = np.nonzero((three[: top - gap] == COLOURS[0][:3]).all(axis=2))
    assert (rows.min() - STRIP, rows.max() - STRIP) == (3 * scale, 11 * scale - 1)
    left = 20 * scale + gap
    assert (columns.min() - left, columns.max() - left) == (1 * scale, 6 * scale - 1)
    before = (tmp_path / "t.png").read_bytes()
    target_overlay(*arguments, tmp_path / "t.png", "title", side=(NOISE[1, :8, :20], side))
    assert (tmp_path / "t.png").read_bytes() == before


@given(st.integers(0, 2), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_the_best_slice_holds_most_labels(axis: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    counts = (labels > 0).sum(axis=tuple(other for other in range(3) if other != axis))
    assert counts[best_slice(labels, axis)] == counts.max()


def test_colours_that_are_lost_on_grey_are_replaced() -> None:
    grey, red = (100, 100, 100, 255), (255, 0, 0, 255)
    chosen = readable_colours([grey, red, grey, red, (20, 20, 20, 255)])
    assert chosen[1] == (255, 0, 0)
    assert len(set(chosen)) == 5
    assert all(max(colour) - min(colour) > 60 for colour in chosen)
    assert len(readable_colours([grey] * 30)) == 30


# Training

HISTORY = [
    {"step": 10, "loss": 2.0, "learning_rate": 0.1, "score": 0.2, "ribosome": 0.1},
    {"step": 20, "loss": 1.0, "learning_rate": 0.2},
    {"step": 30, "loss": 0.5, "learning_rate": 0.1, "score": 0.7, "ribosome": 0.6},
    {"step": 40, "loss": 0.25, "learning_rate": 0.1, "score": 0.6, "ribosome": 0.8},
]
AS_READ = [{key: str(row.get(key, "")) for key in HISTORY[0]} for row in HISTORY]


def test_the_course_of_a_training_is_drawn_alike_every_time(tmp_path: Path) -> None:
    for name, rows in (("a.png", HISTORY), ("b.png", AS_READ), ("other.png", HISTORY[:3])):
        draw_history(rows, tmp_path / name)
    first, second, other = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png", "other.png"))
    assert first == second != other
    assert b"Software" not in first and b"Creation" not in first
    draw_history([], tmp_path / "empty.png")
    draw_history(HISTORY[1:2], tmp_path / "without-score.png")
    assert Image.open(tmp_path / "empty.png").size == Image.open(tmp_path / "a.png").size


def test_training_charts() -> None:
    loss, score = history_charts(AS_READ)
    assert [line.points for line in loss.lines] == [[(10, 2.0), (20, 1.0), (30, 0.5), (40, 0.25)]]
    assert [(line.name, line.points) for line in score.lines] == [
        ("ribosome", [(10, 0.1), (30, 0.6), (40, 0.8)]),
        ("mean", [(10, 0.2), (30, 0.7), (40, 0.6)]),
    ]
    assert score.title == "Validation score, best 0.700 at step 30"
    assert history_charts([]) == []
    assert len(history_charts(HISTORY[1:2])) == 0


def test_series_leave_out_what_is_no_number() -> None:
    rows = [{"step": "1", "loss": "nan"}, {"step": "2", "loss": ""}, {"step": "3"}, {"step": 4, "loss": None}]
    assert series([*rows, {"step": "5", "loss": "0.5"}], "loss") == [(5.0, 0.5)]


@given(st.integers(0, 2000), st.integers(1, 50))
@settings(deadline=None, max_examples=30, derandomize=True)
def test_thinning_keeps_the_mean(number: int, count: int) -> None:
    points = [(float(n), float(n % 7)) for n in range(number)]
    thinned = thin(points, count)
    assert len(thinned) <= count
    if number and number % len(thinned) == 0:
        assert np.mean(thinned, axis=0) == pytest.approx(np.mean(points, axis=0))
    assert thin(points, max(number, 1)) == points


@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e6))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_ticks_are_few_and_round(low: float, span: float) -> None:
    marks = ticks(low, low + span)
    assert 2 <= len(marks) <= 7
    steps = np.diff([value for value, _ in marks])
    assert steps == pytest.approx(steps[0])
    digits = float(f"{steps[0]:.3e}".split("e")[0])
    assert digits in (1, 2, 5)
    assert low - span * 1e-6 <= marks[0][0] and marks[-1][0] <= low + span * (1 + 1e-6)


def test_tick_labels() -> None:
    assert [label for _, label in ticks(0, 1)] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [label for _, label in ticks(0, 10_000)] == ["0", "2,000", "4,000", "6,000", "8,000", "10,000"]


def test_charts_place_points() -> None:
    chart = Chart("t", "x", "y", (0, 10), (0, 1), [], [])
    left, bottom = float(chart.LEFT), float(chart.height - chart.BOTTOM)
    right, top = float(chart.width - chart.RIGHT), float(chart.TOP)
    assert chart.place(0, 0) == (left, bottom)
    assert chart.place(10, 1) == (right, top)
    assert chart.place(5, 0.5) == ((left + right) / 2, (top + bottom) / 2)
    assert chart.place(20, -3) == (right, bottom)
    there_and_back = [(0, 0), (0, 0), (10, 1), (0, 0)]
    assert chart.path(there_and_back) == f"M{left} {bottom}L{right} {top}L{left} {bottom}"


# The page


class Reader(HTMLParser):
    """Collects tables, text, attributes and headings, and checks that every tag is closed."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data.strip()
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


RADII = {"ribosome": 150.0, "apo-ferritin <H>": 60.0, "beta-amylase": 65.0}


def example_scores(**options: object) -> dict:
    random = np.random.default_rng(1)
    predictions, references = {}, {}
    for run in ("demo/TS_1", "demo/TS_2"):
        truth = {name: random.uniform(0, 3000, (12, 3)) for name in list(RADII)[:2]}
        references[run] = {name: Picks.at(points) for name, points in truth.items()}
        predictions[run] = {
            name: Picks.at(np.concatenate([points[:8] + 5, random.uniform(0, 3000, (7, 3))]), random.random(15))
            for name, points in truth.items()
        }
    return evaluate(predictions, references, RADII, Evaluate(**options), "test")


MODEL = {
    "name": "unet",
    "network": {"family": "UNet", "channels": [16, 32], "dropout": 0.0},
    "classes": [{"name": "ribosome", "threshold": 0.415}, {"name": "membrane", "radius": None}],
    "verified": True,
}
SPLIT = {
    "folds": [
        {"train": ["demo/TS_9"], "validate": ["demo/TS_8"], "test": []},
        {"train": [f"demo/T{n}" for n in range(20)], "validate": ["demo/TS_4"], "test": ["demo/TS_1", "demo/TS_2"]},
    ],
    "fold": 1,
    "excluded": {"demo/bad_1": "ice <thick>", "demo/bad_2": "ice <thick>", "demo/bad_3": "no target"},
}


def target(run: int, spacing: float = 10.0) -> dict:
    particle = {"name": "ribosome", "label": 1, "radius": 150.0, "target_radius": 120.0, "sources": ["ribosome:a/0"]}
    membrane = {"name": "membrane", "label": 2, "radius": None, "target_radius": None, "sources": ["membrane:b/1"]}
    return {
        "segmentation": f"targets:tomoscout/1@{spacing}?multilabel=true",
        "classes": [
            membrane | {"voxels": 1000 * run, "voxels_lost_to_particles": run},
            particle | {"voxels": 5, "picks": {"used": 10 * run, "outside": run, "outside_at": [], "overlapping": 2}},
        ],
    }


def write(path: Path, scores: dict | None) -> Reader:
    layers = Layer(FOUND, "M1 2h3"), Layer(ODD, outlines=noise(50))
    picks = Pictures([marked('demo/TS_1 "slice" z = 3', *layers)], [FOUND, MISSED, ODD])
    targets = summarise_targets([{"targets": [target(run)]} for run in (1, 2)])
    write_report(path, "A <b>title</b> & more", scores, HISTORY, MODEL, SPLIT, targets, picks)
    return Reader(path.read_text())


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", example_scores())
    text = (tmp_path / "report.html").read_text()
    for tag, key, value in page.attributes:
        assert tag != "script" and tag != "link"
        if key in ("src", "xlink:href", "srcset"):
            assert value.startswith("data:image/png;base64,")
        if tag == "image" and key == "href":
            assert value.startswith("data:image/png;base64,")
        elif key == "href":
            assert value.startswith("#") and ("section", "id", value[1:]) in page.attributes
    assert not re.search(r"url\(|@import|https?://|//[a-z]", re.sub(r"base64,[^\"]*", "", text))
    before = text
    write(tmp_path / "report.html", example_scores())
    assert (tmp_path / "report.html").read_text() == before


def test_the_page_shows_every_score(tmp_path: Path) -> None:
    scores = example_scores(weights={"ribosome": 3.0}, beta=2.0, resamples=0)
    page = write(tmp_path / "report.html", scores)
    head, *rows, mean, pooled = page.tables[0]
    assert head[:5] == ["Object", "F2", "Precision", "Recall", "Average precision"] and head[-1] == "Weight"
    keys = ["f", "precision", "recall", "average_precision"]
    counts = ["references", "predictions", "true_positives", "false_negatives", "false_positives"]
    for row, entry in zip(rows, scores["objects"], strict=True):
        numbers = ["–" if entry[key] is None else f"{entry[key]:.3f}" for key in keys]
        error = "–" if entry["localisation_error"] is None else f"{entry['localisation_error']:.1f}"
        assert row == [entry["object"], *numbers, *(str(entry[key]) for key in counts), error, f"{entry['weight']:g}"]
    assert mean[:5] == ["weighted mean", *(f"{scores['mean'][key]:.3f}" for key in keys)]
    assert pooled[5:10] == [str(scores["pooled"][key]) for key in counts]
    runs = page.tables[1][1:]
    assert [row[:2] for row in runs] == [[entry["run"], entry["object"]] for entry in scores["runs"]]
    assert [row[-2] for row in runs] == [str(entry["false_positives"]) for entry in scores["runs"]]
    assert f"{scores['mean']['f']:.3f}mean F2 over objects" in page.text.replace("\n", "")
    equal = write(tmp_path / "report.html", example_scores()).tables[0]
    assert "Weight" not in equal[0] and equal[-2][0] == "mean"


def test_the_page_shows_intervals_other_picks_and_segmentations(tmp_path: Path) -> None:
    scores = example_scores()
    other = {key: scores[key] for key in ("objects", "mean", "pooled", "runs", "runs_without_predictions")}
    voxels = {"voxels": 3000, "reference": 2000, "dice": 0.75, "iou": 0.6, "surface_distance": 12.34}
    intervals = {"dice": [0.7, 0.8], "iou": None, "surface_distance": None}
    facts = {"segmentation": "predicted:tomoscout/unet", "against": "targets", "class": "membrane", "runs": []}
    scores |= {"picks": "tomoscout/unet", "also": [{"picks": "octopi/1", **other}]}
    scores["segmentations"] = [{**facts, **voxels, "intervals": intervals}]
    page = write(tmp_path / "report.html", scores)
    first, beside, segmentations = page.tables[:3]
    low, high = scores["objects"][0]["intervals"]["f"]
    cell = f"{scores['objects'][0]['f']:.3f}{low:.3f}–{high:.3f}"
    assert first[1][1] == cell
    assert beside[0] == ["Object", "tomoscout/unet", "octopi/1"]
    assert beside[1] == [scores["objects"][0]["object"], cell, cell]
    error = f"{scores['pooled']['localisation_error']:.1f}"
    assert beside[-1] == ["Localisation error (Å)", error, error]
    assert segmentations[1] == [
        *("predicted:tomoscout/unet", "membrane", "0.7500.700–0.800", "0.600", "12.3", "3,000", "2,000", "targets"),
    ]
    assert "intervals of 95 %" in page.text


NEW_COLUMN = """
import pathlib, sys
import numpy as np
from tomoscout.tasks.picking import score_columns as columns

new = columns.Column("surplus", "Surplus picks", 9, lambda these: these.found + these.false + 4321)
columns.COLUMNS += (new,)
columns.RUN_COLUMNS += (new,)
columns.PAGE_COLUMNS += (new,)

from tomoscout.data.picks import Picks
from tomoscout.report.page import write_report
from tomoscout.tasks.picking.options import Evaluate
from tomoscout.tasks.picking.score_tables import format_table, read_scores, write_scores
from tomoscout.tasks.picking.scores import evaluate

folder = pathlib.Path(sys.argv[1])
picks = {"p/a": {"ribosome": Picks.at(np.zeros((1, 3)))}}
write_scores(folder, evaluate(picks, picks, {"ribosome": 100.0}, Evaluate(), "test"))
scores = read_scores(folder)
write_report(folder / "report.html", "Scores", scores, [], {}, {}, [])
print(format_table(scores))
"""


def test_a_new_column_of_scores_is_one_entry_of_a_list(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", NEW_COLUMN, tmp_path], capture_output=True, text=True, check=True)
    table = [line.split() for line in result.stdout.splitlines() if line.startswith(("object", "ribosome", "mean"))]
    assert [row[-1] for row in table] == ["surplus", "4322", "4322"]
    for name in ("objects.csv", "runs.csv"):
        rows = (tmp_path / name).read_text().splitlines()
        assert [row.split(",")[-1] for row in rows] == ["surplus", "4322"]
    (head, *rows, _, pooled), (run_head, run) = Reader((tmp_path / "report.html").read_text()).tables
    assert [row[-1] for row in (head, *rows, pooled, run_head, run)] == [
        *("Surplus picks", "4,322", "4,322"),
        *("Surplus picks", "4,322"),
    ]


def test_names_are_shown_as_text(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", example_scores())
    assert page.headings[0] == "A <b>title</b> & more"
    assert ("svg", "aria-label", 'demo/TS_1 "slice" z = 3') in page.attributes
    assert "<b>&" in page.text
    assert "ice <thick>" in page.text


def test_every_mark_of_the_pictures_can_be_hidden(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", example_scores())
    boxes = [value for tag, key, value in page.attributes if (tag, key) == ("input", "id")]
    assert boxes == ["show-0", "show-1", "show-2"]
    assert ("path", "class", "mark-0") in page.attributes and ("image", "class", "mark-2") in page.attributes
    style = (tmp_path / "report.html").read_text().partition("</style>")[0]
    for number, box in enumerate(boxes):
        assert f"section:has(#{box}:not(:checked)) .mark-{number} {{ display: none; }}" in style
    figure = ElementTree.parse(tmp_path / "report/picks/demo-TS-1-slice-z-3.svg").getroot()
    assert [part.get("d") for part in figure.iter("{http://www.w3.org/2000/svg}path")] == ["M1 2h3"]


def test_curves_end_at_the_scores(tmp_path: Path) -> None:
    scores = example_scores()
    charts = precision_recall_charts(scores)
    # The object without references has no curve.
    assert [chart.title for chart in charts] == ["ribosome", "apo-ferritin <H>"]
    for chart, entry in zip(charts, scores["objects"], strict=False):
        assert chart.lines[-1].name == entry["object"] and chart.lines[-1].style == "line"
        assert chart.lines[-1].points[-1] == (entry["recall"], entry["precision"])
        assert (chart.dots[0].x, chart.dots[0].y) == (entry["recall"], entry["precision"])
    write(tmp_path / "report.html", scores)
    own = charts[0].path(charts[0].lines[-1].points)
    assert (tmp_path / "report.html").read_text().count(own) == 2


def test_data_and_model_are_shown(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", example_scores())
    excluded, targets, facts, classes = page.tables[2:]
    assert excluded[1:] == [["ice <thick>", "demo/bad_1demo/bad_2"], ["no target", "demo/bad_3"]]
    assert targets[1:] == [
        ["ribosome", "1", "150", "120", "ribosome:a/0", "30", "3", "4", "10", "–"],
        ["membrane", "2", "–", "–", "membrane:b/1", "–", "–", "–", "3,000", "3"],
    ]
    assert ["network · channels", "16, 32"] in facts and ["verified", "yes"] in facts
    assert classes == [["name", "threshold", "radius"], ["ribosome", "0.415", "–"], ["membrane", "–", "–"]]
    assert "demo/T19" in page.text and "demo/TS_9" not in page.text
    assert page.headings[1:] == [
        "Scores",
        "Precision over recall",
        "Picks in the tomograms",
        "Training",
        "Split and targets",
        "Split",
        "Left out",
        "Targets",
        "Model",
        "classes",
    ]


def test_a_page_without_scores_or_anything_else(tmp_path: Path) -> None:
    page = write(tmp_path / "report.html", None)
    assert "Nothing was scored" in page.text
    write_report(tmp_path / "empty.html", "Empty", None, [], {}, {}, [])
    assert Reader((tmp_path / "empty.html").read_text()).headings == ["Empty", "Scores"]


def test_facts_are_flattened() -> None:
    assert flatten({"a_b": {"c": {"d": 0.1234567}}, "list": [], "none": None, "rows": [{"x": 1}]}) == [
        ("a b · c · d", "0.123457"),
        ("list", "none"),
        ("none", "–"),
    ]
    assert tables({"rows": [{"x": 1}, {"y_z": [1, 2]}], "other": [1]}) == [
        ("rows", ["x", "y z"], [["1", "–"], ["–", "1, 2"]])
    ]


def test_no_targets_sum_up_to_nothing() -> None:
    assert summarise_targets([]) == []


def test_targets_of_several_voxel_spacings_have_a_table_each(tmp_path: Path) -> None:
    manifests = [{"targets": [target(1), target(3, 20.0)]}, {"targets": [target(2, 20.0)]}]
    found = summarise_targets(manifests)
    assert [(entry["segmentation"], entry["runs"]) for entry in found] == [
        ("targets:tomoscout/1@10.0?multilabel=true", 1),
        ("targets:tomoscout/1@20.0?multilabel=true", 2),
    ]
    assert [[row["used"] for row in entry["classes"]] for entry in found] == [[10, None], [50, None]]
    write_report(tmp_path / "report.html", "T", None, [], {}, {}, found)
    page = Reader((tmp_path / "report.html").read_text())
    assert [[row[5] for row in table[1:]] for table in page.tables] == [["10", "–"], ["50", "–"]]
    assert page.headings.count("Targets") == 1


def test_a_line_without_points_is_left_out(tmp_path: Path) -> None:
    scores = example_scores()
    scores["curves"][0] |= {"recall": [], "precision": []}
    charts = precision_recall_charts(scores)
    assert charts[0].dots == [] and charts[0].lines[-1] == Line("ribosome", "line", [])
    assert write(tmp_path / "report.html", scores).tables
