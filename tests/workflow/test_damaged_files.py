"""Files of results, damaged or edited by hand: read as they are, or refused in one line that names the file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from support.model import MODEL, random_network
from support.project import SmallProject, tomoscout
from support.study import configure, outcome, run
from tomoscout.data.picks import Picks
from tomoscout.explore.records import Ask, trial_folder
from tomoscout.explore.summary import MODEL_FILES
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_table, write_json, write_table
from tomoscout.models.folder import load_network, save_weights
from tomoscout.report.page import write_report
from tomoscout.report.plots import history_charts
from tomoscout.stages.compare_folds import run_compare_folds as compare_folds
from tomoscout.tasks.picking.model import PickingModel, read_ensemble
from tomoscout.tasks.picking.options import Evaluate
from tomoscout.tasks.picking.score_tables import read_scores, write_scores
from tomoscout.tasks.picking.scores import evaluate
from tomoscout.tracking.record import read_record

DAMAGES = 40
"""Of each file."""

WRONG: list[Any] = [
    None,
    True,
    -1,
    0,
    3.5,
    1e6,
    "",
    "text",
    "1",
    [],
    [None],
    [[1]],
    {},
    {"a": 1},
    float("inf"),
    float("nan"),
]


def damaged(content: str, is_yaml: bool, chance: random.Random) -> str:
    """The text with bytes or values of it changed."""
    kind = chance.randrange(5)
    place = chance.randrange(len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + chance.choice('\x00{}[]":,-9e\néß\t') + content[place + 1 :]
    values = yaml.safe_load(content) if is_yaml else json.loads(content)
    change_one(values, chance)
    return yaml.safe_dump(values) if is_yaml else json.dumps(values)


def change_one(values: Any, chance: random.Random) -> None:
    """Change, remove, double or add something, at whatever depth."""
    while True:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        if not keys:
            return
        key = chance.choice(keys)
        if isinstance(values[key], dict | list) and values[key] and chance.random() < 0.7:
            values = values[key]
            continue
        kind = chance.randrange(4)
        if kind == 0:
            del values[key]
        elif kind == 1 and isinstance(values, list):
            values.append(values[key])
        elif kind == 2 and isinstance(values, dict):
            values["unknown"] = values[key]
        else:
            values[key] = chance.choice(WRONG)
        return


def damaged_table(content: str, chance: random.Random) -> str:
    rows = [line.split(",") for line in content.splitlines()]
    row = chance.choice(rows)
    place = chance.randrange(len(row))
    kind = chance.randrange(4)
    if kind == 0:
        return content[: chance.randrange(len(content))]
    if kind == 1:
        row.append("1")
    elif kind == 2:
        del row[place]
    else:
        row[place] = chance.choice(["inf", "nan", "1e999", "-1", "text", '"', "\x00", "1.5"])
    return "\n".join(map(",".join, rows))


def check(path: Path, seed: int, *readers: Callable[[], object]) -> None:
    """Damage a file many times: each reader ends well, or in one line that names it."""
    chance = random.Random(f"{path.name} {seed}")
    whole = path.read_bytes()
    refused = 0
    for _ in range(DAMAGES):
        text = whole.decode()
        is_table = path.suffix == ".csv"
        changed = damaged_table(text, chance) if is_table else damaged(text, path.suffix == ".yaml", chance)
        path.write_bytes(changed.encode() if chance.random() < 0.95 else b"\xff\xfe" + changed.encode())
        for read in readers:
            try:
                read()
            except TomoscoutError as error:
                refused += 1
                assert path.name in str(error) and "\n" not in str(error), (changed, error)
    path.write_bytes(whole)
    for read in readers:
        read()
    assert refused


def command(*arguments: str | Path) -> Callable[[], None]:
    """A command of tomoscout; its error as one of ours."""

    def call() -> None:
        result = tomoscout(*arguments)
        if result.exit_code:
            assert isinstance(result.exception, SystemExit), result.exception
            raise TomoscoutError(result.stderr.strip().splitlines()[-1])

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder with all that a training leaves."""
    folder = tmp_path / "unet"
    weights = save_weights(folder, random_network().state_dict())
    names = [entry.name for entry in MODEL.classes]
    made_from = {**MODEL.made_from, "fingerprint": "abc", "train": ["a/b"], "validate": ["a/c"]}
    replace(MODEL, weights_digest=weights, made_from=made_from).write(folder)
    scores = dict.fromkeys(names, 0.5)
    results = {"classes": names, "metric": "fBeta4", "score": 0.5, "best_step": 4, "steps": 8, "scores": scores}
    write_json(folder / "results.json", {**results, "thresholds": {names[0]: 0.4}})
    rows = [{"step": n, "loss": 1 / n, "learning_rate": 0.1, "score": 0.1 * n, **scores} for n in range(1, 5)]
    write_table(folder / "metrics.csv", ["step", "loss", "learning_rate", "score", *names], rows)
    facts = {"name": "unet", "fingerprint": "abc", "classes": names, "train": ["a/b"], "validate": ["a/c"]}
    versions, options = {"torch": "2"}, {"steps": 8, "loss": [{"name": "Dice"}]}
    write_json(folder / "training.json", {**facts, "versions": versions, "options": options, "steps_per_second": 2.0})
    return folder


