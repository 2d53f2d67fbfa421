"""The quick PReLU beside PyTorch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tomoscout.networks.prelu import quicken


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("slope", [0.25, -0.1, 0.0])
def test_values_and_gradients_are_those_of_pytorch(slope: float, autocast: bool) -> None:
    torch.manual_seed(0)
    slow = nn.Sequential(nn.PReLU(init=slope))
    quick = copy.deepcopy(slow)
    quicken(quick)
    assert type(quick[0]) is not nn.PReLU
    inputs, gradient = torch.randn(2, 3, 8, 9), torch.randn(2, 3, 8, 9)
    found = []
    for network in (slow, quick):
        given = inputs.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            values = network(given)
        values.backward(gradient.to(values.dtype))
        assert given.grad is not None
        found.append((values.detach(), given.grad, network[0].weight.grad))
    (values, passed, of_slope), (quick_values, quick_passed, of_quick_slope) = found
    assert torch.equal(values, quick_values)
    torch.testing.assert_close(quick_passed, passed)
    # PyTorch rounds this sum to bfloat16.
    torch.testing.assert_close(of_quick_slope, of_slope, rtol=1e-2 if autocast else 1e-5, atol=1e-5)


def test_several_slopes_and_names_stay() -> None:
    network = nn.Sequential(nn.PReLU(3), nn.PReLU())
    before = list(network.state_dict())
    quicken(network)
    assert type(network[0]) is nn.PReLU
    assert list(network.state_dict()) == before
    assert network(torch.randn(1, 3, 4)).shape == (1, 3, 4)


def test_a_traced_network_gives_the_same() -> None:
    prelu = nn.PReLU()
    network = nn.Sequential(prelu)
    quicken(network)
    inputs = torch.randn(1, 3, 4)
    traced: Any = torch.jit.trace(network, inputs)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        prelu.weight.fill_(0.5)
    # The slope of the trace is the parameter, not the number that it had.
    assert torch.equal(traced(inputs), network(inputs))
