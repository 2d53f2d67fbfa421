"""The learning curve as snakemake makes it: which models it trains, and its figure in the report."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from support.snakemake_session import NO_TRACEBACK, Session, announced_trainings, configured, copy_of, kept

pytestmark = pytest.mark.workflow

SHORT = {"train": {"steps": 2, "validate_every": 2}, "tracking": {"enabled": False}}


@pytest.fixture(scope="module")
def session(phantom: Session, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which nothing has run, with two training runs."""
    return copy_of(phantom, tmp_path_factory.mktemp("curve"))


@pytest.mark.parametrize(
    ("options", "models"),
    [
        # A quarter of two runs is one, as is half; all runs are the single model.
        ({}, ["tiny", "tiny-part-50-0"]),
        ({"draws": 2}, ["tiny", "tiny-part-100-1", "tiny-part-50-0", "tiny-part-50-1"]),
        ({"fractions": 0.5}, ["tiny-part-50-0"]),
    ],
)
def test_the_models_of_a_curve(session: Session, options: dict, models: Sequence[str]) -> None:
    with configured(session, {"learning_curve": options}):
        output = session.snakemake("--dry-run", "--printshellcmds", "learning_curve")
    announced = announced_trainings(output)
    assert sorted(announced) == models
    given = {model: re.findall(r"--(?:percent|draw|fold) \d+", block) for model, block in announced.items()}
    assert {model: words for model, words in given.items() if words} == {
        model: [*(["--draw 1"] if model.endswith("-1") else []), *(["--percent 50"] if "-50-" in model else [])]
        for model in models
        if model != "tiny"
    }
    assert len(re.findall(r"^(?:local)?rule learning_curve_table:", output, re.M)) == 1


def test_a_name_that_no_model_has_ends_in_one_line(session: Session) -> None:
    output = session.snakemake("--dry-run", "results/models/tiny-part-100-0/model.yaml", check=False)
    assert "error: tiny-part-100-0: not the name of a model that is trained here; expected tiny, " in output
    assert NO_TRACEBACK not in output


@pytest.mark.long
def test_a_curve_ends_in_a_table_a_figure_and_a_section_of_the_report(session: Session) -> None:
    results = session.folder / "results"
    with configured(session, SHORT | {"learning_curve": {"draws": 2}}):
        session.snakemake("learning_curve")
        assert session.would_run("learning_curve") == []
        with (results / "learning_curve/tiny.csv").open(newline="") as handle:
            rows = [row for row in csv.DictReader(handle) if row["object"] == "all"]
        assert [(row["runs"], row["draws"]) for row in rows] == [("1", "2"), ("2", "2")]
        models = [["tiny-part-50-0", "tiny-part-50-1"], ["tiny", "tiny-part-100-1"]]
        for row, names in zip(rows, models, strict=True):
            for draw, name in enumerate(names):
                assert float(row[f"draw {draw}"]) == score_of(results / "models" / name)
        runs = [made_from(results / "models" / name) for names in models for name in names]
        assert [len(made["train"]) for made in runs] == [1, 1, 2, 2]
        assert {tuple(made["validate"]) for made in runs} == {("phantom/phantom-001",)}
        assert "<circle" in (results / "learning_curve/tiny.svg").read_text()

        # Fewer draws take what is there; the table alone is made anew.
        with configured(session, SHORT):
            assert session.would_run("learning_curve") == ["learning_curve_table"]
        session.configure(SHORT | {"learning_curve": {"draws": 2}})

        session.snakemake("report")
        page = (results / "report/tiny.html").read_text()
        assert '<section id="learning-curve">' in page
        assert (results / "report/tiny/learning-curve/Learning-curve.svg").exists()
        # A curve that is no longer there is no reason to make the page anew.
        with kept(results / "learning_curve/tiny.json"):
            (results / "learning_curve/tiny.json").unlink()
            assert session.would_run("report") == []
    # Nor is one of another training shown.
    changed = {"train": {**SHORT["train"], "learning_rate": 0.006}, "learning_curve": {"draws": 2}}
    with configured(session, SHORT | changed):
        session.snakemake("report")
        assert (results / "learning_curve/tiny.json").exists()
        assert "learning-curve" not in (results / "report/tiny.html").read_text()


def score_of(model: Path) -> float:
    """The score that a training ended with."""
    return json.loads((model / "results.json").read_text())["score"]


def made_from(model: Path) -> dict:
    """The runs that a model was trained and validated on."""
    return yaml.safe_load((model / "model.yaml").read_text())["made_from"]
