"""The page of a study: marks compared with what they stand for, importances with studies whose truth is known."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.explore.axes import Axis, rounded, short
from tomoscout.explore.charts import (
    best_of,
    curves_chart,
    history_chart,
    in_order,
    marked,
    score_range,
    slice_charts,
)
from tomoscout.explore.importance import LEAST_TRIALS, SHUFFLES, TOGETHER, _shuffled, best_count, importances
from tomoscout.explore.page import write_exploration
from tomoscout.explore.parallel import SHADES, parallel_chart
from tomoscout.explore.records import Ask, Refused, Result, trial_name


def number(low: float, high: float, log: bool = False, step: int | None = None) -> str:
    kind = "IntDistribution" if isinstance(low, int) else "FloatDistribution"
    return json.dumps({"name": kind, "attributes": {"step": step, "low": low, "high": high, "log": log}})


def choice(*choices: Any) -> str:
    return json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": choices}})


LOSSES = ("CrossEntropy", "Dice", "Tversky <α>")
SPACE = {
    "network": choice("UNet", "DynUNet"),
    "UNet.width": choice(8, 16, 32),
    "DynUNet.levels": number(2, 5, step=1),
    "learning_rate": number(1e-4, 1e-2, log=True),
    "patch": number(48, 160, step=16),
    "loss.name": choice(*LOSSES),
    "loss.alpha": number(0.1, 0.9),
    "mirrored": choice(True, False),
}
WHEN = {
    "UNet.width": {"network": ["UNet"]},
    "DynUNet.levels": {"network": ["DynUNet"]},
    "loss.alpha": {"loss.name": ["Dice", "Tversky <α>"]},
}


def drawn(generator: np.random.Generator, text: str) -> Any:
    values = json.loads(text)["attributes"]
    if "choices" in values:
        return values["choices"][generator.integers(len(values["choices"]))]
    if step := values["step"]:
        return values["low"] + step * int(generator.integers((values["high"] - values["low"]) // step + 1))
    low, high = (math.log(values[key]) if values["log"] else values[key] for key in ("low", "high"))
    value = float(generator.uniform(low, high))
    return math.exp(value) if values["log"] else value


def drawn_params(generator: np.random.Generator) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name, text in SPACE.items():
        if all(params[other] in allowed for other, allowed in WHEN.get(name, {}).items()):
            params[name] = drawn(generator, text)
    # As files keep them.
    return dict(sorted(params.items()))


def made_up(trials: int, seed: int = 0, noise: float = 0.02) -> tuple[list[Ask], list[Result]]:
    """A study at random, in which learning rate and loss matter; a third is pruned, some fail."""
    generator = np.random.default_rng(seed)
    asks, results = [], []
    for trial in range(trials):
        params = drawn_params(generator)
        distributions = {name: SPACE[name] for name in params}
        top = 0.8 - 0.3 * (math.log10(params["learning_rate"]) + 3) ** 2 - 0.2 * (params["loss.name"] == "Dice")
        top += noise * generator.normal()
        curve = [max(0.0, top * (1 - math.exp(-step / 2)) + 0.01 * generator.normal()) for step in range(1, 7)]
        state, reason = "COMPLETE", None
        if trial % 3 == 2 and top < 0.75:
            state, curve, reason = "PRUNED", curve[:2], "pruned at validation 2: median"
        if trial % 17 == 9:
            state, curve, reason = "PRUNED", [], "training: out of memory & <time>"
        asks.append(
            Ask(trial, params, distributions, {}, [Refused(params, distributions, "too large")] * (trial % 5 == 1))
        )
        value = max(curve, default=None)
        scores = {"ribosome <H>": value} if value and state == "COMPLETE" else {}
        results.append(Result(trial, params, distributions, state, value, dict(enumerate(curve, 1)), scores, reason))
    return asks, results


def domain(text: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(text)["attributes"].items() if value not in (None, False)}


STUDY: dict[str, Any] = {
    "name": "search",
    "seed": 42,
    "window": 8,
    "sampler": "tpe",
    "pruner": "median",
    "startup_trials": 10,
    "space": [
        *({"name": name, "domain": domain(text), "when": WHEN.get(name, {})} for name, text in SPACE.items()),
        {"name": "batch_size", "domain": {"value": 16}, "when": {}},
    ],
    "networks": {"UNet": "a1", "DynUNet": "b2"},
    "train": {"steps": 2000},
}
AXES = [Axis.of(name, text) for name, text in SPACE.items()]


class Page:
    """A page, read as XML, which it is from its body on."""

    def __init__(self, path: Path) -> None:
        self.source = path.read_text()
        body = self.source[self.source.index("<body>") : self.source.index("</html>")]
        self.body = ElementTree.fromstring(body)

    def section(self, name: str) -> ElementTree.Element:
        found = self.body.find(f".//section[@id='{name}']")
        assert found is not None
        return found

    def tables(self, section: str) -> list[list[list[str]]]:
        tables = self.section(section).iter("table")
        return [[["".join(cell.itertext()) for cell in row] for row in table.iter("tr")] for table in tables]

    def text(self) -> str:
        return " ".join("".join(self.body.itertext()).split())


def write(path: Path, asks: list[Ask], results: list[Result]) -> Page:
    write_exploration(path, STUDY, asks, results, "A <b>title</b> & more")
    return Page(path)


@pytest.fixture(scope="module")
def study() -> tuple[list[Ask], list[Result]]:
    return made_up(60)


@pytest.fixture(scope="module")
def page(study: tuple[list[Ask], list[Result]], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return write(tmp_path_factory.mktemp("page") / "report.html", *study)


# Axes


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_values_keep_their_order_on_an_axis(axis: Axis, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = [drawn(generator, SPACE[axis.name]) for _ in range(20)]
    places = [axis.position(value) for value in values]
    assert all(0 <= place <= 1 for place in places)
    order = values if not axis.choices else [axis.choices.index(short(value)) for value in values]
    assert [order[n] for n in np.argsort(places, kind="stable")] == sorted(order)


def test_where_values_lie() -> None:
    rate, patch, width = (Axis.of(name, SPACE[name]) for name in ("learning_rate", "patch", "UNet.width"))
    assert [rate.position(value) for value in (1e-4, 1e-3, 1e-2)] == pytest.approx([0, 0.5, 1])
    assert [patch.position(value) for value in (48, 104, 160)] == pytest.approx([0, 0.5, 1])
    assert [width.position(value) for value in (8, 16, 32)] == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    # Few whole numbers are like choices.
    assert Axis.of("levels", SPACE["DynUNet.levels"]).choices == ("2", "3", "4", "5")
    assert Axis.of("fixed", number(3.0, 3.0)).position(3.0) == 0.5


def test_trials_of_one_choice_stand_beside_each_other() -> None:
    axis = Axis.of("loss.name", SPACE["loss.name"])
    for choice_ in LOSSES:
        places = [axis.place(choice_, trial) for trial in range(40)]
        assert len(set(places)) == 40
        assert np.abs(np.array(places) - axis.position(choice_)).max() < 0.5 / len(LOSSES)
    assert Axis.of("patch", SPACE["patch"]).place(96, 7) == Axis.of("patch", SPACE["patch"]).position(96)


@given(st.floats(-6, 5), st.floats(0.05, 8), st.integers(3, 8))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_marks_of_a_logarithmic_axis_are_few_and_true(low: float, decades: float, count: int) -> None:
    axis = Axis("rate", 10**low, 10 ** (low + decades), log=True)
    marks = axis.ticks(count)
    assert 2 <= len(marks) <= count + 2
    for place, label in marks:
        assert -1e-6 <= place <= 1 + 1e-6
        assert axis.position(float(label)) == pytest.approx(place, abs=0.005 / (decades * math.log(10)) + 1e-6)


def test_marks_of_an_axis_are_the_values_if_they_are_few() -> None:
    assert [label for _, label in Axis.of("patch", SPACE["patch"]).ticks()] == [
        *("48", "64", "80", "96", "112", "128", "144", "160")
    ]
    assert [label for _, label in Axis.of("learning_rate", SPACE["learning_rate"]).ticks()] == [
        *("0.0001", "0.0002", "0.0005", "0.001", "0.002", "0.005", "0.01")
    ]
    assert [label for _, label in Axis("share", 0.0, 0.5).ticks()] == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    assert Axis.of("fixed", number(3.0, 3.0)).ticks() == [(0.5, "3")]


@given(st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_a_rounded_range_holds_its_range(one: float, other: float) -> None:
    low, high = sorted((one, other))
    start, end = rounded(low, high)
    span = max(high - low, 0.01)
    assert start < end and start <= low + 1e-9 and end >= high - 1e-9
    assert end - start <= 3 * span or high == low


def test_values_as_text() -> None:
    values = [1.5e-5, 1e-3, 0.123456, 12, 3.0, True, None, "relu", 2e5]
    assert list(map(short, values)) == ["1.5e-5", "0.001", "0.1235", "12", "3", "yes", "none", "relu", "2e5"]


# Order and range


def test_the_order_of_trials(study: tuple[list[Ask], list[Result]]) -> None:
    _, results = study
    order = in_order(results)
    assert sorted(result.number for result in order) == list(range(60))
    complete = [result for result in order if result.state == "COMPLETE"]
    assert order[: len(complete)] == complete
    values = [result.value or 0.0 for result in complete]
    assert values == sorted(values, reverse=True)
    assert all(result.value is None for result in order[-sum(result.value is None for result in results) :])
    assert best_of(results) is order[0]
    equal = [replace(results[0], number=n, value=0.5) for n in (4, 2, 3)]
    assert best_of(equal) == equal[1]
    assert best_of([replace(results[0], state="PRUNED")]) is None and best_of([]) is None


@given(st.lists(st.floats(0, 1), min_size=4, max_size=40))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_outliers_do_not_set_the_range(scores: list[float]) -> None:
    results = [Result(n, {}, {}, "COMPLETE", score, {}, {}) for n, score in enumerate(scores)]
    lower, upper = np.percentile(scores, [25, 75])
    inside = [score for score in scores if score >= lower - 1.5 * (upper - lower) - 1e-12]
    low, high = score_range(results)
    assert low <= min(inside) + 1e-9 and high >= max(scores) - 1e-9
    assert (low, high) == score_range([*results, Result(99, {}, {}, "PRUNED", None, {}, {})])


# Charts


def test_the_history_shows_every_trial_and_the_best_so_far(study: tuple[list[Ask], list[Result]]) -> None:
    _, results = study
    heights = score_range(results)
    chart = history_chart(results, heights)
    for result in results:
        (dot,) = [dot for dot in chart.dots if dot.x == result.number]
        assert dot.y == (heights[0] if result.value is None else result.value)
        shown = "no score" if result.value is None else f"{result.value:.4f}"
        assert dot.note == f"{trial_name(result.number)}{' pruned' * (result.state == 'PRUNED')}: {shown}"
        expected = {"best"} if result is best_of(results) else {"dot"} if result.state == "COMPLETE" else {"pruned"}
        assert dot.style in ({"unscored"} if result.value is None else expected)
    assert chart.dots[-1].style == "best"
    (line,) = chart.lines
    xs = np.array([x for x, _ in line.points])
    for trial in range(int(xs[0]), 60):
        reached = max(r.value or 0 for r in results if r.number <= trial and r.state == "COMPLETE")
        assert line.points[int(np.searchsorted(xs, trial, side="right")) - 1][1] == reached
    assert all(float(label) == value for value, label in chart.x_ticks or ())


def test_learning_curves_end_where_trials_were_ended(study: tuple[list[Ask], list[Result]]) -> None:
    _, results = study
    chart = curves_chart(results)
    trained = [result for result in reversed(in_order(results)) if result.intermediate]
    assert [list(line.points) for line in chart.lines] == [list(result.intermediate.items()) for result in trained]
    for line, result in zip(chart.lines, trained, strict=True):
        assert all(f"{score:.4f}" in line.name for score in result.intermediate.values())
        assert ("stopped" in line.style) == (result.state == "PRUNED")
    assert chart.lines[-1].style == "line"
    ends = {(dot.x, dot.y) for dot in chart.dots if dot.style == "pruned"}
    assert ends == {(2, r.intermediate[2]) for r in trained if r.state == "PRUNED"}
    lowest, highest = (f(s for r in trained for s in r.intermediate.values()) for f in (min, max))
    assert chart.y_range[0] <= lowest and chart.y_range[1] >= highest and chart.x_range == (1, 6)


def test_a_single_validation_is_a_dot() -> None:
    results = [Result(n, {}, {}, "COMPLETE", 0.5 + n / 10, {1: 0.5 + n / 10}, {}) for n in range(2)]
    chart = curves_chart(results)
    assert [(dot.x, dot.y, dot.style) for dot in chart.dots] == [(1, 0.5, "dot"), (1, 0.6, "best")]
    assert chart.ticks()[0] == [(chart.place(1, 0)[0], "1")]
    assert curves_chart([]).lines == []


def test_slices_show_scores_over_values(study: tuple[list[Ask], list[Result]]) -> None:
    _, results = study
    heights = score_range(results)
    charts = slice_charts(results, AXES, heights)
    assert [chart.title.split(" · ")[0] for chart in charts] == list(SPACE)
    for axis, chart in zip(AXES, charts, strict=True):
        own = [result for result, _ in marked(results) if axis.name in result.params]
        assert len(chart.dots) == len(own)
        assert len(own) == len(results) or chart.title.endswith(f" · {len(own)} trials")
        for dot, result in zip(chart.dots, own, strict=True):
            value, score = result.params[axis.name], heights[0] if result.value is None else result.value
            assert dot.note.endswith(f" at {short(value, 6)}")
            across, up = (dot.y, dot.x) if axis.choices else (dot.x, dot.y)
            assert up == score
            expected = 1 - axis.place(value, result.number) if axis.choices else axis.position(value)
            assert across == expected
        for line in chart.lines:
            name, middle = re.fullmatch(r"(.*): median (.*) of \d+ trials", line.name).groups()
            scores = [r.value for r in own if short(r.params[axis.name]) == name and r.value is not None]
            assert float(middle) == pytest.approx(np.median(scores), abs=1e-4)
        assert len(chart.lines) == len(axis.choices)


def test_words_have_room_beside_a_chart() -> None:
    axis = Axis("loss", choices=("Dice", "A loss of a very long name indeed"))
    results = [Result(0, {"loss": "Dice"}, {}, "COMPLETE", 0.5, {}, {})]
    (chart,) = slice_charts(results, [axis], (0, 1))
    labels = [label for _, label in chart.ticks()[1]]
    assert labels == ["Dice", "A loss of a very long…"]
    assert 6 * max(map(len, labels)) <= chart.LEFT


def points_of(course: str) -> list[tuple[float, float]]:
    return [tuple(map(float, point.split())) for point in course.removeprefix("M").split("L")]


def test_parallel_coordinates(study: tuple[list[Ask], list[Result]]) -> None:
    _, results = study
    low, high = score_range(results)
    chart = parallel_chart("All", results, AXES, (low, high))
    assert [row.name for row in chart.rows] == ["score", *SPACE]
    assert [row.partial for row in chart.rows] == [True, *(name in WHEN for name in SPACE)]
    for line, (result, _) in zip(chart.lines, marked(results), strict=True):
        (top, y), *others = points_of(line.course)
        assert line.note.startswith(f"{trial_name(result.number)}")
        if result.value is None:
            assert top == chart.ABSENT and "shadeless" in line.style
        else:
            place = min(max((result.value - low) / (high - low), 0), 1)
            assert top == pytest.approx(chart.LEFT + place * (chart.RIGHT - chart.LEFT), abs=0.6)
            assert f"shade-{min(int(place * SHADES), SHADES - 1)}" in line.style
        for axis, row, (x, y) in zip(AXES, chart.rows[1:], others, strict=True):
            assert y == row.y
            if axis.name in result.params:
                place = axis.place(result.params[axis.name], result.number)
                assert x == pytest.approx(chart.LEFT + place * (chart.RIGHT - chart.LEFT), abs=0.6)
                assert f"{axis.name} {short(result.params[axis.name], 6)}" in line.note
            else:
                assert x == chart.ABSENT and axis.name not in line.note
    assert ["back" in line.style for line in chart.lines] == [True] * 54 + [False] * 6
    assert "first" in chart.lines[-1].style


@given(st.lists(st.text("abcdefgh[]", min_size=1, max_size=24), min_size=1, max_size=12, unique=True))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_labels_in_a_row_stay_apart(choices: list[str]) -> None:
    chart = parallel_chart("All", [], [Axis("loss", choices=tuple(choices))], (0, 1))
    labels = chart.rows[1].labels
    assert [label.text for label in labels] == choices
    room = 780 / len(choices)
    for drop in {label.drop for label in labels}:
        line = [label for label in labels if label.drop == drop]
        for left, right in pairwise(line):
            assert right.x - left.x >= 3 * (len(left.text) + len(right.text)) or room < 3 * max(map(len, choices))


# Importances


def test_what_matters_comes_first() -> None:
    found = importances(made_up(150)[1])
    assert {found[0].name, found[1].name} == {"learning_rate", "loss.name"}
    assert all(entry.share > 2 * entry.chance for entry in found[:2])
    assert sum(entry.share for entry in found) == pytest.approx(1)
    assert [entry.share for entry in found] == sorted((entry.share for entry in found), reverse=True)
    assert {entry.name for entry in found} == set(SPACE)


def test_where_nothing_matters_chance_is_rarely_passed() -> None:
    passed = total = 0
    for seed in range(6):
        results = made_up(40, seed)[1]
        scores = np.random.default_rng(seed + 100).random(40)
        found = importances(
            [replace(result, value=float(score)) for result, score in zip(results, scores, strict=True)]
        )
        passed += sum(entry.share > entry.chance for entry in found)
        total += len(found)
    assert total == 6 * len(SPACE)
    # One in 20 is expected, 2.4 of 48; more than 8 come up once in 2,000 times.
    assert passed <= 8


def test_a_parameter_that_some_trials_have_can_matter() -> None:
    results = made_up(120, 3)[1]
    found = importances(
        [
            replace(result, value=0.5 + 0.1 * (result.params.get("UNet.width") == 32) + result.number % 7 / 1000)
            for result in results
        ]
    )
    assert found[0].name == "UNet.width" and found[0].share > 2 * found[0].chance


def test_importances_are_those_of_optuna() -> None:
    import optuna
    from optuna.distributions import json_to_distribution

    results = [replace(result, state="COMPLETE", value=result.value or 0.1) for result in made_up(50)[1]]
    reference = optuna.create_study(direction="maximize")
    for result in results:
        distributions = {name: json_to_distribution(text) for name, text in result.distributions.items()}
        reference.add_trial(
            optuna.trial.create_trial(value=result.value, params=result.params, distributions=distributions)
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=17 / 50)
    expected = optuna.importance.get_param_importances(reference, evaluator=evaluator)
    assert best_count(50) == 17
    assert {entry.name: entry.share for entry in importances(results[::-1])} == pytest.approx(expected)


def test_too_few_trials_say_nothing() -> None:
    results = [result for result in made_up(LEAST_TRIALS + 20)[1] if result.value is not None][:LEAST_TRIALS]
    assert importances(results)
    assert importances(results[1:]) == importances([]) == []
    assert importances([replace(results[0], value=None), *results[1:]]) == []
    assert importances([replace(result, value=0.5) for result in results]) == []


def test_shuffles_keep_trials_near_their_place() -> None:
    order = _shuffled(100, np.random.default_rng(0))
    assert sorted(order) == list(range(100))
    assert np.abs(order - np.arange(100)).max() < TOGETHER and (order != np.arange(100)).mean() > 0.8
    assert sorted(_shuffled(9, np.random.default_rng(0))) == list(range(9))


# The page


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    assert not re.search(r"url\(|@import|https?://|<script|<link|src=", page.source)
    assert page.body.find(".//h1").text == "A <b>title</b> & more"


def test_every_chart_of_the_page_is_a_file(page: Page, study: tuple[list[Ask], list[Result]], tmp_path: Path) -> None:
    write(tmp_path / "report.html", *study)
    files = {
        str(path.relative_to(tmp_path / "report")): ElementTree.parse(path).getroot()
        for path in (tmp_path / "report").rglob("*.svg")
    }
    assert len(files) == page.source.count('<svg class="chart')
    assert "course/Score-of-every-trial.svg" in files and "parallel-coordinates/All-trials.svg" in files
    svg = "{http://www.w3.org/2000/svg}"
    on_page = {path.get("d") for path in page.body.iter("path")}
    for drawing in files.values():
        (style,) = drawing.iter(f"{svg}style")
        assert style.text and "var(" not in style.text
        assert {path.get("d") for path in drawing.iter(f"{svg}path")} <= on_page


def test_the_same_study_gives_the_same_bytes(page: Page, study: tuple[list[Ask], list[Result]], tmp_path: Path) -> None:
    asks, results = study
    again = f"""
