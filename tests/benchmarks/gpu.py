"""What a GPU makes of tomoscout's training and inference: `python tests/benchmarks/gpu.py [--output gpu.md]`.

Stands alone: a checkout, PyTorch, MONAI, NumPy, SciPy, psutil and pydantic are enough (no copick, no zarr, no installed
tomoscout).
Volumes and weights are random, which changes no time. Rows are printed as they are measured; one that fails says why,
and the rest goes on. Under eight minutes on an H100; with --quick about a minute on two cores, to try it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `tomoscout train` has it, and before PyTorch reads it

import numpy as np
import torch
from gpu_tools import (
    OUTPUTS,
    RADII,
    Batch,
    Draw,
    Phantoms,
    Report,
    Size,
    fitting,
    milliseconds,
    peak_memory,
    per_call,
    place,
    planned,
    rates,
    step_tflop,
    train,
)
from measure import spread

from tomoscout.learning.augmentations import Augmentation
from tomoscout.learning.precision import chosen_precision
from tomoscout.learning.prediction import Inference, predict
from tomoscout.learning.tiles import InputSizes
from tomoscout.machine.device import choose_device
from tomoscout.machine.errors import TomoscoutError
from tomoscout.networks import FAMILIES, build_network, parse_network
from tomoscout.stages.options import Segment
from tomoscout.tasks.picking import device_peaks, peaks
from tomoscout.tasks.picking.options import Picking

FULL = Size(4, (184, 630, 630), (64, 96), 8, 2.0, min(8, os.cpu_count() or 1))
QUICK = Size(2, (64, 128, 128), (32,), 2, 0.3, 1)

NOMINAL = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "RTX 4090": 165}
"""TFLOP/s in bf16, dense, as the maker has it."""

AUGMENTATIONS = {
    "none": Augmentation(flip=False, intensity_scale=0, intensity_shift=0, noise=0),
    "default": Augmentation(),
    "every option on": Augmentation(
        rotate90=True, rotate=180, tilt=10, zoom=0.1, contrast=0.2, noise=0.5, blur=1.0, mixup=0.3, probability=0.3
    ),
}


def machine(report: Report, wanted: str) -> torch.device:
    """Say what is measured on; returns the device, set up as a training sets it up."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "numpy", "pydantic"))
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    report.line(f"Python {platform.python_version()}, {packages}; {threads}.")
    try:
        device = choose_device(wanted)
        test = "passed" if device.type == "cuda" else "not needed on a CPU"
    except TomoscoutError as error:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        test = f"FAILED: {error}"
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        report.line(
            f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, {facts.multi_processor_count} multiprocessors; CUDA "
            f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}."
        )
    report.line(f"conv3d self-test: {test}.")
    return device


