"""What the page shows without reference picks: pictures of picks and labels, a part of the report stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tomoscout.data.inventory import RunRecord
from tomoscout.data.labels import stored_labels
from tomoscout.data.project import Project
from tomoscout.options.config import Config
from tomoscout.plan.localized import labels_of
from tomoscout.plan.plan import Plan
from tomoscout.plan.predictions import predicted_picks, predicted_segmentation
from tomoscout.report.colours import Mark
from tomoscout.report.found import Found, object_colours
from tomoscout.report.marks import Spheres
from tomoscout.report.pictures import Layer, Marked, Pictures, marked_slice, outlines, telling_slices
from tomoscout.report.segmented import RunLabels, count_labels


def labels_of_runs(plan: Plan, classes: Sequence[str]) -> dict[str, RunLabels]:
    """The labels of the first runs, by `project/run`: of the segmentation that is localised, or of the one that a model
    with these `classes` has made. A run without is left out."""
    config, found = plan.config, {}
    for record in _shown(plan):
        project = _project(config, record)
        wanted = labels_of(config, record) if config.localize.segmentation else predicted_segmentation(config)
        if wanted in project.segmentations(record.run):
            allowed, names = config.targets.allow_missing_chunks, _names(config, project, classes)
            found[record.key] = count_labels(project, record.run, wanted, names, allow_missing_chunks=allowed)
    return found


def found_pictures(plan: Plan, found: Found, labels: Mapping[str, RunLabels]) -> Pictures:
    """Slices of the first runs with the picks, and the outlines of the labels, of each object in its colour."""
    config = plan.config
    labelled = list(dict.fromkeys(name for run in labels.values() for name in run.names.values()))
    colours = object_colours(config, [*found.scores, *labelled])
    picked = [Mark(name, colours[name]) for name in found.scores]
    outlined = {name: Mark(f"{name}, labels", colours[name], "outline") for name in labelled}
    pictures = []
    for record in [record for record in _shown(plan) if config.segment_tomogram in record.tomograms]:
        project, of_run = _project(config, record), labels.get(record.key)
        tomogram = project.open_tomogram(record.run, config.segment_tomogram)
        groups = [_picks(config, project, record, mark) for mark in picked]
        for z in _slices(config, groups, of_run, tomogram.shape[0]):
            picture = marked_slice(tomogram, groups, z, record.key, config.voxel_spacing)
            layers = list(_outlines(config, project, record, of_run, z, outlined)) if of_run else []
            pictures.append(replace(picture, layers=(*layers, *picture.layers)))
    return Pictures(pictures, [*picked, *outlined.values()])


def _shown(plan: Plan) -> list[RunRecord]:
    """The first localised runs, those with the tomogram before others."""
    uri = plan.config.segment_tomogram
    return sorted(plan.localized, key=lambda record: uri not in record.tomograms)[: plan.config.report.runs]


def _project(config: Config, record: RunRecord) -> Project:
    return Project(record.project, Path(config.projects[record.project]))


def _names(config: Config, project: Project, classes: Sequence[str]) -> dict[int, str]:
    """What the labels of a segmentation stand for."""
    known = {entry.label: name for name, entry in project.objects.items() if entry.label}
    if config.localize.segmentation:
        return known | {label: name for name, label in config.localize.labels.items()}
    return known | {label: name for name, label in stored_labels(project.config, classes).items()}


def _picks(config: Config, project: Project, record: RunRecord, mark: Mark) -> Marked:
    # A run of a project that lacks an object has no picks of it.
    known = project.objects.get(mark.word)
    radius = known.radius if known and known.radius else config.voxel_spacing
    picks = project.read_picks(record.run, predicted_picks(config, mark.word))
    return Marked(Spheres.of([(picks, radius)], config.voxel_spacing), mark)


def _slices(config: Config, groups: Sequence[Marked], labels: RunLabels | None, depth: int) -> list[int]:
    """The slices that show most: of the picks or, where there are none, of the labels."""
    count = config.report.slices_per_run
    if labels is None or any(len(group.spheres.radii) for group in groups):
        return telling_slices(groups, depth, count)
    scale = labels.segmentation.voxel_spacing / config.voxel_spacing
    return sorted({min(round(z * scale), depth - 1) for z in labels.telling_slices(count)})


def _outlines(
    config: Config, project: Project, record: RunRecord, labels: RunLabels, z: int, marks: Mapping[str, Mark]
) -> Iterator[Layer]:
    """The outlines of the labels in slice `z` of the tomogram."""
    wanted, shape = labels.segmentation, record.tomograms[config.segment_tomogram]
    ratio = config.voxel_spacing / wanted.voxel_spacing
    there = min(round(z * ratio), len(labels.voxels) - 1)
    allowed, span = config.targets.allow_missing_chunks, (slice(there, there + 1),)
    [plane] = project.read_segmentation(record.run, wanted, span, allow_missing_chunks=allowed)
    for label, name in labels.names.items():
        if labels.voxels[there, label]:
            mark = marks[name]
            yield Layer(mark, outlines=outlines(plane, label, mark.colour, shape, ratio))