import json, sys
from pathlib import Path
from tomoscout.explore.records import Ask, Result
from tomoscout.explore.page import write_exploration
study, asks, results = json.load(sys.stdin)
asks, results = [Ask.parse(a, Path()) for a in asks], [Result.parse(r, Path()) for r in results]
write_exploration(Path({str(tmp_path / "again.html")!r}), study, asks, results, "A <b>title</b> & more")
"""
    content = json.dumps([STUDY, [ask.to_json() for ask in asks], [result.to_json() for result in results]])
    subprocess.run(
        [sys.executable, "-c", again], input=content, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert (tmp_path / "again.html").read_text() == page.source


def titles(elements: Iterable[ElementTree.Element]) -> list[str]:
    return ["".join(title.itertext()) for element in elements for title in element.iter("title")]


def test_every_trial_can_be_read_in_every_figure(page: Page, study: tuple[list[Ask], list[Result]]) -> None:
    history, curves, *_ = page.section("course").findall(".//figure")
    shown = titles([history])
    for result in study[1]:
        assert sum(title.startswith(trial_name(result.number)) for title in shown) == 1
    assert len(titles([curves])) >= sum(bool(result.intermediate) for result in study[1])
    wide = page.section("space").findall(".//figure[@class='wide']")
    assert [figure.find("figcaption").text for figure in wide] == [
        "All trials",
        "Trials of UNet",
        "Trials of DynUNet",
    ]
    networks = [result.params["network"] for result in study[1]]
    assert [len(titles([figure])) for figure in wide] == [60, networks.count("UNet"), networks.count("DynUNet")]
    slices = page.section("space").findall(".//div[@class='charts slices']/figure")
    dots = [len(list(figure.iter("circle"))) for figure in slices]
    assert sum(dots) == sum(len(result.params) for result in study[1])
    for svg in page.body.iter("svg"):
        width, height = map(float, svg.attrib["viewBox"].split()[2:])
        for circle in svg.iter("circle"):
            assert 0 <= float(circle.attrib["cx"]) <= width and 0 <= float(circle.attrib["cy"]) <= height


def test_the_outcome_is_told(page: Page, study: tuple[list[Ask], list[Result]]) -> None:
    asks, results = study
    best = best_of(results)
    assert best is not None and best.value is not None
    failed = sum(result.value is None for result in results)
    complete = sum(result.state == "COMPLETE" for result in results)
    refused = sum(len(ask.refused) for ask in asks)
    assert (
        f"60 trials: {complete} ran to the end, {60 - complete - failed} ended early by the median pruner, {failed} "
        f"ended for reasons of their own. {refused} proposals could not be trained and were given back at once. "
        f"The best is trial {trial_name(best.number)} with a validation score of {best.value:.4f}."
    ) in page.text()
    facts = {entry.find("dt").text: entry.find("dd").text for entry in page.section("outcome").findall("dl/div")}
    assert list(facts) == [name for name in SPACE if name in best.params]
    assert facts == {name: short(value, 6) for name, value in best.params.items()}
    assert page.tables("outcome") == [[["ribosome <H>", f"{best.value:.3f}"]]]


def test_the_table_of_trials(page: Page, study: tuple[list[Ask], list[Result]]) -> None:
    first, rest, failures, refusals = page.tables("trials")
    shared = [name for name in SPACE if name not in WHEN]
    assert first[0] == rest[0] == ["Trial", "Score", "Validations", "Outcome", *shared, "Others"]
    rows = first[1:] + rest[1:]
    assert len(first) == 21
    for row, result in zip(rows, in_order(study[1]), strict=True):
        score = "–" if result.value is None else f"{result.value:.4f}"
        outcome = result.reason or "complete"
        assert row[:4] == [trial_name(result.number), score, str(len(result.intermediate)), outcome]
        assert row[4:-1] == [short(result.params[name]) for name in shared]
        assert row[-1] == ", ".join(
            f"{name} {short(result.params[name])}" for name in SPACE if name in WHEN and name in result.params
        )
    names = [trial_name(result.number) for result in study[1] if result.value is None]
    assert failures[1:] == [["training: out of memory & <time>", ", ".join(names)]]
    assert refusals[1:] == [["too large", "12"]]


def test_importances_are_shown(page: Page, study: tuple[list[Ask], list[Result]]) -> None:
    found = importances(study[1])
    ((_, *rows),) = page.tables("importance")
    assert rows == [[e.name, f"{100 * e.share:.1f} %", f"{100 * e.chance:.1f} %"] for e in found]
    grey = page.section("importance").findall(".//tr[@class='chance']")
    assert len(grey) == sum(entry.share <= entry.chance for entry in found)
    scored = sum(result.value is not None for result in study[1])
    assert f"the best {best_count(scored)} trials apart from all {scored}" in page.text()
    assert f"the most in {SHUFFLES} shuffles" in page.text()
    slices = page.section("space").findall(".//div[@class='charts slices']/figure/figcaption")
    assert [(caption.text or "").split(" · ")[0] for caption in slices] == [entry.name for entry in found]


def test_the_settings_are_shown(page: Page) -> None:
    facts, space, shared = page.tables("settings")
    assert ["window", "8"] in facts and ["startup trials", "10"] in facts
    assert ["learning_rate", "0.0001 to 0.01, logarithmic", "always"] in space
    assert ["patch", "48 to 160 in steps of 16", "always"] in space
    assert ["UNet.width", "8 · 16 · 32", "network is UNet"] in space
    assert ["loss.alpha", "0.1 to 0.9", "loss.name is Dice or Tversky <α>"] in space
    assert ["batch_size", "always 16", "always"] in space
    assert ["train · steps", "2000"] in shared


def test_small_studies(tmp_path: Path) -> None:
    asks, results = made_up(3)
    one = write(tmp_path / "one.html", asks[:1], results[:1])
    assert "1 trial: 1 ran to the end." in one.text() and "1 trial has a score: too few" in one.text()
    lost = [replace(r, state="PRUNED", value=None, intermediate={}, scores={}, reason="given up") for r in results]
    none = write(tmp_path / "none.html", asks, lost)
    assert "As none ran to the end, there is no best trial." in none.text()
    assert none.tables("trials")[1][1:] == [["given up", "0000, 0001, 0002"]]
    assert len(none.section("course").findall(".//figure")) == 1
    stopped = [replace(r, state="PRUNED", reason="pruned at validation 6: median") for r in results]
    assert "3 ended early by the median pruner." in write(tmp_path / "stopped.html", [], stopped).text()
    assert "0 trials: 0 ran to the end." in write(tmp_path / "empty.html", [], []).text()


def test_equal_scores_have_nothing_to_tell(tmp_path: Path) -> None:
    asks, results = made_up(30)
    page = write(tmp_path / "equal.html", asks, [replace(result, value=0.5) for result in results])
    assert "do not differ from the others in any parameter" in page.text()


def test_a_study_of_one_network_is_shown_together(tmp_path: Path) -> None:
    asks, results = made_up(12)
    own = [
        replace(result, params={name: value for name, value in result.params.items() if name != "network"})
        for result in results
        if result.params["network"] == "UNet"
    ]
    path = tmp_path / "report.html"
    write_exploration(path, {**STUDY, "networks": {"UNet": "a1"}}, asks, own, "One")
    (figure,) = Page(path).section("space").findall(".//figure[@class='wide']")
    assert "UNet.width" in ["".join(name.itertext()) for name in figure.iter("text")]


def test_scores_far_below_are_told_of(tmp_path: Path) -> None:
    asks, results = made_up(40)
    results = [replace(r, value=0.01 if r.number == 5 else 0.8 + r.number / 1000) for r in results]
    text = write(tmp_path / "report.html", asks, results).text()
    assert f"Scores under {short(score_range(results)[0])} (1 of 40) are drawn at that edge" in text


def test_many_reasons_are_counted_together(tmp_path: Path) -> None:
    asks, results = made_up(50)
    refused = [Refused({}, {}, f"needs {n} GB") for n in range(45)] + [Refused({}, {}, "needs 44 GB")]
    page = write(tmp_path / "report.html", [replace(asks[0], refused=refused)], results)
    rows = page.tables("trials")[-1][1:]
    assert rows[0] == ["needs 44 GB", "2"] and rows[-1] == ["15 other reasons", "15"] and len(rows) == 31


def test_large_studies_stay_small(tmp_path: Path) -> None:
    asks, results = made_up(1000)
    write(tmp_path / "report.html", asks, results)
    assert (tmp_path / "report.html").stat().st_size < 2_500_000