def nominal(device: torch.device) -> int | None:
    """The maker's TFLOP/s, where it is known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((value for known, value in NOMINAL.items() if known in name), None)


def peak(report: Report, device: torch.device, size: Size) -> float:
    """Say how fast a large matrix product is in the arithmetic of the trainings, and a copy; returns the TFLOP/s."""
    kind = chosen_precision("auto", device)
    side = 8192 if device.type == "cuda" else 1024
    work = 2 * side**3 / 1e12
    first, second = torch.randn(2, side, side, device=device).to(kind).unbind()
    each = per_call(lambda _: first @ second, device, size.seconds)
    source = torch.empty(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    copied = per_call(lambda _: target.copy_(source), device, size.seconds)
    known = nominal(device)
    report.line(
        f"Matrix product {side}³ in {_name(kind)}: {rates(work, each, 1)} TFLOP/s"
        f"{f', {known} by its maker' if known else ''}. Copy within {place(device)}: "
        f"{rates(2 * source.nbytes / 1e9, copied)} GB/s, read and written."
    )
    return work / statistics.median(each)


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def sampling(report: Report, phantoms: Phantoms, device: torch.device) -> None:
    """Crops alone."""
    size = phantoms.size
    places = {place(device): phantoms.volumes}
    if device.type == "cuda":
        places["main memory"] = phantoms.in_main_memory()
    report.table(
        f"Crops in batches of {size.batch} from {size.volumes} tomograms of {'×'.join(map(str, size.shape))} (float16, "
        "labels uint8)",
        ["volumes in", "patch", "augmentation", "ms per batch", "crops/s", "Mvoxel/s"],
    )

    def measure(draw: Draw, patch: int) -> list[object]:
        each = per_call(draw, device, size.seconds)
        voxels = size.batch * patch**3 / 1e6
        return [milliseconds(each, 2), rates(size.batch, each), rates(voxels, each)]

    for where, patch, name in itertools.product(places, size.patches, AUGMENTATIONS):
        draw = phantoms.draw(patch, device, volumes=places[where], options=AUGMENTATIONS[name])
        report.row([where, f"{patch}³", name], partial(measure, draw, patch))


def inference(report: Report, size: Size, device: torch.device) -> None:
    """A whole tomogram through the default network."""
    kind, segment = chosen_precision("auto", device), Segment()
    report.table(
        f"Inference with the default network in {_name(kind)}: {'×'.join(map(str, size.shape))}, tiles of "
        f"{'×'.join(map(str, segment.tile))}, overlap {segment.overlap}",
        ["", "s per tomogram", "Mvoxel/s", "GiB at most"],
    )
    options = parse_network({})
    network = build_network(options, OUTPUTS).to(device).eval()
    volume = np.random.default_rng(0).standard_normal(size.shape, dtype=np.float32)

    def apply(flips: int) -> float:
        started = time.perf_counter()
        predict(
            network,
            volume,
            Inference(InputSizes.of([options], 3), segment.tile, segment.overlap, device, flips=flips, precision=kind),
        )
        return time.perf_counter() - started

    def measure(flips: int) -> list[object]:
        apply(1)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        each = [apply(flips) for _ in range(3 if flips == 1 else 1)]
        return [spread(each), rates(volume.size / 1e6, each, 1), peak_memory(device)]

    report.row(["as it is"], partial(measure, 1))
    report.row(["mirrored in all eight ways"], partial(measure, 8))


def decoding(report: Report, phantoms: Phantoms, device: torch.device) -> None:
    """The peaks of six classes of a tomogram, as validation decodes it (from the lowest score on) and as localisation
    does."""
    size, options = phantoms.size, Picking()
    report.table(
        f"Peaks of {len(RADII)} classes: {'×'.join(map(str, size.shape))}, radii {', '.join(map(str, RADII))} voxels",
        ["", "lowest score", "s per tomogram", "peaks", "GiB at most"],
    )
    classes = {radius: phantoms.probabilities(label) for label, radius in enumerate(RADII, 1)}

    def measure(find: Callable[..., Any], threshold: float) -> list[object]:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        each = []
        for _ in range(2):
            started = time.perf_counter()
            found = [
                find(volume, radius, smoothing=options.smoothing, separation=radius, threshold=threshold)
                for radius, volume in classes.items()
            ]
            each.append(time.perf_counter() - started)
        return [spread(each, 2), sum(len(positions) for positions, _ in found), peak_memory(device)]

    finders = {
        "NumPy and SciPy, one core": peaks.find_peaks,
        f"PyTorch, {device.type}": partial(device_peaks.find_peaks, device=device),
    }
    for (name, find), threshold in itertools.product(finders.items(), (peaks.LOWEST_SCORE, 0.3)):
        report.row([name, threshold], partial(measure, find, threshold))


def families(report: Report, phantoms: Phantoms, device: torch.device, best: float) -> None:
    """Training steps of every family with its defaults."""
    size, known = phantoms.size, nominal(device)
    kind = _name(chosen_precision("auto", device))
    columns = [
        "network",
        "patch",
        "million weights",
        "ms per step",
        "crops/s",
        "Mvoxel/s",
        "GiB at most",
        "planned",
        "TFLOP/s",
    ]
    report.table(
        f"Training steps in {kind} on batches of {size.batch} crops that are there already; GiB with the volumes",
        [*columns, "of the matrix product's", "of the maker's"],
    )

    def measure(family: str, patch: int) -> list[object]:
        options = parse_network({"family": family})
        side = fitting(options, patch)
        network = build_network(options, OUTPUTS)
        weights = sum(parameter.numel() for parameter in network.parameters())
        draw = phantoms.given(side, device)
        expected = planned(network, options, side, size.batch, device)
        work = step_tflop(network, draw(0)[0], device)
        shape = {"network": options, "patch": [side] * 3, "batch_size": size.batch}
        each, remark = train(network, draw, device, size.seconds, **shape)
        speed = work / statistics.median(each)
        return [
            f"{side}³",
            f"{weights / 1e6:.2f}",
            milliseconds(each) + remark,
            rates(size.batch, each, 1),
            rates(size.batch * side**3 / 1e6, each, 1),
            peak_memory(device),
            expected,
            rates(work, each, 2),
            f"{speed / best:.1%}",
            f"{speed / known:.1%}" if known else "–",
        ]

    for patch, family in itertools.product(size.patches, FAMILIES):
        report.row([family], partial(measure, family, patch))


VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "channels_last_3d": {"layout": torch.channels_last_3d},
    "float32": {"precision": "float32"},
    "four times the batch": {"times": 4},
}
COMPILED: dict[str, dict[str, Any]] = {
    "torch.compile": {"compile": True},
    "torch.compile, channels_last_3d": {"compile": True, "layout": torch.channels_last_3d},
}


def variants(report: Report, phantoms: Phantoms, device: torch.device, ways: dict[str, dict[str, Any]]) -> None:
    """The default network in other memory layouts and arithmetic, compiled, and with larger batches."""
    size, patch = phantoms.size, phantoms.size.patches[-1]
    report.table(
        f"The default network at {patch}³, batches of {size.batch}{', compiled' * (ways is COMPILED)}",
        ["", "ms per step", "crops/s", "GiB at most", "s of the first step"],
    )

    def measure(times: int = 1, layout: torch.memory_format = torch.contiguous_format, **options: Any) -> list[object]:
        batch = times * size.batch
        network = build_network(parse_network({}), OUTPUTS).to(device, memory_format=layout)
        given = phantoms.given(patch, device, batch)
        drawn = [(inputs.contiguous(memory_format=layout), targets) for inputs, targets in map(given, range(4))]
        began = time.perf_counter()
        reached: list[float] = []

        def draw(step: int) -> Batch:
            if step == 1:
                reached.append(time.perf_counter() - began)
            return drawn[step % 4]

        each, remark = train(network, draw, device, size.seconds, patch=[patch] * 3, batch_size=batch, **options)
        return [milliseconds(each) + remark, rates(batch, each, 1), peak_memory(device), f"{reached[0]:.1f}"]

    for name, way in ways.items():
        slow = "compile" in way and device.type == "cuda"
        report.row([name], partial(measure, **way), takes=120.0 if slow else 0.0)


def pipelines(report: Report, phantoms: Phantoms, device: torch.device) -> None:
    """Batches drawn by tomoscout and by MONAI, alone and while the default network trains on them."""
    size, patch = phantoms.size, phantoms.size.patches[0]
    report.table(
        f"Batches of {size.batch} crops of {patch}³, with flips, scale, shift and noise",
        ["", "crops/s, drawn alone", "crops/s, trained on", "s to set up"],
    )

    def measure(prepare: Callable[[], Draw], seconds: float, queued: int, *, given: bool = False) -> list[object]:
        started = time.perf_counter()
        draw = prepare()
        draw(0)
        ready = time.perf_counter() - started
        alone = "–" if given else rates(size.batch, per_call(draw, device, seconds, queued), 1)
        network = build_network(parse_network({}), OUTPUTS)
        shape = {"patch": [patch] * 3, "batch_size": size.batch}
        trained, _ = train(network, draw, device, seconds, queued, **shape)
        return [alone, rates(size.batch, trained, 1), f"{ready:.1f}"]

    drawn = partial(phantoms.given, patch, device)
    report.row(["no drawing: batches given"], partial(measure, drawn, size.seconds, 0, given=True))
    ours = {
        f"tomoscout, volumes in {place(device)}": partial(phantoms.draw, patch, device),
    }
    if device.type == "cuda":
        volumes = phantoms.in_main_memory()
        ours["tomoscout, volumes in main memory"] = partial(phantoms.draw, patch, device, volumes=volumes)
    for name, prepare in ours.items():
        report.row([name], partial(measure, prepare, size.seconds, 0))
    theirs = {
        "RandCropByLabelClassesd": "classes",
        "RandCropByPosNegLabeld": "foreground",
        "RandCropByLabelClassesd, voxels of each class listed beforehand, cache not copied": "listed",
    }
    for name, way in theirs.items():
        prepare = partial(_monai, phantoms, patch, device, way)
        # Its workers come in bursts, and have batches waiting when the clock would start.
        measurement = partial(measure, prepare, 4 * size.seconds, 2 * size.workers)
        report.row([f"MONAI, {size.workers} workers: {name}"], measurement, takes=0.0 if device.type == "cpu" else 40.0)


def _monai(phantoms: Phantoms, patch: int, device: torch.device, way: str) -> Draw:
    """MONAI's usual pipeline: a cached data set, random crops of one volume, a loader with workers."""
    from monai import transforms
    from monai.data import CacheDataset, DataLoader
    from monai.utils import convert_to_tensor
    from torch.utils.data import RandomSampler

    size = phantoms.size
    both = ["image", "label"]
    crops = {"keys": both, "label_key": "label", "spatial_size": [patch] * 3, "num_samples": size.batch}
    classes = {"num_classes": OUTPUTS}
    first: dict[str, Callable[[], list[Any]]] = {
        "classes": lambda: [transforms.RandCropByLabelClassesd(**crops, **classes)],
        "foreground": lambda: [transforms.RandCropByPosNegLabeld(**crops, pos=9, neg=1)],
        "listed": lambda: [
            transforms.ClassesToIndicesd(keys="label", **classes, max_samples_per_class=100_000),
            transforms.RandCropByLabelClassesd(**crops, **classes, indices_key="label_cls_indices"),
        ],
    }
    steps = [
        *first[way](),
        *(transforms.RandFlipd(keys=both, prob=0.5, spatial_axis=axis) for axis in range(3)),
        transforms.RandScaleIntensityd(keys="image", prob=1.0, factors=0.1),
        transforms.RandShiftIntensityd(keys="image", prob=1.0, offsets=0.1),
        transforms.RandGaussianNoised(keys="image", prob=1.0, std=0.1),
    ]
    data = [
        {"image": volume.intensities.cpu().float(), "label": volume.labels.cpu()[None]} for volume in phantoms.volumes
    ]
    dataset = CacheDataset(
        data, transforms.Compose(steps), num_workers=size.workers, copy_cache=way != "listed", progress=False
    )
    # One epoch without end, for its loader starts its workers anew for each: a volume at random, again and again.
    loader = DataLoader(
        dataset,
        batch_size=1,
        sampler=RandomSampler(dataset, replacement=True, num_samples=10**6),
        num_workers=size.workers,
        pin_memory=device.type == "cuda",
    )
    drawn: Iterator[dict[str, Any]] = iter(loader)

    def draw(_: int) -> Batch:
        batch = next(drawn)
        image, label = (convert_to_tensor(batch[key], track_meta=False).to(device, non_blocking=True) for key in both)
        return image, (label[:, 0].long(),)

    return draw


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small volumes and short measurements")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--minutes", type=float, default=7.0, help="after these, no further row is begun")
    parser.add_argument("--compile", action="store_true", help="torch.compile even with --quick")
    parser.add_argument("--output", type=Path, help="Markdown file for the tables")
    given = parser.parse_args()
    size = QUICK if given.quick else FULL
    report = Report(given.output, given.minutes)
    device = machine(report, given.device)
    best = peak(report, device, size)
    phantoms = Phantoms(size, device)
    sampling(report, phantoms, device)
    inference(report, size, device)
    decoding(report, phantoms, device)
    families(report, phantoms, device, best)
    variants(report, phantoms, device, VARIANTS)
    pipelines(report, phantoms, device)
    if given.compile or not given.quick:
        variants(report, phantoms, device, COMPILED)


if __name__ == "__main__":
    main()
