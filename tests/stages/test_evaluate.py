"""The evaluation stage: which reference picks are counted, and what is scored beside."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from support.project import SHAPE, SmallProject, error_of, succeeded
from tomoscout.data.picks import Picks
from tomoscout.data.written import Segmentation
from tomoscout.machine.files import read_json, write_json
from tomoscout.options.names import Source

INSIDE = [(100.0, 100.0, 100.0), (300.0, 200.0, 100.0)]
OUTSIDE = [(-50.0, 100.0, 100.0), (100.0, 100.0, 1000.0)]


@pytest.fixture
def scored(small: SmallProject) -> Any:
    """Scores of predictions at the places inside, against the reference picks given for run b."""

    def score(reference: list[tuple[float, ...]], **evaluate: Any) -> tuple[dict[str, Any], str]:
        for run in ("a", "b"):
            small.add_run(run)
            small.add_picks(run, "ribosome:expert/0", reference if run == "b" else INSIDE)
        small.configure(split={"train": ["a"], "validate": ["b"]}, evaluate={"runs": "validate", **evaluate})
        succeeded(small.list_runs())
        localized = small.folder / "localized"
        source = Source("ribosome", "tomoscout", "unet")
        small.project().write_picks("b", source, Picks.at(np.array(INSIDE)), "inputs")
        facts = {"project": "demo", "run": "b", "inputs": "inputs"}
        manifest = {**facts, "picks": {"ribosome": {"source": str(source)}}}
        write_json(localized / "demo" / "b.json", manifest)
        output: Path = small.folder / "scores"
        result = succeeded(small.command("evaluate", "--localized", localized, "--output", output))
        return read_json(output / "scores.json"), result.stdout

    return score


@pytest.fixture
def two_runs(small: SmallProject) -> Any:
    """Scores of the predictions in two runs: all picks are found in one, half of them in the other."""

    def score(**evaluate: Any) -> Any:
        for run in ("a", "b", "c"):
            small.add_run(run)
            small.add_picks(run, "ribosome:expert/0", INSIDE)
        small.configure(split={"train": ["a"], "validate": ["b", "c"]}, evaluate={"runs": "validate", **evaluate})
        succeeded(small.list_runs())
        source = Source("ribosome", "tomoscout", "unet")
        for run, places in (("b", INSIDE), ("c", INSIDE[:1])):
            small.project().write_picks(run, source, Picks.at(np.array(places)), "inputs")
            facts = {"project": "demo", "run": run, "inputs": "inputs", "picks": {"ribosome": {"source": str(source)}}}
            write_json(small.folder / f"localized/demo/{run}.json", facts)
        return small.command("evaluate", "--localized", small.folder / "localized", "--output", small.folder / "scores")

    return score


def rows_of(small: SmallProject, name: str) -> list[dict[str, str]]:
    with (small.folder / "scores" / name).open() as handle:
        return list(csv.DictReader(handle))


def test_other_picks_are_scored_beside(two_runs: Any, small: SmallProject) -> None:
    small.add_picks("b", "ribosome:octopi/1", [(110.0, 100.0, 100.0), (0.0, 0.0, 0.0)])
    small.add_picks("b", "ferritin:octopi/1", INSIDE)
    printed = succeeded(two_runs(also=["octopi/1", "expert/0"])).output
    scores = read_json(small.folder / "scores/scores.json")
    assert scores["picks"] == "tomoscout/unet" and scores["pooled"]["true_positives"] == 3
    octopi, expert = scores["also"]
    assert (octopi["picks"], expert["picks"]) == ("octopi/1", "expert/0")
    assert (octopi["pooled"]["true_positives"], octopi["pooled"]["false_positives"]) == (1, 1)
    assert octopi["pooled"]["references"] == 4, "the same references, also in the run without such picks"
    assert octopi["runs_without_predictions"] == ["demo/c"] and octopi["pooled"]["localisation_error"] == 10.0
    assert expert["pooled"]["recall"] == 1.0
    table = rows_of(small, "objects.csv")
    assert [(row["object"], row["picks"], row["recall"]) for row in table] == [
        ("ribosome", "tomoscout/unet", "0.75"),
        ("ribosome", "octopi/1", "0.25"),
        ("ribosome", "expert/0", "1.0"),
    ]
    assert [row["picks"] for row in rows_of(small, "runs.csv")] == [row["picks"] for row in table for _ in range(2)]
    assert "octopi/1:" in printed


def test_orientations_are_compared_where_both_have_them(two_runs: Any, small: SmallProject) -> None:
    for run in ("b", "c"):
        small.add_run(run)
        truth = Rotation.random(2, random_state=1)
        off = Rotation.from_euler("x", 10, degrees=True) * truth
        for user, turns in (("human", truth), ("other", off)):
            picks = Picks.at(np.array(INSIDE), rotations=turns.as_matrix())
            small.project().write_picks(run, Source("ribosome", user, "1"), picks)
    succeeded(two_runs(reference="human/1", also=["other/1"]))
    scores = read_json(small.folder / "scores/scores.json")
    assert scores["pooled"]["angular_error"] is None, "the model gives none"
    assert scores["also"][0]["pooled"]["angular_error"] == pytest.approx(10, abs=1e-6)
    assert 0 < scores["also"][0]["pooled"]["tilt_error"] <= 10


def test_picks_that_no_run_has_are_refused(two_runs: Any) -> None:
    assert error_of(two_runs(also=["nobody/1"])) == (
        "evaluate.also: no scored run has picks of nobody/1; found picks of: expert/0, tomoscout/unet"
    )


def test_segmentations_are_scored(two_runs: Any, small: SmallProject) -> None:
    """A binary one against one of the same class, and labels against the targets."""
    inner, outer = np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=bool)
    inner[8:12, 8:12, 8:12] = outer[8:12, 8:12, 8:16] = True
    for run in ("b", "c"):
        small.add_run(run)
        small.add_segmentation(run, "membrane:me/1", inner)
        small.add_segmentation(run, "membrane:alice/1", outer)
    options = {"segmentations": ["membrane:me/1"], "segmentation_reference": "membrane:alice/1"}
    printed = succeeded(two_runs(**options)).output
    [scored] = read_json(small.folder / "scores/scores.json")["segmentations"]
    assert (scored["class"], scored["against"]) == ("membrane", "membrane:alice/1")
    assert (scored["dice"], scored["iou"]) == (pytest.approx(2 / 3), 0.5)
    assert scored["intervals"]["dice"] == pytest.approx([2 / 3] * 2)
    assert [row["run"] for row in rows_of(small, "segmentations.csv")] == ["all", "demo/b", "demo/c"]
    assert "membrane:me/1" in printed
    # Against the targets, made of the picks of the expert; ribosomes have the label 7.
    succeeded(small.make_targets())
    target = small.project().read_segmentation("b", Segmentation("targets", "tomoscout", "1", 10.0, True))
    found = np.where(target == 7, 7, 0).astype(np.uint8)
    found[0] = 7
    for run in ("b", "c"):
        small.project().write_segmentation(run, Segmentation("seen", "me", "1", 10.0, True), found, {})
    succeeded(two_runs(segmentations=["seen:me/1"]))
    [scored] = read_json(small.folder / "scores/scores.json")["segmentations"]
    both, more = int((target == 7).sum()), int((found == 7).sum())
    assert scored["class"] == "ribosome" and scored["against"] == "targets"
    assert scored["dice"] == pytest.approx(2 * both / (both + more)) and more > both


def test_segmentations_that_cannot_be_compared_are_refused(two_runs: Any, small: SmallProject) -> None:
    assert "no scored run has both seen:me/1 and targets" in error_of(two_runs(segmentations=["seen:me/1"]))
    small.add_segmentation("b", "membrane:me/1", np.ones((4, 4, 4)))
    small.add_segmentation("b", "membrane:alice/1", np.ones((4, 4, 5)))
    options = {"segmentations": ["membrane:me/1"], "segmentation_reference": "membrane:alice/1"}
    message = error_of(two_runs(**options))
    assert "has (4, 4, 4) voxels z, y, x and membrane:alice/1@10.0 (4, 4, 5)" in message


def test_sound_reference_picks_are_all_counted(scored: Any) -> None:
    scores, table = scored(INSIDE)
    assert (scores["pooled"]["references"], scores["pooled"]["recall"]) == (2, 1.0)
    assert scores["doubtful_references"] == []
    assert "outside" not in table


def test_reference_picks_that_nothing_can_find_are_counted_apart(scored: Any) -> None:
    near = tuple(value + 3.0 for value in INSIDE[0])
    scores, table = scored([*INSIDE, *OUTSIDE, INSIDE[1], near])
    assert (scores["pooled"]["references"], scores["pooled"]["recall"]) == (2, 1.0)
    assert scores["doubtful_references"] == [{"run": "demo/b", "object": "ribosome", "outside": 2, "repeated": 2}]
    assert (
        "Reference picks outside of their tomogram: 2, of a particle that was picked before: 2; not counted "
        "(demo/b ribosome 4)."
    ) in table


def test_two_particles_that_touch_are_two(scored: Any) -> None:
    # 0.3 radii of 60 Å: crowded, and yet no repetition.
    scores, _ = scored([*INSIDE, (118.0, 100.0, 100.0)])
    assert scores["pooled"]["references"] == 3
    assert scores["doubtful_references"] == []


def test_the_challenge_counts_them_all(scored: Any) -> None:
    scores, table = scored([*INSIDE, *OUTSIDE, INSIDE[1]], counting="challenge")
    assert scores["pooled"]["references"] == 5
    assert scores["doubtful_references"] == [{"run": "demo/b", "object": "ribosome", "outside": 2, "repeated": 1}]
    assert "counted all the same, as the challenge does" in table
