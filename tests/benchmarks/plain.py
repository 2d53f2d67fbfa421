"""The plain loop to compare with: what a student would write in an afternoon. It uses PyTorch, MONAI's U-Net and NumPy,
and nothing of tomoscout.

Spheres of half an object's radius are the targets. A batch has crops of all tomograms, each near a particle of a class
drawn at random, a tenth of them anywhere. Cross-entropy counts foreground eight times as much as background; crops are
mirrored; AdamW keeps one learning rate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from monai.networks.nets import UNet
from numpy.typing import NDArray

RATE, FOREGROUND, SCALE, ANYWHERE = 2e-3, 8.0, 0.5, 0.1

Places = Sequence[NDArray[np.float64]]
"""By class: centres (N, 3) as indices z, y, x."""


def spheres(shape: Sequence[int], places: Places, radii: Sequence[float]) -> NDArray[np.int64]:
    """A label volume; `radii` in voxels. Where spheres meet, the later class wins."""
    labels = np.zeros(shape, dtype=np.int64)
    for label, (centres, radius) in enumerate(zip(places, radii, strict=True), 1):
        for centre in centres:
            low = np.maximum(np.floor(centre - radius), 0).astype(int)
            high = np.minimum(np.ceil(centre + radius) + 1, shape).astype(int)
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            z, y, x = np.ogrid[box]
            distance = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2
            labels[box][distance <= radius**2] = label
    return labels


def batch(
    tomograms: Sequence[NDArray[np.float32]],
    labels: Sequence[NDArray[np.int64]],
    places: Sequence[Places],
    random: np.random.Generator,
    crops: int,
    patch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops of any of the tomograms, and their labels."""
    images, targets = [], []
    while len(images) < crops:
        number = random.integers(len(tomograms))
        shape = np.array(tomograms[number].shape)
        centre = random.integers(shape)
        if random.random() >= ANYWHERE:
            centres = places[number][random.integers(len(places[number]))]
            if not len(centres):
                continue
            centre = centres[random.integers(len(centres))] + random.integers(-patch // 4, patch // 4, 3)
        start = np.clip(centre.astype(int) - patch // 2, 0, shape - patch)
        box = tuple(slice(a, a + patch) for a in start)
        flips = np.flatnonzero(random.random(3) < 0.5)
        images.append(np.flip(tomograms[number][box], flips).copy())
        targets.append(np.flip(labels[number][box], flips).copy())
    return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.stack(targets))


def train(
    network: UNet,
    tomograms: Sequence[NDArray[np.float32]],
    places: Sequence[Places],
    radii: Sequence[float],
    *,
    seconds: float,
    every: float,
    crops: int,
    patch: int,
    seed: int,
) -> list[tuple[float, int, dict[str, torch.Tensor]]]:
    """Train for so many seconds; returns the seconds, the steps and the weights about every `every` seconds and at the
    end. Tomograms have mean 0 and standard deviation 1."""
    random = np.random.default_rng(seed)
    labels = [
        spheres(tomogram.shape, of_one, [SCALE * radius for radius in radii])
        for tomogram, of_one in zip(tomograms, places, strict=True)
    ]
    loss = torch.nn.CrossEntropyLoss(torch.tensor([1.0] + [FOREGROUND] * len(radii)))
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE)
    points: list[tuple[float, int, dict[str, torch.Tensor]]] = []
    steps, spent = 0, 0.0
    network.train()
    while spent < seconds:
        started = time.perf_counter()
        images, targets = batch(tomograms, labels, places, random, crops, patch)
        optimiser.zero_grad()
        loss(network(images), targets).backward()
        optimiser.step()
        steps += 1
        spent += time.perf_counter() - started
        if spent >= seconds or spent - (points[-1][0] if points else 0.0) >= every:
            points.append((spent, steps, {name: value.clone() for name, value in network.state_dict().items()}))
    return points
