"""The training loop, on a toy problem that has nothing to do with tomograms."""

from __future__ import annotations

import itertools
import math
import os
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tomoscout.checkpoint import Checkpoint
from tomoscout.config import Train
from tomoscout.errors import TomoscoutError
from tomoscout.trainer import Interrupted, Outcome, Validation, fit, learning_rate

torch.set_num_threads(1)
CPU = torch.device("cpu")
SHORT = Train(steps=23, validate_every=5, learning_rate=0.02, warmup=0.2, checkpoint_seconds=1e9, seed=4)
Weights = dict[str, torch.Tensor]


def toy_network() -> nn.Module:
    """Two-dimensional, with what carries state: dropout draws, a batch norm counts."""
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 2, 1)
    )


def toy_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng([9, step])
    images = random.normal(size=(3, 1, 6, 6)).astype(np.float32)
    labels = (images[:, 0] > 0.3).astype(np.int64)
    return torch.from_numpy(images), torch.from_numpy(labels)


def toy_validation(network: nn.Module) -> Validation:
    images, labels = toy_batch(10_000)
    with torch.inference_mode():
        right = (network(images).argmax(dim=1) == labels).double().mean()
    return Validation(float(right), {"one": float(right) / 2}, {"thresholds": {"one": float(right) / 3}})


class Training:
    """A training in a folder of its own, run in this process as often as it is called."""

    def __init__(self, folder: Path, options: Train = SHORT) -> None:
        self.options = options
        self.checkpoint = Checkpoint(folder / "checkpoint.pt", "toy", options.checkpoint_seconds)

    def __call__(
        self,
        batches: Callable[[int], tuple[torch.Tensor, torch.Tensor]] = toy_batch,
        validate: Callable[[nn.Module], Validation] = toy_validation,
    ) -> Outcome:
        return fit(toy_network(), batches, nn.CrossEntropyLoss(), validate, self.options, self.checkpoint, CPU)


def assert_equal(found: Outcome, expected: Outcome) -> None:
    assert found.progression == expected.progression
    assert found.weights.keys() == expected.weights.keys()
    assert all(torch.equal(found.weights[name], value) for name, value in expected.weights.items())


def test_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    options = Train(steps=200, warmup=0.1, learning_rate=0.5)
    rates = [learning_rate(options, step) for step in range(200)]
    np.testing.assert_allclose(rates[:20], 0.5 * np.arange(1, 21) / 20)
    for step in range(20, 200):
        fraction = (step - 20) / 180
        assert rates[step] == pytest.approx(0.005 + 0.495 * (1 + math.cos(math.pi * fraction)) / 2)
    assert max(rates) == rates[19] == rates[20] == 0.5
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[20:]))
    assert 0.005 < rates[-1] < 0.0051


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (2, 0.5), (5, 0.99), (10, 0.0)])
def test_learning_rate_of_short_trainings(steps: int, warmup: float) -> None:
    options = Train(steps=steps, warmup=warmup, learning_rate=1.0)
    rates = [learning_rate(options, step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[-1] == max(rates) or warmup < 0.9


def raw_weights(options: Train) -> list[Weights]:
    """The weights before each step and after the last, from AdamW as the textbook has it."""
    network = toy_network()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=options.weight_decay)
    found = [{name: value.clone() for name, value in network.state_dict().items()}]
    for step in range(options.steps):
        torch.manual_seed(options.seed * 1_000_003 + step)
        images, labels = toy_batch(step)
        optimiser.param_groups[0]["lr"] = learning_rate(options, step)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in network.parameters()))
        if norm > options.gradient_clip:
            for parameter in network.parameters():
                parameter.grad *= options.gradient_clip / norm
        optimiser.step()
        found.append({name: value.clone() for name, value in network.state_dict().items()})
    return found


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.995])
@pytest.mark.parametrize("clip", [0.05, 10.0])
def test_averaged_weights_against_a_slow_reference(tmp_path: Path, decay: float, clip: float) -> None:
    options = SHORT.model_copy(update={"ema_decay": decay, "gradient_clip": clip, "validate_every": 1})
    seen: list[Weights] = []

    def validate(network: nn.Module) -> Validation:
        assert not network.training
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return Validation(0.0, {}, {})

    Training(tmp_path, options)(validate=validate)
    assert len(seen) == options.steps
    raw = raw_weights(options)
    averaged = {name: value.double() for name, value in raw[0].items()}
    for step in range(options.steps):
        kept = min(decay, (1 + step) / (10 + step))
        for name, value in raw[step + 1].items():
            is_weight = name in dict(toy_network().named_parameters())
            averaged[name] = averaged[name] * kept + value * (1 - kept) if is_weight else value
            np.testing.assert_allclose(seen[step][name], averaged[name], rtol=1e-4, atol=1e-6)


def test_it_learns(tmp_path: Path) -> None:
    outcome = Training(tmp_path, SHORT.model_copy(update={"steps": 150, "ema_decay": 0.8}))()
    history = outcome.progression.history
    assert outcome.progression.best_score > 0.9
    assert history[-1]["loss"] < history[0]["loss"] / 2


