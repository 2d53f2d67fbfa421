"""The localisation stage: decodes class probabilities into scored picks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tomoscout.data.inventory import RunRecord
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest
from tomoscout.machine.messages import say
from tomoscout.options.config import Config
from tomoscout.plan.paths import read_manifest
from tomoscout.plan.plan import Plan
from tomoscout.plan.predictions import predicted_picks, predicted_probabilities
from tomoscout.stages.batches import Batch
from tomoscout.tasks.picking.decoding import locate_picks
from tomoscout.tasks.picking.model import PickingModel, read_ensemble


def chosen_thresholds(config: Config, model: PickingModel) -> dict[str, float]:
    """Object → smallest score of a pick, from the configuration or else from the model.

    Raises:
        TomoscoutError: the configuration names an object that is not a class of the model.
    """
    given = config.localize.threshold
    if isinstance(given, float | int):
        return dict.fromkeys(model.thresholds, float(given))
    given = given or {}
    for name in given:
        if name not in model.thresholds:
            raise TomoscoutError(
                f"localize.threshold: the model finds no '{name}'; it finds {', '.join(model.thresholds)}"
            )
    return {**model.thresholds, **given}


def run_localize(plan: Plan, models: Sequence[Path], segment_folder: Path, batch: int, output: Path) -> None:
    """Write the picks of a batch of runs. They replace picks of the same object, user and session, with an empty file
    where nothing is found.

    Raises:
        TomoscoutError: probabilities are missing or were made by another model.
    """
    config = plan.config
    model, _ = read_ensemble(models)
    thresholds = chosen_thresholds(config, model)
    work = Batch(config, plan.segmented, batch, output)
    probabilities = predicted_probabilities(config)
    written = [predicted_picks(config, name) for name in model.thresholds]
    classes = [entry.to_json() for entry in model.classes]
    fingerprint = plan.fingerprint("localize")
    made_by = [model.weights_digest, classes, model.picking.model_dump(), thresholds]
    for record in work.records:
        with work.attempt(record):
            segmented = read_manifest(segment_folder, record, model=str, probabilities=dict)
            if segmented["model"] != model.weights_digest:
                raise TomoscoutError(
                    f"{record.key}: its probabilities are not of {' and '.join(map(str, models))}; run the segment "
                    "stage again"
                )
            inputs = digest([fingerprint, made_by, segmented["probabilities"].get("digest")])
            if work.is_done(record, inputs, written):
                continue
            work.project(record).require(record.run, probabilities, str(segmented.get("inputs")), "segment")
            work.claim(record, inputs, written, "localize.session")
            manifest = _localize_run(config, model, thresholds, work, record, inputs)
            work.finish(record, inputs, written, manifest)
            counts = ", ".join(f"{facts['count']} {name}" for name, facts in manifest["picks"].items())
            say(f"{record.key}: {counts}")
    work.write()
    if not config.segment.keep_probabilities:
        for record in work.records:
            project, made_from = work.project(record), read_manifest(segment_folder, record).get("inputs")
            if project.made_from(record.run, probabilities) == made_from:
                project.delete(record.run, probabilities)


def _localize_run(
    config: Config, model: PickingModel, thresholds: dict[str, float], work: Batch, record: RunRecord, inputs: str
) -> dict[str, Any]:
    project = work.project(record)
    probabilities = project.read_probabilities(record.run, predicted_probabilities(config))
    if len(probabilities) != len(model.classes):
        raise TomoscoutError(
            f"{record.key}: {len(probabilities)} probability channels, the model has {len(model.classes)} classes; "
            "run the segment stage again"
        )
    own = {name: getattr(config.localize, name) for name in ("smoothing", "separation")}
    picking = model.picking.model_copy(update={name: value for name, value in own.items() if value is not None})
    found = locate_picks(probabilities, model.classes, config.voxel_spacing, picking, thresholds)
    manifest: dict[str, Any] = {"model": model.weights_digest, "thresholds": thresholds, "picks": {}}
    for name, picks in found.items():
        source = predicted_picks(config, name)
        project.write_picks(record.run, source, picks, inputs)
        written = project.find_picks(record.run, source)
        manifest["picks"][name] = {"source": str(source), "count": written.total, "digest": written.digest}
    return manifest
