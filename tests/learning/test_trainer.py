"""The training loop, on a toy problem that has nothing to do with tomograms."""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tomoscout.learning.checkpoint import Checkpoint
from tomoscout.learning.precision import chosen_precision
from tomoscout.learning.progression import Outcome, Progression, Speed, Validation
from tomoscout.learning.schedule import learning_rate
from tomoscout.learning.state import too_large
from tomoscout.learning.trainer import Interrupted, fit
from tomoscout.machine.device import GIB, GpuMemory
from tomoscout.machine.errors import TomoscoutError, TrainingFailed
from tomoscout.tasks.picking.options import Train

torch.set_num_threads(1)
CPU = torch.device("cpu")
SHORT = Train(steps=23, learning_rate=0.02, warmup=0.2, checkpoint_seconds=1e9, seed=4, precision="float32")
Weights = dict[str, torch.Tensor]
Batch = tuple[torch.Tensor, tuple[torch.Tensor, ...]]


def toy_network() -> nn.Module:
    """Two-dimensional, with what carries state: dropout draws, a batch norm counts."""
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 2, 1)
    )


def toy_batch(step: int, scores: Mapping[str, float] | None = None) -> Batch:
    """Three crops that depend on the last scores, as those of harder classes do."""
    random = np.random.default_rng([9, step, int(1e6 * (scores or {}).get("one", 0))])
    images = random.normal(size=(3, 1, 6, 6)).astype(np.float32)
    labels = (images[:, 0] > 0.3).astype(np.int64)
    return torch.from_numpy(images), (torch.from_numpy(labels),)


def toy_validation(network: nn.Module) -> Validation:
    images, (labels,) = toy_batch(10_000)
    with torch.inference_mode():
        right = (network(images).argmax(dim=1) == labels).double().mean()
    return Validation(float(right), {"one": float(right) / 2}, {"thresholds": {"one": float(right) / 3}})


def weights_of(network: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def worsening(network: nn.Module) -> Validation:
    """A score that falls as the weights move away from the start."""
    start = toy_network().state_dict()
    moved = sum(float((value - start[name]).abs().sum()) for name, value in network.named_parameters())
    return Validation(-moved, {"one": 1 / (1 + moved)}, {"moved": moved})


class PowerCut(BaseException):
    """Ends the training without any chance to write anything."""


class Seldom(Checkpoint):
    """Due after every so many steps."""

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__(folder / "checkpoint.pt", "toy", 1e9)
        self.every = every
        self.asked = 0

    def is_due(self) -> bool:
        self.asked += 1
        return self.asked % self.every == 0


class Training:
    """A training in a folder of its own, run in this process as often as it is called."""

    def __init__(self, folder: Path, options: Train = SHORT, *, every: int = 10_000, **arguments: Any) -> None:
        """`every`: steps between checkpoints. `arguments`: those of `fit`."""
        self.options = options
        self.checkpoint = Seldom(folder, every)
        self.arguments = {"validate_every": 5, **arguments}

    def __call__(
        self,
        batches: Callable[..., Batch] = toy_batch,
        validate: Callable[[nn.Module], Validation] = toy_validation,
        *,
        network: nn.Module | None = None,
        loss: nn.Module | None = None,
    ) -> Outcome:
        return fit(
            network or toy_network(),
            batches,
            loss or nn.CrossEntropyLoss(),
            validate,
            self.options,
            self.checkpoint,
            CPU,
            **self.arguments,
        )

    def saved_step(self) -> int | None:
        state = self.checkpoint.load()
        return state and state["progression"]["step"]


def changed(**options: Any) -> Train:
    return SHORT.model_copy(update=options)


def is_same(found: Any, expected: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(is_same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(is_same, found, expected))
    return bool(found == expected)


def assert_equal(found: Outcome, expected: Outcome) -> None:
    assert found.progression == expected.progression
    assert is_same(found.weights, expected.weights)


def cut_off(training: Training, cuts: Iterable[int], validate: Callable[[nn.Module], Validation]) -> Outcome:
    """The outcome of a training whose power is cut before each of the steps."""
    remaining = set(cuts)

    def batches(step: int, scores: Mapping[str, float]) -> Batch:
        if step in remaining:
            remaining.remove(step)
            raise PowerCut
        return toy_batch(step, scores)

    while True:
        before = len(remaining)
        try:
            return training(batches, validate)
        except PowerCut:
            assert len(remaining) < before


# What the result is.


def raw_weights(options: Train) -> list[Weights]:
    """The weights before each step and after the last, from AdamW as the textbook has it."""
    network = toy_network()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=options.weight_decay)
    found = [weights_of(network)]
    for step in range(options.steps):
        torch.manual_seed(options.seed * 1_000_003 + step)
        images, (labels,) = toy_batch(step)
        optimiser.param_groups[0]["lr"] = learning_rate(options, step)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in network.parameters()))
        if options.gradient_clip and norm > options.gradient_clip:
            for parameter in network.parameters():
                parameter.grad *= options.gradient_clip / norm
        optimiser.step()
        found.append(weights_of(network))
    return found


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.995])
@pytest.mark.parametrize("clip", [0.0, 0.05, 10.0])
def test_averaged_weights_against_a_slow_reference(tmp_path: Path, decay: float, clip: float) -> None:
    options = changed(ema_decay=decay, gradient_clip=clip)
    seen: list[Weights] = []

    def validate(network: nn.Module) -> Validation:
        assert not network.training
        seen.append(weights_of(network))
        return Validation(0.0, {}, {})

    Training(tmp_path, options, validate_every=1)(validate=validate)
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
    outcome = Training(tmp_path, changed(steps=150, ema_decay=0.8))()
    history = outcome.progression.history
    assert outcome.progression.best_score > 0.9
    assert history[-1]["loss"] < history[0]["loss"] / 2


