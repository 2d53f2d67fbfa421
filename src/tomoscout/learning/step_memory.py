"""The memory of a training step on its device, measured in a dry run with fake tensors, which have no data."""

from __future__ import annotations

import copy
import logging
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Shape = Sequence[int]

MARGIN = 1.2
"""Factor for memory fragmentation: allocators leave gaps between the tensors that a step works with."""

# Bytes per voxel of a crop in the batch: intensities float32 in each channel, and labels int64, twice with mixup.
# Resampling (rotation, tilt, zoom) takes most: crops before and after, sampling positions, and indices.
_CHANNEL, _LABELS, _BEING_CHANGED = 4, 8, 76


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training takes on its device.

    `state`: weights, their gradients, Adam's two moments, averaged weights, buffers. `crop`: working memory of the
    network for a crop, forward and backward. `waiting_crop`: a crop of the batch with its labels and targets.
    `changing_crop`: the same during augmentation. `predicted_voxel`: working memory of the network for a voxel of a
    tile.
    """

    state: int
    crop: int
    waiting_crop: int
    changing_crop: int
    predicted_voxel: float

    def training(self, batch_size: int, parts: int) -> int:
        """Bytes of a step in addition to the state, with the batch divided into `parts` (gradient accumulation)."""
        at_once = math.ceil(batch_size / parts) * self.crop
        return math.ceil(MARGIN * max(batch_size * self.waiting_crop + at_once, batch_size * self.changing_crop))

    def predicting(self, tile: Shape) -> int:
        """Working memory of the network for a tile, in bytes."""
        return math.ceil(MARGIN * self.predicted_voxel * math.prod(tile))


def label_targets(patch: Shape, mixup: bool) -> tuple[torch.Tensor, ...]:
    """Targets of one crop, as `augment` makes them: labels, and with mixup other labels and a share."""
    labels = torch.zeros((1, *patch), dtype=torch.int64)
    return (labels, labels, torch.ones(1)) if mixup else (labels,)


def step_memory(
    network: nn.Module,
    loss: nn.Module,
    patch: Shape,
    smallest: Shape,
    precision: torch.dtype,
    *,
    mixup: bool = False,
    channels: int = 1,
    targets: Callable[[Shape, bool], tuple[torch.Tensor, ...]] = label_targets,
) -> StepMemory:
    """The memory of a step of `network` with crops of `patch` voxels.

    The step is run with fake tensors, which takes a second and no memory. This fails if the network or the loss reads
    values: then a real step is run with copies of both and a crop of the `smallest` voxels that the network takes, and
    its bytes are scaled by the number of voxels. Neither the network nor the random state is changed.

    Args:
        network: on the CPU.
        loss: called with the network's outputs and the targets.
        targets: creates the targets of a crop of these voxels, with or without mixup.
        precision: dtype of the network's arithmetic: float32 or, under autocast, 16 bits.
    """
    dry = _DryRun(precision, channels, lambda patch: targets(patch, mixup))
    scale = 1.0
    try:
        without_content = FakeTensorMode(allow_non_fake_inputs=True)
        copies = _emptied(network, without_content), _emptied(loss, without_content)
        with _silent(), without_content:
            crop, predicted = dry.train(*copies, patch), dry.predict(copies[0], patch)
    except Exception:
        # Code that reads values of fake tensors may raise almost any exception.
        copies = copy.deepcopy(network), copy.deepcopy(loss)
        with torch.random.fork_rng(devices=[]):
            crop, predicted = dry.train(*copies, smallest), dry.predict(copies[0], smallest)
        scale = math.prod(patch) / math.prod(smallest)
    voxels = math.prod(patch)
    parameters = sum(p.numel() * p.element_size() for p in network.parameters())
    buffers = sum(b.numel() * b.element_size() for b in network.buffers())
    return StepMemory(
        state=5 * parameters + 2 * buffers,
        crop=math.ceil(scale * crop),
        waiting_crop=voxels * (_CHANNEL * channels + _LABELS * (1 + mixup)),
        changing_crop=voxels * (_CHANNEL * channels + _BEING_CHANGED),
        predicted_voxel=scale * predicted / voxels,
    )


def prediction_memory(network: nn.Module, tile: Shape, precision: torch.dtype) -> int:
    """Bytes of working memory in which a network on the CPU predicts a tile of one channel, measured as by
    `step_memory`; 0 where a dry run cannot be made, as the network reads values."""
    without_content = FakeTensorMode(allow_non_fake_inputs=True)
    dry = _DryRun(precision, 1, lambda _: ())
    try:
        emptied = _emptied(network, without_content)
        with _silent(), without_content:
            return math.ceil(MARGIN * dry.predict(emptied, tile))
    except Exception:
        # Code that reads values of fake tensors may raise almost any exception.
        return 0


def _emptied(module: nn.Module, without_content: FakeTensorMode) -> nn.Module:
    """A copy whose parameters and buffers are fake tensors."""
    with without_content:
        new: dict[int, Any] = {id(b): torch.empty(b.shape, dtype=b.dtype) for b in module.buffers()}
        for parameter in module.parameters():
            new[id(parameter)] = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype))
    return copy.deepcopy(module, new)


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress what PyTorch logs about an operation that needs data, which is expected here."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@dataclass(frozen=True)
class _DryRun:
    precision: torch.dtype
    channels: int
    targets: Callable[[Shape], tuple[torch.Tensor, ...]]

    def train(self, network: nn.Module, loss: nn.Module, patch: Shape) -> int:
        """Peak of the working memory in a step of one crop, in bytes."""
        network.train()
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        inputs = torch.zeros((1, self.channels, *patch))
        targets = self.targets(patch)
        live = _LiveBytes([inputs, *targets, *_tensors(network), *_tensors(loss)])
        with live:
            with _autocast(self.precision):
                outputs = network(inputs)
            loss(outputs, *targets).backward()
        return live.most

    def predict(self, network: nn.Module, tile: Shape) -> int:
        """Peak of the working memory when a tile is predicted, in bytes."""
        network.eval()
        live = _LiveBytes(_tensors(network))
        with live, torch.no_grad():
            inputs = torch.zeros((1, self.channels, *tile))
            with _autocast(self.precision):
                outputs = network(inputs.flip(-1)).flip(-1)
            torch.softmax(outputs[0].float(), dim=0).mul(torch.ones(tile))
        return live.most


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return [*module.parameters(), *module.buffers(), *gradients]


@contextmanager
def _autocast(precision: torch.dtype) -> Iterator[None]:
    """Autocast of the CPU, made equal to that of a GPU, so that a plan is the same with and without a GPU."""
    with torch.autocast("cpu", precision, enabled=precision is not torch.float32), _WideNorms():
        yield


class _WideNorms(TorchFunctionMode):
    """Computes in float32 those functions that autocast of a GPU computes in float32 and autocast of a CPU does not
    ("CUDA Ops that can autocast to float32" in PyTorch's documentation of torch.amp), as far as networks for images use
    them."""

    _FUNCTIONS = frozenset({functional.layer_norm, functional.group_norm, functional.softmax, torch.softmax})

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in self._FUNCTIONS and args and isinstance(args[0], torch.Tensor):
            args = (args[0].float(), *args[1:])
        return function(*args, **(kwargs or {}))


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks the bytes of live tensors, including those that only the autograd graph holds.

    A convolution is counted with its workspace: oneDNN and cuDNN copy its inputs and outputs to a layout of their own,
    in which channels come in blocks of sixteen.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        """`known`: tensors that are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._alive = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        self.most = max(self.most, self._alive + _scratch(function, args, results))
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self._alive += size
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._alive -= size


def _scratch(function: Any, arguments: tuple[Any, ...], results: Any) -> int:
    """Bytes of the copies that a convolution makes of what it reads and writes (batch, channels, *space)."""
    if function is torch.ops.aten.convolution.default:
        images = [arguments[0], results]
    elif function is torch.ops.aten.convolution_backward.default:
        images = [arguments[0], arguments[1]]
    else:
        return 0
    return sum(i.numel() // i.shape[1] * math.ceil(i.shape[1] / 16) * 16 * i.element_size() for i in images)
