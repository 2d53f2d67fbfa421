"""Picks where nothing is trained: their counts and scores, without reference picks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.copick_config import read_objects
from tomoscout.data.project import Project
from tomoscout.options.config import Config
from tomoscout.options.names import Source
from tomoscout.plan.paths import read_manifest
from tomoscout.plan.plan import Plan
from tomoscout.report.colours import Colour, readable_colours
from tomoscout.report.plots import Chart, Line

_BINS = 40


@dataclass(frozen=True)
class Found:
    """The picks of all localised runs.

    `objects`: for every object its name (`object`), its number of `picks`, the number of `runs` that have any, the
    median `per_run`, the `threshold` (None for picks from labels), and the median `score` (None without picks).
    `runs`: every run (`project/run`) with its counts, in the order of the objects. `scores` (N,) are by object.
    """

    objects: list[dict[str, Any]]
    runs: list[tuple[str, list[int]]]
    scores: dict[str, NDArray[np.float64]]


def read_found(plan: Plan, localized: Path) -> Found:
    """Read the picks of all localised runs. `localized`: folder of the manifests of the localize stage.

    Raises:
        TomoscoutError: a run has not been localised.
    """
    config = plan.config
    projects = {name: Project(name, Path(path)) for name, path in config.projects.items()}
    thresholds: dict[str, float] = {}
    counts: dict[str, dict[str, int]] = {}
    scores: dict[str, list[NDArray[np.float64]]] = {}
    for record in plan.localized:
        manifest = read_manifest(localized, record, picks=dict, thresholds=dict)
        thresholds |= manifest["thresholds"]
        counts[record.key] = {}
        for name, facts in manifest["picks"].items():
            project, source = projects[record.project], Source.parse(facts["source"])
            project.require(record.run, source, str(manifest.get("inputs")), "localize")
            found = project.read_picks(record.run, source).scores
            counts[record.key][name] = len(found)
            scores.setdefault(name, []).append(found)
    together = {name: np.concatenate(scores[name]) for name in object_colours(config, scores)}
    per_object = {name: [of_run.get(name, 0) for of_run in counts.values()] for name in together}
    return Found(
        [_describe(name, per_object[name], thresholds.get(name), together[name]) for name in together],
        [(run, [of_run.get(name, 0) for name in together]) for run, of_run in counts.items()],
        together,
    )


def _describe(name: str, counts: Sequence[int], threshold: float | None, scores: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "object": name,
        "picks": sum(counts),
        "runs": sum(count > 0 for count in counts),
        "per_run": float(np.median(counts)),
        "threshold": threshold,
        "score": float(np.median(scores)) if len(scores) else None,
    }


def object_colours(config: Config, names: Collection[str]) -> dict[str, Colour]:
    """The colours of objects in the copick configs, in their order, made readable; then those of names in none."""
    objects = {name: entry for path in config.projects.values() for name, entry in read_objects(Path(path)).items()}
    colours: dict[str, Sequence[int]] = {name: entry.color for name, entry in objects.items() if name in names}
    # Greyish colours are replaced.
    colours |= {name: (255, 255, 255) for name in names if name not in colours}
    return dict(zip(colours, readable_colours(list(colours.values())), strict=True))


def score_charts(found: Found) -> list[Chart]:
    """A histogram of the scores of each object that has picks."""
    return [_histogram(name, scores) for name, scores in found.scores.items() if len(scores)]


def _histogram(name: str, scores: NDArray[np.float64]) -> Chart:
    heights, edges = np.histogram(scores, _BINS, (0.0, 1.0))
    stairs = [(0.0, 0.0)]
    for height, left, right in zip(heights, edges, edges[1:], strict=False):
        stairs += [(float(left), float(height)), (float(right), float(height))]
    return Chart(name, "score", "picks", (0, 1), (0, float(heights.max())), [Line(name, "line", stairs)], [])
