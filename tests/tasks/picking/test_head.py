"""Scoring of validation runs and the thresholds it chooses, against counting by hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from support.counting import f_beta
from tomoscout.data.picks import Picks
from tomoscout.machine.errors import TomoscoutError
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking import device_peaks
from tomoscout.tasks.picking.decoding import locate_picks
from tomoscout.tasks.picking.head import PickingHead, Reference
from tomoscout.tasks.picking.options import Picking, Train

torch.set_num_threads(1)
checked = settings(deadline=None, max_examples=40, derandomize=True)
few = settings(deadline=None, max_examples=10, derandomize=True)

RIBOSOME = TargetClass("ribosome", 1, 40.0, 32.0, ())
FERRITIN = TargetClass("ferritin", 2, 25.0, 20.0, ())
MEMBRANE = TargetClass("membrane", 3, None, None, ())
MEMBRANE_2 = TargetClass("membrane", 2, None, None, ())
SHAPE = (20, 30, 34)
SPACING = 10.0


def head(*classes: TargetClass, **options: Any) -> PickingHead:
    return PickingHead(classes, SPACING, Train(**options))


def blobs(positions: Sequence[Sequence[float]], heights: Sequence[float], radius: float = 3.0) -> np.ndarray:
    """Probabilities of particles at x, y, z in Å."""
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    volume = np.zeros(SHAPE)
    for position, height in zip(positions, heights, strict=True):
        cx, cy, cz = np.array(position) / SPACING
        squared = (z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2
        volume = np.maximum(volume, height * np.exp(-squared / radius**2))
    return np.rint(255 * volume).astype(np.uint8)


NOTHING = np.zeros(SHAPE, dtype=np.uint8)


def reference(labels: np.ndarray | None = None, **positions: Sequence[Sequence[float]]) -> Reference:
    picks = {name: Picks.at(np.array(where, dtype=np.float64).reshape(-1, 3)) for name, where in positions.items()}
    return Reference(picks, labels)


def counted(predicted: np.ndarray, truth: np.ndarray, distance: float) -> int:
    """True positives: the largest number of pairs within reach."""
    if not len(predicted) or not len(truth):
        return 0
    near = np.linalg.norm(predicted[:, None] - truth[None], axis=2) <= distance
    rows, columns = linear_sum_assignment(~near)
    return int(near[rows, columns].sum())


CENTRES = [[60, 60, 60], [150, 220, 140], [280, 90, 100], [240, 240, 60]]


def test_perfect_probabilities_score_one() -> None:
    result = head(RIBOSOME).measure([blobs(CENTRES, [0.9] * 4)[None]], [reference(ribosome=CENTRES)])
    assert result.score == 1
    assert result.scores == {"ribosome": 1.0}
    assert result.details["scores"] == result.scores
    assert 0.03 <= result.details["thresholds"]["ribosome"] < 0.9


def test_peaks_found_on_a_device_are_scored_alike() -> None:
    random = np.random.default_rng(2)
    truth = [scattered(random, 12) for _ in range(2)]
    predictions = [
        blobs(np.concatenate([places[:9], scattered(random, 6)]), random.uniform(0.1, 1, 15))[None] for places in truth
    ]
    references = [reference(ribosome=places) for places in truth]
    one, other = head(RIBOSOME, best_metric="avg_f1"), head(RIBOSOME, best_metric="avg_f1")
    other.find = partial(device_peaks.find_peaks, device=torch.device("cpu"))
    expected, found = (each.measure(predictions, references) for each in (one, other))
    assert 0.3 < expected.score < 1
    assert (found.score, found.scores, found.details) == (expected.score, expected.scores, expected.details)
    assert found.more() == expected.more()
    low, high = expected.more()["threshold_ranges"]["ribosome"]
    assert low <= expected.details["thresholds"]["ribosome"] <= high


def scattered(random: np.random.Generator, number: int) -> np.ndarray:
    return random.uniform(30, [310, 270, 170], (number, 3))


METRICS = [
    ("fBeta4", 4, None),
    ("fBeta0.5", 0.5, None),
    ("avg_f1", 1, None),
    ("fBeta1", 1, None),
    ("fBeta2_class2", 2, 2),
]


@given(st.integers(0, 10_000), st.sampled_from(METRICS))
@few
def test_scores_are_those_of_the_picks_made_at_the_thresholds(seed: int, metric: tuple[str, float, int | None]) -> None:
    name, beta, label = metric
    random = np.random.default_rng(seed)
    classes = (RIBOSOME, FERRITIN)
    predictions, references = [], []
    for _ in range(2):
        truth = {entry.name: scattered(random, 5) for entry in classes}
        volumes = []
        for entry in classes:
            near = truth[entry.name] + random.normal(scale=8, size=(5, 3))
            places = np.concatenate([near, scattered(random, 4)])
            volumes.append(blobs(places, random.uniform(0.1, 1, 9), entry.target_radius / SPACING))
        predictions.append(np.stack(volumes))
        references.append(reference(**truth))
    result = head(*classes, best_metric=name).measure(predictions, references)
    found, kept = dict.fromkeys(result.scores, 0), dict.fromkeys(result.scores, 0)
    for probabilities, truth in zip(predictions, references, strict=True):
        located = locate_picks(probabilities, classes, SPACING, Picking(), result.details["thresholds"])
        for entry in classes:
            positions = located[entry.name].positions
            found[entry.name] += counted(positions, truth.picks[entry.name].positions, 0.5 * entry.radius)
            kept[entry.name] += len(positions)
    assert result.scores == pytest.approx({each: f_beta(found[each], kept[each], 10, beta) for each in found})
    expected = np.mean(list(result.scores.values())) if label is None else result.scores[classes[label - 1].name]
    assert result.score == pytest.approx(expected)


def test_a_class_that_validation_does_not_hold_has_no_score_and_the_default_threshold() -> None:
    probabilities = np.stack([blobs(CENTRES, [0.9] * 4), blobs(CENTRES[:2], [0.8, 0.7], 2.0)])
    result = head(RIBOSOME, FERRITIN).measure([probabilities], [reference(ribosome=CENTRES, ferritin=[])])
    assert result.score == 1
    assert result.scores == {"ribosome": 1.0}
    assert result.details["thresholds"]["ferritin"] == 0.5


@pytest.mark.parametrize("predicted", [[], [[60, 200, 100]]])
def test_a_class_of_which_nothing_is_found_counts_as_zero(predicted: list[list[float]]) -> None:
    probabilities = np.stack([blobs(CENTRES, [0.9] * 4), blobs(predicted, [0.9] * len(predicted), 2.0)])
    result = head(RIBOSOME, FERRITIN).measure([probabilities], [reference(ribosome=CENTRES, ferritin=CENTRES[:1])])
    assert result.scores == {"ribosome": 1.0, "ferritin": 0.0}
    assert result.score == 0.5
    # Not the lowest of all: that would flood every tomogram with false picks.
    assert result.details["thresholds"]["ferritin"] == 0.5


def test_false_picks_in_a_run_without_references_count() -> None:
    runs = [blobs(CENTRES, [0.9] * 4)[None], blobs(CENTRES, [0.9] * 4)[None]]
    references = [reference(ribosome=CENTRES), reference(ribosome=[])]
    result = head(RIBOSOME, best_metric="avg_f1").measure(runs, references)
    assert result.score == pytest.approx(2 * 0.5 / 1.5)


def test_picks_found_several_times_are_found_once() -> None:
    truth = [[100.0, 150.0, 100.0]]
    twice = blobs([[90, 150, 100], [110, 150, 100]], [0.9, 0.9], 1.0)
    picking = Picking(smoothing=0, separation=0.4, distance=0.5)
    result = head(RIBOSOME, picking=picking, best_metric="fBeta1").measure([twice[None]], [reference(ribosome=truth)])
    assert result.score == pytest.approx(2 / 3)


@pytest.mark.parametrize("classes", [(RIBOSOME,), (RIBOSOME, FERRITIN)])
def test_no_reference_at_all_is_an_error(classes: tuple[TargetClass, ...]) -> None:
    probabilities = np.stack([blobs(CENTRES, [0.9] * 4)] * len(classes))
    nothing = reference(**{entry.name: [] for entry in classes})
    with pytest.raises(TomoscoutError, match=r"validation: no run has a reference for fBeta4; .*split\.validate"):
        head(*classes).measure([probabilities], [nothing])


def slow_counts(probabilities: np.ndarray, labels: np.ndarray, label: int) -> np.ndarray:
    """Voxels of a class that are found, predicted and true, one by one."""
    counts = np.zeros(3, dtype=int)
    for place in np.ndindex(labels.shape):
        shares = [int(value) for value in probabilities[(slice(None), *place)]]
        most = max(range(len(shares)), key=shares.__getitem__)
        predicted = shares[most] >= 255 - sum(shares) and most + 1 == label
        true = labels[place] == label
        counts += [predicted and true, predicted, true]
    return counts


def shares_of(random: np.random.Generator, classes: int, shape: tuple[int, ...]) -> np.ndarray:
    """Quantised probabilities (class, *shape) that leave something for the background."""
    parts = random.dirichlet(np.ones(classes + 1), shape)[..., 1:]
    return np.floor(np.moveaxis(parts, -1, 0) * 255).astype(np.uint8)


@given(st.integers(0, 10_000), st.sampled_from([*METRICS, ("fBeta4_class1", 4, 1), ("fBeta0", 0, None)]))
@few
def test_voxel_scores_by_name(seed: int, metric: tuple[str, float, int | None]) -> None:
    name, beta, label = metric
    random = np.random.default_rng(seed)
    classes = (RIBOSOME, MEMBRANE_2)
    shape = (4, 5, 6)
    labels = [random.integers(0, 3, shape) for _ in range(2)]
    predictions = [shares_of(random, 2, shape) for _ in labels]
    references = [reference(truth, ribosome=[]) for truth in labels]
    result = head(*classes, best_metric=name, best_metric_on="voxels").measure(predictions, references)
    expected = {}
    for entry in classes:
        pairs = zip(predictions, labels, strict=True)
        found, predicted, true = sum(slow_counts(volume, truth, entry.label) for volume, truth in pairs)
        expected[entry.name] = f_beta(found, predicted, true, beta)
    assert result.scores == pytest.approx(expected)
    chosen = list(expected.values()) if label is None else [expected[classes[label - 1].name]]
    assert result.score == pytest.approx(np.mean(chosen))
    # Picks are made by a model that is chosen by voxels, too.
    assert result.details["thresholds"] == {"ribosome": 0.5}


def test_continuous_classes_are_scored_by_their_voxels() -> None:
    random = np.random.default_rng(0)
    labels = [random.integers(0, 2, (5, 6, 7)) for _ in range(2)]
    predictions = [random.integers(0, 256, (1, 5, 6, 7)).astype(np.uint8) for _ in range(2)]
    entry = TargetClass("membrane", 1, None, None, ())
    references = [reference(truth) for truth in labels]
    result = head(entry, best_metric="avg_f1").measure(predictions, references)
    found, predicted, true = sum(slow_counts(*pair, 1) for pair in zip(predictions, labels, strict=True))
    dice = 2 * found / (predicted + true)
    assert result.score == result.scores["membrane"] == pytest.approx(dice)
    assert result.details["thresholds"] == {}


def test_a_class_of_which_no_voxel_is_found_counts_as_zero() -> None:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[:4] = 1
    entry = TargetClass("membrane", 1, None, None, ())
    for metric in ("fBeta0", "fBeta4", "avg_f1"):
        result = head(entry, best_metric=metric).measure([NOTHING[None]], [reference(labels)])
        assert result.score == 0


def mixed_case() -> tuple[np.ndarray, Reference]:
    """Ribosomes that are all found, no ferritin, and a membrane half of which is found."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[:4] = 3
    probabilities = np.stack([blobs(CENTRES, [0.9] * 4), NOTHING, np.zeros(SHAPE, dtype=np.uint8)])
    probabilities[2, :2] = 200
    return probabilities, reference(labels, ribosome=CENTRES, ferritin=[])


