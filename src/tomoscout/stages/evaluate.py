"""The evaluation stage: reads predicted and reference picks of the scored runs and writes their scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tomoscout.data.picks import Picks
from tomoscout.data.project import Project
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.messages import note
from tomoscout.options.config import Config
from tomoscout.plan.annotations import is_annotated
from tomoscout.plan.paths import read_manifest
from tomoscout.plan.plan import Plan
from tomoscout.plan.predictions import predicted_picks
from tomoscout.plan.scored import Scored
from tomoscout.stages.evaluate_segmentations import score_segmentation
from tomoscout.tasks.picking.reference import read_reference, sound_reference
from tomoscout.tasks.picking.score_tables import format_table, write_scores
from tomoscout.tasks.picking.scores import PicksOfRuns, evaluate


def scored_of_model(plan: Plan, localized: Path) -> Scored:
    """The runs and classes to score, without classes that the model does not find. Only a model trained elsewhere can
    have fewer classes than the reference. `localized`: folder of the manifests of the localize stage.

    Raises:
        TomoscoutError: the model finds none of the classes.
    """
    scored = plan.scored
    if plan.config.learns:
        return scored
    found = {name for record in scored.records for name in read_manifest(localized, record, picks=dict)["picks"]}
    known = tuple(entry for entry in scored.classes if entry.name in found)
    others = ", ".join(entry.name for entry in scored.classes if entry not in known)
    if not known:
        raise TomoscoutError(f"evaluate.reference: the model looks for none of its objects: {others}")
    if others:
        note(f"not scored, as the model does not look for them: {others}")
    return replace(scored, classes=known)


class Pairs(NamedTuple):
    """Predicted and reference picks of the scored runs, by run and object.

    `doubtful`: by run and object, how many reference picks lie outside of the tomogram (`outside`), and how many repeat
    another pick (`repeated`). `ignored`: runs and objects that are not scored, as the object is not annotated in the
    run (`targets.unannotated: ignore`).
    """

    predictions: PicksOfRuns
    references: PicksOfRuns
    doubtful: list[dict[str, Any]]
    ignored: list[dict[str, str]]


def read_pairs(config: Config, scored: Scored, localized: Path) -> Pairs:
    """Read the picks of the scored runs. `localized`: folder of the manifests of the localize stage.

    Doubtful reference picks are left out, except with challenge counting, which counts them.

    Raises:
        TomoscoutError: the predicted picks are not those that the localize stage wrote.
    """
    predictions: dict[str, dict[str, Picks]] = {}
    references: dict[str, dict[str, Picks]] = {}
    doubtful, ignored = [], []
    for record in scored.records:
        project = Project(record.project, Path(config.projects[record.project]))
        manifest = read_manifest(localized, record, picks=dict)
        predictions[record.key], references[record.key] = {}, {}
        for entry in scored.classes:
            if config.targets.unannotated == "ignore" and not is_annotated(entry, record):
                ignored.append({"run": record.key, "object": entry.name})
                continue
            source = predicted_picks(config, entry.name)
            if entry.name in manifest["picks"]:
                project.require(record.run, source, str(manifest.get("inputs")), "localize")
            predictions[record.key][entry.name] = project.read_picks(record.run, source)
            reference = read_reference(project, record, entry)
            shape, radius = record.tomograms[config.segment_tomogram], entry.radius or 0.0
            sound = sound_reference(reference, shape, config.voxel_spacing, radius)
            if sound.outside or sound.repeated:
                counts = {"outside": sound.outside, "repeated": sound.repeated}
                doubtful.append({"run": record.key, "object": entry.name, **counts})
            is_challenge = config.evaluate.counting == "challenge"
            references[record.key][entry.name] = reference if is_challenge else sound.picks
    return Pairs(predictions, references, doubtful, ignored)


def read_others(config: Config, scored: Scored, pairs: Pairs, picks: str) -> PicksOfRuns:
    """Other picks, `user/session`, of the runs and objects that are scored; a run may lack them.

    Raises:
        TomoscoutError: no scored run has such picks.
    """
    found: dict[str, dict[str, Picks]] = {}
    there: set[str] = set()
    for record in scored.records:
        project = Project(record.project, Path(config.projects[record.project]))
        sources = project.pick_sources(record.run)
        there |= {f"{source.user}/{source.session}" for source in sources}
        wanted = (source for source in sources if f"{source.user}/{source.session}" == picks)
        of_run = {source.name: project.read_picks(record.run, source) for source in wanted}
        found[record.key] = {name: of_run[name] for name in pairs.references[record.key] if name in of_run}
    if not any(found.values()):
        have = ", ".join(sorted(there)) or "none"
        raise TomoscoutError(f"evaluate.also: no scored run has picks of {picks}; found picks of: {have}")
    return found


_OF_SET = ("objects", "mean", "pooled", "runs", "runs_without_predictions")
"""What of the scores of further picks is kept: the rest is as for the picks of the workflow."""


def run_evaluate(plan: Plan, localized: Path, folder: Path) -> None:
    """Score the picks, write tables and curves into `folder`, and print the table. `localized`: folder of the manifests
    of the localize stage.

    Raises:
        TomoscoutError: nothing is left to score, or the predicted picks are not those that the localize stage wrote.
    """
    config, scored = plan.config, scored_of_model(plan, localized)
    pairs = read_pairs(config, scored, localized)
    radii = {entry.name: entry.radius for entry in scored.classes if entry.radius is not None}
    scores = evaluate(pairs.predictions, pairs.references, radii, config.evaluate, scored.kind)
    scores |= {"doubtful_references": pairs.doubtful, "not_annotated": pairs.ignored}
    scores["picks"] = f"{config.localize.user}/{config.session}"
    for picks in config.evaluate.also:
        others = read_others(config, scored, pairs, picks)
        found = evaluate(others, pairs.references, radii, config.evaluate, scored.kind)
        scores["also"].append({"picks": picks, **{key: found[key] for key in _OF_SET}})
    scores["segmentations"] = [
        entry for name in config.evaluate.segmentations for entry in score_segmentation(plan, scored, name)
    ]
    write_scores(folder, scores)
    print(format_table(scores), end="")
