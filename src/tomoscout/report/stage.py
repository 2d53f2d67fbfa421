"""The report stage: collects what the other stages wrote."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from tomoscout.batches import read_manifest
from tomoscout.classes import plan_targets
from tomoscout.config import Config
from tomoscout.evaluate import read_pairs, scored_runs
from tomoscout.files import read_json
from tomoscout.geometry import to_voxels
from tomoscout.inventory import RunRecord
from tomoscout.project import Project
from tomoscout.report.page import summarise_targets, write_report
from tomoscout.report.pictures import SlicePicture, Spheres, picks_slices
from tomoscout.scores import match_picks, read_scores


def run_report(
    config: Config,
    records: Sequence[RunRecord],
    *,
    model: Path,
    localized: Path,
    scores: Path,
    split: Path,
    targets: Path,
    output: Path,
) -> None:
    """Write the report of one model. The paths are those of the model folder, the folder of the localisation, the
    folder of the scores, the split file and the folder of the targets.

    Raises:
        TomoscoutError: a stage before this one has not been run.
    """
    plan = plan_targets(config, records)
    history = []
    # A model from elsewhere may have come without.
    if (model / "metrics.csv").exists():
        with (model / "metrics.csv").open(newline="", encoding="utf-8") as handle:
            history = list(csv.DictReader(handle))
    write_report(
        output,
        config.report.title,
        read_scores(scores),
        history,
        yaml.safe_load((model / "model.yaml").read_text(encoding="utf-8")),
        {**read_json(split), "fold": config.split.fold},
        summarise_targets(read_manifest(targets, record) for record in records if record.key in plan.inputs),
        _slices(config, records, localized),
    )


def _slices(config: Config, records: Sequence[RunRecord], localized: Path) -> list[SlicePicture]:
    scored = scored_runs(config, records)
    predictions, references, _ = read_pairs(config, scored, localized)
    pictures = []
    for record in scored.records[: config.report.runs]:
        found: list[tuple[np.ndarray, float]] = []
        missed: list[tuple[np.ndarray, float]] = []
        false: list[tuple[np.ndarray, float]] = []
        for entry in scored.classes:
            assert entry.radius is not None
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
