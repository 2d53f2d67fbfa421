"""Thousands of annotated images: the main memory that a training of cells takes, against what the configuration allows.

`python tests/benchmarks/many_images.py [--images 2000] [--size 1024] [--memory-gb 2]`: images are made in a temporary
folder, some 6 MiB each for images of 1024².
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from measure import machine

from tomoscout.data.label_images import write_image, write_labels
from tomoscout.tasks.instances.made_up import make_image

TILE = 256
"""Side of the made-up pieces that an image is put together of."""


def main() -> None:
    """Make images, divide them, train, and print the peak of memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--memory-gb", type=float, default=2.0)
    parser.add_argument("--head", choices=["flow", "star"], default="flow")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "annotations", options.images, options.size)
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(configuration(folder, options.head, options.memory_gb)))
        division, model = folder / "results/cells/division.json", folder / "results/models/cells"
        for command in (
            ["divide-cells", "--config", str(config), "--output", str(division)],
            ["train-cells", "--config", str(config), "--division", str(division), "--model", str(model)],
        ):
            started = time.perf_counter()
            peak = peak_of([sys.executable, "-m", "tomoscout", *command])
            print(f"{command[0]}: {time.perf_counter() - started:.0f} s, peak {peak:.2f} GiB", flush=True)


def make(folder: Path, images: int, size: int) -> None:
    """Write annotated images, each of pieces in an order of its own."""
    random = np.random.default_rng(0)
    pieces = [make_image((TILE, TILE), random, cells=30, radius=9) for _ in range(12)]
    side = size // TILE
    for number in range(images):
        chosen = [pieces[index] for index in random.integers(0, len(pieces), side * side)]
        labels = [piece.labels + (piece.labels > 0) * 100 * place for place, piece in enumerate(chosen)]
        image = np.block([[chosen[row * side + column].image[0] for column in range(side)] for row in range(side)])
        joined = np.block([[labels[row * side + column] for column in range(side)] for row in range(side)])
        write_image(folder / "images" / f"{number:05d}.tif", image[None], 0.65)
        write_labels(folder / "labels" / f"{number:05d}.tif", joined, 0.65)


def configuration(folder: Path, head: str, memory_gb: float) -> dict[str, object]:
    """A training of a few steps with a validation."""
    train = {"head": head, "steps": 40, "validate_every": 40, "device": "cpu", "memory_gb": memory_gb}
    source = {"folder": str(folder / "annotations"), "calibration": 0.65}
    # As many images validate as choose the thresholds, and as many again.
    cells = {"annotations": {"made-up": source}, "train": train, "division": {"validate": 0.016, "test": 0.01}}
    return {"cells": cells, "tracking": {"enabled": False}}


def peak_of(command: list[str]) -> float:
    """The peak of resident memory in GiB of a command, memory-mapped files left out."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except FileNotFoundError:
            break
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        peak = max(peak, int(fields.get("RssAnon", "0").split()[0]) / 2**20)
        time.sleep(0.05)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    return peak


if __name__ == "__main__":
    main()
