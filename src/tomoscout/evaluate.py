"""The evaluation stage: reads predicted and reference picks of the scored runs and writes their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tomoscout.batches import read_manifest
from tomoscout.classes import (
    TargetClass,
    particle_classes,
    plan_targets,
    read_reference,
    refuse_overwriting,
    refuse_unreadable,
    sound_reference,
)
from tomoscout.config import Config
from tomoscout.errors import TomoscoutError
from tomoscout.inventory import RunRecord
from tomoscout.predictions import predicted_picks, segmented_runs
from tomoscout.project import Picks, Project
from tomoscout.scores import PicksOfRuns, evaluate, format_table, write_scores
from tomoscout.splits import chosen_fold, make_split


@dataclass(frozen=True)
class Scored:
    """The runs that are scored, what kind of runs they are, and the classes with the sources of their references."""

    records: tuple[RunRecord, ...]
    kind: str
    classes: tuple[TargetClass, ...]


def scored_runs(config: Config, records: Sequence[RunRecord]) -> Scored:
    """Decide what is scored: the part of the split asked for; validation runs where there are no test runs.

    Raises:
        TomoscoutError: nothing is left to score.
    """
    plan = plan_targets(config, records)
    fold = chosen_fold(config.split, make_split(config, records, plan))
    kind: str = config.evaluate.runs
    if config.segment.models == "folds" and (kind == "validate" or (kind == "test" and not fold.test)):
        what = "there are no test runs" if kind == "test" else "validate"
        raise TomoscoutError(
            f"evaluate.runs: {what}, and every run but those of split.test trained some of the folds; list some there "
            "(the scores of each fold are in the table of the cross-validation)"
        )
    if kind == "test" and not fold.test:
        kind = "validate"
    keys = set(fold.part(kind)) & {record.key for record in segmented_runs(config, records)}
    if not keys:
        raise TomoscoutError(f"evaluate.runs: no {kind} run is segmented; see segment.runs and the split")
    used = [record for record in records if record.key in keys]
    particles = tuple(entry for entry in plan.classes if entry.is_particle)
    if config.evaluate.reference is not None:
        particles, _ = particle_classes(config, records, config.evaluate.reference, "evaluate.reference")
        sources = [source for entry in particles for source in entry.sources]
        refuse_overwriting(config, sources, "evaluate.reference")
        refuse_unreadable(used, sources, "evaluate.reference")
    return Scored(tuple(used), kind, particles)


class Pairs(NamedTuple):
    """Predicted and reference picks of the scored runs, by run and object, and the reference picks that are in doubt:
    by run and object how many lie outside of the tomogram, and how many repeat another."""

    predictions: PicksOfRuns
    references: PicksOfRuns
    doubtful: list[dict[str, Any]]


def read_pairs(config: Config, scored: Scored, localized: Path) -> Pairs:
    """Read the picks of the scored runs. `localized`: folder of the localisation's manifests.

    Reference picks in doubt are left out, unless the challenge's counting is asked for, which counts them.

    Raises:
        TomoscoutError: the picks there are not the ones that the localisation wrote.
    """
    predictions: dict[str, dict[str, Picks]] = {}
    references: dict[str, dict[str, Picks]] = {}
    doubtful = []
    for record in scored.records:
        project = Project(record.project, Path(config.projects[record.project]))
        manifest = read_manifest(localized, record)
        predictions[record.key], references[record.key] = {}, {}
        for entry in scored.classes:
            source = predicted_picks(config, entry.name)
            if entry.name in manifest.get("picks", {}):
                project.require(record.run, source, str(manifest["inputs"]), "localize")
            predictions[record.key][entry.name] = project.read_picks(record.run, source)
            reference = read_reference(project, record, entry)
            shape, radius = record.tomograms[config.segment_tomogram], entry.radius or 0.0
            sound = sound_reference(reference, shape, config.voxel_spacing, radius)
            if sound.outside or sound.repeated:
                counts = {"outside": sound.outside, "repeated": sound.repeated}
                doubtful.append({"run": record.key, "object": entry.name, **counts})
            is_challenge = config.evaluate.counting == "challenge"
            references[record.key][entry.name] = reference if is_challenge else sound.picks
    return Pairs(predictions, references, doubtful)


def run_evaluate(config: Config, records: Sequence[RunRecord], localized: Path, folder: Path) -> None:
    """Score the picks and write tables and curves into `folder`; prints the table. `localized`: folder of the
    localisation's manifests.

    Raises:
        TomoscoutError: nothing is left to score, or the picks are not the ones that the localisation wrote.
    """
    scored = scored_runs(config, records)
    pairs = read_pairs(config, scored, localized)
    radii = {entry.name: entry.radius for entry in scored.classes if entry.radius is not None}
    scores = evaluate(pairs.predictions, pairs.references, radii, config.evaluate, scored.kind)
    scores["doubtful_references"] = pairs.doubtful
    write_scores(folder, scores)
    print(format_table(scores), end="")
