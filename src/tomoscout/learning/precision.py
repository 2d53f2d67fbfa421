"""Precision of a network: float32, or 16 bits (mixed precision with autocast) where the hardware is faster with
them."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from tomoscout.machine.device import half_precision
from tomoscout.machine.errors import TomoscoutError


def chosen_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype for `wanted`: `auto`, `bf16`, `fp16` or `float32`. auto: bfloat16 on a GPU or CPU that has instructions
    for it, float16 on an older GPU, float32 on another CPU.

    Raises:
        TomoscoutError: the device does not compute with this dtype.
    """
    if wanted == "auto":
        if device.type != "cuda":
            return torch.bfloat16 if _cpu_computes_bf16() else torch.float32
        return half_precision()
    if wanted == "fp16" and device.type != "cuda":
        raise TomoscoutError("train.precision: fp16 needs a GPU; use float32, bf16 or auto")
    if wanted == "bf16" and device.type == "cuda" and torch.cuda.is_available() and half_precision() != torch.bfloat16:
        raise TomoscoutError("train.precision: this GPU has no instructions for bf16; use fp16, float32 or auto")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}[wanted]


def _cpu_computes_bf16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 (AMX).

    Where PyTorch emulates it, it is slower than float32. With the instructions of avx512_bf16 alone equal trainings
    gave other weights each time (PyTorch 2.13, AMD EPYC).
    """
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def autocast(device: torch.device, kind: torch.dtype) -> AbstractContextManager[None]:
    """A context in which networks compute with `kind`."""
    return torch.autocast(device.type, kind, enabled=kind is not torch.float32)