@pytest.mark.parametrize(
    ("scores", "best"), [((0.1, 0.3, 0.2, 0.3), 2), ((0.0, 0.0, 0.0, 0.0), 1), ((0.1, 0.2, 0.3, 0.4), 4)]
)
def test_the_best_weights_are_those_of_the_best_validation(tmp_path: Path, scores: Iterable[float], best: int) -> None:
    seen: list[Weights] = []
    coming = iter(scores)

    def validate(network: nn.Module) -> Validation:
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return Validation(next(coming), {}, {"number": len(seen)})

    outcome = Training(tmp_path, SHORT.model_copy(update={"steps": 20}))(validate=validate)
    assert outcome.progression.best_step == 5 * best
    assert outcome.progression.best_score == tuple(scores)[best - 1]
    assert outcome.progression.best_details == {"number": best}
    assert all(torch.equal(outcome.weights[name], value) for name, value in seen[best - 1].items())
    assert not torch.equal(seen[0]["0.weight"], seen[1]["0.weight"])


def test_history(tmp_path: Path) -> None:
    options = SHORT.model_copy(update={"steps": 23, "validate_every": 20})
    losses: list[float] = []

    class Recording(nn.CrossEntropyLoss):
        def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            value = super().forward(logits, labels)
            losses.append(float(value.detach()))
            return value

    training = Training(tmp_path, options)
    outcome = fit(toy_network(), toy_batch, Recording(), toy_validation, options, training.checkpoint, CPU)
    history = outcome.progression.history
    assert [row["step"] for row in history] == [*range(2, 23, 2), 23]
    for row, following in zip([{"step": 0}, *history], history, strict=False):
        part = losses[int(row["step"]) : int(following["step"])]
        assert following["loss"] == pytest.approx(sum(part) / len(part))
        assert following["learning_rate"] == learning_rate(options, int(following["step"]) - 1)
    # The last step is validated even where the interval does not divide the steps.
    assert [row["step"] for row in history if "score" in row] == [20, 23]
    assert all(row["one"] == row["score"] / 2 for row in history if "score" in row)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path, value: float) -> None:
    def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = toy_batch(step)
        return (images * value if step == 8 else images), labels

    training = Training(tmp_path, SHORT.model_copy(update={"checkpoint_seconds": 0}))
    with pytest.raises(TomoscoutError, match=r"loss became nan at step 8; lower train\.learning_rate"):
        training(batches)
    # What was saved is from before, and sound.
    assert training.checkpoint.load()["progression"]["step"] == 8
    assert_equal(training(), Training(tmp_path / "another")())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("at", [0, 9, 12, 22])
def test_told_to_stop_it_finishes_the_step_and_goes_on_later(
    tmp_path: Path, number: signal.Signals, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = signal.getsignal(number)

    def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == at:
            os.kill(os.getpid(), number)
        return toy_batch(step)

    training = Training(tmp_path)
    with pytest.raises(Interrupted):
        training(batches)
    assert signal.getsignal(number) == earlier
    assert training.checkpoint.load()["progression"]["step"] == at + 1
    assert_equal(training(), Training(tmp_path / "uninterrupted")())
    assert f"resumed at step {at + 1} of 23" in capsys.readouterr().err


def test_told_to_stop_while_validating(tmp_path: Path) -> None:
    def validate(network: nn.Module) -> Validation:
        os.kill(os.getpid(), signal.SIGTERM)
        return toy_validation(network)

    training = Training(tmp_path)
    for step in (5, 10, 15, 20, 23):
        with pytest.raises(Interrupted):
            training(validate=validate)
        assert training.checkpoint.load()["progression"]["step"] == step
    assert_equal(training(), Training(tmp_path / "uninterrupted")())


class PowerCut(BaseException):
    """Ends the training without any chance to write anything."""


@given(st.lists(st.integers(0, 22), max_size=4, unique=True), st.integers(1, 7))
@settings(deadline=None, max_examples=5, derandomize=True)
def test_cut_off_at_any_steps_the_result_is_the_same(tmp_path_factory: pytest.TempPathFactory, cuts, every) -> None:
    folder = tmp_path_factory.mktemp("cut")
    expected = Training(folder / "uninterrupted")()

    class Seldom(Checkpoint):
        """Due after every so many steps."""

        def is_due(self) -> bool:
            self.asked = getattr(self, "asked", 0) + 1
            return self.asked % every == 0

    training = Training(folder)
    training.checkpoint = Seldom(folder / "checkpoint.pt", "toy", 0)
    remaining = set(cuts)

    def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step in remaining:
            remaining.remove(step)
            raise PowerCut
        return toy_batch(step)

    for _ in cuts:
        with pytest.raises(PowerCut):
            training(batches)
    assert_equal(training(batches), expected)


def test_a_finished_training_asked_for_again_is_done_at_once(tmp_path: Path) -> None:
    training = Training(tmp_path)
    expected = training()

    def refuse(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError(f"step {step} was trained again")

    assert_equal(training(refuse), expected)


def test_it_can_run_outside_the_main_thread(tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(Training(tmp_path)()))
    thread.start()
    thread.join()
    assert_equal(outcomes[0], Training(tmp_path / "main")())
