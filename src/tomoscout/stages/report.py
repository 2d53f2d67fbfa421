"""The report stage: collects the results of the other stages in one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tomoscout.machine.files import read_json, read_table
from tomoscout.models.folder import read_description
from tomoscout.plan.dataset import overview
from tomoscout.plan.paths import manifest_path, read_manifest
from tomoscout.plan.plan import Plan
from tomoscout.plan.stages import STAGES
from tomoscout.report.colours import Mark, readable_colours
from tomoscout.report.dataset import describe_dataset, thumbnails
from tomoscout.report.found import read_found
from tomoscout.report.learning_curve import Curve, read_curve
from tomoscout.report.origin import origin_of
from tomoscout.report.page import summarise_targets, write_report
from tomoscout.report.pictures import Pictures, SlicePicture
from tomoscout.report.segmented import RunLabels
from tomoscout.report.usage import read_usage
from tomoscout.report.viewers import viewers
from tomoscout.report.worst import Worst
from tomoscout.stages.applied_models import applied_models
from tomoscout.stages.overlays import class_colours
from tomoscout.stages.report_found import found_pictures, labels_of_runs
from tomoscout.stages.report_scored import compare_runs, scored_pictures, worst_cases
from tomoscout.tasks.picking.score_tables import read_scores


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
    described = read_description(model) if model else {}
    picks, worst, labels = Pictures([], []), list[Worst](), dict[str, RunLabels]()
    if scores:
        compared = compare_runs(plan, localized)
        picks, worst = scored_pictures(compared), worst_cases(compared)
    elif found:
        labels = labels_of_runs(plan, [entry["name"] for entry in described.get("classes", [])])
        picks = found_pictures(plan, found, labels)
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
        described,
        division,
        summarise_targets(made),
        picks,
        found,
        worst=worst,
        labels=labels,
        dataset=describe_dataset(runs, division, small),
        checks=_checks(plan, pictures) if pictures else Pictures([], []),
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


def _checks(plan: Plan, folder: Path) -> Pictures:
    """The pictures of the targets of the first runs."""
    pictures = []
    for record in plan.targeted[: plan.config.report.runs]:
        manifest = read_manifest(folder, record, picture=str, slices=list)
        png = manifest_path(folder, record).with_name(manifest["picture"]).read_bytes()
        z, y, x = manifest["slices"]
        pictures.append(SlicePicture(png, f"{record.key} (z = {z}, y = {y} below, x = {x} right)"))
    colours = readable_colours(class_colours(plan))
    return Pictures(pictures, [Mark(e.name, c) for e, c in zip(plan.targets.classes, colours, strict=True)])


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
