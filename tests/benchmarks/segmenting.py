"""Segmentation of a tomogram of the size of the CZII challenge's, on a CPU, beside MONAI's sliding window with octopi's
settings. Each prediction runs in a process of its own, whose memory is measured."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
from made_up import SHAPE
from measure import first_cores, spread, table

CORES, CLASSES = 2, 6
NETWORK = {"channels": [16, 32, 64], "strides": [2, 2], "residual_units": 1}
THEIR_ROI, THEIR_OVERLAP, THEIR_BATCH = 96, 0.5, 4
"""octopi's inference: windows of the training's crop (96 voxels by default), overlapping by half, four at once."""


def segmenting(repeats: int) -> str:
    """Seconds, voxels per second and memory of a prediction, in turn; ratios within a round."""
    tools = {
        "tomoscout": "tomoscout",
        "tomoscout in float32": "float32",
        "MONAI's sliding window with octopi's settings": "monai",
    }
    measured: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        for name, tool in tools.items():
            measured.setdefault(name, []).append(_in_a_process(tool))
    theirs = measured["MONAI's sliding window with octopi's settings"]
    voxels = np.prod(SHAPE)
    rows = [
        [
            name,
            spread(each["seconds"] for each in found),
            spread(voxels / each["seconds"] / 1e6 for each in found),
            spread((other["seconds"] / each["seconds"] for each, other in zip(found, theirs, strict=True)), 1),
            spread((each["memory"] for each in found), 0),
        ]
        for name, found in measured.items()
    ]
    columns = ["", "s", "million voxels/s", "× MONAI's", "MB at most, the tomogram and the result included"]
    title = f"Prediction of {CLASSES} classes in {'×'.join(map(str, SHAPE))} voxels, {CORES} cores"
    return table(title, columns, rows)


def _in_a_process(tool: str) -> dict[str, float]:
    cpus = first_cores(CORES)
    output = subprocess.run(
        [sys.executable, __file__, tool],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    ).stdout
    found: dict[str, float] = json.loads(output)
    return found


def _predict(tool: str) -> dict[str, float]:
    """A network with random weights is as fast as a trained one."""
    import torch

    from tomoscout.learning.normalisation import standardise
    from tomoscout.learning.precision import chosen_precision
    from tomoscout.learning.prediction import Inference, predict
    from tomoscout.learning.tiles import InputSizes
    from tomoscout.machine.device import choose_device
    from tomoscout.networks import build_network, parse_network
    from tomoscout.stages.options import Segment

    torch.set_num_threads(CORES)
    torch.manual_seed(0)
    options = parse_network(NETWORK)
    network = build_network(options, CLASSES + 1).eval()
    tomogram = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    started = time.perf_counter()
    if tool == "monai":
        _sliding_window(network, tomogram)
    else:
        device, segment = choose_device("cpu"), Segment()
        predict(
            network,
            standardise(tomogram),
            Inference(
                InputSizes.of([options], 3),
                segment.tile,
                segment.overlap,
                device,
                precision=chosen_precision("auto" if tool == "tomoscout" else tool, device),
            ),
        )
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _sliding_window(network: Any, tomogram: np.ndarray) -> None:
    """As octopi predicts: normalised, overlapping windows with constant weights, of each voxel the best class."""
    import torch
    from monai.inferers import sliding_window_inference

    volume = torch.from_numpy((tomogram - tomogram.mean()) / tomogram.std())[None, None]
    with torch.no_grad():
        logits = sliding_window_inference(volume, (THEIR_ROI,) * 3, THEIR_BATCH, network, overlap=THEIR_OVERLAP)
    torch.softmax(logits, dim=1).argmax(dim=1)


if __name__ == "__main__":
    print(json.dumps(_predict(sys.argv[1])))