@pytest.mark.parametrize(
    ("options", "score"),
    [
        ({"best_metric": "avg_f1"}, 1.0),
        ({"best_metric": "fBeta1_class1"}, 1.0),
        ({"best_metric": "fBeta1_class3"}, 2 / 3),
        ({"best_metric": "fBeta1_class3", "best_metric_on": "voxels"}, 2 / 3),
    ],
)
def test_particles_alone_choose_the_model_where_there_are_any(options: dict[str, Any], score: float) -> None:
    probabilities, truth = mixed_case()
    result = head(RIBOSOME, FERRITIN, MEMBRANE, **options).measure([probabilities], [truth])
    assert result.score == pytest.approx(score)
    assert result.scores["membrane"] == pytest.approx(2 / 3)
    assert "ferritin" not in result.scores


def test_voxels_of_all_classes_choose_the_model_where_they_are_counted() -> None:
    probabilities, truth = mixed_case()
    assert truth.labels is not None
    truth.labels[10, 3:6, 3:6] = 1
    options = {"best_metric": "avg_f1", "best_metric_on": "voxels"}
    result = head(RIBOSOME, FERRITIN, MEMBRANE, **options).measure([probabilities], [truth])
    assert result.scores.keys() == {"ribosome", "membrane"}
    assert result.score == pytest.approx((result.scores["ribosome"] + 2 / 3) / 2)
    # Thresholds are those of the picks all the same.
    assert 0.03 <= result.details["thresholds"]["ribosome"] < 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"best_metric": "fBeta4_class2"},
        {"best_metric": "fBeta4_class2", "best_metric_on": "voxels"},
    ],
)
def test_the_one_class_that_counts_must_be_there(options: dict[str, Any]) -> None:
    probabilities, truth = mixed_case()
    with pytest.raises(TomoscoutError, match="validation: no run has a reference for fBeta4_class2; choose other runs"):
        head(RIBOSOME, FERRITIN, MEMBRANE, **options).measure([probabilities], [truth])


