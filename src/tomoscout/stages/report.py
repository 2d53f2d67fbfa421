"""The report stage: collects the results of the other stages in one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tomoscout.data.geometry import to_voxels
from tomoscout.data.project import Project
from tomoscout.machine.files import read_json, read_table
from tomoscout.models.folder import read_description
from tomoscout.plan.dataset import overview
from tomoscout.plan.paths import manifest_path, read_manifest
from tomoscout.plan.plan import Plan
from tomoscout.plan.predictions import predicted_picks
from tomoscout.plan.stages import STAGES
from tomoscout.report.colours import Colour, Mark, readable_colours
from tomoscout.report.dataset import describe_dataset, thumbnails
from tomoscout.report.found import read_found
from tomoscout.report.learning_curve import Curve, read_curve
from tomoscout.report.origin import origin_of
from tomoscout.report.page import Checks, summarise_targets, write_report
from tomoscout.report.pictures import Marked, SlicePicture, Spheres, marked_slices, picks_slices
from tomoscout.report.usage import read_usage
from tomoscout.report.viewers import viewers
from tomoscout.stages.applied_models import applied_models
from tomoscout.stages.evaluate import read_pairs, scored_of_model
from tomoscout.stages.overlays import class_colours
from tomoscout.tasks.picking.score_tables import read_scores
from tomoscout.tasks.picking.scores import match_picks


def run_report(
    plan: Plan,
    *,
    localized: Path,
    output: Path,
    model: Path | None = None,
    scores: Path | None = None,
    split: Path | None = None,
    targets: Path | None = None,
    pictures: Path | None = None,
    benchmarks: Path | None = None,
) -> None:
    """Write the report of one model, or of picks from a segmentation. Parts whose path is None are left out.

    Args:
        localized: folder of the manifests of the localize stage.
        output: the HTML file.
        model: the model folder.
        scores: folder of the scores.
        split: the split file.
        targets: folder of the manifests of the targets.
        pictures: folder of the pictures of the targets.
        benchmarks: folder of what Snakemake measured. The only part of the page that differs when it is made again,
            besides a learning curve that is there by then.

    Raises:
        TomoscoutError: a stage before this one has not been run.
    """
    config = plan.config
    # A model trained elsewhere may have no metrics.csv.
    history = read_table(model / "metrics.csv") if model and (model / "metrics.csv").exists() else []
    # Where nothing is trained here, the page shows the picks of all localised runs.
    found = None if config.learns else read_found(plan, localized)
    unscored = _found_slices(plan, found.colours) if found and not scores else []
    division = {**read_json(split), "fold": config.split.fold} if split else {}
    made = [read_manifest(targets, record, targets=list) for record in plan.targeted] if targets else []
    runs = overview(plan)
    small = thumbnails(runs, config.projects)
    applied = _applied(plan, model) if model else []
    write_report(
        output,
        config.report.title,
        read_scores(scores) if scores else None,
        history,
        read_description(model) if model else {},
        division,
        summarise_targets(made),
        _scored_slices(plan, localized) if scores else unscored,
        found,
        dataset=describe_dataset(runs, division, small),
        checks=_checks(plan, pictures) if pictures else None,
        curve=_curve(plan),
        usage=read_usage(benchmarks, _jobs(plan, applied)) if benchmarks else [],
        viewers=viewers(config, plan.segmented, small),
        origin=origin_of(map(read_description, applied), made, config.model_dump(mode="json", by_alias=True)),
    )


def _applied(plan: Plan, model: Path) -> list[Path]:
    """Folders of the models that were applied."""
    return [folder for folder in applied_models(plan) if (folder / "model.yaml").exists()] or [model]


def _curve(plan: Plan) -> Curve | None:
    """The learning curve of the model that is trained here, if one was made with these options and data. It is no input
    of the page, which would then wait for all trainings of the curve."""
    path = plan.results.learning_curve(plan.config.train.name).with_suffix(".json")
    if not plan.config.learns or not path.exists():
        return None
    curve = read_curve(path)
    return curve if curve.fingerprint == plan.fingerprint("learning_curve") else None


def _checks(plan: Plan, folder: Path) -> Checks:
    """The pictures of the targets of the first runs."""
    pictures = []
    for record in plan.targeted[: plan.config.report.runs]:
        manifest = read_manifest(folder, record, picture=str, slices=list)
        png = manifest_path(folder, record).with_name(manifest["picture"]).read_bytes()
        z, y, x = manifest["slices"]
        pictures.append(SlicePicture(png, f"{record.key} (z = {z}, y = {y} below, x = {x} right)"))
    colours = readable_colours(class_colours(plan))
    return Checks(pictures, [Mark(e.name, c) for e, c in zip(plan.targets.classes, colours, strict=True)])


def _jobs(plan: Plan, applied: Sequence[Path]) -> dict[str, list[str]]:
    """The names of the benchmark files of the stages that led to a report. `applied`: folders of the models."""
    config = plan.config
    jobs = {stage: _batches(plan, stage) for stage in ("targets", "overlays")} if config.learns else {}
    jobs |= {"split": ["split"]} if config.learns else {}
    for stage in ("train", "import_model"):
        jobs[stage] = [f"{stage}/{folder.name}" for folder in applied if folder.parent == plan.results.models]
    jobs |= {stage: _batches(plan, stage) for stage in (["segment"] if applied else []) + ["localize"]}
    return jobs | {"evaluate": [f"evaluate/{config.session}"]}


def _batches(plan: Plan, stage: str) -> list[str]:
    runs = STAGES[stage].runs
    assert runs is not None
    return [f"{stage}/{batch:04d}" for batch in sorted({record.batch for record in runs(plan)})]


def _found_slices(plan: Plan, colours: Mapping[str, Colour]) -> list[SlicePicture]:
    """Pictures of the first runs with the picks of each object in its colour."""
    pictures = []
    config = plan.config
    spacing = config.voxel_spacing
    for record in [r for r in plan.localized if config.segment_tomogram in r.tomograms][: config.report.runs]:
        project = Project(record.project, Path(config.projects[record.project]))
        groups = []
        for name, colour in colours.items():
            positions = project.read_picks(record.run, predicted_picks(config, name)).positions
            groups.append(
                Marked(_spheres([(positions, project.objects[name].radius or spacing)], spacing), Mark(name, colour))
            )
        tomogram = project.read_tomogram(record.run, config.segment_tomogram)
        pictures += marked_slices(tomogram, groups, config.report.slices_per_run, record.key, spacing)
    return pictures


def _scored_slices(plan: Plan, localized: Path) -> list[SlicePicture]:
    config, scored = plan.config, scored_of_model(plan, localized)
    predictions, references, _, _ = read_pairs(config, scored, localized)
    pictures = []
    for record in scored.records[: config.report.runs]:
        found: list[tuple[np.ndarray, float]] = []
        missed: list[tuple[np.ndarray, float]] = []
        false: list[tuple[np.ndarray, float]] = []
        for entry in scored.classes:
            # An object that is not annotated in a run is not scored there.
            if entry.radius is None or entry.name not in references[record.key]:
                continue
            predicted, truth = predictions[record.key][entry.name], references[record.key][entry.name]
            matches = match_picks(predicted, truth, entry.radius, config.evaluate)
            found.append((truth.positions[matches.found], entry.radius))
            missed.append((truth.positions[~matches.found], entry.radius))
            false.append((predicted.positions[matches.gains == 0], entry.radius))
        tomogram = Project(record.project, Path(config.projects[record.project])).read_tomogram(
            record.run, config.segment_tomogram
        )
        pictures += picks_slices(
            tomogram,
            _spheres(found, config.voxel_spacing),
            _spheres(missed, config.voxel_spacing),
            _spheres(false, config.voxel_spacing),
            config.report.slices_per_run,
            record.key,
            config.voxel_spacing,
        )
    return pictures


def _spheres(parts: Sequence[tuple[np.ndarray, float]], voxel_spacing: float) -> Spheres:
    centres = np.concatenate([np.zeros((0, 3)), *(to_voxels(positions, voxel_spacing) for positions, _ in parts)])
    radii = np.concatenate([np.zeros(0), *(np.full(len(p), radius / voxel_spacing) for p, radius in parts)])
    return Spheres(centres, radii)
