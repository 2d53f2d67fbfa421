"""Pictures of the targets, one per run, for visual inspection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tomoscout.data.copick_config import read_objects
from tomoscout.data.inventory import RunRecord
from tomoscout.data.project import Project
from tomoscout.machine.files import digest
from tomoscout.options.names import TomogramUri
from tomoscout.plan.paths import read_manifest
from tomoscout.plan.plan import Plan
from tomoscout.report.target_overlay import best_slice, target_overlay
from tomoscout.stages.batches import Batch
from tomoscout.tasks.picking.targets import read_target


def run_overlays(plan: Plan, targets: Path, batch: int, output: Path) -> None:
    """For every run of a batch, draw the outlines of its target over slices of its tomogram in three directions. If a
    run has targets at several voxel spacings, the first is drawn.

    Raises:
        TomoscoutError: the tomogram or the target of a run is missing.
    """
    colours = class_colours(plan)
    work = Batch(plan.config, plan.targeted, batch, output)
    for record in work.records:
        with work.attempt(record):
            target = read_manifest(targets, record, targets=list)["targets"][0]
            uri = target["tomogram"]
            inputs = digest([plan.version("overlays"), uri, record.contents.get(uri), target["digest"], colours])
            path = work.manifest_path(record).with_suffix(".png")
            if not work.is_done(record, inputs, [path]):
                places = _draw(plan, work.project(record), record, uri, colours, path)
                work.finish(record, inputs, [], {"picture": path.name, "slices": places})
    work.write()


def class_colours(plan: Plan) -> list[tuple[int, int, int]]:
    """The colours of the classes in the copick configs; white where an object is in none."""
    projects = plan.config.projects.values()
    objects = {name: entry for path in projects for name, entry in read_objects(Path(path)).items()}
    return [objects[e.name].color[:3] if e.name in objects else (255, 255, 255) for e in plan.targets.classes]


def _draw(
    plan: Plan,
    project: Project,
    record: RunRecord,
    uri: str,
    colours: Sequence[tuple[int, int, int]],
    path: Path,
) -> list[int]:
    """Draw the picture of a run. Returns the positions of its slices along z, y and x."""
    tomogram = project.read_tomogram(record.run, uri)
    shape = tomogram.shape[0], tomogram.shape[1], tomogram.shape[2]
    labels = read_target(project, plan.config, plan.targets, record, TomogramUri.parse(uri).voxel_spacing, shape)
    z, y, x = (best_slice(labels, axis) for axis in range(3))
    target_overlay(
        tomogram[z],
        labels[z],
        colours,
        [entry.name for entry in plan.targets.classes],
        path,
        f"{record.key}  {uri}  z = {z}, below y = {y}, right x = {x}",
        side=(tomogram[:, y], labels[:, y]),
        end=(tomogram[:, :, x].T, labels[:, :, x].T),
    )
    return [z, y, x]
