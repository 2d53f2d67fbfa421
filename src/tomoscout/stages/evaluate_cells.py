"""The stage that scores a model of instances on the test images, and writes tables, pictures and a page."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import write_bytes, write_json, write_table, write_text
from tomoscout.machine.messages import say, warn
from tomoscout.machine.progress import Progress
from tomoscout.models.base import base_files
from tomoscout.options.config import Config
from tomoscout.report.cell_scores import compared, score_page
from tomoscout.stages.train_cells import as_base
from tomoscout.tasks.instances.annotation import Annotation
from tomoscout.tasks.instances.annotations import channel_numbers, find_annotations
from tomoscout.tasks.instances.backends.applied import Applied, applied_model
from tomoscout.tasks.instances.division import Member, annotations_of, read_division
from tomoscout.tasks.instances.scores import IOU, Overlaps, intervals, mean_ap, overlaps, score
from tomoscout.tasks.instances.shown import Shown

SHOWN = 12
"""Images on the page, the worst first."""
TOO_FEW = 0.1
"""A model whose F1 on its own training images is lower has not learnt: it finds almost nothing, or anything."""


def run_evaluate_cells(
    config: Config, division: Path, folder: Path, output: Path, threads: int | None = None
) -> dict[str, Any]:
    """Score a model folder on the test images, or where there are none on the validation images, and beside it the base
    that it was fine-tuned from. Writes into the folder of `output`, which is written last; returns its content.

    Raises:
        TomoscoutError: the model or an image cannot be used.
    """
    if threads:
        torch.set_num_threads(threads)
    cells = as_base(config.cells)
    members = read_division(division)
    part = "test" if members["test"] else "validate"
    annotations = find_annotations(cells, config.projects)
    scored = annotations_of(members[part], annotations)
    place = output.parent
    device, python = cells.segment.device, cells.train.python
    with applied_model(folder, device, python) as applied:
        model = applied.model
        found, worst = _found(applied, scored, model.inputs)
        of_training = _on_training(applied, members["train"], annotations, model.inputs)
    write_table(place / "images.csv", *_rows(scored, found))
    scores = {"part": part, "images": len(scored), **summary(found), "training": of_training}
    if cells.train.base:
        with applied_model(base_files(cells.train)[0].parent, device, python) as of_base:
            scores["base"] = summary(_found(of_base, scored, model.inputs)[0])
    lines = warnings(scores)
    for line in lines:
        warn(line)
    shutil.rmtree(place / "pictures", ignore_errors=True)
    for entry in worst:
        write_bytes(place / "pictures" / entry.picture, compared(entry))
    write_text(place / "report.html", score_page(model, scores, lines, worst, folder))
    write_json(output, scores)
    half = scores["scores"][0]
    say(f"{part}: AP50 {half['ap']:.3f}, mean AP {scores['mean_ap']:.3f} of {half['annotated']} objects")
    return scores


def _found(
    applied: Applied, annotations: Sequence[Annotation], inputs: Sequence[str]
) -> tuple[list[Overlaps], list[Shown]]:
    """How well the objects of each image were found, and the worst images: others are not kept in memory."""
    progress = Progress(len(annotations))
    every: list[Overlaps] = []
    worst: list[Shown] = []
    for number, entry in enumerate(annotations, 1):
        image, labels = entry.read_image(), entry.read_labels()
        numbers = channel_numbers(entry, inputs)
        ours = applied.labels(image, numbers, entry.calibration)
        shown = next((n for n in numbers if n is not None), 0)
        every.append(overlaps(ours, labels))
        this = Shown.of(entry.key, image[shown], ours, labels, every[-1])
        worst = sorted([*worst, this], key=_worst_first)[:SHOWN]
        progress.show(number, f"{number} of {len(annotations)} images scored")
    return every, worst


def _worst_first(entry: Shown) -> tuple[bool, float]:
    """Nothing found where there is nothing is no fault."""
    nothing = entry.overlaps.annotated == entry.overlaps.found == 0
    return nothing, mean_ap([entry.overlaps])


def _on_training(
    applied: Applied, members: Sequence[Member], annotations: Iterable[Annotation], inputs: Sequence[str]
) -> dict[str, Any]:
    """Scores on some of the training images: a model that finds nothing there has not learnt."""
    some = annotations_of(members[:: max(1, len(members) // 8)], annotations)
    return summary(_found(applied, some, inputs)[0])


def summary(images: Sequence[Overlaps]) -> dict[str, Any]:
    """Scores at each IoU with 95 % intervals, merges and splits, as plain values."""
    limits = intervals(images)
    rows = []
    for iou in IOU:
        at = score(images, iou)
        numbers = {name: round(getattr(at, name), 4) for name in ("ap", "precision", "recall", "f1", "pq")}
        counts = {"matched": at.matched, "found": at.found, "annotated": at.annotated}
        rows.append({"iou": iou, **numbers, **counts, "ap_interval": limits[iou]})
    return {
        "mean_ap": round(mean_ap(images), 4),
        "merges": sum(image.merges for image in images),
        "splits": sum(image.splits for image in images),
        "scores": rows,
    }


def warnings(scores: Mapping[str, Any]) -> list[str]:
    """What a user must know before using the model."""
    lines = []
    of_training = scores["training"]["scores"][0]
    if of_training["annotated"] and of_training["f1"] < TOO_FEW:
        lines.append(
            f"the model finds {of_training['matched']} of the {of_training['annotated']} objects of its own training "
            f"images, and {of_training['found'] - of_training['matched']} that are none: it has not learnt; look at "
            "the annotations (snakemake check_annotations), the channels and the calibration"
        )
    if "base" in scores and scores["mean_ap"] < scores["base"]["mean_ap"]:
        lines.append(
            f"fine-tuning made it worse: mean AP {scores['base']['mean_ap']:.3f} with the base, "
            f"{scores['mean_ap']:.3f} fine-tuned"
        )
    return lines


def _rows(annotations: Sequence[Annotation], found: Sequence[Overlaps]) -> tuple[list[str], list[dict[str, Any]]]:
    rows = []
    for entry, image in zip(annotations, found, strict=True):
        half = score([image], IOU[0])
        rows.append(
            {
                "source": entry.source,
                "name": entry.name,
                "annotated": half.annotated,
                "found": half.found,
                "matched": half.matched,
                # Nothing found where there is nothing is neither good nor bad.
                "mean_ap": round(mean_ap([image]), 4) if half.annotated + half.found else None,
                "merges": image.merges,
                "splits": image.splits,
            }
        )
    if not rows:
        raise TomoscoutError("no image to score; give cells.division.test more")
    return list(rows[0]), rows