def test_a_continuous_class_that_validation_does_not_hold_has_no_score() -> None:
    probabilities = np.stack([blobs(CENTRES, [0.9] * 4), NOTHING, np.full(SHAPE, 200, dtype=np.uint8)])
    truth = reference(np.zeros(SHAPE, dtype=np.uint8), ribosome=CENTRES, ferritin=[])
    assert "membrane" not in head(RIBOSOME, FERRITIN, MEMBRANE).measure([probabilities], [truth]).scores
    alone = TargetClass("membrane", 1, None, None, ())
    with pytest.raises(TomoscoutError, match="validation: no run has a reference"):
        head(alone).measure([probabilities[2:]], [reference(np.zeros(SHAPE, dtype=np.uint8))])


@given(
    st.integers(0, 10_000),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.sampled_from(["fBeta4", "avg_f1", "fBeta0", "fBeta2_class1", "fBeta2_class3"]),
    st.sampled_from(["particles", "voxels"]),
)
@few
def test_no_score_is_ever_nan(seed: int, there: list[bool], metric: str, counted: str) -> None:
    random = np.random.default_rng(seed)
    shape = (6, 8, 10)
    labels = np.zeros(shape, dtype=np.uint8)
    for label, known in enumerate(there, 1):
        labels[2 * label - 2 : 2 * label] = label * known
    ribosomes, ferritins = (random.uniform(10, 50, (2 * known, 3)) for known in there[:2])
    truth = reference(labels, ribosome=ribosomes, ferritin=ferritins)
    prediction = shares_of(random, 3, shape) if seed % 2 else np.zeros((3, *shape), dtype=np.uint8)
    made = head(RIBOSOME, FERRITIN, MEMBRANE, best_metric=metric, best_metric_on=counted)
    try:
        result = made.measure([prediction], [truth])
    except TomoscoutError:
        assert not all(there)
        reject()
    assert result.scores.keys() == {
        entry.name for entry, known in zip((RIBOSOME, FERRITIN, MEMBRANE), there, strict=True) if known
    }
    numbers = [result.score, *result.scores.values(), *result.details["thresholds"].values()]
    assert all(0 <= number <= 1 for number in numbers)
    assert result.details["thresholds"].keys() == {"ribosome", "ferritin"}


