"""Decoding into picks: of class probabilities by peaks or regions, of labels by regions. Regions are connected
components, or the parts of them that a watershed makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import Shape, to_angstrom, to_voxels
from tomoscout.data.picks import Picks
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking.components import Components, read_runs
from tomoscout.tasks.picking.options import BY_OBJECT, Localize, Method, Peaks
from tomoscout.tasks.picking.peaks import LOWEST_SCORE, find_peaks
from tomoscout.tasks.picking.watershed import parted

REGION_THRESHOLD = 0.5
"""Smallest probability inside a region unless another is given: a model's thresholds are those of smoothed peaks."""


@dataclass(frozen=True)
class Search:
    """How an object is looked for. `radius` and `target_radius` in Å, `border` in Å; `smoothing` is in target radii,
    `separation`, `smallest` and `largest` are in radii; `threshold` has no meaning for labels."""

    radius: float
    target_radius: float
    method: Method
    threshold: float
    smoothing: float
    separation: float
    smallest: float
    largest: float | None
    border: float

    @classmethod
    def of_peaks(cls, entry: TargetClass, options: Peaks, threshold: float) -> Search:
        """The search for the peaks of a particle class."""
        assert entry.radius is not None and entry.target_radius is not None
        radii = entry.radius, entry.target_radius
        return cls(*radii, "peaks", threshold, options.smoothing, options.separation, 0.0, None, 0.0)

    def with_options(self, options: Localize, name: str) -> Search:
        """This search with the options that are given for the object `name`."""
        given = {field: value for field in BY_OBJECT if (value := options.own(field, name)) is not None}
        if given.get("method", self.method) != "peaks":
            given = {"threshold": REGION_THRESHOLD} | given
        return replace(self, **given)


FindPeaks = Callable[..., tuple[NDArray[np.float64], NDArray[np.float64]]]
"""A function like `peaks.find_peaks`."""


def locate_picks(
    probabilities: NDArray[np.uint8],
    classes: Sequence[TargetClass],
    voxel_spacing: float,
    options: Peaks,
    thresholds: Mapping[str, float] | None = None,
    find: FindPeaks = find_peaks,
) -> dict[str, Picks]:
    """Picks in Å of every particle class, by peaks.

    Args:
        probabilities: quantised, (class, z, y, x), 255 = 1.
        classes: in the order of the probabilities.
        voxel_spacing: Å per voxel.
        options: smoothing and separation.
        thresholds: class name → smallest score of a pick. Default: `LOWEST_SCORE`, so that thresholds can be chosen.
        find: finds the peaks of a class.
    """
    found = {}
    for entry, probability in zip(classes, probabilities, strict=True):
        if entry.is_particle:
            threshold = LOWEST_SCORE if thresholds is None else thresholds[entry.name]
            search = Search.of_peaks(entry, options, threshold)
            found[entry.name] = find_in_probability(probability, voxel_spacing, search, find)
    return found


def find_in_probability(
    probability: NDArray[np.uint8], voxel_spacing: float, search: Search, find: FindPeaks = find_peaks
) -> Picks:
    """Picks in Å of one object in its quantised probability (z, y, x). Their scores are those of `find_peaks`, or the
    mean probability in a region: unlike the largest one it is no matter of a single voxel, and it is never below the
    threshold."""
    if search.method != "peaks":
        level = max(1, int(np.ceil(search.threshold * 255 - 1e-6)))
        components = Components(read_runs([(probability >= level).view(np.uint8)], [1]))
        every = np.arange(len(components.voxels))
        return _pick_regions(components, every, voxel_spacing, search, probability)
    indices, scores = find(
        probability,
        search.target_radius / voxel_spacing,
        smoothing=search.smoothing,
        separation=search.separation * search.radius / voxel_spacing,
        threshold=search.threshold,
    )
    # Numbered from the best on.
    picks = Picks.at(to_angstrom(indices, voxel_spacing), scores, instances=1 + np.arange(len(scores)))
    return _within(picks, probability.shape, voxel_spacing, search.border)


def find_in_labels(
    slabs: Iterable[NDArray[np.integer]],
    voxel_spacing: float,
    labels: Mapping[str, int],
    searches: Mapping[str, Search],
) -> dict[str, Picks]:
    """Picks in Å of every object in a label volume. The score of a pick is the volume of its region over that of the
    object's sphere, 1 at most.

    Args:
        slabs: whole planes (n, y, x) of the volume, from the first on; read once.
        voxel_spacing: Å per voxel.
        labels: object → its label in the volume.
        searches: object → how its regions are found.
    """
    components = Components(read_runs(slabs, labels.values()))
    return {
        name: _pick_regions(components, np.flatnonzero(components.labels == label), voxel_spacing, searches[name])
        for name, label in labels.items()
    }


def _pick_regions(
    components: Components,
    chosen: NDArray[np.int64],
    voxel_spacing: float,
    search: Search,
    probability: NDArray[np.uint8] | None = None,
) -> Picks:
    """Picks at the centres of mass of components or of parts of them, in descending order of score."""
    radius = search.radius / voxel_spacing
    sphere = 4 / 3 * np.pi * radius**3
    chosen = chosen[components.voxels[chosen] >= search.smallest**3 * sphere]
    if search.method == "watershed":
        regions = parted(components, chosen, search.separation * radius, probability)
    else:
        regions = components.regions(chosen, probability)
    scores = np.minimum(regions.voxels / sphere, 1) if probability is None else regions.means / 255
    fits = regions.voxels >= search.smallest**3 * sphere
    if search.largest is not None:
        fits &= regions.voxels <= search.largest**3 * sphere
    # The numbers of the components of this object, whatever others there are.
    instances = 1 + np.searchsorted(chosen, regions.components - 1)
    picks = Picks.at(to_angstrom(regions.centres, voxel_spacing), scores, instances=instances)
    order = np.lexsort((*regions.centres.T, -scores))
    return _within(picks[order[fits[order]]], components.runs.shape, voxel_spacing, search.border)


def _within(picks: Picks, shape: Shape, voxel_spacing: float, border: float) -> Picks:
    """The picks that lie at least `border` Å from every end of a volume, half a voxel from its outermost centres."""
    places = to_voxels(picks.positions, voxel_spacing) + 0.5
    margins = np.minimum(places, np.array(shape) - places).min(axis=1, initial=np.inf)
    return picks[margins * voxel_spacing >= border - 1e-6] if border else picks
