"""Pictures of the targets, one per run, to check them by eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tomoscout.batches import Batch, read_manifest
from tomoscout.classes import plan_targets, target_segmentation
from tomoscout.config import Config, TomogramUri
from tomoscout.files import digest
from tomoscout.fingerprints import VERSIONS
from tomoscout.inventory import RunRecord
from tomoscout.project import read_objects
from tomoscout.report.pictures import best_slice, target_overlay
from tomoscout.targets import align


def run_overlays(config: Config, records: Sequence[RunRecord], targets: Path, batch: int, output: Path) -> None:
    """Draw the outlines of the target over a slice of the tomogram for every run of a batch: the first target of
    those that have several.

    Raises:
        TomoscoutError: the tomogram or the target of a run is missing.
    """
    plan = plan_targets(config, records)
    objects = {name: entry for path in config.projects.values() for name, entry in read_objects(Path(path)).items()}
    names = [entry.name for entry in plan.classes]
    colours = [objects[name].color[:3] if name in objects else (255, 255, 255) for name in names]
    work = Batch(config, [record for record in records if record.key in plan.inputs], batch, output)
    for record in work.records:
        target = read_manifest(targets, record)["targets"][0]
        project, uri = work.project(record), target["tomogram"]
        inputs = digest([VERSIONS["overlays"], uri, target["digest"], colours])
        path = work.manifest_path(record).with_suffix(".png")
        if work.is_done(record, inputs, lambda _, path=path: path.exists()):  # type: ignore[misc]
            continue
        tomogram = project.read_tomogram(record.run, uri)
        z, y, x = tomogram.shape
        wanted = target_segmentation(config, TomogramUri.parse(uri).voxel_spacing)
        labels = align(project.read_segmentation(record.run, wanted), (z, y, x), record.key)
        z, y = best_slice(labels), best_slice(labels, axis=1)
        target_overlay(
            tomogram[z],
            labels[z],
            colours,
            names,
            path,
            f"{record.key}  {uri}  z = {z}, below y = {y}",
            side=(tomogram[:, y], labels[:, y]),
        )
        work.finish(record, {"picture": path.name, "inputs": inputs})
    work.write()