@pytest.mark.parametrize(
    ("scores", "best"), [((0.1, 0.3, 0.2, 0.3), 2), ((0.0, 0.0, 0.0, 0.0), 1), ((0.1, 0.2, 0.3, 0.4), 4)]
)
def test_the_best_weights_are_those_of_the_best_validation(
    tmp_path: Path, scores: tuple[float, ...], best: int
) -> None:
    seen: list[Weights] = []
    computed: list[int] = []

    def validate(network: nn.Module) -> Validation:
        seen.append(weights_of(network))
        number = len(seen)

        def more() -> dict[str, int]:
            computed.append(number)
            return {"twice": 2 * number}

        return Validation(scores[number - 1], {}, {"number": number}, more)

    outcome = Training(tmp_path, changed(steps=20))(validate=validate)
    assert outcome.progression.best_step == 5 * best
    assert outcome.progression.best_score == scores[best - 1]
    assert outcome.progression.best_details == {"number": best, "twice": 2 * best}
    assert computed == [n for n, score in enumerate(scores, 1) if score > max(scores[: n - 1], default=-1)]
    assert is_same(outcome.weights, seen[best - 1])
    assert not torch.equal(seen[0]["0.weight"], seen[1]["0.weight"])


def test_history(tmp_path: Path) -> None:
    losses: list[float] = []

    class Recording(nn.CrossEntropyLoss):
        def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            value = super().forward(logits, labels)
            losses.append(float(value.detach()))
            return value

    # A row for every 200th of the steps, and one for every validation.
    options = changed(steps=401)
    outcome = Training(tmp_path, options, validate_every=75)(loss=Recording())
    history = outcome.progression.history
    validations = [75, 150, 225, 300, 375, 401]
    assert [row["step"] for row in history] == sorted({*range(2, 402, 2), *validations})
    for row, following in zip([{"step": 0}, *history], history, strict=False):
        part = losses[int(row["step"]) : int(following["step"])]
        assert following["loss"] == pytest.approx(sum(part) / len(part))
        assert following["learning_rate"] == learning_rate(options, int(following["step"]) - 1)
    # The last step is validated even where the interval does not divide the steps.
    assert [row["step"] for row in history if "score" in row] == validations
    assert all(row["one"] == row["score"] / 2 for row in history if "score" in row)
    assert outcome.progression.validations == [row["score"] for row in history if "score" in row]
    assert outcome.speed.steps == 401


def test_crops_are_chosen_by_the_last_scores(tmp_path: Path) -> None:
    given: list[float | None] = []

    def batches(step: int, scores: Mapping[str, float]) -> Batch:
        given.append(scores.get("one"))
        return toy_batch(step, scores)

    history = Training(tmp_path)(batches).progression.history
    found = [row["one"] for row in history if "one" in row]
    assert given == [None] * 5 + [found[number] for number in range(3) for _ in range(5)] + [found[3]] * 3


def test_every_validation_is_reported(tmp_path: Path) -> None:
    reported: list[Progression] = []
    speeds: list[Speed] = []

    def report(progression: Progression, speed: Speed) -> None:
        reported.append(copy.deepcopy(progression))
        speeds.append(speed)

    outcome = Training(tmp_path, base=toy_validation, report=report)()
    assert [seen.step for seen in reported] == [0, 5, 10, 15, 20, 23]
    assert [speed.steps for speed in speeds] == [0, 5, 10, 15, 20, 23]
    assert all(speed.seconds >= 0 and speed.validation_seconds > 0 for speed in speeds)
    for seen in reported:
        rows = [row for row in outcome.progression.history if row["step"] <= seen.step]
        assert seen.history == rows
        assert "score" in rows[-1]
    assert reported[-1] == outcome.progression


# A schedule that goes by the scores.


