"""Models that octopi trained, made model folders, to be applied as they are.

Network and weights are octopi's, so that a tile gives its probabilities. What octopi 1.7 does around the network, and
what is done here instead:

- It scales a tomogram to mean 0 and standard deviation 1. `standardise` first limits values to the 0.1 and 99.9
  percentiles: nearly the same where nothing stands out, while gold beads widen octopi's scale and not ours. Networks
  that normalise each crop (instance norm, the default) hardly see the difference.
- It cuts cubes of `dim_in` voxels that overlap by half, pads tomograms that are smaller with zeros, and gives all
  voxels of a tile the same weight. Here tiles are larger (`segment.tile`), overlap by `segment.overlap`, count most at
  their middle, and padding mirrors the tomogram.
- It averages logits over tiles, four or more turned and mirrored copies, and models, then takes the softmax. Here
  probabilities are averaged; copies are `segment.flips`, 1 by default, and none is turned by a right angle.
- It takes a voxel's most probable class and the middles of connected regions. Here picks are peaks of the probability
  above a threshold, which octopi's files do not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tomoscout.data.copick_config import read_objects
from tomoscout.learning.validation import Validator
from tomoscout.machine.device import choose_device
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.messages import note, say
from tomoscout.models.base import Base, starting_weights
from tomoscout.models.folder import save_weights
from tomoscout.models.octopi import OctopiModel, read_octopi_model
from tomoscout.networks import build_network
from tomoscout.networks.options import NetworkOptions
from tomoscout.options.config import Config
from tomoscout.plan.classes import TargetClass
from tomoscout.plan.plan import Plan
from tomoscout.tasks.picking.data import TrainingData
from tomoscout.tasks.picking.model import PickingModel
from tomoscout.tasks.picking.options import Train
from tomoscout.tasks.picking.task import PickingTask
from tomoscout.tasks.picking.thresholds import DEFAULT_THRESHOLD


def run_import_model(plan: Plan, source: Path, folder: Path, threads: int | None = None) -> PickingModel:
    """Write the model folder of octopi's `model_config.yaml`.

    Classes are octopi's, with the radii of the copick configs; an object that has none there is a continuous class.
    Thresholds are chosen on the validation runs where the configuration has targets and gives none itself.

    Raises:
        TomoscoutError: the model cannot be read, or a project lacks an object of it.
    """
    if threads:
        torch.set_num_threads(threads)
    config = plan.config
    theirs = read_octopi_model(source, None)
    classes = _classes(config, theirs, source)
    network = _network(theirs, classes, source)
    thresholds = {entry.name: DEFAULT_THRESHOLD for entry in classes if entry.is_particle}
    chosen_on: Sequence[str] = ()
    if config.chooses_thresholds:
        chosen, chosen_on = _validate(plan, classes, network, theirs.network)
        thresholds |= chosen
    elif config.localize.threshold is None:
        note(
            f"{source} has no thresholds: {DEFAULT_THRESHOLD} for every object; give localize.threshold, or "
            "targets, on whose validation runs they are chosen"
        )
    weights = save_weights(folder, network.cpu().state_dict())
    made_from = {"octopi": str(source), "thresholds_chosen_on": list(chosen_on)}
    model = PickingModel(
        name=folder.name,
        network=theirs.network,
        made_from=made_from,
        weights_digest=weights,
        classes=classes,
        thresholds=thresholds,
        voxel_spacings=theirs.voxel_spacings or (config.voxel_spacing,),
        patch=theirs.patch or (),
        picking=config.train.picking,
    )
    model.write(folder)
    return model


def _classes(config: Config, theirs: OctopiModel, source: Path) -> tuple[TargetClass, ...]:
    """octopi's classes in the order of its channels; channels that none has are left out."""
    named = sorted(theirs.labels, key=lambda name: theirs.labels[name])
    classes = []
    for label, name in enumerate(named, 1):
        radius = _radius(config, name, source)
        scaled = None if radius is None else radius * config.targets.radius_scale
        classes.append(TargetClass(name, label, radius, scaled, ()))
    return tuple(classes)


def _radius(config: Config, name: str, source: Path) -> float | None:
    """In Å; None for what is no particle."""
    radii = {}
    for path in config.projects.values():
        objects = read_objects(Path(path))
        if name not in objects:
            raise TomoscoutError(
                f"{path}: no object '{name}', a class of {source}; add it to pickable_objects, with its radius in Å if "
                "it is a particle"
            )
        radii[path] = objects[name].radius or None if objects[name].is_particle else None
    if len(set(radii.values())) > 1:
        raise TomoscoutError(f"object '{name}' has different radii: {radii}; make them equal to segment all at once")
    return next(iter(radii.values()))


def _network(theirs: OctopiModel, classes: Sequence[TargetClass], source: Path) -> nn.Module:
    unnamed = sorted({*range(1, theirs.outputs)} - {*theirs.labels.values()})
    if unnamed:
        note(f"channels {unnamed} of {source} are of no class and left out")
    network = build_network(theirs.network, len(classes) + 1)
    base = Base(str(source), theirs.network, theirs.labels, theirs.outputs, theirs.weights)
    starting_weights(base, [entry.name for entry in classes], network.state_dict())
    return network


def _validate(
    plan: Plan,
    classes: Sequence[TargetClass],
    network: nn.Module,
    options: NetworkOptions,
) -> tuple[dict[str, float], Sequence[str]]:
    """Thresholds of the particles that the targets have, too, and the runs they are chosen on."""
    config, runs = plan.config, plan.fold()
    sources = {entry.name: entry.sources for entry in plan.targets.classes if entry.is_particle}
    known = tuple(replace(e, sources=sources[e.name]) for e in classes if e.is_particle and e.name in sources)
    others = ", ".join(entry.name for entry in classes if entry.is_particle and entry.name not in sources)
    if others:
        note(f"the targets have no {others}: threshold {DEFAULT_THRESHOLD}")
    if not known:
        return {}, ()
    train = Train(picking=config.train.picking, best_metric=f"fBeta{config.train.beta:g}")
    task = PickingTask(TrainingData(config, replace(plan.targets, classes=known), plan.records, runs), train)
    device = choose_device(config.segment.device)
    validator = Validator(task, options, train.DIMENSIONS, task.tile, device)
    channels = [entry.label - 1 for entry in known]
    predicted = validator.predict(network.to(device).eval(), len(classes) + 1)
    found = task.measure([volume[channels] for volume in predicted]).details
    thresholds: dict[str, float] = found["thresholds"]
    for name, threshold in thresholds.items():
        score = f"F{config.train.beta:g} {found['scores'][name]:.3f}" if name in found["scores"] else "no reference"
        say(f"{name}: threshold {threshold:g} ({score} on the validation runs)")
    return thresholds, runs.validate
