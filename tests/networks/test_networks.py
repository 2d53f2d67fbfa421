"""Families of networks: what they return, what sizes they take, how they are planned, and those of the user."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import nn

from tomoscout.learning.checkpoint import Checkpoint
from tomoscout.learning.losses.combined import build_loss
from tomoscout.learning.progression import Validation
from tomoscout.learning.trainer import fit
from tomoscout.networks import (
    FAMILIES,
    build_network,
    code_digest,
    family_module,
    head_parameters,
    parse_network,
)
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.reference import describe
from tomoscout.tasks.picking.options import Train

torch.set_num_threads(1)
few = settings(deadline=None, max_examples=10, derandomize=True)
many = settings(deadline=None, max_examples=30, derandomize=True)

TEMPLATE = Path(__file__).parents[2] / "config" / "examples" / "my_network.py"

TINY: dict[str, dict[str, Any]] = {
    "UNet": {"channels": [2, 3, 4], "strides": [2, 2]},
    "AttentionUNet": {"channels": [2, 3, 4], "strides": [2, 2]},
    "DynUNet": {"filters": [2, 3, 4], "strides": [1, 2, 2]},
    "SegResNet": {"init_filters": 2, "blocks_down": [1, 2, 1]},
    "MedNeXt": {
        "init_filters": 2,
        "blocks_down": [1, 2],
        "blocks_up": [2, 1],
        "blocks_bottleneck": 1,
        "expansion_down": [2, 3],
        "expansion_up": [3, 2],
    },
    "SwinUNETR": {"feature_size": 12, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 3, 4], "window_size": 2},
    "ResidualEncoderUNet": {
        "channels": [2, 3, 4],
        "strides": [2, 2],
        "blocks": [1, 2, 1],
        "decoder_convolutions": [2, 1],
        "deep_supervision": 1,
    },
}
SUPERVISED = ["DynUNet", "SegResNet", "MedNeXt", "ResidualEncoderUNet"]
CLASSES = 4


def tiny(family: str, **others: Any) -> NetworkOptions:
    return parse_network({"family": family, **TINY[family], **others})


def built(options: NetworkOptions, *, dimensions: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(options, CLASSES, dimensions=dimensions)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_size(options: NetworkOptions, dimensions: int) -> tuple[int, ...]:
    """The smallest, but not the same along all axes."""
    steps, smallest = options.size_step(dimensions), options.smallest_size(dimensions)
    return (*smallest[:-1], smallest[-1] + steps[-1])


def loss_of(outputs: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """Cross-entropy with made-up labels, over all resolutions."""
    levels = outputs if isinstance(outputs, list) else [outputs]
    total = torch.zeros(())
    for level in levels:
        labels = torch.arange(level[:, 0].numel()).mul(7).remainder(CLASSES).reshape(level[:, 0].shape)
        total = total + nn.functional.cross_entropy(level, labels)
    return total


def learns(network: nn.Module, inputs: torch.Tensor) -> None:
    """Every parameter gets a finite gradient, and not just zeros, within two steps: nnU-Net's residual blocks start as
    nothing, so that what is in them moves from the second step on. What a convolution adds is taken out again where
    its output is normalised, so that this may stay as it is."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    convolutions = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    moved = {f"{name}.bias" for name, module in network.named_modules() if isinstance(module, convolutions)}
    for _ in range(2):
        optimiser.zero_grad()
        loss_of(network.train()(inputs)).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            if parameter.grad.any():
                moved.add(name)
        optimiser.step()
    assert moved >= {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dimensions", [3, 2])
def test_every_family_learns_and_is_saved(family: str, dimensions: int) -> None:
    options = tiny(family, **({"deep_supervision": 2} if family in SUPERVISED else {}))
    network = built(options, dimensions=dimensions)
    # A transformer takes its time in three dimensions.
    size = options.smallest_size(dimensions) if family == "SwinUNETR" else some_size(options, dimensions)
    inputs = noise(2 if family != "SwinUNETR" else 1, 1, *size)
    learns(network, inputs)
    content = save(network.state_dict())
    other = built(options, dimensions=dimensions, seed=5)
    other.load_state_dict(load(content))
    with torch.no_grad():
        logits = network.eval()(inputs)
        assert logits.shape == (len(inputs), CLASSES, *inputs.shape[2:])
        assert other.eval()(inputs).numpy().tobytes() == logits.numpy().tobytes()


class Cut(Exception):
    """The power, at a step."""


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_on_where_it_was(family: str, tmp_path: Path) -> None:
    """Cut off between two steps and started again, a training ends with the same bytes."""
    options = tiny(family, **({"deep_supervision": 2} if family in SUPERVISED else {}))
    train = Train(steps=3, checkpoint_seconds=0, learning_rate=0.01)
    inputs = noise(2, 1, *some_size(options, 2))
    labels = torch.randint(0, CLASSES, (2, *inputs.shape[2:]), generator=torch.Generator().manual_seed(2))
    loss = build_loss(train.loss, torch.ones(CLASSES), torch.ones(CLASSES), 255)

    def trained(folder: Path, cut_at: int | None = None) -> dict[str, torch.Tensor]:
        def batches(step: int, scores: object) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            if step == cut_at:
                raise Cut
            return inputs + step, (labels,)

        network = built(options, dimensions=2)
        checkpoint = Checkpoint(folder / "checkpoint.pt", family, train.checkpoint_seconds)
        found = Validation(1.0, {}, {})
        device = torch.device("cpu")
        return fit(network, batches, loss, lambda _: found, train, checkpoint, device, validate_every=3).weights

    with pytest.raises(Cut):
        trained(tmp_path / "cut", cut_at=2)
    assert save(trained(tmp_path / "cut")) == save(trained(tmp_path / "whole"))


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_built_and_documented(family: str) -> None:
    options = parse_network({"family": family})
    assert type(options).__doc__
    describe(type(options))
    for name, field in type(options).model_fields.items():
        assert field.description or name == "family", name
    with torch.device("meta"):
        network = build_network(options, CLASSES)
    assert 3e5 < sum(parameter.numel() for parameter in network.parameters()) < 3e7
    assert parse_network(options.model_dump()) == options
    # The default patch suits them all.
    assert Train(network=options).patch == [64, 64, 64]


@pytest.mark.parametrize("family", SUPERVISED)
@pytest.mark.parametrize("dimensions", [3, 2])
def test_deep_supervision_lists_the_resolutions(family: str, dimensions: int) -> None:
    options = tiny(family, deep_supervision=2)
    network = built(options, dimensions=dimensions)
    size = some_size(options, dimensions)
    outputs = network.train()(noise(1, 1, *size))
    half = size if family == "DynUNet" else tuple(n // 2 for n in size)
    assert isinstance(outputs, list)
    assert [output.shape for output in outputs] == [(1, CLASSES, *size), (1, CLASSES, *half)]
    assert network.eval()(noise(1, 1, *size)).shape == (1, CLASSES, *size)
    one = built(tiny(family, deep_supervision=1), dimensions=dimensions).train()(noise(1, 1, *size))
    assert one.shape == (1, CLASSES, *size)


VARIANTS = [
    tiny("UNet", residual_units=0),
    tiny("UNet", residual_units=2, dropout=0.2),
    tiny("AttentionUNet", dropout=0.2),
    tiny("DynUNet", residual_blocks=False, norm="batch", kernel_sizes=[3, 1, 5]),
    tiny("SegResNet", norm="batch", activation="prelu", upsampling="nontrainable", blocks_up=[2, 1]),
    tiny("SegResNet", activation="leakyrelu", upsampling="pixelshuffle"),
    tiny("MedNeXt", kernel_size=5),
    tiny("ResidualEncoderUNet", kernel_sizes=[1, 5, 3], decoder_convolutions=None),
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: options.family)
@pytest.mark.parametrize("dimensions", [3, 2])
def test_variants_learn(options: NetworkOptions, dimensions: int) -> None:
    learns(built(options, dimensions=dimensions), noise(2, 1, *some_size(options, dimensions)))


def test_deep_supervision_goes_as_deep_as_it_can() -> None:
    mednext = built(tiny("MedNeXt", deep_supervision=3)).train()(noise(1, 1, 8, 8, 8))
    assert [output.shape[2] for output in mednext] == [8, 4, 2]
    segresnet = built(parse_network({"family": "SegResNet", "init_filters": 2, "deep_supervision": 3})).train()
    assert [output.shape[2] for output in segresnet(noise(1, 1, 16, 16, 16))] == [16, 8, 4]
    for family in SUPERVISED:
        with pytest.raises(ValidationError, match="deep_supervision is 9, expected at most"):
            tiny(family, deep_supervision=9)


def test_half_resolution_is_what_the_half_resolution_says() -> None:
    """Its head is its own: what is added to the full resolution does not show in it."""
    for family in ("SegResNet", "MedNeXt", "ResidualEncoderUNet"):
        network = built(tiny(family, deep_supervision=2)).train()
        inputs = noise(1, 1, 8, 8, 16)
        full, half = network(inputs)
        last = {"SegResNet": "up_layers.1.head.bias", "MedNeXt": "out_0.conv_out.bias"}.get(family, "heads.0.bias")
        with torch.no_grad():
            dict(network.named_parameters())[last].add_(1.0)
        again = network(inputs)
        assert torch.allclose(again[0], full + 1, atol=1e-5)
        assert torch.equal(again[1], half)


def test_dynunet_keeps_nothing_of_a_step() -> None:
    """A copy for averaged weights can be made at any time, and shares nothing with the original."""
    network = built(tiny("DynUNet", deep_supervision=2)).train()
    inputs = noise(1, 1, 8, 8, 8)
    network(inputs)
    twin = copy.deepcopy(network)
    before = twin.eval()(inputs)
    learns(network, inputs)
    assert torch.equal(twin(inputs), before)
    assert not torch.equal(network.eval()(inputs), before)


def test_dynunet_takes_weights_as_monai_saves_them() -> None:
    from monai.networks.nets import DynUNet

    theirs = DynUNet(3, 1, CLASSES, [3] * 3, [1, 2, 2], [2, 2], filters=[2, 3, 4], res_block=True).eval()
    ours = built(tiny("DynUNet")).eval()
    assert any(name.startswith("skip_layers.") for name in theirs.state_dict())
    assert set(ours.state_dict()) == {name for name, _ in theirs.named_parameters()}
    ours.load_state_dict(theirs.state_dict())
    inputs = noise(1, 1, 8, 8, 8)
    assert torch.equal(ours(inputs), theirs(inputs))
    incomplete = {name: value for name, value in theirs.state_dict().items() if not name.startswith("input_block.")}
    with pytest.raises(RuntimeError, match="Missing key"):
        built(tiny("DynUNet")).load_state_dict(incomplete)


THIN = [
    tiny("UNet", strides=[[1, 2, 2], 2]),
    tiny("AttentionUNet", strides=[[1, 2, 2], [1, 2, 2]]),
    tiny("DynUNet", strides=[1, [1, 2, 2], 2]),
    tiny("DynUNet", strides=[1, [1, 2, 2], [1, 2, 2]], kernel_sizes=[[1, 3, 3], [1, 3, 3], 3], deep_supervision=2),
    tiny("SegResNet", resolution=[3.0, 1.0, 1.5], deep_supervision=2),
    tiny("MedNeXt"),
    tiny("ResidualEncoderUNet", strides=[[1, 2, 2], 2], kernel_sizes=[[1, 3, 3], 3, 3], deep_supervision=2),
]


@pytest.mark.parametrize("options", THIN, ids=lambda options: options.family)
def test_thin_volumes(options: NetworkOptions) -> None:
    steps = options.size_step()
    assert steps[0] <= 4
    learns(built(options), noise(1, 1, *options.smallest_size()))
    with torch.no_grad():
        thin = (steps[0], 16, 24)
        assert built(options).eval()(noise(1, 1, *thin)).shape == (1, CLASSES, *thin)


@pytest.mark.parametrize("family", FAMILIES)
def test_smallest_size_is_needed(family: str) -> None:
    """One step a side leaves a single voxel, which no network can normalise while it learns."""
    options = tiny(family)
    assert options.smallest_size() == (options.size_step()[0], *(2 * step for step in options.size_step()[1:]))
    with pytest.raises(ValueError, match="more than 1"):
        built(options).train()(noise(1, 1, *options.size_step()))


def fits(network: nn.Module, size: Sequence[int]) -> bool:
    """Whether the network gives logits of the size of an input."""
    try:
        with torch.no_grad():
            return bool(network(torch.zeros(1, 1, *size)).shape[2:] == tuple(size))
    except (RuntimeError, ValueError):
        return False


@pytest.mark.parametrize("family", FAMILIES)
def test_size_step_is_what_the_network_needs(family: str) -> None:
    """Its multiples work; along each axis, multiples of any part of it do not."""
    options = tiny(family)
    steps, network = options.size_step(2), built(options, dimensions=2).eval()
    assert fits(network, (2 * steps[0], 3 * steps[1]))
    for axis in range(2):
        for more in range(1, steps[axis]):
            size = [2 * step for step in steps]
            size[axis] += more
            assert not fits(network, size), size


STRIDE = st.one_of(st.integers(1, 3), st.lists(st.integers(1, 3), min_size=2, max_size=2))


@few
@given(st.lists(STRIDE, min_size=2, max_size=3), st.sampled_from(["UNet", "AttentionUNet", "DynUNet"]))
def test_size_step_with_any_strides(strides: list[int | list[int]], family: str) -> None:
    levels = len(strides) + 1
    if family == "DynUNet":
        values = {"strides": [1, *strides], "filters": [2] * levels, "residual_blocks": False}
        options = parse_network({"family": family, **values})
    else:
        options = parse_network({"family": family, "strides": strides, "channels": [2] * levels})
    check_steps(options)


@few
@given(st.lists(STRIDE, min_size=1, max_size=3))
def test_size_step_of_the_residual_encoder_with_any_strides(strides: list[int | list[int]]) -> None:
    levels = len(strides) + 1
    values = {"strides": strides, "channels": [2] * levels, "blocks": [1] * levels}
    check_steps(parse_network({"family": "ResidualEncoderUNet", **values}))


def check_steps(options: NetworkOptions) -> None:
    steps, network = options.size_step(2), built(options, dimensions=2).eval()
    assert fits(network, [2 * step for step in steps])
    for axis in range(2):
        for part in range(1, steps[axis]):
            if steps[axis] % part == 0:
                size = [2 * step for step in steps]
                size[axis] += part
                assert not fits(network, size), size


@few
@given(st.lists(st.floats(0.5, 20), min_size=3, max_size=3), st.integers(2, 5))
def test_segresnet_resolution_halves_as_monai_does(resolution: list[float], levels: int) -> None:
    options = parse_network(
        {"family": "SegResNet", "init_filters": 1, "blocks_down": [1] * levels, "resolution": resolution}
    )
    with torch.device("meta"):
        network = build_network(options, 2)
    assert options.size_step() == tuple(network.shape_factor())


def test_swin_unetr_takes_less_memory_with_the_same_result() -> None:
    plain, frugal = (built(tiny("SwinUNETR", checkpointing=on), dimensions=2) for on in (False, True))
    inputs = noise(1, 1, 64, 96)
    for network in (plain, frugal):
        loss_of(network.train()(inputs)).backward()
    for one, other in zip(plain.parameters(), frugal.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("dropout", ["dropout", "attention_dropout", "path_dropout"])
def test_swin_unetr_dropouts_drop(dropout: str) -> None:
    network = built(tiny("SwinUNETR", **{dropout: 0.5}), dimensions=2)
    inputs = noise(1, 1, 64, 64)
    assert not torch.equal(network.train()(inputs), network(inputs))
    assert torch.equal(network.eval()(inputs), network(inputs))


@pytest.mark.parametrize("family", ["UNet", "AttentionUNet", "DynUNet"])
def test_dropouts_drop(family: str) -> None:
    network = built(tiny(family, dropout=0.5), dimensions=2)
    inputs = noise(1, 1, 8, 8)
    assert not torch.equal(network.train()(inputs), network(inputs))


# Heads


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_lie_where_head_parameters_says(family: str) -> None:
    """Putting the classes of the head in another order puts the logits in that order."""
    options = tiny(family, **({"deep_supervision": 2} if family in SUPERVISED else {}))
    heads = head_parameters(options, CLASSES, dimensions=2)
    network = built(options, dimensions=2)
    order = torch.tensor([2, 0, 3, 1])
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    for name, axes in heads.items():
        for axis in axes:
            weights[name] = weights[name].index_select(axis, order)
    other = built(options, dimensions=2, seed=3)
    other.load_state_dict(weights)
    inputs = noise(1, 1, *options.smallest_size(2))
    for mode in (True, False):
        found, expected = other.train(mode)(inputs), network.train(mode)(inputs)
        pairs = zip(found, expected, strict=True) if isinstance(found, list) else [(found, expected)]
        for one, reference in pairs:
            assert torch.allclose(one, reference[:, order], atol=1e-5)


def test_head_parameters_by_name() -> None:
    assert head_parameters(tiny("UNet"), 3) == {
        "model.2.0.conv.weight": (1,),
        "model.2.0.conv.bias": (0,),
        "model.2.1.conv.unit0.conv.weight": (0, 1),
        "model.2.1.conv.unit0.conv.bias": (0,),
    }
    assert head_parameters(tiny("UNet", residual_units=0), 3).keys() == {"model.2.conv.weight", "model.2.conv.bias"}
    supervised = head_parameters(tiny("DynUNet", deep_supervision=2), 3)
    assert {name.split(".")[0] for name in supervised} == {"output_block", "deep_supervision_heads"}
    # Other inputs of the network are not classes.
    assert head_parameters(tiny("MedNeXt"), 3, inputs=3) == {"out_0.conv_out.weight": (1,), "out_0.conv_out.bias": (0,)}


def test_head_that_mixes_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mixed.py"
    path.write_text(PLAIN.replace("outputs, 1", "3 * outputs, 1"))
    with pytest.raises(ValueError, match=r"mixed\.py': weight grows from \[6, 1, 1, 1, 1\] to \[9, 1, 1, 1, 1\]"):
        head_parameters(parse_network({"family": str(path)}), 2)


# Planning


def plan(family: str, shape: Sequence[int], memory_gb: float, **others: Any) -> tuple[Any, tuple[int, ...]]:
    return parse_network({"family": family, **others}).plan(shape, memory_gb)


SHAPES = [(184, 630, 630), (64, 192, 192), (512, 512, 512), (16, 64, 64), (20, 300, 400), (40, 40)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("memory_gb", [8, 24])
def test_planned_patches_suit_the_network(family: str, shape: tuple[int, ...], memory_gb: float) -> None:
    options, patch = plan(family, shape, memory_gb)
    steps, smallest = options.size_step(len(shape)), options.smallest_size(len(shape))
    assert type(options).model_validate(options.model_dump()) == options
    for size, step, least, whole in zip(patch, steps, smallest, shape, strict=True):
        assert size % step == 0
        assert size >= least
        # No larger than the tomogram, but for what the network needs.
        assert size < whole + step or size == least
    if len(shape) == 3:
        assert Train(network=options, patch=list(patch)).patch == list(patch)


def test_plan_without_rules_of_its_own() -> None:
    assert plan("UNet", (184, 630, 630), 8)[1] == (96, 96, 96)
    assert plan("UNet", (61, 630, 100), 8)[1] == (56, 96, 96)
    assert plan("SwinUNETR", (60, 630, 630), 8)[1] == (32, 96, 96)
    assert plan("SwinUNETR", (20, 630, 40), 8)[1] == (32, 96, 64)
    assert plan("UNet", (16, 64, 64), 8, strides=[[1, 2, 2], 2, 2])[1] == (16, 64, 64)


def nnunet_plan(shape: Sequence[int], memory_gb: float) -> tuple[list[int], list[list[int]], list[int]]:
    """The published procedure step by step, with its rules on voxel size: patch, strides, channels. Written for
    tomograms whose axes all differ."""

    def topology(patch: list[int]) -> tuple[list[list[int]], list[int], list[int]]:
        sizes, spacing, strides = [float(n) for n in patch], [1.0] * len(patch), []
        while True:
            candidates = [axis for axis, size in enumerate(sizes) if size >= 8]
            finest = min((spacing[axis] for axis in candidates), default=0)
            candidates = [axis for axis in candidates if spacing[axis] / finest < 2]
            if not candidates or (len(candidates) == 1 and sizes[candidates[0]] < 12):
                break
            strides.append([2 if axis in candidates else 1 for axis in range(len(patch))])
            for axis in candidates:
                sizes[axis], spacing[axis] = math.ceil(sizes[axis] / 2), spacing[axis] * 2
        steps = [math.prod(stride[axis] for stride in strides) for axis in range(len(patch))]
        padded = [n if n % step == 0 else n + step - n % step for n, step in zip(patch, steps, strict=True)]
        return strides, steps, padded

    def values(patch: list[int], channels: list[int], strides: list[list[int]]) -> int:
        count, sizes = channels[0] * math.prod(patch), list(patch)
        for level, own in enumerate(channels):
            if level:
                sizes = [n // step for n, step in zip(sizes, strides[level - 1], strict=True)]
            voxels = math.prod(sizes)
            blocks = [1, 3, 4, 6, 6, 6, 6][level]
            count += blocks * 2 * own * voxels  # two convolutions a block
            count += own * voxels if level else 0  # the skipping path of the first block
            count += 2 * own * voxels if level < len(channels) - 1 else 0  # decoder: upsampling and a convolution
        return count

    patch = [min(256, n) for n in shape]
    strides, steps, patch = topology(patch)
    while True:
        channels = [min(320, 32 * 2**level) for level in range(len(strides) + 1)]
        if values(patch, channels, strides) <= 680e6 * memory_gb / 8:
            return patch, strides, channels
        relative = [n / whole for n, whole in zip(patch, shape, strict=True)]
        axis = max(axis for axis, part in enumerate(relative) if part == max(relative))
        attempt = list(patch)
        attempt[axis] -= steps[axis]
        patch[axis] -= topology(attempt)[1][axis]
        strides, steps, patch = topology(patch)


@many
@given(st.integers(60, 330), st.integers(331, 600), st.integers(601, 900), st.sampled_from([6, 8, 11, 24]))
def test_plan_is_that_of_nnunet(z: int, y: int, x: int, memory_gb: float) -> None:
    options, patch = plan("ResidualEncoderUNet", (z, y, x), memory_gb)
    expected_patch, strides, channels = nnunet_plan((z, y, x), memory_gb)
    assert (list(patch), options.strides, options.channels) == (expected_patch, strides, channels)


@many
@given(
    st.lists(st.integers(8, 700), min_size=2, max_size=3),
    st.sampled_from([0.5, 2, 8, 24]),
    st.sampled_from([8, 32]),
)
def test_plan_keeps_the_rules_of_nnunet(shape: list[int], memory_gb: float, first: int) -> None:
    options, patch = plan("ResidualEncoderUNet", shape, memory_gb, channels=[first, first], strides=[2], blocks=[1, 1])
    levels, dimensions = len(options.channels), len(shape)
    assert options.channels == [min(512 if dimensions == 2 else 320, first * 2**n) for n in range(levels)]
    assert options.blocks == [1, 3, 4, 6, 6, 6, 6, 6, 6, 6][:levels]
    assert options.decoder_convolutions == [1] * (levels - 1)
    assert options.kernel_sizes == [3] * levels
    assert options.deep_supervision == max(1, levels - 2)
    deepest = [size // step for size, step in zip(patch, options.size_step(dimensions), strict=True)]
    for size, left, whole in zip(patch, deepest, shape, strict=True):
        assert left >= 4 if size >= 8 and min(shape) >= 16 else left >= 1
        assert left < 12
        assert size <= max(whole * 2, 8)
    # It fits, or nothing is left to shorten.
    budget = (135e6 if dimensions == 2 else 680e6) * memory_gb / 8
    assert options.feature_map_values(patch) <= budget or max(patch) < 20
    for one, other in product(range(dimensions), repeat=2):
        if shape[one] == shape[other]:
            assert patch[one] == patch[other]


def test_plan_in_numbers() -> None:
    """By hand: 64 = 4 · 16 and 192 = 6 · 32; the sums of feature maps are in millions 620 and 552."""
    for shape in ((184, 630, 630), (64, 192, 192)):
        options, patch = plan("ResidualEncoderUNet", shape, 8)
        assert patch == (64, 192, 192)
        assert options.channels == [32, 64, 128, 256, 320, 320]
        assert options.strides == [[2, 2, 2]] * 4 + [[1, 2, 2]]
        assert options.deep_supervision == 4
    assert plan("ResidualEncoderUNet", (512, 512, 512), 8)[1] == (128, 128, 128)
    assert plan("ResidualEncoderUNet", (512, 512, 512), 24)[1] == (192, 192, 192)
    assert plan("ResidualEncoderUNet", (2048, 2048), 8)[1] == (512, 512)
    assert plan("ResidualEncoderUNet", (184, 630, 630), 8, deep_supervision=2)[0].deep_supervision == 2
    with pytest.raises(ValueError, match=r"\[7, 7, 7\] voxels \(z, y, x\) are too small"):
        plan("ResidualEncoderUNet", (7, 7, 7), 8)


def test_a_planned_network_is_built_and_learns() -> None:
    options, patch = plan("ResidualEncoderUNet", (10, 24, 32), 8, channels=[2, 2], strides=[2], blocks=[1, 1])
    network = built(options)
    learns(network, noise(1, 1, *patch))
    assert len(network.train()(noise(1, 1, *patch))) == options.deep_supervision


def test_feature_maps_are_counted_as_they_are() -> None:
    options = tiny("ResidualEncoderUNet", strides=[[1, 2, 2], 2], channels=[2, 3, 5])
    network = built(options)
    counted = 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal counted
        counted += output[0].numel()

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and not name.startswith("heads."):
            module.register_forward_hook(count)
    network(noise(1, 1, 8, 12, 16))
    assert options.feature_map_values((8, 12, 16)) == counted


# Options


WRONG = [
    ({"family": "UNet", "channels": [4, 8]}, "2 channels need 1 strides, found 3"),
    ({"family": "UNet", "chanels": [4, 8]}, "unknown key 'chanels'; did you mean 'channels'"),
    ({"family": "UNet", "strides": [2, 0, 2]}, "found 0, expected a whole number from 1 on, or a list"),
    ({"family": "UNet", "strides": [2, [2], 2]}, r"found \[2\], expected a whole number"),
    ({"family": "UNet", "strides": [2, [2, 2.5, 2], 2]}, r"found \[2, 2.5, 2\], expected a whole number"),
    ({"family": "UNet", "strides": [True, 2, 2]}, "found True, expected a whole number"),
    ({"family": "AttentionUNet", "channels": [1, 8], "strides": [2]}, "greater than or equal to 2"),
    ({"family": "DynUNet", "strides": [2, 2, 2]}, "start with 2, expected 1"),
    ({"family": "DynUNet", "filters": [8, 8]}, r"filters \[8, 8\] has 2 entries, expected 4"),
    ({"family": "DynUNet", "kernel_sizes": [3, 3, 2, 3]}, "kernel size 2 with stride 2, expected odd"),
    ({"family": "DynUNet", "strides": [1, 2, [1, 5, 1]]}, r"kernel size 3 with stride \[1, 5, 1\], expected odd"),
    ({"family": "DynUNet", "strides": [1, 2, [1, 3, 3], 2]}, "expected 1 or 2; MONAI's residual blocks take no"),
    ({"family": "SegResNet", "blocks_up": [1]}, r"blocks_up \[1\] has 1 entries, expected 3"),
    ({"family": "SegResNet", "resolution": [2, 1, 1], "upsampling": "pixelshuffle"}, "pixelshuffle doubles every axis"),
    ({"family": "MedNeXt", "blocks_down": [1]}, r"blocks_up \[2, 2, 2\] has 3 entries, expected 1"),
    ({"family": "MedNeXt", "kernel_size": 4}, "Input should be 3, 5 or 7"),
    ({"family": "SwinUNETR", "feature_size": 20}, "multiple of 12"),
    ({"family": "SwinUNETR", "depths": [2, 2]}, r"depths \[2, 2\] has 2 entries, expected 4"),
    ({"family": "SwinUNETR", "num_heads": [5, 6, 12, 24]}, "5 heads share 24 channels in stage 1"),
    ({"family": "SwinUNETR", "feature_size": 12, "num_heads": [6, 6, 12, 24]}, "at least four for each"),
    ({"family": "ResidualEncoderUNet", "blocks": [1]}, r"blocks \[1\] has 1 entries, expected 4"),
    ({"family": "ResidualEncoderUNet", "decoder_convolutions": [1] * 4}, "has 4 entries, expected 3"),
    ({"family": "unets"}, "unknown family 'unets'; did you mean 'UNet'"),
    ({"family": "SwinUNTER"}, "did you mean 'SwinUNETR'"),
    ({"family": "ResNet18x"}, "unknown family 'ResNet18x'; did you mean"),
    ({"family": "?"}, "known: UNet, AttentionUNet, .*, or a Python file"),
    ({"family": 3}, "family must be a name or a Python file, found 3"),
    ("UNet", "expected a mapping with a family and its options, found 'UNet'"),
    ([{}, {}], "expected a mapping with a family and its options, found \\[{}, {}\\]"),
]


def test_a_list_of_one_is_a_network() -> None:
    assert parse_network([{"family": "SegResNet", "init_filters": 4}]).family == "SegResNet"


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda value: str(value)[:60])
def test_wrong_options_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_network(values)
    if isinstance(caught.value, ValidationError):
        assert all("\n" not in error["msg"] for error in caught.value.errors())
    else:
        assert "\n" not in str(caught.value)


def test_other_dimensions_are_refused() -> None:
    for options in THIN[:4]:
        with pytest.raises(ValueError, match="is for 3 dimensions, expected 2 numbers"):
            build_network(options, CLASSES, dimensions=2)
    with pytest.raises(ValueError, match=r"resolution \[3.0, 1.0, 1.5\], expected 2 numbers"):
        build_network(THIN[4], CLASSES, dimensions=2)
    with pytest.raises(ValueError, match="is for 3 dimensions, expected 2"):
        build_network(tiny("SwinUNETR", window_size=[4, 4, 4]), CLASSES, dimensions=2)
    for family, dimensions in product(FAMILIES, (1, 4)):
        with pytest.raises(ValueError, match=f"2 or 3 dimensions, found {dimensions}"):
            build_network(tiny(family), CLASSES, dimensions=dimensions)


def test_reading_options_imports_nothing_slow() -> None:
    """The workflow reads the options of every family, a user's file among them, whenever it is parsed."""
    code = f"""
import sys
from tomoscout.networks import FAMILIES, code_digest, parse_network
for family in [*FAMILIES, {str(TEMPLATE)!r}]:
    options = parse_network({{"family": family}})
    options.smallest_size(), options.plan((184, 630, 630), 8), code_digest(options), options.model_json_schema()
assert not {{"torch", "monai", "scipy", "numpy.random"}} & set(sys.modules) - {{"numpy.random"}}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Networks of the user


PLAIN = """
from tomoscout.networks.options import NetworkOptions

class Options(NetworkOptions):
    width: int = 1

def build(options, inputs, outputs, dimensions):
    from torch import nn
    return nn.Conv3d(inputs, outputs, 1)
"""


@pytest.mark.parametrize("dimensions", [3, 2])
def test_the_template_is_a_network(dimensions: int) -> None:
    options = parse_network({"family": str(TEMPLATE), "channels": 3, "dilations": [1, 2]})
    assert options.family == str(TEMPLATE)
    assert options.model_dump() == {"family": str(TEMPLATE), "channels": 3, "dilations": [1, 2]}
    describe(type(options))
    assert type(options).model_fields["channels"].description == "Feature channels."
    network = built(options, dimensions=dimensions)
    inputs = noise(2, 1, *some_size(options, dimensions))
    learns(network, inputs)
    assert network.eval()(inputs).shape == (2, CLASSES, *inputs.shape[2:])
    assert head_parameters(options, CLASSES, dimensions=dimensions) == {"5.weight": (1,), "5.bias": (0,)}
    assert not fits(network, (3, *inputs.shape[3:]))
    assert not (TEMPLATE.parent / "__pycache__").exists()
    assert Train(network={"family": str(TEMPLATE)}).network.size_step() == (2, 2, 2)
    with pytest.raises(ValueError, match="unknown key 'dilation'; did you mean 'dilations'"):
        parse_network({"family": str(TEMPLATE), "dilation": 1})


def test_an_edited_file_is_another_network(tmp_path: Path) -> None:
    """Also where the edit keeps length and time stamp, by which Python would take it for the same."""
    path = tmp_path / "mine.py"
    path.write_text(PLAIN)
    options = parse_network({"family": str(path)})
    first = code_digest(options)
    assert options.width == 1
    path.write_text(PLAIN.replace("int = 1", "int = 2"))
    assert parse_network({"family": str(path)}).width == 2
    assert code_digest(options) != first
    assert code_digest(parse_network({})) is None
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.py"]


BROKEN = [
    ("x = 1\nraise RuntimeError('a\\nb')\n", "line 2: RuntimeError: a b"),
    ("import tomoscout_no_such_thing\n", "line 1: ModuleNotFoundError: No module named 'tomoscout_no_such_thing'"),
    ("def build(:\n", r"SyntaxError: .*line 1\)"),
    ("from tomoscout.networks.options import per_axis\nper_axis([1], 2)\n", "line 2: ValueError: "),
    ("", "has no class Options of NetworkOptions; see config/examples/my_network.py"),
    ("class Options: ...\ndef build(): ...\n", "has no class Options of NetworkOptions"),
    ("from tomoscout.networks.options import NetworkOptions as Options\n", "has no function build; see config/"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN, ids=lambda value: value[:30])
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    for _ in range(2):
        with pytest.raises(ValueError, match=message) as caught:
            parse_network({"family": str(path)})
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.py': no such file"):
        family_module(str(tmp_path / "none.py"))


def install(folder: Path, name: str, module: str, content: str) -> None:
    """A package as pip would install it."""
    (folder / f"{module}.py").write_text(content)
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[tomoscout.networks]\n{name} = {module}\n")


def test_an_installed_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "PlainNet", "tomoscout_plain_net", PLAIN)
    install(tmp_path, "BrokenNet", "tomoscout_broken_net", "1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = parse_network({"family": "PlainNet", "width": 3})
    assert (options.family, options.width, code_digest(options)) == ("PlainNet", 3, None)
    assert build_network(options, 2)(noise(1, 1, 4, 4, 4)).shape == (1, 2, 4, 4, 4)
    with pytest.raises(ValueError, match="unknown family 'PlainNed'; did you mean 'PlainNet'"):
        parse_network({"family": "PlainNed"})
    with pytest.raises(ValueError, match=r"family 'BrokenNet' \(tomoscout_broken_net\): ZeroDivisionError"):
        parse_network({"family": "BrokenNet"})
    sys.modules.pop("tomoscout_plain_net")
