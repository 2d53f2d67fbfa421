"""The table of stages: a row for each, from which workflow, fingerprints and `tomoscout verify` derive what they do.

A stage has one name: that of its rule, command, module and logs, and of its folder of results and section of options
where it has them. A new stage is a module in `stages/` with `run_<name>(plan, …)`, a row here, a rule in
`workflow/rules/` and a command in `cli/`.

One version integer is not here: `learning/normalisation.py` has that of the normalisation of tomograms, which files of
prepared tomograms carry, as `learning/` imports nothing of the plan.
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
    """What a manifest says was written: its kind (`segmentation`, `probabilities`, `picks`, or a `file` beside the
    manifest), its name, its digest, and of probabilities the tomogram (a URI) that they are of."""

    kind: str
    name: str
    digest: str
    tomogram: str = ""


@dataclass(frozen=True)
class Stage:
    """A stage of the workflow.

    `version`: raised when its numbers change, which makes its results anew. A comment that changes remakes nothing.
    `depends_on`: the digest of all that a job depends on besides its input files; a job is the number of a batch, the
    name of a model, or empty. None where the folder of the results is named after it.
    `runs`: the runs that it works on or reads; its jobs are their batches. None where no job has runs of its own.
    `written`: what the manifest of a run says was written, which `tomoscout verify` compares. None where there are no
    manifests.
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


STAGES: dict[str, Stage] = {
    "phantom": Stage(version=1),
    "targets": Stage(2, fingerprints.of_targets, lambda plan: plan.ever_targeted, _written_targets),
    "overlays": Stage(1, fingerprints.of_overlays, lambda plan: plan.targeted),
    "split": Stage(2, fingerprints.of_split),
    "train": Stage(3, fingerprints.of_training),
    "explore": Stage(version=2),
    "import_model": Stage(1, fingerprints.of_import),
    "segment": Stage(2, fingerprints.of_segmentation, lambda plan: plan.segmented, _written_by_segment),
    "localize": Stage(2, fingerprints.of_picks, lambda plan: plan.segmented, _written_picks),
    "evaluate": Stage(2, fingerprints.of_scores, lambda plan: plan.scored.records),
    "report": Stage(1, fingerprints.of_report, lambda plan: plan.shown),
}
"""By name, in the order in which they work."""
