"""A model of instances as a package of bioimage.io: a zip of TorchScript weights, their description, and an image with
the prediction that they must give."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import atomic_path
from tomoscout.tasks.instances.annotation_options import Normalisation
from tomoscout.tasks.instances.heads import Head, full_resolution
from tomoscout.tasks.instances.made_up import make_image
from tomoscout.tasks.instances.model import CellModel
from tomoscout.tasks.instances.prepare import prepare

_SIDE = 128
"""Pixels along a side of the test image, or more where the network needs them."""


class Exported(nn.Module):
    """A network that predicts what its head decodes: the probability of an object, then what tells objects apart."""

    def __init__(self, network: nn.Module, head: Head) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, channels, y, x) to (batch, 1 + len(names), y, x)."""
        logits = full_resolution(self.network(inputs))
        # Heads take the channels first.
        return self.head.activated(logits.transpose(0, 1)).transpose(0, 1)


def write_package(path: Path, model: CellModel, network: nn.Module, authors: Sequence[str], licence: str) -> None:
    """Write a package. Validated by bioimageio.spec.

    Args:
        path: the zip file.
        network: on the CPU, with its weights.
        authors: their names.
        licence: as SPDX names it.

    Raises:
        TomoscoutError: bioimageio.spec is missing, or the package cannot say how images are normalised.
    """
    try:
        from bioimageio.spec import save_bioimageio_package
        from bioimageio.spec.model import v0_5 as spec
    except ModuleNotFoundError:
        raise TomoscoutError(
            "a package of bioimage.io needs bioimageio.spec: `make .venv/bioimageio`, or "
            'pip install "tomoscout[bioimageio]"'
        ) from None
    preprocessing = [{"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}, *_preprocessing(model.normalisations)]
    steps = model.network.size_step(model.dimensions)
    sides = [
        -(-max(_SIDE, least) // step) * step for least, step in zip(model.network.smallest_size(2), steps, strict=True)
    ]
    image = make_image(tuple(sides), np.random.default_rng(0), cells=20, radius=10).image.astype(np.float32)
    image = np.resize(image, (model.channels, *sides))
    prepared = torch.from_numpy(prepare(image, range(model.channels), model.normalisations, 1.0))[None]
    exported = Exported(network, model.head).eval()
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        folder = Path(place)
        np.save(folder / "input.npy", image[None])
        np.save(folder / "output.npy", exported(prepared).numpy())
        torch.jit.save(_traced(exported, prepared, model.network.family), folder / "weights.pt")
        (folder / "README.md").write_text(_documentation(model), encoding="utf-8")
        unit = {} if model.calibration is None else {"unit": "micrometer", "scale": model.calibration}
        description = spec.ModelDescr(
            name=f"tomoscout {model.name}",
            description=f"Instances of cells: {model.kind}",
            authors=[{"name": name} for name in authors],
            license=licence,
            documentation={"source": folder / "README.md"},
            tags=["instance-segmentation", "cells", "2d", "tomoscout", model.told_apart_by],
            inputs=[
                {
                    "id": "image",
                    "axes": [
                        {"type": "batch"},
                        {"type": "channel", "channel_names": [_identifier(name) for name in model.inputs]},
                        *(
                            {"type": "space", "id": axis, "size": {"min": side, "step": step}, **unit}
                            for axis, side, step in zip("yx", model.network.smallest_size(2), steps, strict=True)
                        ),
                    ],
                    "data": {"type": "float32"},
                    "test_tensor": {"source": folder / "input.npy"},
                    "preprocessing": preprocessing,
                }
            ],
            outputs=[
                {
                    "id": "prediction",
                    "axes": [
                        {"type": "batch"},
                        {
                            "type": "channel",
                            "channel_names": [_identifier(name) for name in ("probability", *model.class_names)],
                        },
                        *(
                            {"type": "space", "id": axis, "size": {"tensor_id": "image", "axis_id": axis}, **unit}
                            for axis in "yx"
                        ),
                    ],
                    "data": {"type": "float32"},
                    "test_tensor": {"source": folder / "output.npy"},
                }
            ],
            weights={"torchscript": {"source": folder / "weights.pt", "pytorch_version": torch.__version__}},
            config={"tomoscout": {"version": version("tomoscout"), **model.described()}},
        )
        with atomic_path(path) as new:
            written = save_bioimageio_package(description, output_path=folder / "package.zip")
            new.write_bytes(written.read_bytes())


def _traced(exported: Exported, prepared: torch.Tensor, family: str) -> Any:
    """The TorchScript of a network, for images of any size and number.

    Raises:
        TomoscoutError: it computes otherwise than the network, where images are of another size.
    """
    with warnings.catch_warnings():
        # Checks of shapes are left out of it.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced: Any = torch.jit.trace(exported, prepared)  # type: ignore[no-untyped-call]
    larger = torch.cat([prepared, prepared], dim=-1).repeat(2, 1, 1, 1)
    if not torch.allclose(traced(larger), exported(larger), atol=1e-4):
        raise TomoscoutError(f"{family}: its TorchScript holds for images of one size alone")
    return traced


def _preprocessing(normalisations: Sequence[Normalisation]) -> list[dict[str, Any]]:
    """How bioimage.io describes the normalisation of the channels.

    Raises:
        TomoscoutError: it has no words for channels that are normalised in different ways.
    """
    percentiles = {tuple(entry.percentile) for entry in normalisations if entry.values is None}
    values = [entry.values for entry in normalisations if entry.values is not None]
    clips = {entry.clip for entry in normalisations}
    if len(percentiles) + bool(values) > 1 or len(clips) > 1:
        raise TomoscoutError("bioimage.io describes no channels that are normalised in different ways")
    if values:
        gains = [1 / (high - low) for low, high in values]
        offsets = [-low / (high - low) for low, high in values]
        scaling = {"id": "scale_linear", "kwargs": {"axis": "channel", "gain": gains, "offset": offsets}}
    else:
        [(low, high)] = percentiles
        kwargs = {"axes": ["y", "x"], "min_percentile": low, "max_percentile": high}
        scaling = {"id": "scale_range", "kwargs": kwargs}
    clipping = [{"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}}] if clips == {True} else []
    return [scaling, *clipping]


def _identifier(name: str) -> str:
    """A name of a channel as bioimage.io takes it."""
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())


def _documentation(model: CellModel) -> str:
    calibration = "" if model.calibration is None else f" at {model.calibration:g} µm per pixel"
    thresholds = ", ".join(f"{name} {value:g}" for name, value in model.thresholds.items())
    return (
        f"# {model.name}\n\nInstances of cells in images of {', '.join(model.inputs)}{calibration}, trained with "
        f"tomoscout. {model.kind}.\n\nThe output has the probability of an object, then {model.class_names[0]} to "
        f"{model.class_names[-1]}. tomoscout makes objects of it with the thresholds {thresholds}.\n\n"
        "## Validation\n\nScores on images that were not trained on are in the report of the training.\n"
    )
