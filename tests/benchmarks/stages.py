"""Seconds of the stages on tomograms of the size of the CZII challenge, beside octopi's."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
from made_up import RADII, SCALE, SESSION, SHAPE, URI, USER, make_project, positions, write_config
from measure import COSTS, TOMOSCOUT, Cost, costs, run, spread, table
from numpy.typing import NDArray
from peer import octopi
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from tomoscout.data.geometry import to_voxels
from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation
from tomoscout.machine.files import write_json
from tomoscout.networks import parse_network
from tomoscout.options.config import load_config
from tomoscout.options.names import Source
from tomoscout.plan.classes import TargetClass
from tomoscout.plan.predictions import predicted_probabilities
from tomoscout.tasks.picking.decoding import locate_picks
from tomoscout.tasks.picking.model import PickingModel
from tomoscout.tasks.picking.options import Evaluate, Picking
from tomoscout.tasks.picking.scores import evaluate
from tomoscout.tasks.picking.spheres import Spheres, rasterise

RUNS, PICKS = 20, 650
WEIGHTS = "none"
TARGETS = {user: Segmentation("targets", user, "1", URI.voxel_spacing, True) for user in ("tomoscout", "octopi")}


def targets(folder: Path, repeats: int) -> str:
    """Targets of twenty runs: whole command lines, start-up and writing included. A first round warms the caches."""
    project = make_project(folder / "project", RUNS, PICKS)
    rows = []
    for cores in (2, 1):
        measured: dict[str, list[Cost]] = {}
        for number in range(repeats + 1):
            inventory, made = _tomoscout_targets(folder, project, cores)
            cost_of = {
                "tomoscout, targets": made,
                "tomoscout, inventory and targets": inventory + made,
                "octopi": _octopi_targets(folder, project, cores, processes=1),
            }
            if cores > 1:
                by_hand = _octopi_targets(folder, project, cores, processes=cores)
                cost_of[f"octopi, {cores} processes that share the runs"] = by_hand
            for tool, cost in cost_of.items() if number else ():
                measured.setdefault(tool, []).append(cost)
        for tool, measurements in measured.items():
            paired = list(zip(measured["octopi"], measurements, strict=True))
            rows.append(
                [
                    cores,
                    tool,
                    *costs(measurements),
                    f"{RUNS / statistics.median(cost.wall for cost in measurements):.1f}",
                    spread(theirs.wall / cost.wall for theirs, cost in paired),
                    spread(theirs.longest / cost.longest for theirs, cost in paired),
                ]
            )
    columns = ["cores", "", *COSTS, "runs/s", "octopi's wall / this", "octopi's CPU / this, longest process"]
    title = f"Targets: {RUNS} runs of {'×'.join(map(str, SHAPE))}, {PICKS} picks each"
    return table(title, columns, rows) + "\n" + _agreement(project)


def _tomoscout_targets(folder: Path, project: Path, cores: int) -> tuple[Cost, Cost]:
    shutil.rmtree(folder / "results", ignore_errors=True)
    _remove(project, "tomoscout")
    config = write_config(folder / "config.yaml", project, runs_per_job=math.ceil(RUNS / cores))
    inventory = folder / "results" / "inventory.tsv"
    looked = run([*TOMOSCOUT, "inventory", "--config", config, "--output", inventory], folder=folder, cores=cores)
    command = [*TOMOSCOUT, "targets", "--config", config, "--inventory", inventory]
    batches = ([*command, "--batch", str(n), "--output", folder / f"results/targets/{n}.json"] for n in range(cores))
    return looked, run(*batches, folder=folder, cores=cores)


def _octopi_targets(folder: Path, project: Path, cores: int, processes: int) -> Cost:
    _remove(project, "octopi")
    command: list[str | Path] = [octopi(), "create-targets", "-c", project, "-puid", USER, "-psid", SESSION]
    command += ["-uri", f"{URI}", "-rs", str(SCALE), "-turi", "targets:octopi/1"]
    if processes == 1:
        return run(command, folder=folder, cores=cores)
    names = sorted(path.name for path in (project.parent / "ExperimentRuns").iterdir())
    parts = [",".join(names[n::processes]) for n in range(processes)]
    return run(*([*command, "-runs", part] for part in parts), folder=folder, cores=cores)


def _segmentations(project: Path, user: str) -> list[Path]:
    return sorted(project.parent.glob(f"ExperimentRuns/*/Segmentations/*_{user}_*"))


def _remove(project: Path, user: str) -> None:
    for path in _segmentations(project, user):
        shutil.rmtree(path)


def _agreement(project: Path) -> str:
    """Whether both did the work: how many targets there are, and the voxels of a run's classes."""
    counts, root = {}, Project("bench", project)
    for user, wanted in TARGETS.items():
        assert len(_segmentations(project, user)) == RUNS, f"{user} did not write every target"
        volume = root.read_segmentation(root.run_names()[0], wanted, allow_missing_chunks=True)
        counts[user] = np.bincount(volume.ravel(), minlength=len(RADII) + 1)[1:]
    places = positions(0, PICKS)
    # Both cut spheres at the border and where they meet, so whole spheres are an upper bound.
    whole = [len(places[name]) * 4 / 3 * math.pi * (r * SCALE / URI.voxel_spacing) ** 3 for name, r in RADII.items()]
    rows = [
        [name, f"{full:.0f}", *(f"{counts[user][n]} ({counts[user][n] / full:.1%})" for user in TARGETS)]
        for n, (name, full) in enumerate(zip(RADII, whole, strict=True))
    ]
    assert all(0.8 < counts[user][n] / whole[n] < 1.1 for user in TARGETS for n in range(len(RADII))), rows
    return table("Voxels of the first run's targets", ["object", "whole spheres", *TARGETS], rows)


