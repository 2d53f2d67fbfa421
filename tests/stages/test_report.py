"""The report stage: pages of a small project that is scored, only localised, or only segmented."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from support.project import SHAPE, SmallProject, succeeded
from tomoscout.data.inventory import read_inventory
from tomoscout.data.picks import Picks
from tomoscout.data.written import Segmentation
from tomoscout.options.names import Source
from tomoscout.plan.plan import Plan
from tomoscout.plan.predictions import predicted_segmentation
from tomoscout.stages.report import run_report

THEIRS = Segmentation("predict", "octopi", "1", 10.0, True)
LABELS = {"localize": {"segmentation": "predict:octopi/1"}, "targets": {}}


def balls(*centres: tuple[int, int, int]) -> np.ndarray:
    """Labels of ribosomes (7) with a radius of 6 voxels, and a membrane (9) in two slices."""
    z, y, x = np.indices(SHAPE)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[20:22] = 9
    # Labels of nothing in the copick config.
    labels[0, 0] = 200
    for centre in centres:
        labels[(z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= 36] = 7
    return labels


@pytest.fixture
def segmented(small: SmallProject) -> SmallProject:
    """Two runs; in each a ribosome is labelled, in the first at its place, in the second elsewhere."""
    for run, centre in (("TS_1", (8, 10, 10)), ("TS_2", (8, 20, 30))):
        small.add_run(run)
        small.add_picks(run, "ribosome:expert/0", [[100, 100, 80]])
        small.project().write_segmentation(run, THEIRS, balls(centre), {})
    return small


def report(project: SmallProject, name: str, *, scored: bool) -> str:
    """The page, made by the commands of the workflow."""
    results = project.folder / "results"
    localized, scores, page = results / "localize" / name, results / "evaluate" / name, results / "report.html"
    succeeded(project.list_runs())
    succeeded(project.command("localize", "--batch", "0", "--output", localized / "batch-0000.json"))
    extra: list[str | Path] = []
    if scored:
        succeeded(project.command("evaluate", "--localized", localized, "--output", scores))
        extra = ["--scores", scores]
    succeeded(project.command("report", "--localized", localized, "--output", page, *extra))
    return page.read_text()


def captions(page: str) -> list[str]:
    return [unescape(text).replace("\u00a0", " ") for text in re.findall(r"<figcaption>(.*?)</figcaption>", page)]


def test_a_scored_page_shows_every_set_of_picks_and_the_worst(segmented: SmallProject) -> None:
    turned = np.array([[[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]])
    places = np.array([[110.0, 100, 80]])
    segmented.project().write_picks("TS_1", Source("ribosome", "alice", "2"), Picks.at(places, rotations=turned))
    segmented.configure(**LABELS, evaluate={"reference": "expert/0", "also": ["alice/2"]})
    page = report(segmented, "predict-octopi-1", scored=True)
    legend = re.findall(r"</svg>([^<]*)</label>", page)
    assert legend == ["found", "missed", "false", "tomoscout/predict-octopi-1", "alice/2"]
    shown = captions(page)
    counts = "1 found, 0 missed, 0 false, 1 tomoscout/predict-octopi-1, 1 alice/2"
    assert f"demo/TS_1, slice z = 8 (mean of 7 slices, 7 nm): {counts}" in shown
    # Only the picks of alice/2 have an orientation: along x, by the radius of 60 Å.
    assert re.search(r'<path class="mark-4"[^>]* d="[^"]*M11\.5 10\.5L17\.5 10\.5l', page)
    assert "demo/TS_2, x 100, y 100, z 80 Å: nearest pick 224 Å away" in shown
    assert any(re.fullmatch(r"demo/TS_2, x 300, y 200, z 80 Å: score [01]\.\d{3}", caption) for caption in shown)
    assert "ribosome, missed <span>1 of 1</span>" in page and "ribosome, false <span>1 of 1</span>" in page
    assert {path.parent.name for path in (segmented.folder / "results/report").rglob("*.svg")} >= {"picks", "worst"}
    segmented.configure(**LABELS, evaluate={"reference": "expert/0"}, report={"worst": 0})
    assert "The worst" not in report(segmented, "predict-octopi-1", scored=True)


def test_a_page_without_reference_shows_picks_and_labels(segmented: SmallProject) -> None:
    segmented.configure(**LABELS, report={"runs": 1, "slices_per_run": 1})
    page = report(segmented, "predict-octopi-1", scored=False)
    assert re.findall(r"</svg>([^<]*)</label>", page) == [
        *("ribosome", "ferritin", "proteasome"),
        *("ribosome, labels", "membrane, labels"),
    ]
    [shown] = [text for text in captions(page) if "slice z" in text]
    assert shown == "demo/TS_1, slice z = 8 (mean of 7 slices, 7 nm): 1 ribosome, 0 ferritin, 0 proteasome"
    volume, whole = int((balls((8, 10, 10)) == 7).sum()), int(np.prod(SHAPE))
    facts = volume, volume, f"{100 * volume / whole:.2f}", "1 of 1"
    cells = "".join(f'<td class="number">{fact}</td>' for fact in facts)
    assert f'<tr><th scope="row">ribosome</th>{cells}</tr>' in page
    assert "in 1 of 2 runs" in page
    # The slice has no membrane.
    assert 'class="mark-3"' in page and 'class="mark-4"' not in page


def test_a_page_of_a_project_that_was_only_segmented(segmented: SmallProject) -> None:
    config = segmented.configure(targets={}, segment={"models": ["unet"]})
    succeeded(segmented.list_runs())
    plan = Plan(config, read_inventory(segmented.inventory), segmented.folder / "results")
    localized = plan.results.localize(config.session)
    for record in plan.localized:
        manifest = localized / record.project / f"{record.run}.json"
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(json.dumps({"project": "demo", "run": record.run, "picks": {}, "thresholds": {}}))
        labels = np.where(balls((8, 10, 10)) == 9, 9, 0).astype(np.uint8)
        segmented.project().write_segmentation(record.run, predicted_segmentation(config), labels, {})
    run_report(plan, localized=localized, output=segmented.folder / "page.html")
    page = (segmented.folder / "page.html").read_text()
    assert "Labels in the tomograms" in page and "<span>picks found" not in page and "Picks of every run" not in page
    assert "<b>1</b><span>class segmented" in page
    # The first of the two slices with a membrane.
    assert [text for text in captions(page) if "slice z" in text] == [
        f"demo/{run}, slice z = 20 (mean of 5 slices, 5 nm)" for run in ("TS_1", "TS_2")
    ]
    assert page.count('<image class="mark-0"') == 2
