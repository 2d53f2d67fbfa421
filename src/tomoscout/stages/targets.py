"""The targets stage: makes targets that are missing or out of date, and removes those that are no longer needed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from tomoscout.data.inventory import RunRecord
from tomoscout.machine.messages import say
from tomoscout.options.config import Config
from tomoscout.options.forms import read_entries
from tomoscout.options.names import TomogramUri
from tomoscout.plan.annotations import reference_tomograms, target_segmentation
from tomoscout.plan.plan import Plan
from tomoscout.stages.batches import Batch
from tomoscout.tasks.picking.targets import make_targets


def run_targets(plan: Plan, batch: int, output: Path) -> None:
    """Make the targets of a batch of runs. A run whose targets are up to date is skipped. If anything they depend on
    has changed, including the list of the run's tomograms, all targets of the run are made again. Targets of runs that
    lost their annotations, and targets at voxel spacings that are no longer listed, are removed.

    Raises:
        TomoscoutError: a source cannot be read or does not fit the tomogram, or the project has a segmentation of the
            same name that these results have not made.
    """
    wanted = plan.targets.inputs
    work = Batch(plan.config, plan.records, batch, output)
    for record in work.records:
        with work.attempt(record):
            if record.key in wanted:
                _update_targets(plan, work, record)
            else:
                _remove_targets(plan.config, work, record, kept=())
                work.manifest_path(record).unlink(missing_ok=True)
    work.write()


def _update_targets(plan: Plan, work: Batch, record: RunRecord) -> None:
    config, inputs = plan.config, plan.targets.inputs[record.key]
    spacings = reference_tomograms(config, record)
    written = [target_segmentation(config, voxel_spacing) for voxel_spacing in spacings]
    if work.is_done(record, inputs, written):
        return
    project = work.project(record)
    targets = make_targets(
        config, plan.targets, project, record, lambda: work.claim(record, inputs, written, "targets.name")
    )
    _remove_targets(config, work, record, kept=spacings)
    work.finish(record, inputs, written, {"targets": targets})
    say(f"{record.key}: {'; '.join(map(_describe, targets))}")


def _describe(target: dict[str, Any]) -> str:
    used = sum(entry["picks"]["used"] for entry in target["classes"] if "picks" in entry)
    return f"{used} picks in {target['tomogram']}"


def _remove_targets(config: Config, work: Batch, record: RunRecord, kept: Collection[float]) -> None:
    """Delete the targets in the manifest of a run, except those at the voxel spacings in `kept`. Targets of another
    name, user or session stay: the user may want to keep them beside the new ones."""
    path = work.manifest_path(record)
    if not path.exists():
        return
    project = work.project(record)
    for target in read_entries(path, "a manifest", project=str, run=str).get("targets", []):
        spacing = TomogramUri.parse(target["tomogram"]).voxel_spacing
        written = target_segmentation(config, spacing)
        if str(written) != target["segmentation"] or spacing in kept:
            continue
        there = project.made_from(record.run, written) is not None
        if there and not work.owns(record, written):
            continue
        # Also if it does not exist: a process that was killed while deleting it may have left files.
        project.delete(record.run, written)
        if there:
            say(f"{record.key}: {written} is not wanted any more, removed")