@pytest.mark.parametrize(
    ("classes", "options", "needed"),
    [
        ((RIBOSOME, FERRITIN), {}, False),
        ((RIBOSOME, FERRITIN), {"best_metric_on": "voxels"}, True),
        ((RIBOSOME, MEMBRANE_2), {}, True),
    ],
)
def test_label_volumes_are_asked_for_where_they_are_needed(
    classes: tuple[TargetClass, ...], options: dict[str, Any], needed: bool
) -> None:
    assert head(*classes, **options).needs_labels == needed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"class_weights": {"ribosom": 2}},
            "train.class_weights: no class 'ribosom'; the classes are background, ribosome, ferritin",
        ),
        (
            {"class_sampling": {"background": 2}},
            "train.class_sampling: no class 'background'; the classes are ribosome, ferritin",
        ),
        (
            {"best_metric": "fBeta4_class3"},
            "train.best_metric: fBeta4_class3, but the classes are 1 ribosome, 2 ferritin",
        ),
    ],
)
def test_options_for_classes_that_are_not_there(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TomoscoutError) as caught:
        head(RIBOSOME, FERRITIN, **options)
    assert str(caught.value) == message


def weighted_surprise(logits: torch.Tensor, labels: torch.Tensor, weights: Sequence[float]) -> float:
    """The mean of −log p over the voxels, by the weight of their class; label 255 does not count."""
    total = weight = 0.0
    for crop, *place in np.ndindex(*labels.shape):
        label = int(labels[(crop, *place)])
        if label != 255:
            values = logits[(crop, slice(None), *place)].double()
            total -= weights[label] * float(values[label] - values.exp().sum().log())
            weight += weights[label]
    return total / weight


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"foreground_weight": 5, "size_balance": 0}, [1, 5, 5, 5]),
        ({"foreground_weight": 5, "size_balance": 1}, [1, 5, 5 * 32 / 20, 5]),
        ({"foreground_weight": 1, "size_balance": 3}, [1, 1, (32 / 20) ** 3, 1]),
        ({"foreground_weight": 2, "class_weights": {"background": 0.5, "ferritin": 3}}, [0.5, 2, 2 * 1.6 * 3, 2]),
        ({"foreground_weight": 2, "class_weights": {"membrane": 4}}, [1, 2, 2 * 1.6, 8]),
    ],
)
def test_how_much_a_voxel_counts(options: dict[str, Any], weights: list[float]) -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 3, 4, 5, generator=random)
    labels = torch.randint(0, 4, (2, 3, 4, 5), generator=random)
    labels[0, 0] = 255
    made = head(RIBOSOME, FERRITIN, MEMBRANE, loss="CrossEntropy", **options)
    assert float(made.loss()(logits, labels)) == pytest.approx(weighted_surprise(logits, labels, weights))