@pytest.mark.parametrize("seed", range(2))
def test_files_of_a_model(model: Path, seed: int) -> None:
    def apply() -> None:
        together, members = read_ensemble([model])
        load_network(model, members[0], torch.device("cpu"))
        assert all(0 <= value <= 1 for value in together.thresholds.values())
        assert all(entry.radius is None or 0 < entry.radius < np.inf for entry in together.classes)

    def record() -> object:
        return read_record(model)

    def compare() -> None:
        compare_folds([model], model.parent / "folds.csv")

    def draw() -> object:
        return history_charts(read_table(model / "metrics.csv"))

    check(model / "model.yaml", seed, apply, record)
    check(model / "results.json", seed, compare, record)
    check(model / "training.json", seed, record)
    check(model / "metrics.csv", seed, draw, record)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radius": -60.0}, "radius: Input should be greater than 0, found -60.0"),
        ({"radius": float("inf")}, "radius: Input should be a finite number, found inf"),
        ({"threshold": 1.5}, "threshold: Input should be less than or equal to 1, found 1.5"),
        ({"threshold": None}, "has not all of radius, target_radius and threshold, nor none"),
        ({"label": 2}, "labels [2, 2, 3], expected 1 to 3 in order"),
        ({"name": "membrane"}, "two classes of one name among membrane, "),
        ({"sources": [3]}, "sources.0: Input should be a valid string, found 3"),
    ],
    ids=str,
)
def test_a_class_that_cannot_be(model: Path, changes: dict[str, Any], message: str) -> None:
    path = model / "model.yaml"
    values = yaml.safe_load(path.read_text())
    values["classes"][0] |= changes
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(TomoscoutError) as caught:
        PickingModel.read(model)
    assert str(caught.value).startswith(f"{path}: not a model description (classes")
    assert message in str(caught.value)


def test_files_of_a_study(small: SmallProject) -> None:
    for name in ("one", "two", "three"):
        small.add_run(name)
        small.add_picks(name, "ribosome:expert/0", [(100, 100, 100), (200, 150, 100)])
    configure(small)
    small.list_runs()
    study = configure(small, {"baseline": True})
    folder = small.folder / "results/explore" / study.name
    write_json(folder / "study.json", study.settings)
    run(study, folder, 6)
    for number in range(6):
        outcome(Ask.read(trial_folder(folder, number))).write(trial_folder(folder, number) / "result.json")
        for name in MODEL_FILES:
            (trial_folder(folder, number) / name).touch()
    summarise = command("explore", "summarise", folder, "--trials", "6", "--top", "1")
    status = command("explore", "status", "--results", small.folder / "results")
    check(folder / "study.json", 0, summarise, status)
    for number in (0, 3):
        check(trial_folder(folder, number) / "ask.json", number, summarise, status)
        check(trial_folder(folder, number) / "result.json", number, summarise, status)


@pytest.mark.parametrize("seed", range(2))
def test_scores(tmp_path: Path, seed: int) -> None:
    picks = Picks.at(np.array([[100.0, 100.0, 100.0], [300.0, 200.0, 100.0]]), np.array([0.9, 0.4]))
    runs = {"p/a": {"ribosome": picks}, "p/b": {"ribosome": picks}}
    write_scores(tmp_path, evaluate(runs, runs, {"ribosome": 60.0, "spike": 40.0}, Evaluate(), "test"))

    def report() -> None:
        write_report(tmp_path / "report.html", "T", read_scores(tmp_path), [], {}, {}, [])

    check(tmp_path / "scores.json", seed, command("show-scores", tmp_path), report)
    check(tmp_path / "curves.csv", seed, command("show-scores", tmp_path), report)
