"""The table of stages, a row for each. The workflow, the fingerprints and `tomoscout verify` are derived from it.

A stage has the same name as its rule, command, module and logs, and as its results folder and options section if it has
them. A new stage is a module in `stages/` with `run_<name>(plan, …)`, a row here, a rule in `workflow/rules/` and a
command in `cli/`.

The version of the normalisation of tomograms is in `learning/normalisation.py` instead, as `learning/` does not import
`plan/`. Files of prepared tomograms carry it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tomoscout.plan import fingerprints

if TYPE_CHECKING:
    from tomoscout.data.inventory import RunRecord
    from tomoscout.plan.plan import Plan


class Stated(NamedTuple):
    """An output listed in a manifest: its kind (`segmentation`, `probabilities`, `picks`, or a `file` beside the
    manifest), name and digest; for probabilities also the URI of their tomogram."""

    kind: str
    name: str
    digest: str
    tomogram: str = ""


@dataclass(frozen=True)
class Stage:
    """A stage of the workflow.

    `version`: increased when the numbers of the stage change, so that its results are made again. Changes of comments
    alone do not make results out of date.
    `depends_on`: digest of everything that a job depends on besides its input files. A job is the number of a batch,
    the name of a model, or empty. None for stages whose jobs have no such digest among their params; a study's folder
    has it in its name.
    `runs`: the runs that the stage works on or reads; its jobs are their batches. None if jobs are not divided by runs.
    `written`: the outputs that the manifest of a run lists, which `tomoscout verify` compares. None if there are no
    manifests of data.
    """

    version: int
    depends_on: Callable[[Plan, str], str] | None = None
    runs: Callable[[Plan], Iterable[RunRecord]] | None = None
    written: Callable[[Plan, dict[str, Any]], Iterator[Stated]] | None = None


def _written_targets(plan: Plan, manifest: dict[str, Any]) -> Iterator[Stated]:
    for target in manifest["targets"]:
        yield Stated("segmentation", target["segmentation"], target["digest"])


def _written_by_segment(plan: Plan, manifest: dict[str, Any]) -> Iterator[Stated]:
    labels, probabilities = manifest["segmentation"], manifest["probabilities"]
    yield Stated("segmentation", labels["name"], labels["digest"])
    if plan.config.segment.keep_probabilities:
        yield Stated("probabilities", probabilities["name"], probabilities["digest"], manifest["tomogram"])


def _written_picks(plan: Plan, manifest: dict[str, Any]) -> Iterator[Stated]:
    for picks in manifest["picks"].values():
        yield Stated("picks", picks["source"], picks["digest"])


def _written_by_extract(plan: Plan, manifest: dict[str, Any]) -> Iterator[Stated]:
    yield from _written_picks(plan, manifest)
    if "segmentation" in manifest:
        yield from _written_instances(plan, manifest)
    if "table" in manifest:
        yield Stated("file", manifest["table"]["name"], manifest["table"]["digest"])


def _runs_of_extractions(plan: Plan) -> Iterator[RunRecord]:
    for records in plan.extracted.values():
        yield from records


def _written_instances(plan: Plan, manifest: dict[str, Any]) -> Iterator[Stated]:
    yield Stated("segmentation", manifest["segmentation"]["name"], manifest["segmentation"]["digest"])


STAGES: dict[str, Stage] = {
    "phantom": Stage(version=2),
    "targets": Stage(2, fingerprints.of_targets, lambda plan: plan.ever_targeted, _written_targets),
    "overlays": Stage(2, fingerprints.of_overlays, lambda plan: plan.targeted),
    "split": Stage(2, fingerprints.of_split),
    "pretrain": Stage(2, fingerprints.of_pretraining),
    "train": Stage(5, fingerprints.of_training),
    "learning_curve": Stage(1, fingerprints.of_learning_curve),
    "explore": Stage(version=4),
    "import_model": Stage(3, fingerprints.of_import),
    "segment": Stage(4, fingerprints.of_segmentation, lambda plan: plan.segmented, _written_by_segment),
    "localize": Stage(4, fingerprints.of_picks, lambda plan: plan.localized, _written_picks),
    "extract": Stage(2, fingerprints.of_extractions, _runs_of_extractions, _written_by_extract),
    "evaluate": Stage(3, fingerprints.of_scores, lambda plan: plan.scored.records),
    "report": Stage(3, fingerprints.of_report, lambda plan: plan.shown),
    "export": Stage(1, fingerprints.of_export, lambda plan: plan.exported),
    "download": Stage(1),
    "import_tomograms": Stage(1),
    "import_picks": Stage(1, fingerprints.of_imported_picks, written=_written_picks),
    "check_annotations": Stage(1),
    "divide_cells": Stage(1),
    "train_cells": Stage(4),
    "evaluate_cells": Stage(1),
    "segment_cells": Stage(3),
    "segment_instances": Stage(3, fingerprints.of_instances, lambda plan: plan.with_instances, _written_instances),
    "export_cells": Stage(1),
}
"""Stages by name, in the order of the workflow."""
