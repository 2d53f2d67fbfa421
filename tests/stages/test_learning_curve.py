"""The learning curve: its table, its figure and what it says, from made-up results of trainings."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from support.project import SmallProject, error_of, succeeded
from tomoscout.machine.files import read_json, write_json
from tomoscout.plan.members import Member
from tomoscout.plan.plan import Plan
from tomoscout.report.learning_curve import ALL, CurveRow, curve_chart, describe_last_step, read_curve

CLASSES = ["ribosome", "ferritin"]


class Trained:
    """A project whose run `a`, `b`, … has 1, 2, … ribosomes, with results of trainings on parts of the runs."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.project = SmallProject(folder)
        for number, run in enumerate("abcdef", 1):
            self.project.add_run(run)
            self.project.add_picks(run, "ribosome:expert/0", [(100.0, 100.0, 20.0 * n) for n in range(number)])
            self.project.add_picks(run, "ferritin:expert/0", [(200.0, 200.0, 100.0)])
        self.project.configure(
            targets={"picks": [f"{name}:expert/0" for name in CLASSES]},
            split={"train": list("abcd"), "validate": ["e"], "test": ["f"]},
            learning_curve=options,
        )
        self.plan = Plan(self.project.config, self.project.refresh(), folder / "results")
        self.output = self.plan.results.learning_curve("unet")

    def write(self, member: Member, score: float, **scores: float) -> None:
        results = {"classes": CLASSES, "metric": "fBeta4 of particles", "score": score, "scores": scores}
        write_json(self.plan.model_of(member) / "results.json", results)

    def write_all(self, *scores: float) -> None:
        for member, score in zip(self.plan.curve, scores, strict=True):
            self.write(member, score, ribosome=score)

    def picks(self, member: Member) -> int:
        """Ribosomes in the training runs of a member."""
        return sum("abcd".index(run[-1]) + 1 for run in self.plan.runs_of(member).train)


def test_the_table_and_what_it_says(tmp_path: Path) -> None:
    made = Trained(tmp_path, draws=2)
    made.write_all(0.2, 0.3, 0.5, 0.6, 0.8, 0.9)
    result = succeeded(made.project.command("learning-curve", "--output", made.output))
    with made.output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["percent"], row["runs"], row["object"]) for row in rows] == [
        (percent, runs, name) for percent, runs in (("25", "1"), ("50", "2"), ("100", "4")) for name in (ALL, *CLASSES)
    ]
    whole, ribosome, ferritin = rows[:3]
    few = [Member(percent=25, draw=draw) for draw in range(2)]
    assert int(ribosome["picks"]) == round(sum(map(made.picks, few)) / 2)
    assert ferritin["picks"] == "1"
    assert int(whole["picks"]) == int(ribosome["picks"]) + 1
    assert (whole["draws"], whole["draw 0"], whole["draw 1"]) == ("2", "0.2", "0.3")
    assert float(whole["mean"]) == pytest.approx(0.25)
    assert float(whole["spread"]) == pytest.approx(0.1)
    # An object that no validation run holds.
    assert (ferritin["draws"], ferritin["mean"], ferritin["spread"], ferritin["draw 0"]) == ("0", "", "", "")
    assert (rows[6]["picks"], rows[7]["picks"]) == ("14", "10")
    sentence = "From 2 to 4 training runs the score changes by +0.300, more than draws differ (up to 0.100): "
    assert result.stdout.splitlines()[-1] == f"{sentence}more annotated runs still help."
    curve = read_curve(made.output.with_suffix(".json"))
    assert curve.metric == "fBeta4 of particles"
    assert curve.fingerprint == made.plan.fingerprint("learning_curve")
    assert [row.scores for row in curve.rows if row.object == ALL] == [[0.2, 0.3], [0.5, 0.6], [0.8, 0.9]]