def scripted(scores: Iterable[float]) -> Callable[[nn.Module], Validation]:
    coming = iter(scores)
    return lambda network: Validation(next(coming), {}, {})


def test_early_stopping(tmp_path: Path) -> None:
    training = Training(tmp_path, changed(steps=100, early_stopping=3))
    outcome = training(validate=scripted([0.1, 0.3, 0.2, 0.3, 0.2]))
    assert (outcome.progression.step, outcome.progression.best_step) == (25, 10)
    assert training.saved_step() == 25

    def refuse(*_: object) -> Batch:
        raise AssertionError("trained on")

    # A training that has stopped is complete.
    assert_equal(training(refuse, refuse), outcome)


def test_progress_puts_early_stopping_off(tmp_path: Path) -> None:
    scores = [0.1, 0.0, 0.2, 0.1, 0.3, 0.2, 0.1]
    outcome = Training(tmp_path, changed(steps=100, early_stopping=2))(validate=scripted(scores))
    assert outcome.progression.validations == scores


def test_a_plateau_lowers_the_learning_rate(tmp_path: Path) -> None:
    options = changed(steps=40, schedule="plateau", plateau_patience=2, plateau_factor=0.1, warmup=0, learning_rate=0.1)
    scores = [0.1, 0.3, 0.2, 0.3, 0.4, 0.4, 0.3, 0.5]
    outcome = Training(tmp_path, options)(validate=scripted(scores))
    rates = [row["learning_rate"] for row in outcome.progression.history]
    np.testing.assert_allclose(rates, [0.1] * 20 + [0.01] * 15 + [0.001] * 5)


# Parts of a batch.


