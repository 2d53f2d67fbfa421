"""Scores against hand-made cases and against the challenge's scorer, written anew from its rules."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import to_json
from tomoscout.tasks.picking.options import Evaluate
from tomoscout.tasks.picking.score_columns import f_name
from tomoscout.tasks.picking.score_tables import describe_runs, format_table, read_scores, write_scores
from tomoscout.tasks.picking.scores import evaluate

RADII = {"ribosome": 4.0, "apo-ferritin": 2.0, "beta-amylase": 3.0}
WEIGHTS = {"ribosome": 1.0, "apo-ferritin": 2.0, "beta-amylase": 0.0}


def picks(*points: tuple[float, float, float], scores: list[float] | None = None) -> Picks:
    return Picks.at(np.array(points, dtype=float).reshape(-1, 3), None if scores is None else np.array(scores))


def find(scores: dict, name: str) -> dict:
    return next(entry for entry in scores["objects"] if entry["object"] == name)


# The challenge's rules: a reference is found if any prediction lies within reach; everything else predicted is
# false; runs without any reference and objects without one in any run do not exist for it, but weights still count.


def challenge_score(predictions: dict, references: dict, radii: dict, weights: dict, distance: float, beta: int):
    runs = [run for run, objects in references.items() if any(len(p) for p in objects.values())]
    total = 0.0
    for name, radius in radii.items():
        if not any(len(references[run].get(name, ())) for run in runs):
            continue
        found = predicted = there = 0
        for run in runs:
            truth = references[run].get(name, picks()).positions.tolist()
            guesses = predictions.get(run, {}).get(name, picks()).positions.tolist()
            found += sum(any(math.dist(t, g) <= radius * distance for g in guesses) for t in truth)
            predicted += len(guesses)
            there += len(truth)
        precision = found / predicted if predicted > 0 else 0
        recall = found / there
        if precision + recall > 0:
            total += weights[name] * ((1 + beta**2) * (precision * recall) / (beta**2 * precision + recall))
    return total / sum(weights.values())


# One-to-one counting by trying every way to pair.


def most_pairs(near: list[list[int]], used: frozenset[int] = frozenset()) -> int:
    """The most predictions that can each have a reference of their own. `near`: the references near each prediction."""
    if not near:
        return 0
    first, *rest = near
    without = most_pairs(rest, used)
    return max([without, *(1 + most_pairs(rest, used | {one}) for one in first if one not in used)])


def test_counts_are_those_of_brute_force_on_a_thousand_random_sets() -> None:
    rng = np.random.default_rng(0)
    options, distance = Evaluate(resamples=0), 0.5 * RADII["ribosome"]
    for _ in range(1000):
        guesses, truth = (rng.integers(0, 7, (rng.integers(0, 7), 3)).astype(float) for _ in range(2))
        scores = rng.integers(0, 4, len(guesses)) / 4
        found = evaluate(
            {"p/a": {"ribosome": Picks.at(guesses, scores)}},
            {"p/a": {"ribosome": Picks.at(truth)}},
            {"ribosome": RADII["ribosome"]},
            options,
            "test",
        )
        near = [[n for n, t in enumerate(truth.tolist()) if math.dist(g, t) <= distance] for g in guesses.tolist()]
        pairs = most_pairs(near)
        counts = tuple(found["pooled"][key] for key in ("true_positives", "false_positives", "false_negatives"))
        assert counts == (pairs, len(guesses) - pairs, len(truth) - pairs)
        # And so at every threshold.
        curve = found["curves"][0]
        for threshold, at in zip(curve["threshold"], curve["true_positives"], strict=True):
            kept = [one for one, score in zip(near, scores, strict=True) if score >= threshold]
            assert at == most_pairs(kept)


points = st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=6)
scenes = st.dictionaries(
    st.sampled_from(["p/a", "p/b", "p/c"]),
    st.dictionaries(st.sampled_from(list(RADII)), points.map(lambda found: picks(*found)), max_size=3),
    min_size=1,
)


@given(scenes, scenes)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_the_challenge_mode_is_the_challenges_score_to_the_last_digit(predictions: dict, references: dict) -> None:
    options = Evaluate(counting="challenge", weights=WEIGHTS, resamples=20)
    scores = evaluate(predictions, references, RADII, options, "test")
    assert scores["mean"]["f"] == challenge_score(predictions, references, RADII, WEIGHTS, 0.5, 4)


@given(scenes, scenes, st.sampled_from(["one-to-one", "challenge"]))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_counts_add_up_and_survive_writing(tmp_path_factory, predictions: dict, references: dict, counting) -> None:
    scores = evaluate(predictions, references, RADII, Evaluate(counting=counting, resamples=20), "test")
    to_json(scores)
    for entry in [*scores["objects"], *scores["runs"], scores["pooled"]]:
        assert entry["true_positives"] + entry["false_negatives"] == entry["references"]
        assert entry["true_positives"] + entry["false_positives"] == entry["predictions"]
    for key in ("references", "predictions", "true_positives", "false_positives", "false_negatives"):
        assert sum(entry[key] for entry in scores["objects"]) == scores["pooled"][key]
        for entry in scores["objects"]:
            runs = [row[key] for row in scores["runs"] if row["object"] == entry["object"]]
            assert sum(runs) == entry[key]
    folder = tmp_path_factory.mktemp("scores")
    write_scores(folder, scores)
    assert read_scores(folder) == scores


def test_ten_of_fifty_found_five_times_each() -> None:
    truth = [(100.0 * n, 0.0, 0.0) for n in range(50)]
    guesses = [(x + shift, y, z) for x, y, z in truth[:10] for shift in (-0.2, -0.1, 0.0, 0.1, 0.2)]
    scores = evaluate(
        {"p/a": {"ribosome": picks(*guesses)}}, {"p/a": {"ribosome": picks(*truth)}}, RADII, Evaluate(), "test"
    )
    entry = find(scores, "ribosome")
    assert (entry["precision"], entry["recall"]) == (0.2, 0.2)
    assert entry["f"] == pytest.approx(0.2)


def test_runs_without_truth_or_predictions_count() -> None:
    predictions = {"p/a": {"ribosome": picks((0, 0, 0))}, "p/empty": {"ribosome": picks((9, 9, 9), (5, 5, 5))}}
    references = {"p/a": {"ribosome": picks((0, 0, 1))}, "p/missed": {"ribosome": picks((1, 1, 1))}}
    scores = evaluate(predictions, references, RADII, Evaluate(), "validate")
    entry = find(scores, "ribosome")
    assert (entry["true_positives"], entry["false_positives"], entry["false_negatives"]) == (1, 2, 1)
    assert scores["runs_scored"] == ["p/a", "p/empty", "p/missed"]
    assert scores["runs_without_references"] == ["p/empty"]
    assert scores["runs_without_predictions"] == ["p/missed"]
    # The challenge's scorer does not look at a run without references.
    challenge = evaluate(predictions, references, RADII, Evaluate(counting="challenge"), "validate")
    assert challenge["runs_ignored"] == ["p/empty"]
    assert find(challenge, "ribosome")["false_positives"] == 0


def example() -> dict:
    predictions = {
        "p/a": {
            "ribosome": picks((0, 0, 0), (50, 0, 0), scores=[0.9, 0.4]),
            "apo-ferritin": picks((0, 20, 0), scores=[0.8]),
        }
    }
    references = {"p/a": {"ribosome": picks((0, 0, 2)), "apo-ferritin": picks((0, 20.5, 0), (30, 30, 30))}}
    return evaluate(predictions, references, RADII, Evaluate(weights={"ribosome": 3.0}), "test")


def test_the_mean_is_weighted_and_leaves_out_what_is_not_defined() -> None:
    scores = example()
    ribosome, ferritin, amylase = scores["objects"]
    assert ribosome["f"] == pytest.approx(17 * 0.5 / (16 * 0.5 + 1))
    assert ferritin["f"] == pytest.approx(17 * 0.5 / (16 + 0.5))
    assert (amylase["f"], amylase["precision"], amylase["recall"], amylase["average_precision"]) == (None,) * 4
    assert scores["mean"]["f"] == pytest.approx((3 * ribosome["f"] + ferritin["f"]) / 4)
    assert scores["mean"]["left_out"] == ["beta-amylase"]
    assert ribosome["average_precision"] == 1.0
    assert scores["curves"][0]["threshold"] == [0.9, 0.4]
    assert scores["curves"][0]["precision"] == [1.0, 0.5]
    assert scores["pooled"]["precision"] == pytest.approx(2 / 3)


def test_the_tables_hold_the_scores(tmp_path: Path) -> None:
    scores = example()
    write_scores(tmp_path, scores)
    with (tmp_path / "objects.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["object"] for row in rows] == list(RADII)
    assert [float(row["F4"]) for row in rows[:2]] == [entry["f"] for entry in scores["objects"][:2]]
    assert rows[2]["F4"] == ""
    with (tmp_path / "runs.csv").open() as handle:
        runs = list(csv.DictReader(handle))
    assert [(row["run"], row["object"], row["true_positives"]) for row in runs[:2]] == [
        ("p/a", "ribosome", "1"),
        ("p/a", "apo-ferritin", "1"),
    ]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_scores(tmp_path, example())
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_the_terminal_table() -> None:
    lines = format_table(example()).splitlines()
    rows = {line.split("  ")[0]: line.split() for line in lines}
    assert rows["object"][-6:] == ["F4", "average", "precision", "localisation", "error", "(Å)"]
    assert rows["ribosome"][1:] == ["1", "2", "0.500", "1.000", "0.944", "1.000", "2.0"]
    assert rows["apo-ferritin"][1:] == ["2", "1", "1.000", "0.500", "0.515", "0.500", "0.5"]
    assert rows["beta-amylase"][1:] == ["0", "0", "–", "–", "–", "–", "–"]
    # Of the error the median over the pairs of all objects.
    assert rows["weighted mean"][2:] == ["3", "3", "0.625", "0.875", "0.837", "0.875", "1.2"]
    assert len({len(line) for line in lines[-7:]}) == 1
    assert "one-to-one counting within 0.5 × radius" in lines[0]


def three_runs() -> dict:
    """Of ribosomes all are found in run a, half of them in b, none in c; ferritins are in a alone."""
    truth = [(0.0, 0, 0), (40.0, 0, 0)]
    references = {f"p/{run}": {"ribosome": picks(*truth)} for run in "abc"}
    references["p/a"]["apo-ferritin"] = picks((0, 20, 0))
    predictions = {
        "p/a": {"ribosome": picks(*truth), "apo-ferritin": picks((0, 20, 1))},
        "p/b": {"ribosome": picks(truth[0])},
    }
    return evaluate(predictions, references, RADII, Evaluate(resamples=500), "test")


def test_intervals_hold_the_scores_and_are_the_same_each_time(tmp_path: Path) -> None:
    scores = three_runs()
    assert scores == three_runs()
    ribosome, ferritin, amylase = scores["objects"]
    assert ribosome["intervals"]["recall"] == [0.0, 1.0] and ribosome["intervals"]["precision"] == [1.0, 1.0]
    low, high = ribosome["intervals"]["f"]
    assert low <= ribosome["f"] <= high
    assert ferritin["intervals"]["f"] == [1.0, 1.0], "draws without the only run that has any say nothing"
    assert set(amylase["intervals"].values()) == {None}
    low, high = scores["mean"]["intervals"]["f"]
    assert low < scores["mean"]["f"] < high
    write_scores(tmp_path, scores)
    assert read_scores(tmp_path) == scores
    with (tmp_path / "objects.csv").open() as handle:
        row = next(csv.DictReader(handle))
    assert [float(row["recall_low"]), float(row["recall_high"])] == [0.0, 1.0]
    lines = format_table(scores).splitlines()
    assert any(line.startswith("ribosome") and "0.000–1.000" in line for line in lines)
    assert "Intervals of 95% are of the bootstrap over runs." in lines
    alone = evaluate({"p/a": {}}, {"p/a": {"ribosome": picks((0, 0, 0))}}, RADII, Evaluate(), "test")
    assert set(alone["mean"]["intervals"].values()) == {None}, "one run says nothing of others"


def test_errors_are_medians_over_pairs() -> None:
    truth, guesses = picks((0, 0, 0), (20, 0, 0), (40, 0, 0)), picks((0, 0, 1), (20, 0.5, 0), (40, 1.9, 0), (90, 0, 0))
    scores = evaluate({"p/a": {"ribosome": guesses}}, {"p/a": {"ribosome": truth}}, RADII, Evaluate(), "test")
    assert find(scores, "ribosome")["localisation_error"] == pytest.approx(1.0)
    assert scores["pooled"]["localisation_error"] == pytest.approx(1.0)
    assert find(scores, "ribosome")["angular_error"] is None


def test_the_sentences_name_runs_and_their_kind() -> None:
    scores = evaluate({"p/a": {}}, {"p/b": {"ribosome": picks((0, 0, 0))}}, RADII, Evaluate(), "train")
    text = " ".join(describe_runs(scores))
    assert "2 runs (training runs, which the model has seen)" in text
    assert "every prediction is false: p/a." in text
    assert "without predictions: p/a, p/b." in text


def test_the_f_is_named_by_its_beta() -> None:
    assert (f_name(4.0), f_name(0.5)) == ("F4", "F0.5")


@pytest.mark.parametrize(
    ("predictions", "weights", "message"),
    [
        ({}, {}, "no run to score"),
        (
            {"p/a": {"ribosome": picks()}},
            {"ribosom": 1.0},
            r"'ribosom' is not a scored object; did you mean 'ribosome'\?",
        ),
        ({"p/a": {"ribosome": picks()}}, {"ribosome": -1.0}, "weight of 'ribosome' is -1; expected 0 or more"),
        ({"p/a": {"membrane": picks((0, 0, 0))}}, {}, "p/a: predictions of 'membrane'"),
    ],
)
def test_bad_input_is_refused(predictions: dict, weights: dict, message: str) -> None:
    with pytest.raises(TomoscoutError, match=message):
        evaluate(predictions, {}, RADII, Evaluate(weights=weights), "test")


def test_curves_that_do_not_fit_the_scores_are_refused(tmp_path: Path) -> None:
    write_scores(tmp_path, example())
    (tmp_path / "curves.csv").write_text("object,threshold\nribosome,0.5\n")
    with pytest.raises(TomoscoutError, match=r"curves.csv: not the curves of scores.json"):
        read_scores(tmp_path)
    (tmp_path / "curves.csv").unlink()
    with pytest.raises(TomoscoutError, match=r"curves.csv: no such file"):
        read_scores(tmp_path)