def localize(folder: Path, repeats: int, *, with_octopi: bool = True) -> str:
    """Picks of six classes of one tomogram, from probabilities (tomoscout) and from labels (both)."""
    path = make_project(folder / "project", 1, PICKS)
    config_path = write_config(folder / "config.yaml", path, 1)
    config, project = load_config(config_path), Project("bench", path)
    name, places = project.run_names()[0], positions(0, PICKS)
    classes = tuple(
        TargetClass(kind, label, radius, radius * SCALE, (Source(kind, USER, SESSION),))
        for label, (kind, radius) in enumerate(RADII.items(), 1)
    )
    probabilities, labels = _predictions(classes, places)
    thresholds = dict.fromkeys(RADII, 0.3)
    model = PickingModel(
        name="unet",
        network=parse_network({}),
        made_from={},
        weights_digest=WEIGHTS,
        classes=classes,
        thresholds=thresholds,
        voxel_spacings=(URI.voxel_spacing,),
        patch=(64, 64, 64),
        picking=Picking(),
    )
    model.write(folder / "model")
    volume = predicted_probabilities(config)
    digest = project.write_probabilities(name, volume, probabilities, {"inputs": "made up"})
    manifest = {
        "project": "bench",
        "run": name,
        "inputs": "made up",
        "model": WEIGHTS,
        "probabilities": {"name": volume.name, "digest": digest},
    }
    write_json(folder / "segment/bench" / f"{name}.json", manifest)
    project.write_segmentation(name, Segmentation("predict", "octopi", "1", URI.voxel_spacing, True), labels, {})
    write_json(path.parent / "logs/segment-octopi_1_predict.yaml", {"labels": {e.name: e.label for e in classes}})
    inventory = folder / "inventory.tsv"
    run([*TOMOSCOUT, "inventory", "--config", config_path, "--output", inventory], folder=folder)

    command = [*TOMOSCOUT, "localize", "--config", config_path, "--inventory", inventory, "--batch", "0"]
    command += ["--model", folder / "model", "--segmented", folder / "segment", "--output", folder / "localize/0.json"]
    of_labels = write_config(folder / "labels.yaml", path, 1, localize={"segmentation": "predict:octopi/1"})
    on_labels = [*TOMOSCOUT, "localize", "--config", of_labels, "--inventory", inventory, "--batch", "0"]
    on_labels += ["--output", folder / "localize/0.json"]
    inner, ours, from_labels = [], [], []
    for _ in range(repeats):
        started = time.perf_counter()
        locate_picks(probabilities, classes, URI.voxel_spacing, model.picking, thresholds)
        inner.append(time.perf_counter() - started)
        shutil.rmtree(folder / "localize", ignore_errors=True)
        ours.append(run(command, folder=folder))
        shutil.rmtree(folder / "localize", ignore_errors=True)
        from_labels.append(run(on_labels, folder=folder))
    del probabilities, labels
    rows: list[list[object]] = [
        ["tomoscout, peaks alone (a function call)", spread(inner), "", "", "", ""],
        _localize_row("tomoscout localize, peaks", ours, project, name, Source("", "tomoscout", "unet"), places),
        _localize_row(
            "tomoscout localize, labels",
            from_labels,
            project,
            name,
            Source("", "tomoscout", "predict-octopi-1"),
            places,
        ),
    ]
    if with_octopi:
        theirs = [run([octopi(), "localize", "-c", path, "-suri", "predict:octopi/1", "-np", "1"], folder=folder)]
        rows.append(_localize_row("octopi localize, labels", theirs, project, name, Source("", "octopi", "1"), places))
        rows.append(["octopi's wall / tomoscout's, labels", spread(theirs[0].wall / cost.wall for cost in from_labels)])
    columns = ["", *COSTS, "found of the true picks / false picks", "F4"]
    return table(f"Picks of six classes of one {'×'.join(map(str, SHAPE))} tomogram", columns, rows)


