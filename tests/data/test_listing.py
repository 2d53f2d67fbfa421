"""What projects hold, as people read it."""

from __future__ import annotations

import numpy as np

from support.project import SHAPE, SmallProject, succeeded
from tomoscout.machine.tables import aligned

PLACE = (100.0, 100.0, 100.0)


def test_a_listing(small: SmallProject) -> None:
    small.add_run("TS_1")
    small.add_run("TS_1", uri="denoised@20.0", shape=(12, 16, 20))
    small.add_run("TS_2", shape=(30, 40, 50))
    small.add_run("TS_3")
    small.add_picks("TS_1", "ribosome:alice/1", [PLACE, PLACE])
    small.add_picks("TS_1", "ferritin:alice/1", [PLACE])
    small.add_picks("TS_1", "ribosome:bob/2", [PLACE])
    small.add_picks("TS_2", "ribosome:alice/1", [])
    small.add_picks("TS_3", "ribosome:alice/1", []).write_text("{")
    small.add_segmentation("TS_2", "membrane:alice/1", np.ones(SHAPE))
    result = succeeded(small.list_runs())
    assert result.stdout.splitlines()[:-1] == [
        "demo: 3 runs",
        "",
        "tomogram       runs  voxels (z, y, x)",
        "denoised@20.0     1  12×16×20",
        "wbp@10.0          3  24×32×40, 30×40×50",
        "",
        "picks             runs  empty  picks in all",
        "ferritin:alice/1     1      0             1",
        "ribosome:alice/1     2      1             2",
        "ribosome:bob/2       1      0             1",
        "",
        "segmentation           runs",
        "membrane:alice/1@10.0     1",
        "",
        "run   tomograms                picks",
        "TS_1  denoised@20.0, wbp@10.0  alice/1: ferritin 1, ribosome 2; bob/2: ribosome 1",
        "TS_2  wbp@10.0                 alice/1: ribosome 0",
        "TS_3  wbp@10.0                 –",
        "",
    ]
    assert result.stdout.splitlines()[-1].startswith("cannot be used: demo/TS_3: ribosome:alice/1: demo/TS_3: ")


def test_many_runs_are_shown_when_asked_for(small: SmallProject) -> None:
    for number in range(33):
        small.add_run(f"TS_{number:02d}", shape=(4, 4, 4))
    shown = succeeded(small.list_runs()).stdout
    assert "TS_29" in shown
    assert "TS_30" not in shown
    assert shown.endswith("… and 3 more runs (--runs shows all)\n")
    assert "TS_32" in succeeded(small.command("inventory", "--output", small.inventory, "--runs")).stdout
    assert succeeded(small.command("inventory", "--output", small.inventory, "--quiet")).stdout == ""


def test_numbers_stand_to_the_right() -> None:
    assert aligned([["name", "count", "what"], ["a", "7", "x"], ["long", "–", "yy"], ["b", "1000", ""]]) == [
        "name  count  what",
        "a         7  x",
        "long      –  yy",
        "b      1000",
    ]