def last_gradient(folder: Path, parts: int, crops: int, loss: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """The gradient of the one step of a training on so many crops in so many parts."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 1))
    network.load_state_dict(gradient_start())
    random = np.random.default_rng(crops)
    images = torch.from_numpy(random.normal(size=(crops, 1, 6, 6)).astype(np.float32))
    labels = torch.from_numpy(random.integers(0, 2, (crops, 6, 6)))
    # Not clipped: that would hide a wrong length.
    training = Training(folder / f"{parts}", changed(steps=1, gradient_clip=0), parts=parts)
    outcome = training(lambda *_: (images, (labels,)), network=network, loss=loss)
    expected = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 1))
    expected.load_state_dict(gradient_start())
    value = nn.functional.cross_entropy(expected(images), labels)
    assert outcome.progression.history[0]["loss"] == pytest.approx(float(value.detach()))
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def gradient_start() -> Weights:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 1)).state_dict()


@pytest.mark.parametrize(("crops", "parts"), [(4, 2), (4, 4), (6, 3), (3, 2), (5, 2), (5, 4), (7, 3), (2, 8)])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(tmp_path: Path, crops: int, parts: int) -> None:
    whole = last_gradient(tmp_path, 1, crops)
    # Parts that are not equal, too: a crop counts alike in all of them.
    for name, gradient in last_gradient(tmp_path, parts, crops).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-7)


def test_the_size_of_the_parts(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Watching(nn.CrossEntropyLoss):
        def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            assert len(logits) == len(labels)
            sizes.append(len(labels))
            return super().forward(logits, labels)

    for parts, expected in ((1, [7]), (2, [4, 3]), (3, [3, 3, 1]), (7, [1] * 7), (9, [1] * 7)):
        last_gradient(tmp_path, parts, 7, Watching())
        assert sizes == expected
        sizes.clear()


class OnSmallDevice(nn.Module):
    """A network on a device with memory for so many crops at a time in training: what is done before memory runs out
    has its effects."""

    def __init__(self, crops: int, run_out: Callable[[], None]) -> None:
        super().__init__()
        self.network = toy_network()
        self.crops = crops
        self.run_out = run_out

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.network(inputs)
        if self.training and len(inputs) > self.crops:
            self.run_out()
        return outputs


def gpu_runs_out() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def main_memory_runs_out() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


@pytest.mark.parametrize("run_out", [gpu_runs_out, main_memory_runs_out])
@pytest.mark.parametrize(("crops", "parts", "notes"), [(2, 2, [2]), (1, 3, [2, 1])])
def test_out_of_memory_makes_parts_of_a_batch(
    tmp_path: Path,
    run_out: Callable[[], None],
    crops: int,
    parts: int,
    notes: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = Training(tmp_path / "small")(network=OnSmallDevice(crops, run_out))
    lines = [line for line in capsys.readouterr().err.splitlines() if "memory" in line]
    assert lines == [
        f"out of memory at step 0: batches of 3 crops are worked through {size} at a time from here on"
        for size in notes
    ]
    assert found.progression.parts == parts
    # Nothing of the failed attempts is left, in the counts of the batch norm neither.
    assert_equal(found, Training(tmp_path / "asked", parts=parts)(network=OnSmallDevice(3, run_out)))


def test_the_parts_stay_after_an_interruption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def batches(step: int, scores: Mapping[str, float]) -> Batch:
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return toy_batch(step, scores)

    training = Training(tmp_path / "small")
    with pytest.raises(Interrupted):
        training(batches, network=OnSmallDevice(2, gpu_runs_out))
    capsys.readouterr()
    found = training(network=OnSmallDevice(2, gpu_runs_out))
    assert "memory" not in capsys.readouterr().err
    assert_equal(found, Training(tmp_path / "asked", parts=2)(network=OnSmallDevice(3, gpu_runs_out)))


@pytest.mark.parametrize("run_out", [gpu_runs_out, main_memory_runs_out])
def test_a_crop_that_does_not_fit_is_an_error(tmp_path: Path, run_out: Callable[[], None]) -> None:
    training = Training(tmp_path)
    with pytest.raises(TomoscoutError, match="not enough memory on cpu for one crop of 6×6 voxels; make") as caught:
        training(network=OnSmallDevice(0, run_out))
    assert "\n" not in str(caught.value)
    assert training.saved_step() is None


@pytest.mark.parametrize(
    ("gpu", "kind", "words"),
    [
        # Main memory; a GPU to itself, all of it or what is stated; one that is occupied, or smaller than stated.
        (None, TomoscoutError, "not enough memory on cpu for one crop of 6×8×8 voxels; make train.patch or"),
        (GpuMemory(GIB, 24 * GIB, 22 * GIB), TrainingFailed, "on cuda for one crop of 6×8×8 voxels; make train.patch"),
        (GpuMemory(68 * GIB, 80 * GIB, 11 * GIB, 12 * GIB), TrainingFailed, "not enough memory on cuda"),
        (GpuMemory(GIB, 24 * GIB, 12 * GIB), TomoscoutError, "6×8×8 voxels needs more than the 12.00 GiB that could"),
        (GpuMemory(GIB, 24 * GIB, 12 * GIB), TomoscoutError, "of the 24.00 GiB of this GPU 1.00 are free and 12.00"),
        (GpuMemory(0, 16 * GIB, 15 * GIB, 24 * GIB), TomoscoutError, "16.00 GiB in all, less than the 24.00 of train"),
    ],
)
def test_who_is_to_blame_for_a_crop_that_does_not_fit(
    gpu: GpuMemory | None, kind: type[TomoscoutError], words: str
) -> None:
    error = too_large((6, 8, 8), gpu)
    assert type(error) is kind
    assert words in str(error)
    assert str(error).startswith("training: ") and "\n" not in str(error)


def test_other_errors_of_the_network_are_not_taken_for_memory(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Training(tmp_path)(network=OnSmallDevice(2, fail))


# Numbers that are lost.


def assert_finite(value: Any) -> None:
    if isinstance(value, torch.Tensor):
        assert value.isfinite().all()
    elif isinstance(value, dict):
        for part in value.values():
            assert_finite(part)
    elif isinstance(value, list):
        for part in value:
            assert_finite(part)
    elif isinstance(value, float):
        assert not math.isnan(value)


@pytest.mark.parametrize("at", [0, 8, 9])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path, value: float, at: int) -> None:
    def batches(step: int, scores: Mapping[str, float]) -> Batch:
        images, targets = toy_batch(step, scores)
        return (images * value if step == at else images), targets

    training = Training(tmp_path, every=1)
    validated: list[Validation] = []

    def validate(network: nn.Module) -> Validation:
        assert_finite(weights_of(network))
        validated.append(toy_validation(network))
        return validated[-1]

    for _ in range(2):
        # Asked for again, it ends the same way.
        message = rf"training: the loss became nan before step {at + 1}; lower train\.learning_rate"
        with pytest.raises(TomoscoutError, match=message):
            training(batches, validate)
    # What was saved is from before, and sound.
    assert training.saved_step() == (at or None)
    assert len(validated) == at // 5
    if at:
        state = training.checkpoint.load()
        assert state is not None
        assert_finite(state)
        assert len(state["progression"]["history"]) == at
    assert_equal(training(), Training(tmp_path / "another")())


@pytest.mark.parametrize("at", [0, 8, 9, 22])
def test_a_gradient_that_is_not_finite_ends_the_training(tmp_path: Path, at: int) -> None:
    class Steep(nn.CrossEntropyLoss):
        """A loss that stays finite where its slope does not."""

        def forward(self, logits: torch.Tensor, labels: torch.Tensor, steep: torch.Tensor) -> torch.Tensor:
            value = super().forward(logits, labels)
            return value + (logits * 0).sum().abs().sqrt() if steep.any() else value

    def batches(step: int, scores: Mapping[str, float]) -> Batch:
        images, (labels,) = toy_batch(step, scores)
        return images, (labels, torch.full((3,), step == at))

    training = Training(tmp_path, every=1)

    def validate(network: nn.Module) -> Validation:
        assert_finite(weights_of(network))
        return toy_validation(network)

    with pytest.raises(TomoscoutError, match=f"training: the norm of the weights became nan before step {at + 1}; "):
        training(batches, validate, loss=Steep())
    assert training.saved_step() == (at or None)
    assert_finite(training.checkpoint.load() or {})


# Fine-tuning: frozen parameters, and the base.


def test_frozen_parameters_stay_until_their_time(tmp_path: Path) -> None:
    start = toy_network().state_dict()
    network = toy_network()
    frozen = frozenset(["0.weight", "1.weight", "1.bias"])
    seen: list[tuple[Weights, Weights]] = []

    def validate(averaged: nn.Module) -> Validation:
        seen.append((weights_of(averaged), weights_of(network)))
        return Validation(0.0, {}, {})

    training = Training(
        tmp_path,
        changed(weight_decay=0.9),
        validate_every=1,
        frozen=lambda step: frozen if step < 9 else frozenset(),
    )
    training(validate=validate, network=network)
    for step, weights in enumerate(seen, 1):
        for states in weights:
            for name, _ in network.named_parameters():
                assert torch.equal(states[name], start[name]) == (name in frozen and step <= 9), (step, name)


def test_what_a_network_fixes_by_itself_stays_fixed(tmp_path: Path) -> None:
    network = toy_network()
    network[0].requires_grad_(False)
    outcome = Training(tmp_path, changed(weight_decay=0.9), frozen=lambda step: frozenset(["4.bias"]))(network=network)
    start = toy_network().state_dict()
    same = {name for name, _ in network.named_parameters() if torch.equal(outcome.weights[name], start[name])}
    assert same == {"0.weight", "4.bias"}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("score", [0.2, 0.3, 0.5])
def test_the_base_is_the_outcome_unless_others_are_better(tmp_path: Path, keep: bool, score: float) -> None:
    def base(network: nn.Module) -> Validation:
        assert not network.training
        assert is_same(weights_of(network), toy_network().state_dict())
        return Validation(score, {"one": score / 2}, {"of": "base"})

    training = Training(tmp_path, changed(steps=15), base=base, keep_base=keep)
    seen: list[Weights] = []

    def validate(network: nn.Module) -> Validation:
        seen.append(weights_of(network))
        return Validation([0.1, 0.3, 0.2][len(seen) - 1], {}, {"of": "training"})

    outcome = training(validate=validate)
    kept = keep and score >= 0.3
    assert is_same(outcome.weights, toy_network().state_dict() if kept else seen[1])
    progression = outcome.progression
    assert progression.base_score == score
    assert progression.best_details == {"of": "base" if kept else "training"}
    assert (progression.best_step, progression.best_score) == ((0, score) if kept else (10, 0.3))
    assert progression.history[0] == {"step": 0, "score": score, "one": score / 2}
    assert progression.validations == [0.1, 0.3, 0.2]


def test_the_base_is_validated_once(tmp_path: Path) -> None:
    scores: list[float] = []

    def base(network: nn.Module) -> Validation:
        scores.append(0.25)
        return Validation(0.25, {}, {})

    training = Training(tmp_path, every=1, base=base)
    outcome = cut_off(training, [1, 7, 22], toy_validation)
    assert scores == [0.25]
    assert outcome.progression.base_score == 0.25


def test_the_base_does_not_count_for_early_stopping(tmp_path: Path) -> None:
    options = changed(steps=100, early_stopping=2)
    training = Training(tmp_path, options, base=lambda network: Validation(0.9, {}, {}), keep_base=True)
    outcome = training(validate=scripted([0.1, 0.2, 0.3, 0.2, 0.2]))
    assert (outcome.progression.step, outcome.progression.best_step) == (25, 0)


# Interruptions.

KINDS: dict[str, tuple[Train, dict[str, Any], Callable[[nn.Module], Validation]]] = {
    "plain": (SHORT, {}, toy_validation),
    "plateau": (changed(schedule="plateau", plateau_patience=1, plateau_factor=0.3), {"validate_every": 3}, worsening),
    "early stopping": (changed(early_stopping=3), {"validate_every": 4}, worsening),
    "parts": (SHORT, {"parts": 2}, toy_validation),
    "freezing": (
        SHORT,
        {"frozen": lambda step: frozenset(["0.weight", "4.bias"]) if step < 8 else frozenset()},
        toy_validation,
    ),
    "base": (SHORT, {"base": worsening, "keep_base": True}, worsening),
    "base not kept": (changed(schedule="one-cycle"), {"base": worsening}, worsening),
    "bf16": (changed(precision="bf16"), {}, toy_validation),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[Train, dict[str, Any], Callable[[nn.Module], Validation]]:
    return KINDS[request.param]


def test_cut_off_before_every_step_the_result_is_the_same(tmp_path: Path, kind: Any) -> None:
    options, arguments, validate = kind
    expected = Training(tmp_path / "uninterrupted", options, **arguments)
    cut = Training(tmp_path / "cut", options, every=1, **arguments)
    assert_equal(cut_off(cut, range(1, 23), validate), expected(validate=validate))
    assert is_same(cut.checkpoint.load(), expected.checkpoint.load())
    assert [path.name for path in cut.checkpoint.path.parent.iterdir()] == ["checkpoint.pt"]


@given(st.lists(st.integers(0, 22), max_size=4, unique=True), st.integers(1, 7), st.sampled_from([*KINDS]))
@settings(deadline=None, max_examples=5, derandomize=True)
def test_cut_off_at_any_steps_the_result_is_the_same(tmp_path_factory, cuts, every, name) -> None:
    folder = tmp_path_factory.mktemp("cut")
    options, arguments, validate = KINDS[name]
    expected = Training(folder / "uninterrupted", options, **arguments)(validate=validate)
    found = cut_off(Training(folder / "cut", options, every=every, **arguments), cuts, validate)
    assert_equal(found, expected)


def test_the_kinds_are_what_they_are_called(tmp_path: Path) -> None:
    outcomes = {
        name: Training(tmp_path / name, options, **arguments)(validate=validate)
        for name, (options, arguments, validate) in KINDS.items()
    }
    assert outcomes["early stopping"].progression.step == 16
    assert outcomes["plateau"].progression.history[-1]["learning_rate"] < 0.1 * SHORT.learning_rate
    assert outcomes["base"].progression.best_step == 0
    assert outcomes["base not kept"].progression.best_step == 5
    plain = outcomes["plain"].weights["0.weight"]
    assert not any(torch.equal(outcomes[name].weights["0.weight"], plain) for name in KINDS if name != "plain")


def test_the_loss_scale_of_half_precision_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No option chooses it on a CPU, which can do it all the same.
    monkeypatch.setattr("tomoscout.learning.state.chosen_precision", lambda *_: torch.float16)

    def steep(step: int, scores: Mapping[str, float]) -> Batch:
        images, targets = toy_batch(step, scores)
        return images * (1e4 if step == 3 else 1), targets

    expected = Training(tmp_path / "uninterrupted")
    uninterrupted = expected(steep)
    state = expected.checkpoint.load()
    assert state is not None
    # It was lowered, and is not what it would be after a step that was not made.
    assert 1 < state["scaler"]["scale"] < 65536
    cut = Training(tmp_path / "cut", every=1)
    for step in (2, 4, 9):

        def batches(now: int, scores: Mapping[str, float], last: int = step) -> Batch:
            if now == last:
                raise PowerCut
            return steep(now, scores)

        with pytest.raises(PowerCut):
            cut(batches)
    assert_equal(cut(steep), uninterrupted)
    assert is_same(cut.checkpoint.load(), state)
    # On a device whose precision needs no scale the same checkpoint serves, and the other way round.
    monkeypatch.undo()
    assert_equal(cut(), uninterrupted)


def test_a_checkpoint_without_a_loss_scale_serves_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path)
    outcome = training()
    monkeypatch.setattr("tomoscout.learning.state.chosen_precision", lambda *_: torch.float16)
    assert_equal(training(), outcome)


def test_a_checkpoint_of_another_device_is_gone_on_from_as_on_this_one(tmp_path: Path) -> None:
    def until(last: int) -> Callable[..., Batch]:
        def batches(step: int, scores: Mapping[str, float]) -> Batch:
            if step == last:
                raise PowerCut
            return toy_batch(step, scores)

        return batches

    training = Training(tmp_path, every=1)
    with pytest.raises(PowerCut):
        training(until(9))
    state = training.checkpoint.load()
    assert state is not None
    # On a GPU the optimiser is fused.
    state["optimiser"]["param_groups"][0]["fused"] = True
    training.checkpoint.save(state)
    assert_equal(training(), Training(tmp_path / "uninterrupted")())
    state = training.checkpoint.load()
    assert state is not None
    assert state["optimiser"]["param_groups"][0]["fused"] is False


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "fp16", "float32"])
def test_a_training_on_a_gpu_learns(tmp_path: Path, precision: str) -> None:
    cuda = torch.device("cuda")

    def batches(step: int, scores: Mapping[str, float]) -> Batch:
        images, targets = toy_batch(step, scores)
        return images.to(cuda), tuple(target.to(cuda) for target in targets)

    def validate(network: nn.Module) -> Validation:
        return toy_validation(copy.deepcopy(network).cpu())

    options = changed(steps=150, ema_decay=0.8, precision=precision)
    arguments = {"validate_every": 5}
    checkpoint = Seldom(tmp_path, 10_000)
    outcome = fit(toy_network(), batches, nn.CrossEntropyLoss(), validate, options, checkpoint, cuda, **arguments)
    assert outcome.progression.best_score > 0.9
    state = checkpoint.load()
    assert state is not None
    assert state["optimiser"]["param_groups"][0]["fused"] is True
    again = fit(toy_network(), batches, nn.CrossEntropyLoss(), validate, options, checkpoint, cuda, **arguments)
    assert_equal(again, outcome)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("at", [0, 9, 12, 22])
def test_told_to_stop_it_finishes_the_step_and_goes_on_later(
    tmp_path: Path, number: signal.Signals, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = signal.getsignal(number)

    def batches(step: int, scores: Mapping[str, float]) -> Batch:
        if step == at:
            os.kill(os.getpid(), number)
        return toy_batch(step, scores)

    training = Training(tmp_path)
    with pytest.raises(Interrupted):
        training(batches)
    assert signal.getsignal(number) == earlier
    assert training.saved_step() == at + 1
    outcome = training()
    assert_equal(outcome, Training(tmp_path / "uninterrupted")())
    assert outcome.speed.steps == 22 - at
    assert f"resumed at step {at + 1} of 23" in capsys.readouterr().err


def test_told_to_stop_while_validating(tmp_path: Path) -> None:
    def validate(network: nn.Module) -> Validation:
        os.kill(os.getpid(), signal.SIGTERM)
        return toy_validation(network)

    training = Training(tmp_path, base=validate)
    for step in (1, 5, 10, 15, 20, 23):
        with pytest.raises(Interrupted):
            training(validate=validate)
        assert training.saved_step() == step
    assert_equal(training(), Training(tmp_path / "uninterrupted", base=toy_validation)())


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    training = Training(tmp_path, every=4)

    def batches(step: int, scores: Mapping[str, float]) -> Batch:
        if step == 10:
            training.checkpoint.path.with_name(".checkpoint.pt.tmp").symlink_to("/dev/full")
        return toy_batch(step, scores)

    with pytest.raises(TomoscoutError, match=r"the checkpoint cannot be written .*No space left on device"):
        training(batches)
    assert training.saved_step() == 8
    assert_equal(training(), Training(tmp_path / "uninterrupted")())


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(tmp_path, every=4)

    def batches(step: int, scores: Mapping[str, float]) -> Batch:
        if step == 14:
            raise PowerCut
        return toy_batch(step, scores)

    with pytest.raises(PowerCut):
        training(batches)
    assert training.saved_step() == 12
    path = training.checkpoint.path
    path.write_bytes(path.read_bytes()[:-1000])
    outcome = training()
    assert "resumed at step 8 of 23" in capsys.readouterr().err
    assert_equal(outcome, Training(tmp_path / "uninterrupted")())


def test_a_finished_training_asked_for_again_is_done_at_once(tmp_path: Path) -> None:
    training = Training(tmp_path, base=toy_validation)
    expected = training()

    def refuse(*_: object) -> Batch:
        raise AssertionError("trained again")

    training.arguments["base"] = refuse
    found = training(refuse, refuse)
    assert_equal(found, expected)
    assert found.speed.steps == 0


def test_it_can_run_outside_the_main_thread(tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(Training(tmp_path)()))
    thread.start()
    thread.join()
    assert_equal(outcomes[0], Training(tmp_path / "main")())


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ({}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ],
)
def test_precision_of_a_cpu(
    instructions: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    found = [chosen_precision(wanted, CPU) for wanted in ("auto", "float32", "bf16")]
    assert found == [expected, torch.float32, torch.bfloat16]
    with pytest.raises(TomoscoutError, match=r"train\.precision: fp16 needs a GPU"):
        chosen_precision("fp16", CPU)


# What is said, and kept, on the way.


def test_a_line_for_every_validation_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def validate(network: nn.Module) -> Validation:
        score = next(scores)
        return Validation(score, {"one": score / 2, "two": score}, {})

    scores = iter([0.4, 0.3, 0.5, 0.2])
    Training(tmp_path, changed(steps=15), base=validate)(validate=validate)
    lines = [line for line in capsys.readouterr().err.splitlines() if ": score " in line]
    assert lines[0] == "the base: score 0.4000 (one 0.200, two 0.400)"
    assert [line.partition(": ")[2] for line in lines[1:]] == [
        "score 0.3000 (one 0.150, two 0.300); the best so far",
        "score 0.5000 (one 0.250, two 0.500); the best so far",
        "score 0.2000 (one 0.100, two 0.200); best so far 0.5000 at step 10",
    ]
    assert lines[1].startswith("step 5 of 15, loss 0.")


def test_the_best_so_far_is_handed_out(tmp_path: Path) -> None:
    seen: list[tuple[int, int, bool]] = []

    def keep_best(outcome: Outcome) -> None:
        seen.append((outcome.progression.step, outcome.progression.best_step, bool(outcome.weights)))

    training = Training(tmp_path, changed(steps=20), every=1, keep_best=keep_best)

    def batches(step: int, scores: Mapping[str, float]) -> Batch:
        if step == 12:
            raise PowerCut
        return toy_batch(step, scores)

    with pytest.raises(PowerCut):
        training(batches, scripted([0.1, 0.3]))
    assert seen == [(0, -1, False), (5, 5, True), (10, 10, True)]
    seen.clear()
    training(validate=scripted([0.2, 0.4]))
    assert seen == [(12, 10, True), (20, 20, True)]


# An early end, and more steps.


def test_a_training_can_be_finished_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[bool] = []
    training = Training(tmp_path / "early", finish=lambda: bool(asked))

    def batches(step: int, scores: Mapping[str, float]) -> Batch:
        if step == 6:
            asked.append(True)
        return toy_batch(step, scores)

    def killed(network: nn.Module) -> Validation:
        if asked:
            raise PowerCut
        return toy_validation(network)

    def refuse(*_: object) -> Batch:
        raise AssertionError("trained on")

    with pytest.raises(PowerCut):
        training(batches, killed)
    early = training(refuse)
    assert early.finished_early
    assert early.progression.step == 7
    assert [row["step"] for row in early.progression.history if "score" in row] == [5, 7]
    assert "finished early, at step 7 of 23, as asked for" in capsys.readouterr().err
    assert_equal(training(refuse, refuse), early)
    # Not asked for any more, it ends as if it never had been.
    asked.clear()
    assert_equal(training(), Training(tmp_path / "uninterrupted")())


def of_length(folder: Path, options: Train, steps: int, **arguments: Any) -> Training:
    training = Training(folder, options.model_copy(update={"steps": steps}), **arguments)
    training.checkpoint.fingerprint, training.checkpoint.kind = f"toy of {steps}", "toy"
    return training


EXTENDABLE = {
    "constant": changed(schedule="constant", warmup=0),
    "constant with a warm-up": changed(schedule="constant", warmup=4),
    "plateau": changed(schedule="plateau", plateau_patience=1, plateau_factor=0.3, warmup=4),
}


@pytest.mark.parametrize("lengths", [(23, 46), (25, 46), (3, 23), (7, 18, 31)], ids=str)
@pytest.mark.parametrize("name", EXTENDABLE)
def test_more_steps_give_what_they_would_have_given_from_the_start(
    tmp_path: Path, name: str, lengths: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    options, earlier = EXTENDABLE[name], 0
    for steps in lengths:
        training = of_length(tmp_path / "extended", options, steps)

        seen = [1] * (earlier // 5)

        def validate(network: nn.Module, steps: int = steps, seen: list[int] = seen) -> Validation:
            # A last step that ends no interval scores best, and must not win.
            seen.append(1)
            trapped = steps != lengths[-1] and len(seen) > steps // 5
            return Validation(1e6, {"one": 0.9}, {}) if trapped else worsening(network)

        outcome, earlier = training(validate=validate), steps
    expected = of_length(tmp_path / "whole", options, lengths[-1])(validate=worsening)
    assert f"resumed at step {lengths[-2]} of {lengths[-1]}" in capsys.readouterr().err
    assert_equal(outcome, expected)


@pytest.mark.parametrize(
    ("options", "steps", "message"),
    [
        (
            changed(warmup=4),
            46,
            "the schedule cosine spreads over all steps, and there were 23; with train.schedule con",
        ),
        (
            changed(schedule="constant", warmup=0.2),
            46,
            "the learning rate rose over 5 steps and would now rise over 9; ",
        ),
        (changed(schedule="constant", warmup=0), 20, "23 steps are done, more than the 20 asked for"),
    ],
    ids=["cosine", "share of the steps", "fewer"],
)
def test_where_more_steps_start_anew_it_says_why(
    tmp_path: Path, options: Train, steps: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    of_length(tmp_path / "twice", options, 23)()
    outcome = of_length(tmp_path / "twice", options, steps)()
    said = capsys.readouterr().err
    assert f"checkpoint.pt: the training starts anew: {message}" in said
    assert "resumed" not in said
    assert_equal(outcome, of_length(tmp_path / "once", options, steps)())


def test_a_warm_up_that_was_a_share_can_be_kept_as_a_number(tmp_path: Path) -> None:
    of_length(tmp_path / "twice", changed(schedule="constant", warmup=0.2), 23)()
    kept = changed(schedule="constant", warmup=5)
    outcome = of_length(tmp_path / "twice", kept, 46)()
    assert outcome.speed.steps == 23
    assert_equal(outcome, of_length(tmp_path / "once", kept, 46)())
