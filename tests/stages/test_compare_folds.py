"""The table of a cross-validation."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any

import pytest

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json, write_json
from tomoscout.plan.folds import check_folds
from tomoscout.plan.members import Member
from tomoscout.plan.options import Split
from tomoscout.stages.compare_folds import format_summary, run_compare_folds, summarise

CLASSES = ["ribosome", "ferritin", "membrane"]
# Ferritin is in no validation run of the second fold, the membrane in one alone.
SCORES = [{"ribosome": 0.5, "ferritin": 0.25, "membrane": 0.75}, {"ribosome": 0.75}, {"ribosome": 1.0, "ferritin": 0.5}]


def folds(folder: Path, scores: list[dict[str, float]] = SCORES, **changes: Any) -> list[Path]:
    """Model folders with the results of trainings."""
    folders = [folder / Member(number).name("unet") for number in range(len(scores))]
    for path, found in zip(folders, scores, strict=True):
        results = {"classes": CLASSES, "metric": "fBeta4 of particles", "score": sum(found.values()) / len(found)}
        write_json(path / "results.json", {**results, "scores": found, **changes})
    return folders


def test_every_object_and_the_score_of_the_models(tmp_path: Path) -> None:
    everything, ribosome, ferritin, membrane = summarise(folds(tmp_path))
    assert everything == {
        "object": "all",
        "mean": pytest.approx(2 / 3),
        "spread": pytest.approx(statistics.stdev([0.5, 0.75, 0.75])),
        "folds": 3,
        "fold 0": 0.5,
        "fold 1": 0.75,
        "fold 2": 0.75,
    }
    assert ribosome["object"] == "ribosome"
    assert ribosome["mean"] == pytest.approx(0.75)
    assert ribosome["spread"] == pytest.approx(0.25)
    # A fold that lacks an object says nothing about it.
    assert ferritin == {
        "object": "ferritin",
        "mean": pytest.approx(0.375),
        "spread": pytest.approx(statistics.stdev([0.25, 0.5])),
        "folds": 2,
        "fold 0": 0.25,
        "fold 1": None,
        "fold 2": 0.5,
    }
    assert membrane == {
        "object": "membrane",
        "mean": 0.75,
        "spread": None,
        "folds": 1,
        "fold 0": 0.75,
        "fold 1": None,
        "fold 2": None,
    }


def test_an_object_that_no_validation_run_has(tmp_path: Path) -> None:
    row = summarise(folds(tmp_path, [{"ribosome": 0.5}, {"ribosome": 0.6}]))[2]
    assert row == {"object": "ferritin", "mean": None, "spread": None, "folds": 0, "fold 0": None, "fold 1": None}


def test_one_fold(tmp_path: Path) -> None:
    everything = summarise(folds(tmp_path, [{"ribosome": 0.5}]))[0]
    assert everything == {"object": "all", "mean": 0.5, "spread": None, "folds": 1, "fold 0": 0.5}


def test_the_table_in_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = folds(tmp_path)
    output = tmp_path / "results/unet-folds.csv"
    run_compare_folds(folders, output)
    rows = summarise(folders)
    with output.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [list(row) for row in read] == [["object", "mean", "spread", "folds", "fold 0", "fold 1", "fold 2"]] * 4
    assert read == [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    assert read_json(output.with_suffix(".json")) == {"metric": "fBeta4 of particles", "rows": rows}
    assert "NaN" not in output.with_suffix(".json").read_text()
    assert capsys.readouterr().out == format_summary(rows)
    before = output.read_bytes(), output.with_suffix(".json").read_bytes()
    run_compare_folds(folders, output)
    assert (output.read_bytes(), output.with_suffix(".json").read_bytes()) == before


def test_the_table_for_a_terminal(tmp_path: Path) -> None:
    assert format_summary(summarise(folds(tmp_path))) == (
        "object     mean  spread  folds  fold 0  fold 1  fold 2\n"
        "──────────────────────────────────────────────────────\n"
        "all       0.667   0.144      3   0.500   0.750   0.750\n"
        "ribosome  0.750   0.250      3   0.500   0.750   1.000\n"
        "ferritin  0.375   0.177      2   0.250       –   0.500\n"
        "membrane  0.750       –      1   0.750       –       –\n"
    )


def test_scores_of_different_kinds_make_no_table(tmp_path: Path) -> None:
    folders = [*folds(tmp_path / "a"), *folds(tmp_path / "b", metric="avg_f1 of voxels")]
    output = tmp_path / "table.csv"
    with pytest.raises(TomoscoutError) as caught:
        run_compare_folds(folders, output)
    assert str(caught.value) == (
        f"{tmp_path}/a: the models were chosen by different scores: avg_f1 of voxels, fBeta4 of particles"
    )
    assert not output.exists()


@pytest.mark.parametrize("content", [None, "{", "not JSON"])
def test_a_fold_without_results(tmp_path: Path, content: str | None) -> None:
    folders = folds(tmp_path)
    path = folders[1] / "results.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(TomoscoutError, match=r"unet-fold-1/results\.json: (no such file|not valid JSON)"):
        run_compare_folds(folders, tmp_path / "table.csv")
    assert not (tmp_path / "table.csv").exists()


def test_a_split_without_folds_is_no_cross_validation() -> None:
    check_folds(Split(folds=3))
    check_folds(Split(leave_one_out=True))
    with pytest.raises(TomoscoutError, match=r"cross-validation needs split\.folds .* or split\.leave_one_out: true"):
        check_folds(Split())
