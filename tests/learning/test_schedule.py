"""The learning rate of every step, against the schedules written out and against PyTorch's."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.learning.schedule import learning_rate, validations_without_progress
from tomoscout.tasks.picking.options import Train

checked = settings(deadline=None, max_examples=60, derandomize=True)
SCHEDULES = ["cosine", "polynomial", "one-cycle", "plateau", "constant"]
scores = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.4]), max_size=30)


def rates(**options: object) -> list[float]:
    made = Train(**options)
    return [learning_rate(made, step) for step in range(made.steps)]


@pytest.mark.parametrize("schedule", ["cosine", "polynomial", "plateau", "constant"])
def test_the_rate_rises_linearly_to_its_peak(schedule: str) -> None:
    found = rates(steps=200, warmup=0.1, learning_rate=0.5, schedule=schedule)
    np.testing.assert_allclose(found[:20], 0.5 * np.arange(1, 21) / 20)
    assert found[20] == max(found) == 0.5


def test_a_warm_up_of_a_number_of_steps() -> None:
    for steps in (10, 200):
        found = rates(steps=steps, warmup=20, learning_rate=0.5, schedule="constant")
        np.testing.assert_allclose(found[:20], 0.5 * np.arange(1, 21)[:steps] / 20)
        assert set(found[20:]) <= {0.5}
    with pytest.raises(ValueError, match=r"1\.5 is neither a fraction below 1 nor a whole number of steps"):
        Train(warmup=1.5)


def test_a_cosine_falls_to_its_end() -> None:
    found = rates(steps=200, warmup=0.1, learning_rate=0.5, final_learning_rate=0.02)
    for step in range(20, 200):
        assert found[step] == pytest.approx(0.01 + 0.49 * (1 + math.cos(math.pi * (step - 20) / 180)) / 2)
    assert all(later < earlier for earlier, later in itertools.pairwise(found[20:]))
    assert 0.01 < found[-1] < 0.0101


@pytest.mark.parametrize("power", [0.5, 0.9, 1.0, 2.0])
def test_a_polynomial_falls_to_its_end(power: float) -> None:
    options = {"schedule": "polynomial", "polynomial_power": power, "final_learning_rate": 0.1}
    found = rates(steps=50, warmup=0.2, learning_rate=2.0, **options)
    for step in range(10, 50):
        assert found[step] == pytest.approx(0.2 + 1.8 * ((50 - step) / 40) ** power)
    assert all(later < earlier for earlier, later in itertools.pairwise(found[10:]))


def test_one_cycle_rises_as_pytorchs_does() -> None:
    steps, rising = 100, 30
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=2 * rising, pct_start=(rising + 1) / 60)
    expected = []
    for _ in range(rising):
        optimiser.step()
        theirs.step()
        # PyTorch's first step is at a 25th of the peak, ours is one up, as in the linear warm-up.
        expected.append(theirs.get_last_lr()[0])
    found = rates(steps=steps, warmup=0.3, learning_rate=0.1, schedule="one-cycle", final_learning_rate=0.01)
    np.testing.assert_allclose(found[:rising], expected)
    assert found[rising - 1] == found[rising] == max(found) == pytest.approx(0.1)
    for step in range(rising, steps):
        assert found[step] == pytest.approx(0.001 + 0.099 * (1 + math.cos(math.pi * (step - rising) / 70)) / 2)
    assert all(later > earlier for earlier, later in itertools.pairwise(found[:rising]))
    assert all(later < earlier for earlier, later in itertools.pairwise(found[rising:]))


def test_a_constant_rate_stays() -> None:
    assert set(rates(steps=50, warmup=0.1, learning_rate=0.3, schedule="constant", final_learning_rate=0.1)[5:]) == {
        0.3
    }


@given(scores, st.integers(1, 5), st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([0.0, 0.01, 0.3]))
@checked
def test_a_plateau_is_lowered_as_by_pytorch(scores: list[float], patience: int, factor: float, least: float) -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    # PyTorch waits for one more than its patience.
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, "max", factor, patience - 1, threshold=0, threshold_mode="abs", min_lr=2.0 * least, eps=0
    )
    options = Train(
        steps=100,
        learning_rate=2.0,
        schedule="plateau",
        plateau_patience=patience,
        plateau_factor=factor,
        final_learning_rate=least,
    )
    for number in range(len(scores) + 1):
        assert learning_rate(options, 50, scores[:number]) == pytest.approx(optimiser.param_groups[0]["lr"])
        if number < len(scores):
            theirs.step(scores[number])


def test_a_plateau_does_not_disturb_the_warm_up() -> None:
    options = Train(steps=100, warmup=0.2, learning_rate=1.0, schedule="plateau", plateau_patience=1)
    assert learning_rate(options, 9, [0.5, 0.4, 0.3]) == 0.5
    assert learning_rate(options, 20, [0.5, 0.4, 0.3]) == 0.25


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (2, 0.5), (5, 0.99), (10, 0.0)])
def test_rates_of_short_trainings(schedule: str, steps: int, warmup: float) -> None:
    found = rates(steps=steps, warmup=warmup, learning_rate=1.0, schedule=schedule)
    assert all(0 < rate <= 1 for rate in found)
    # All of a training is warm-up, or its peak is reached.
    assert found[-1] == max(found) or found[max(1, round(warmup * steps))] == pytest.approx(1.0)


@given(st.sampled_from(SCHEDULES), st.integers(1, 300), st.floats(0, 0.99), st.floats(0, 1))
@checked
def test_no_rate_is_above_the_peak_or_below_the_end(schedule: str, steps: int, warmup: float, least: float) -> None:
    found = rates(steps=steps, warmup=warmup, schedule=schedule, learning_rate=0.1, final_learning_rate=least)
    rising = max(1, round(warmup * steps))
    assert all(0 < rate <= 0.1 * (1 + 1e-12) for rate in found)
    assert all(rate >= 0.1 * least * (1 - 1e-12) for rate in found[rising:])
    assert all(later >= earlier for earlier, later in itertools.pairwise(found[:rising]))
    assert all(later <= earlier for earlier, later in itertools.pairwise(found[rising:]))


@given(scores)
@checked
def test_validations_without_progress(scores: list[float]) -> None:
    waited, best = 0, -math.inf
    for score in scores:
        waited = 0 if score > best else waited + 1
        best = max(best, score)
    assert validations_without_progress(scores) == waited
