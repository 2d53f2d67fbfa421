"""Import of models trained by octopi: writes model folders that can be applied like any other.

Network and weights are not changed, so a tile gets the same probabilities as in octopi. The processing around the
network differs from octopi 1.7:

- octopi scales a tomogram to mean 0 and standard deviation 1. `standardise` first clips values to the 0.1 and 99.9
  percentiles. Both give nearly the same result, unless outliers such as gold beads widen octopi's scale. Networks that
  normalise each crop (instance norm, the default) hardly differ.
- octopi predicts cubes of `dim_in` voxels that overlap by half, pads smaller tomograms with zeros, and weights all
  voxels of a tile equally. Here tiles are larger (`segment.tile`), overlap by `segment.overlap`, have the largest
  weight in their middle, and padding mirrors the tomogram.
- octopi averages logits over tiles, over four or more rotated and mirrored copies (test-time augmentation), and over
  models, then takes the softmax. Here probabilities are averaged; `segment.flips` sets the number of mirrored copies, 1
  by default, and no copy is rotated by a right angle.
- octopi takes the most probable class of each voxel and the centres of connected components. Here picks are peaks of
  the probability above a threshold, which octopi's files do not contain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tomoscout.data.copick_config import read_objects
from tomoscout.learning.precision import chosen_precision
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
    """Write the model folder of an octopi model, given its `model_config.yaml` as `source`.

    Classes are octopi's, with the radii of the copick configs; an object without a radius there becomes a continuous
    class. If the configuration has targets and does not set one threshold for all objects, thresholds are chosen on the
    validation runs.

    Raises:
        TomoscoutError: the model cannot be read, or a project lacks one of its objects.
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
    """octopi's classes in the order of its channels, without channels that belong to no class."""
    named = sorted(theirs.labels, key=lambda name: theirs.labels[name])
    classes = []
    for label, name in enumerate(named, 1):
        radius = _radius(config, name, source)
        scaled = None if radius is None else radius * config.targets.radius_scale
        classes.append(TargetClass(name, label, radius, scaled, ()))
    return tuple(classes)


def _radius(config: Config, name: str, source: Path) -> float | None:
    """The radius of an object in Å; None if it is not a particle."""
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
    """Thresholds of the particle classes that are also in the targets, and the runs they were chosen on."""
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
    precision = chosen_precision(config.segment.precision, device)
    validator = Validator(task, options, train.DIMENSIONS, task.tile, device, precision)
    channels = [entry.label - 1 for entry in known]
    predicted = validator.predict(network.to(device).eval())
    found = task.measure([volume[channels] for volume in predicted]).details
    thresholds: dict[str, float] = found["thresholds"]
    for name, threshold in thresholds.items():
        score = f"F{config.train.beta:g} {found['scores'][name]:.3f}" if name in found["scores"] else "no reference"
        say(f"{name}: threshold {threshold:g} ({score} on the validation runs)")
    return thresholds, runs.validate
