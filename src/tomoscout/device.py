"""Where the numbers are crunched."""

from __future__ import annotations

import torch

from tomoscout.errors import TomoscoutError


def choose_device(wanted: str) -> torch.device:
    """`auto`, `cpu` or `cuda` → the device, checked and set up.

    Raises:
        TomoscoutError: a GPU is asked for but there is none, or its convolutions are wrong.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise TomoscoutError("device: cuda was asked for, but PyTorch finds no GPU; use device: auto or cpu")
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    device = torch.device("cuda")
    torch.backends.cudnn.benchmark = True
    _test_convolution(device)
    return device


def _test_convolution(device: torch.device) -> None:
    """Compare a 3D convolution in bfloat16 with float32 on the CPU: some pairs of PyTorch and cuDNN get it wrong."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 16, 24, 24, 24, generator=generator)
    kernel = torch.randn(16, 16, 3, 3, 3, generator=generator) / (16 * 27) ** 0.5
    expected = torch.nn.functional.conv3d(inputs, kernel, padding=1)
    with torch.autocast(device.type, torch.bfloat16):
        found = torch.nn.functional.conv3d(inputs.to(device), kernel.to(device), padding=1)
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    error = float((found.float().cpu() - expected).abs().max())
    if not error < 0.1:
        raise TomoscoutError(
            f"device: 3D convolutions on this GPU are wrong by {error:.3g} (PyTorch {torch.__version__}, "
            f"cuDNN {cudnn}); install another pair or use device: cpu"
        )
