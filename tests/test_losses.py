"""The loss against its formula, voxel by voxel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoscout.losses import WeightedCrossEntropy

torch.set_num_threads(1)
checked = settings(deadline=None, max_examples=30, derandomize=True)
IGNORE = 255


def scene(seed: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    logits = random.normal(scale=3, size=(2, classes, 2, 3, 4))
    labels = random.integers(0, classes, (2, 2, 3, 4))
    labels[random.random(labels.shape) < 0.3] = IGNORE
    labels[0, 0, 0, 0] = 1
    weights = random.uniform(0.1, 9, classes)
    return tuple(torch.from_numpy(array) for array in (logits, labels, weights))


def slow_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> float:
    total = weight_sum = 0.0
    for batch, z, y, x in np.ndindex(*labels.shape):
        label = int(labels[batch, z, y, x])
        if label == IGNORE:
            continue
        values = [float(v) for v in logits[batch, :, z, y, x]]
        highest = max(values)
        normaliser = highest + math.log(sum(math.exp(v - highest) for v in values))
        total += float(weights[label]) * (normaliser - values[label])
        weight_sum += float(weights[label])
    return total / weight_sum


@given(st.integers(0, 10_000))
@checked
def test_against_a_slow_reference(seed: int) -> None:
    logits, labels, weights = scene(seed)
    loss = WeightedCrossEntropy(weights.float(), IGNORE)
    assert float(loss(logits.float(), labels)) == pytest.approx(slow_loss(logits, labels, weights), rel=1e-5)


@given(st.integers(0, 10_000))
@checked
def test_gradient(seed: int) -> None:
    """d loss / d logit = weight of the label × (softmax − 1 at the label) / sum of the weights."""
    logits, labels, weights = scene(seed)
    inputs = logits.float().requires_grad_()
    WeightedCrossEntropy(weights.float(), IGNORE)(inputs, labels).backward()
    counted = labels != IGNORE
    known = torch.where(counted, labels, 0)
    weight = weights[known] * counted
    error = torch.softmax(logits, dim=1) - torch.nn.functional.one_hot(known, 4).movedim(-1, 1)
    expected = error * (weight / weight.sum())[:, None]
    np.testing.assert_allclose(inputs.grad, expected, atol=1e-6)
    assert not inputs.grad.movedim(1, -1)[~counted].any()


def test_gradient_by_finite_differences() -> None:
    logits, labels, weights = scene(1)
    loss = WeightedCrossEntropy(weights.float(), IGNORE)
    inputs = logits.float().requires_grad_()
    loss(inputs, labels).backward()
    for index in [(0, 1, 0, 0, 0), (1, 3, 1, 2, 3), (0, 0, 1, 1, 1)]:
        shift = torch.zeros_like(logits)
        shift[index] = 1e-3
        slope = (slow_loss(logits + shift, labels, weights) - slow_loss(logits - shift, labels, weights)) / 2e-3
        assert float(inputs.grad[index]) == pytest.approx(slope, abs=1e-5)


def test_half_precision_logits_are_scored_in_single_precision() -> None:
    logits, labels, weights = scene(2)
    rounded = logits.to(torch.bfloat16)
    value = WeightedCrossEntropy(weights.float(), IGNORE)(rounded, labels)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(slow_loss(rounded.double(), labels, weights), rel=1e-5)


def test_weights_move_with_the_module() -> None:
    loss = WeightedCrossEntropy(torch.ones(3), IGNORE)
    assert loss.to(torch.float64).weights.dtype == torch.float64
