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
    """For every run of a batch, draw the outlines of its target over a slice of its tomogram. If a run has targets at
    several voxel spacings, the first is drawn.

    Raises:
        TomoscoutError: the tomogram or the target of a run is missing.
    """
    config = plan.config
    objects = {name: entry for path in config.projects.values() for name, entry in read_objects(Path(path)).items()}
    colours = [objects[e.name].color[:3] if e.name in objects else (255, 255, 255) for e in plan.targets.classes]
    work = Batch(config, plan.targeted, batch, output)
    for record in work.records:
        with work.attempt(record):
            target = read_manifest(targets, record, targets=list)["targets"][0]
            uri = target["tomogram"]
            inputs = digest([plan.version("overlays"), uri, record.contents.get(uri), target["digest"], colours])
            path = work.manifest_path(record).with_suffix(".png")
            if not work.is_done(record, inputs, [path]):
                _draw(plan, work.project(record), record, uri, colours, path)
                work.finish(record, inputs, [], {"picture": path.name})
    work.write()


def _draw(
    plan: Plan,
    project: Project,
    record: RunRecord,
    uri: str,
    colours: Sequence[tuple[int, int, int]],
    path: Path,
) -> None:
    tomogram = project.read_tomogram(record.run, uri)
    shape = tomogram.shape[0], tomogram.shape[1], tomogram.shape[2]
    labels = read_target(project, plan.config, plan.targets, record, TomogramUri.parse(uri).voxel_spacing, shape)
    z, y = best_slice(labels), best_slice(labels, axis=1)
    target_overlay(
        tomogram[z],
        labels[z],
        colours,
        [entry.name for entry in plan.targets.classes],
        path,
        f"{record.key}  {uri}  z = {z}, below y = {y}",
        side=(tomogram[:, y], labels[:, y]),
    )