def test_the_figure_is_a_file_of_its_own(tmp_path: Path) -> None:
    made = Trained(tmp_path, draws=2)
    made.write_all(0.2, 0.3, 0.5, 0.6, 0.8, 0.9)
    succeeded(made.project.command("learning-curve", "--output", made.output))
    figure = made.output.with_suffix(".svg").read_text()
    assert figure.startswith('<svg class="chart" xmlns="http://www.w3.org/2000/svg"')
    assert "var(" not in figure
    assert figure.count("<circle") == 6
    assert "0.300, training runs: 1, draw 1" in figure


def test_equally_many_runs_are_trained_on_once_and_it_is_said(tmp_path: Path) -> None:
    made = Trained(tmp_path, fractions=[0.1, 0.25, 0.3, 1])
    assert [member.percent for member in made.plan.curve] == [25, 30, 100]
    made.write_all(0.2, 0.3, 0.4)
    said = succeeded(made.project.command("learning-curve", "--output", made.output)).stdout
    assert said.endswith("Not trained, being as many runs as a larger fraction: 10 %.\n")


def test_a_model_without_results(tmp_path: Path) -> None:
    made = Trained(tmp_path)
    made.write(Member(percent=25), 0.5)
    missing = made.plan.model_of(Member(percent=50)) / "results.json"
    assert error_of(made.project.command("learning-curve", "--output", made.output)) == f"{missing}: no such file"
    assert not made.output.exists()


def test_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    made = Trained(tmp_path)
    made.write_all(0.2, 0.3, 0.4)
    files = [made.output.with_suffix(suffix) for suffix in (".csv", ".json", ".svg")]
    first, second = (
        [succeeded(made.project.command("learning-curve", "--output", made.output)), [f.read_bytes() for f in files]][1]
        for _ in range(2)
    )
    assert first == second
    assert read_json(files[1])["rows"][0]["runs"] == 1


def rows(*scores: list[float | None]) -> list[CurveRow]:
    """A curve over 1, 2, 4 … runs."""
    return [
        CurveRow(100, 2**number, name, 10, values) for number, values in enumerate(scores) for name in (ALL, "ribosome")
    ]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([[0.5, 0.6], [0.7, 0.8]], "From 1 to 2 training runs the score changes by +0.200, more than draws differ"),
        (
            [[0.5, 0.9], [0.8, 0.85]],
            "From 1 to 2 training runs the score changes by +0.125, while draws differ by up to 0.400: that more "
            "annotated runs still help does not show.",
        ),
        (
            [[0.1, 0.1], [0.8, 0.8], [0.7, 0.7]],
            "From 2 to 4 training runs the score changes by -0.100, while draws differ",
        ),
        (
            [[0.5], [0.9]],
            "From 1 to 2 training runs the score changes by +0.400; with one draw (learning_curve.draws) nothing is "
            "known of how far scores differ by chance.",
        ),
        ([[0.5, 0.9]], "All fractions are equally many training runs (1): there is nothing to compare."),
    ],
)
def test_whether_the_last_step_helped(scores: list[list[float | None]], expected: str) -> None:
    assert describe_last_step(rows(*scores)).startswith(expected)


def test_the_chart() -> None:
    chart = curve_chart([*rows([0.2, 0.4], [0.5, 0.7]), CurveRow(100, 2, "ferritin", 3, [None, 0.9])])
    assert [(line.name, line.style) for line in chart.lines] == [
        ("ribosome", "context"),
        ("ferritin", "context"),
        ("mean", "line"),
    ]
    assert chart.lines[-1].points == [(0, pytest.approx(0.3)), (1, pytest.approx(0.6))]
    assert chart.lines[1].points == [(1, 0.9)]
    assert [(dot.x, dot.y) for dot in chart.dots] == [(0, 0.2), (0, 0.4), (1, 0.5), (1, 0.7)]
    assert chart.x_ticks == [(0, "1"), (1, "2")]
    # One point has a place, too.
    assert curve_chart(rows([0.5])).place(0, 0.5)[0] > chart.LEFT
