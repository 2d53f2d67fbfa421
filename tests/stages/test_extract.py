"""The extraction stage: what each kind writes, in which order, from what, and when it is made again."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import copick
import numpy as np
import pytest

from support.project import SHAPE, SmallProject, error_of, succeeded
from tomoscout.data.written import Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.options.config import parse_config
from tomoscout.options.names import Source

RIBOSOMES = "ribosome:expert/0"
CENTRE = np.array([200.0, 160.0, 120.0])
RADIUS = 60.0
# In the ball, near it on either side, far from it; along x, y and z.
PLACES = CENTRE + np.array([[0, 0, 0], [40, 0, 0], [0, 85, 0], [0, 0, -80], [-150, 0, 0]])
DISTANCES = [-60.0, -20.0, 25.0, 20.0, 90.0]


def ball(radius: float = RADIUS) -> np.ndarray:
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    away = [10.0 * index - c for index, c in zip((x, y, z), CENTRE, strict=True)]
    return np.asarray(sum(part**2 for part in away) <= radius**2)


@pytest.fixture
def small(small: SmallProject) -> SmallProject:
    """A run with a ball that is segmented, and ribosomes in and around it."""
    small.add_run("a")
    small.add_segmentation("a", "organelle:expert/0", ball())
    small.add_picks("a", RIBOSOMES, PLACES.tolist())
    return small


def extract(small: SmallProject, **extractions: dict[str, Any]):
    """Run the stage for all batches, as the workflow does."""
    small.configure(extract=extractions)
    succeeded(small.list_runs())
    return small.command("extract", "--batch", "0", "--output", small.folder / "results/extract/batch-0000.json")


def near(**options: Any) -> dict[str, Any]:
    return {"kind": "near", "picks": [RIBOSOMES], "segmentation": "organelle:expert/0", "distance": 50, **options}


def rows(small: SmallProject, name: str) -> list[dict[str, str]]:
    with (small.folder / f"results/extract/{name}/demo/a.csv").open() as handle:
        return list(csv.DictReader(handle))


def written(small: SmallProject, name: str, what: str = "ribosome"):
    return small.project().read_picks("a", Source(what, "tomoscout", name))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 2, 3]),
        ({"distance": 100}, [0, 1, 2, 3, 4]),
        ({"distance": [50, 100]}, [0, 4]),
        ({"kind": "inside", "distance": None}, [0, 1]),
        ({"kind": "inside"}, [1]),
        ({"kind": "outside", "distance": None}, [2, 3, 4]),
        ({"kind": "outside"}, [2, 3]),
        ({"kind": "mask", "distance": None}, [0, 1]),
    ],
)
def test_picks_by_where_they_lie(small: SmallProject, options: dict, expected: list[int]) -> None:
    succeeded(extract(small, chosen=near(**options)))
    assert written(small, "chosen").positions == pytest.approx(PLACES[expected])
    # The table has all picks, those left out without a number of what is written.
    table = rows(small, "chosen")
    assert [row["number"] for row in table] == ["0", "1", "2", "3", "4"]
    assert [number for number, row in enumerate(table) if row["written"]] == expected
    assert [row["written"] for row in table if row["written"]] == [str(n) for n in range(len(expected))]
    if options.get("kind") != "mask":
        assert [float(row["distance"]) for row in table] == pytest.approx(DISTANCES, abs=4)


def test_picks_are_turned_along_the_normal(small: SmallProject) -> None:
    succeeded(extract(small, chosen=near(orient=True)))
    axes = written(small, "chosen").rotations @ [0, 0, 1]
    assert axes == pytest.approx(np.array([[1, 0, 0], [0, 1, 0], [0, 0, -1]]), abs=0.05)
    # As copick's programs read it.
    [found] = copick.from_file(str(small.copick)).get_run("a").get_picks("ribosome", "tomoscout", "chosen")
    for point, axis in zip(found.points, axes, strict=True):
        assert (point.transformation @ [0, 0, 1, 0])[:3] == pytest.approx(axis)
        assert point.transformation[:3, 3] == pytest.approx(0)
    row = rows(small, "chosen")[2]
    assert [float(row[f"normal_{axis}"]) for axis in "xyz"] == pytest.approx([0, 1, 0], abs=0.05)
    assert [float(row[f"nearest_{axis}"]) for axis in "xyz"] == pytest.approx(CENTRE + np.array([0, RADIUS, 0]), abs=4)


def test_scores_and_instances_stay(small: SmallProject) -> None:
    project = small.project()
    picks = project.read_picks("a", Source.parse(RIBOSOMES))
    picks.scores[:] = [0.5, 0.6, 0.7, 0.8, 0.9]
    picks.instances[:] = [1, 2, 3, 4, 5]
    project.write_picks("a", Source("ribosome", "me", "1"), picks)
    succeeded(extract(small, chosen=near(picks="me/1")))
    assert written(small, "chosen").scores.tolist() == [0.6, 0.7, 0.8]
    assert written(small, "chosen").instances.tolist() == [2, 3, 4]
    assert [row["score"] for row in rows(small, "chosen")] == ["0.5", "0.6", "0.7", "0.8", "0.9"]


def test_the_sides_of_a_membrane(small: SmallProject) -> None:
    small.add_segmentation("a", "membrane:expert/0", ball(70) & ~ball(50))
    membrane = {"segmentation": "membrane:expert/0", "surface": "middle", "distance": None}
    succeeded(extract(small, lumen=near(kind="inside", **membrane), cytosol=near(kind="outside", **membrane)))
    assert written(small, "lumen").positions == pytest.approx(PLACES[[0, 1]])
    assert written(small, "cytosol").positions == pytest.approx(PLACES[[2, 3, 4]])
    assert [float(row["distance"]) for row in rows(small, "lumen")] == pytest.approx(DISTANCES, abs=5)


def test_neighbours_and_midpoints(small: SmallProject) -> None:
    small.add_picks("a", "ferritin:expert/0", [[200, 160, 180], [210, 245, 120], [0, 0, 0]])
    options = {"picks": [RIBOSOMES], "partners": "expert/0", "distance": 70}
    partners = {**options, "partners": ["ferritin:expert/0"]}
    succeeded(
        extract(
            small,
            beside={"kind": "neighbours", **partners},
            middles={"kind": "midpoints", **partners, "object": "proteasome"},
            far={"kind": "midpoints", **partners, "distance": [50, 70], "object": "ribosome"},
            all={"kind": "midpoints", **partners, "pairs": "all"},
            alone={"kind": "neighbours", "picks": [RIBOSOMES], "distance": 41},
        )
    )
    assert written(small, "beside").positions == pytest.approx(PLACES[[0, 2]])
    assert written(small, "alone").positions == pytest.approx(PLACES[[0, 1]])
    middles = written(small, "middles", "proteasome")
    assert middles.positions == pytest.approx(np.array([[200, 160, 150], [205, 245, 120]]))
    assert middles.rotations @ [0, 0, 1] == pytest.approx(np.array([[0, 0, 1], [1, 0, 0]]))
    assert [(row["partner_source"], row["partner_number"], row["distance"]) for row in rows(small, "middles")] == [
        ("ferritin:expert/0", "0", "60.0"),
        ("ferritin:expert/0", "1", "10.0"),
    ]
    assert written(small, "far").positions == pytest.approx(np.array([[200, 160, 150]]))
    assert len(written(small, "all")) == 2


def test_one_label_of_a_segmentation(small: SmallProject) -> None:
    labels = ball().astype(np.uint16) * 9 + ball(30) * 3
    project = small.project()
    project.write_segmentation("a", Segmentation("seen", "expert", "0", 10.0, True), labels, {})
    by_name = {"kind": "label", "segmentation": "seen:expert/0", "label": "membrane"}
    succeeded(extract(small, outer=by_name, inner={**by_name, "label": 12, "object": "proteasome"}))
    project = small.project()
    for name, session, mask in (("membrane", "outer", ball() & ~ball(30)), ("proteasome", "inner", ball(30))):
        stored = project.read_segmentation("a", Segmentation(name, "tomoscout", session, 10.0, False))
        assert stored.dtype == np.uint8 and (stored == mask).all()
    assert "membrane 9" in error_of(extract(small, outer={**by_name, "label": "membrain"}))


def test_one_extraction_reads_what_another_makes(small: SmallProject) -> None:
    """In the order in which they follow from each other, whatever the order in the file."""
    labels = ball().astype(np.uint8) * 9
    small.project().write_segmentation("a", Segmentation("seen", "expert", "0", 10.0, True), labels, {})
    chain = {
        "last": {"kind": "neighbours", "picks": "tomoscout/chosen", "distance": 200},
        "chosen": near(segmentation="membrane:tomoscout/part"),
        "part": {"kind": "label", "segmentation": "seen:expert/0", "label": "membrane"},
    }
    succeeded(extract(small, **chain))
    assert len(written(small, "last")) == len(written(small, "chosen")) == 3
    circle = {**chain, "part": {**chain["part"], "segmentation": "ribosome:tomoscout/last"}}
    assert "reads what it makes itself" in error_of(extract(small, **circle))


def stamps(small: SmallProject) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in small.overlay.rglob("tomoscout_*.json")}


def test_only_what_changed_is_made_again(small: SmallProject) -> None:
    both = {"first": near(), "second": near(kind="outside")}
    succeeded(extract(small, **both))
    before = stamps(small)
    assert "up to date" in succeeded(extract(small, **both)).output and stamps(small) == before
    succeeded(extract(small, first=near(), second=near(kind="inside")))
    after = stamps(small)
    assert after["tomoscout_first_ribosome.json"] == before["tomoscout_first_ribosome.json"]
    assert after["tomoscout_second_ribosome.json"] != before["tomoscout_second_ribosome.json"]
    small.add_picks("a", RIBOSOMES, PLACES[3:].tolist())
    succeeded(extract(small, **both))
    assert written(small, "first").positions == pytest.approx(PLACES[[3]])
    small.add_segmentation("a", "organelle:expert/0", np.zeros(SHAPE))
    succeeded(extract(small, **both))
    assert len(written(small, "first")) == 0, "earlier picks are replaced, also by none"
    assert {row["distance"] for row in rows(small, "first")} == {""}
    assert (
        succeeded(small.command("verify", "--results", small.inventory.parent)).output
        == "4 digests compared, 0 problems\n"
    )
    (small.folder / "results/extract/first/demo/a.csv").write_text("object\n")
    assert (
        "file a.csv has changed since it was written"
        in small.command("verify", "--results", small.inventory.parent).output
    )


def test_these_runs_alone(small: SmallProject) -> None:
    for run in ("b", "c"):
        small.add_run(run)
    small.add_segmentation("b", "organelle:expert/0", ball())
    small.add_picks("b", RIBOSOMES, PLACES.tolist())
    succeeded(extract(small, chosen=near(runs=["b"])))
    sources = {run: {s.session for s in small.project().pick_sources(run)} for run in ("a", "b")}
    assert sources == {"a": {"0"}, "b": {"0", "chosen"}}
    assert error_of(extract(small, chosen=near(runs=["a", "demo/c"]))) == (
        "extract.chosen.runs: demo/c has no ribosome:expert/0, or split.exclude leaves it out"
    )
    assert "extract.chosen.runs: no run 'd'" in error_of(extract(small, chosen=near(runs=["d"])))


def test_the_work_of_others_is_not_written_over(small: SmallProject) -> None:
    small.add_picks("a", "ribosome:tomoscout/chosen", PLACES.tolist())
    message = error_of(extract(small, chosen=near()))
    assert "choose another extract.chosen.session" in message
    message = error_of(extract(small, chosen=near(), other=near(session="chosen")))
    assert message == "extract.other.session: tomoscout/chosen is that of chosen; choose another"


def test_what_is_missing_is_named(small: SmallProject) -> None:
    assert error_of(extract(small, chosen=near(segmentation="vesicle:me/1"))) == (
        "extract.chosen.segmentation: no run has vesicle:me/1"
    )
    assert error_of(extract(small, chosen=near(picks="me/2"))) == "extract.chosen.picks: no run has me/2"
    small.add_picks("a", "ferritin:expert/0", PLACES.tolist())
    message = error_of(extract(small, middles={"kind": "midpoints", "picks": "expert/0", "distance": 50}))
    assert "extract.middles.object: not given, and demo/a has picks of ferritin, ribosome" in message
    small.configure(targets={}, extract={"chosen": {**near(), "picks": None}})
    message = error_of(small.command("extract", "--batch", "0", "--output", small.folder / "out.json"))
    assert message.startswith("extract.chosen.picks: not given, and nothing is localised here")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "near", "segmentation": "a:b/c"}, "extract.x: kind near needs distance"),
        (
            {"kind": "label", "segmentation": "a:b/c", "orient": True},
            "kind label takes no orient; expected segmentation",
        ),
        (
            {"kind": "near", "segmentation": "a:b/c", "distance": [9, 3]},
            "extract.x.distance: 9 and 3 are not in rising order",
        ),
        ({"kind": "mask", "segmentation": "a"}, r"extract.x.segmentation: 'a' names no user and session"),
        ({"kind": "neighbours", "distance": 1, "partners": ["a"]}, r"extract.x.partners: 'a' names no user"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    values = {"projects": {"demo": "copick.json"}, "tomograms": ["wbp@10.0"], "extract": {"x": options}}
    with pytest.raises(TomoscoutError, match=message):
        parse_config(values, "config")


def test_a_configuration_survives_being_written(small: SmallProject, tmp_path: Path) -> None:
    config = small.configure(extract={"chosen": near(orient=True), "part": {"kind": "label", "segmentation": "a:b/c"}})
    again = parse_config(config.model_dump(mode="json", by_alias=True), "config")
    assert again == config