def _predictions(
    classes: tuple[TargetClass, ...], places: dict[str, NDArray[np.float64]]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What a fair network might give: blurred spheres under noise, and the labels of the spheres."""
    random = np.random.default_rng(1)
    noise = np.abs(random.normal(0, 8, SHAPE)).astype(np.uint8)
    centres = np.concatenate([to_voxels(places[entry.name], URI.voxel_spacing) for entry in classes])
    numbers = np.repeat([entry.label for entry in classes], [len(places[entry.name]) for entry in classes])
    radii = np.array([entry.target_radius or 0.0 for entry in classes])[numbers - 1] / URI.voxel_spacing
    labels = np.zeros(SHAPE, dtype=np.uint8)
    rasterise(labels, Spheres(centres, radii, numbers))
    probabilities = np.empty((len(classes), *SHAPE), dtype=np.uint8)
    for channel, entry in zip(probabilities, classes, strict=True):
        sure = gaussian_filter((labels == entry.label).astype(np.float32), 1.0) * 200
        channel[:] = sure + np.roll(noise, 7 * entry.label, axis=1)
    return probabilities, labels


def _localize_row(
    what: str,
    measured: list[Cost],
    project: Project,
    run_name: str,
    kind: Source,
    places: dict[str, NDArray[np.float64]],
) -> list[object]:
    found = false = 0
    again = Project(project.name, project.config)
    predictions, references = {}, {}
    for name, radius in RADII.items():
        predictions[name] = again.read_picks(run_name, kind._replace(name=name))
        references[name] = again.read_picks(run_name, Source(name, USER, SESSION))
        picks = predictions[name].positions
        found += int((cKDTree(picks).query(places[name])[0] <= radius / 2).sum()) if len(picks) else 0
        false += int((cKDTree(places[name]).query(picks)[0] > radius / 2).sum()) if len(picks) else 0
    scores = evaluate({run_name: predictions}, {run_name: references}, RADII, Evaluate(), "listed")
    return [what, *costs(measured), f"{found / PICKS:.1%} / {false}", f"{scores['mean']['f']:.3f}"]


def phantom(folder: Path, repeats: int) -> str:
    """A made-up project of six tomograms of 64 × 192 × 192."""
    command = [*TOMOSCOUT, "phantom", "--runs", "6"]
    measured = [run([*command, folder / f"phantom-{number}"], folder=folder) for number in range(repeats)]
    return table("Phantom: six tomograms of 64×192×192", COSTS, [costs(measured)])
