"""The evaluation stage: which reference picks are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.project import SmallProject, succeeded
from tomoscout.data.picks import Picks
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