def test_continuous_classes_alone_are_of_one_size() -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 2, 3, 4, 5, generator=random)
    labels = torch.randint(0, 2, (1, 3, 4, 5), generator=random)
    options = {"loss": "CrossEntropy", "size_balance": 2, "foreground_weight": 3}
    found = head(TargetClass("membrane", 1, None, None, ()), **options).loss()
    assert float(found(logits, labels)) == pytest.approx(weighted_surprise(logits, labels, [1, 3]))


def test_how_much_a_class_counts() -> None:
    """In losses of regions: neither by its size nor by the weight of the foreground."""
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 4, 3, 4, 5, generator=random)
    labels = torch.randint(0, 4, (2, 3, 4, 5), generator=random)
    given = {"background": 0.5, "ferritin": 3, "membrane": 2}
    classes = (RIBOSOME, FERRITIN, MEMBRANE)
    found = head(*classes, loss="Dice", class_weights=given, foreground_weight=7, size_balance=2).loss()
    probabilities = torch.softmax(logits.double(), dim=1)
    total = 0.0
    for label, weight in enumerate([0.5, 1, 3, 2]):
        inside = (labels == label).double()
        both = float((probabilities[:, label] * inside).sum())
        total += weight * (1 - 2 * both / float(probabilities[:, label].sum() + inside.sum())) / 6.5
    assert float(found(logits, labels)) == pytest.approx(total, rel=1e-4)
