"""The evaluation stage: reads predicted and reference picks of the scored runs and writes their scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tomoscout.data.inventory import RunRecord
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


class References(NamedTuple):
    """Reference picks of the scored runs, by run and object.

    `doubtful`: by run and object, how many reference picks lie outside of the tomogram (`outside`), and how many repeat
    another pick (`repeated`). `ignored`: runs and objects that are not scored, as the object is not annotated in the
    run (`targets.unannotated: ignore`).
    """

    picks: PicksOfRuns
    doubtful: list[dict[str, Any]]
    ignored: list[dict[str, str]]


def read_references(config: Config, scored: Scored) -> References:
    """Read the reference picks of the scored runs. Doubtful ones are left out, except with challenge counting, which
    counts them."""
    references: dict[str, dict[str, Picks]] = {}
    doubtful, ignored = [], []
    for record in scored.records:
        project = _project(config, record)
        references[record.key] = {}
        for entry in scored.classes:
            if config.targets.unannotated == "ignore" and not is_annotated(entry, record):
                ignored.append({"run": record.key, "object": entry.name})
                continue
            reference = read_reference(project, record, entry)
            shape, radius = record.tomograms[config.segment_tomogram], entry.radius or 0.0
            sound = sound_reference(reference, shape, config.voxel_spacing, radius)
            if sound.outside or sound.repeated:
                counts = {"outside": sound.outside, "repeated": sound.repeated}
                doubtful.append({"run": record.key, "object": entry.name, **counts})
            is_challenge = config.evaluate.counting == "challenge"
            references[record.key][entry.name] = reference if is_challenge else sound.picks
    return References(references, doubtful, ignored)


def read_predictions(config: Config, scored: Scored, references: PicksOfRuns, localized: Path) -> PicksOfRuns:
    """The picks that the localize stage wrote, of the runs and objects that have an entry in `references`. `localized`:
    folder of its manifests.

    Raises:
        TomoscoutError: the picks are not those that the localize stage wrote.
    """
    predictions: dict[str, dict[str, Picks]] = {}
    for record in scored.records:
        project = _project(config, record)
        manifest = read_manifest(localized, record, picks=dict)
        predictions[record.key] = {}
        for name in references[record.key]:
            source = predicted_picks(config, name)
            if name in manifest["picks"]:
                project.require(record.run, source, str(manifest.get("inputs")), "localize")
            predictions[record.key][name] = project.read_picks(record.run, source)
    return predictions


def read_others(
    config: Config, scored: Scored, references: PicksOfRuns, picks: str, option: str = "evaluate.also"
) -> PicksOfRuns:
    """Picks of anybody, `user/session`, of the runs and objects that have an entry in `references`; a run may lack
    them. `option` names them in messages.

    Raises:
        TomoscoutError: no scored run has such picks.
    """
    found: dict[str, dict[str, Picks]] = {}
    there: set[str] = set()
    for record in scored.records:
        project = _project(config, record)
        sources = project.pick_sources(record.run)
        there |= {f"{source.user}/{source.session}" for source in sources}
        wanted = (source for source in sources if f"{source.user}/{source.session}" == picks)
        of_run = {source.name: project.read_picks(record.run, source) for source in wanted}
        found[record.key] = {name: of_run[name] for name in references[record.key] if name in of_run}
    if not any(found.values()):
        have = ", ".join(sorted(there)) or "none"
        raise TomoscoutError(f"{option}: no scored run has picks of {picks}; found picks of: {have}")
    return found


def _project(config: Config, record: RunRecord) -> Project:
    return Project(record.project, Path(config.projects[record.project]))


_OF_SET = ("objects", "mean", "pooled", "runs", "runs_without_predictions")
"""What of the scores of further picks is kept: the rest is as for the picks of the workflow."""


def run_evaluate(plan: Plan, localized: Path, folder: Path) -> None:
    """Score the picks, write tables and curves into `folder`, and print the table. `localized`: folder of the manifests
    of the localize stage.

    Raises:
        TomoscoutError: nothing is left to score, or the predicted picks are not those that the localize stage wrote.
    """
    config, scored = plan.config, scored_of_model(plan, localized)
    references = read_references(config, scored)
    predictions = read_predictions(config, scored, references.picks, localized)
    _score(plan, scored, references, predictions, f"{config.localize.user}/{config.session}", folder)


def run_score_picks(plan: Plan, picks: str, folder: Path) -> None:
    """Score picks of anybody, `user/session`, as `run_evaluate` does those of the localize stage.

    Raises:
        TomoscoutError: nothing is left to score, or no scored run has such picks.
    """
    references = read_references(plan.config, plan.scored)
    predictions = read_others(plan.config, plan.scored, references.picks, picks, "picks to score")
    _score(plan, plan.scored, references, predictions, picks, folder)


def _score(
    plan: Plan, scored: Scored, references: References, predictions: PicksOfRuns, picks: str, folder: Path
) -> None:
    """Score predictions, which `picks` names, and what the section `evaluate` asks for besides; write and print it."""
    config = plan.config
    radii = {entry.name: entry.radius for entry in scored.classes if entry.radius is not None}
    scores = evaluate(predictions, references.picks, radii, config.evaluate, scored.kind)
    scores |= {"doubtful_references": references.doubtful, "not_annotated": references.ignored, "picks": picks}
    for other in config.evaluate.also:
        others = read_others(config, scored, references.picks, other)
        found = evaluate(others, references.picks, radii, config.evaluate, scored.kind)
        scores["also"].append({"picks": other, **{key: found[key] for key in _OF_SET}})
    scores["segmentations"] = [
        entry for name in config.evaluate.segmentations for entry in score_segmentation(plan, scored, name)
    ]
    write_scores(folder, scores)
    print(format_table(scores), end="")
