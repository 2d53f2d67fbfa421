"""Pictures of scored picks, a part of the report stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tomoscout.data.geometry import to_voxels
from tomoscout.data.inventory import RunRecord
from tomoscout.data.open_tomogram import OpenTomogram
from tomoscout.data.project import Project
from tomoscout.options.config import Config
from tomoscout.plan.plan import Plan
from tomoscout.report.colours import FALSE, FOUND, MISSED, signs
from tomoscout.report.marks import Spheres
from tomoscout.report.pictures import Marked, MarkedSlice, Pictures, cut_out, marked_slice, telling_slices
from tomoscout.report.worst import Case, Compared, Worst, caption, false_cases, missed_cases
from tomoscout.stages.evaluate import read_others, read_predictions, read_references, scored_of_model
from tomoscout.tasks.picking.scores import PicksOfRuns, match_picks


@dataclass(frozen=True)
class ScoredRuns:
    """The picks of the scored runs as they were scored. `runs`: the compared objects of each; `sets`: the name of each
    set of picks, `user/session`, with its picks; the workflow's own are the first."""

    config: Config
    records: Mapping[str, RunRecord]
    runs: Mapping[str, list[Compared]]
    sets: Mapping[str, PicksOfRuns]

    def open_tomogram(self, run: str) -> OpenTomogram:
        """The tomogram of a run, `project/run`."""
        record = self.records[run]
        project = Project(record.project, Path(self.config.projects[record.project]))
        return project.open_tomogram(record.run, self.config.segment_tomogram)

    def marked(self, run: str) -> list[Marked]:
        """What pictures of a run show."""
        pairs, spacing = self.runs[run], self.config.voxel_spacing
        radii = {pair.name: pair.radius for pair in pairs}
        # Missed and false picks are rarer and are drawn on top.
        groups = [
            Marked(Spheres.of([(pair.found, pair.radius) for pair in pairs], spacing), FOUND),
            Marked(Spheres.of([(pair.missed, pair.radius) for pair in pairs], spacing), MISSED),
            Marked(Spheres.of([(pair.false, pair.radius) for pair in pairs], spacing), FALSE),
        ]
        for mark, picks in zip(signs(self.sets), self.sets.values(), strict=True):
            known = [(own, radii[name]) for name, own in picks[run].items() if name in radii]
            groups.append(Marked(Spheres.of(known, spacing), mark))
        return groups


def compare_runs(plan: Plan, localized: Path) -> ScoredRuns:
    """Match the picks again, as they were matched for the scores. `localized`: folder of the manifests of the localize
    stage.

    Raises:
        TomoscoutError: the picks are not those that were scored.
    """
    config, scored = plan.config, scored_of_model(plan, localized)
    references = read_references(config, scored).picks
    predictions = read_predictions(config, scored, references, localized)
    runs: dict[str, list[Compared]] = {}
    for record in scored.records:
        predicted, truth = predictions[record.key], references[record.key]
        runs[record.key] = [
            Compared(
                entry.name,
                entry.radius,
                predicted[entry.name],
                truth[entry.name],
                match_picks(predicted[entry.name], truth[entry.name], entry.radius, config.evaluate),
            )
            for entry in scored.classes
            # An object that is not annotated in a run is not scored there.
            if entry.radius is not None and entry.name in truth
        ]
    others = {name: read_others(config, scored, references, name) for name in config.evaluate.also}
    own = {f"{config.localize.user}/{config.session}": predictions}
    return ScoredRuns(config, {record.key: record for record in scored.records}, runs, own | others)


def scored_pictures(scored: ScoredRuns) -> Pictures:
    """Slices of the first runs."""
    options, spacing = scored.config.report, scored.config.voxel_spacing
    pictures = []
    for run in list(scored.runs)[: options.runs]:
        tomogram, groups = scored.open_tomogram(run), scored.marked(run)
        slices = telling_slices(groups, tomogram.shape[0], options.slices_per_run)
        pictures += [marked_slice(tomogram, groups, z, run, spacing) for z in slices]
    return Pictures(pictures, [FOUND, MISSED, FALSE, *signs(scored.sets)])


def worst_cases(scored: ScoredRuns) -> list[Worst]:
    """Cut-outs of the worst false and missed picks of every object that has any."""
    kinds: dict[str, Callable[[Mapping[str, Compared]], list[Case]]] = {"missed": missed_cases, "false": false_cases}
    by_object: dict[str, dict[str, Compared]] = {}
    for run, pairs in scored.runs.items():
        for pair in pairs:
            by_object.setdefault(pair.name, {})[run] = pair
    worst = []
    for name, runs in by_object.items():
        for kind, find in kinds.items():
            cases = find(runs)
            pictures = [
                _cut_out(scored, runs[case.run].radius, kind, case) for case in cases[: scored.config.report.worst]
            ]
            worst.append(Worst(name, kind, len(cases), pictures))
    return [entry for entry in worst if entry.pictures]


def _cut_out(scored: ScoredRuns, radius: float, kind: str, case: Case) -> MarkedSlice:
    spacing = scored.config.voxel_spacing
    [centre] = to_voxels(case.position, spacing)
    return cut_out(
        scored.open_tomogram(case.run), scored.marked(case.run), centre, radius / spacing, caption(kind, case)
    )
