"""Training targets: annotated picks and segmentations become one label volume per run and voxel spacing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import Shape, inside, to_angstrom, to_voxels
from tomoscout.data.inventory import RunRecord
from tomoscout.data.labels import from_stored, label_type, to_stored
from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import read_json
from tomoscout.options.config import Config
from tomoscout.options.names import Source, TomogramUri
from tomoscout.plan.classes import (
    TargetClass,
    TargetPlan,
    existing_target,
    plan_targets,
    reference_tomograms,
    source_segmentation,
    target_segmentation,
)
from tomoscout.stages.batches import Batch

ALIGNMENT_TOLERANCE = 4
"""Voxels by which a segmentation's shape may differ from the tomogram's: binning software rounds sizes its own way."""

ROUNDING = 1e-9
"""Far more than floating point loses in positions and radii, in voxels, and far less than matters."""

ROOM = 1 + ROUNDING
"""Voxels and neighbours of a sphere are sought this much beyond its radius: rounding must lose none on its surface."""


@dataclass(frozen=True)
class Spheres:
    """Target spheres of a run: centres (N, 3) as fractional indices z, y, x; radii (N,) in voxels; labels (N,)."""

    centres: NDArray[np.float64]
    radii: NDArray[np.float64]
    labels: NDArray[np.int64]


def rasterise(labels: NDArray[np.integer], spheres: Spheres) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Write spheres into a label volume (z, y, x) in place, over whatever is there.

    A voxel belongs to a sphere if its centre lies within the radius. Where spheres meet, the one whose centre is
    nearer relative to its radius wins; at equal distance the earlier one. Returns the voxels each sphere got (N,)
    and which spheres met another of a different label (N,).
    """
    rows = np.column_stack([spheres.centres, spheres.radii, spheres.labels])
    _, first, of_sphere = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    if len(first) < len(rows):
        # Equal ones get nothing, but each would be compared with all others.
        kept = np.sort(first)
        places = np.searchsorted(kept, first)
        distinct = Spheres(spheres.centres[kept], spheres.radii[kept], spheres.labels[kept])
        some_voxels, some_met = rasterise(labels, distinct)
        voxels = np.zeros(len(rows), dtype=np.int64)
        voxels[kept] = some_voxels
        return voxels, some_met[places[of_sphere.ravel()]]
    voxels = np.zeros(len(spheres.labels), dtype=np.int64)
    met = np.zeros(len(spheres.labels), dtype=bool)
    neighbours = _overlapping_pairs(spheres)
    for index, (centre, radius, label) in enumerate(zip(spheres.centres, spheres.radii, spheres.labels, strict=True)):
        box = _box(centre, radius, labels.shape)
        own = _relative_distance(box, centre, radius)
        sphere = own <= 1
        mask = sphere.copy()
        for other in neighbours.get(index, ()):
            theirs = _relative_distance(box, spheres.centres[other], spheres.radii[other])
            nearer = own <= theirs if index < other else own < theirs
            if spheres.labels[other] != label and not met[index]:
                met[index] = bool((sphere & (theirs <= 1)).any())
            mask &= nearer
        labels[box][mask] = label
        voxels[index] = np.count_nonzero(mask)
    return voxels, met


def _box(centre: NDArray[np.float64], radius: float, shape: tuple[int, ...]) -> tuple[slice, ...]:
    low = np.maximum(np.ceil(centre - radius * ROOM), 0).astype(int)
    high = np.minimum(np.floor(centre + radius * ROOM) + 1, shape).astype(int)
    return tuple(slice(a, max(a, b)) for a, b in zip(low.tolist(), high.tolist(), strict=True))


def _relative_distance(box: tuple[slice, ...], centre: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Squared distance of every voxel of a box from a centre, in units of the squared radius."""
    z, y, x = (
        (np.arange(part.start, part.stop) - middle) ** 2 for part, middle in zip(box, centre.tolist(), strict=True)
    )
    squared: NDArray[np.float64] = z[:, None, None] + y[:, None] + x
    squared /= radius**2
    return squared


def _overlapping_pairs(spheres: Spheres) -> dict[int, list[int]]:
    """Which spheres touch which: a sweep along y, where tomograms are long."""
    order = np.argsort(spheres.centres[:, 1], kind="stable")
    centres, radii = spheres.centres[order], spheres.radii[order]
    radii = radii * ROOM
    reach = 2 * float(radii.max(initial=0))
    ends = np.searchsorted(centres[:, 1], centres[:, 1] + reach, side="right")
    pairs: dict[int, list[int]] = {}
    for start, end in enumerate(ends.tolist()):
        following = slice(start + 1, end)
        distance = ((centres[following] - centres[start]) ** 2).sum(axis=1)
        for offset in np.flatnonzero(distance <= (radii[following] + radii[start]) ** 2).tolist():
            first, second = int(order[start]), int(order[start + 1 + offset])
            pairs.setdefault(first, []).append(second)
            pairs.setdefault(second, []).append(first)
    return pairs


def align(mask: NDArray[Any], shape: Shape, what: str) -> NDArray[Any]:
    """Crop or pad a volume at its far ends to `shape`: both share the origin.

    Raises:
        TomoscoutError: the shapes differ by more than `ALIGNMENT_TOLERANCE` voxels; `what` names the volume.
    """
    if mask.ndim != 3 or max(abs(a - b) for a, b in zip(mask.shape, shape, strict=True)) > ALIGNMENT_TOLERANCE:
        raise TomoscoutError(
            f"{what}: shape {mask.shape} (z, y, x) is more than {ALIGNMENT_TOLERANCE} voxels off the tomogram's {shape}"
        )
    cropped = mask[tuple(slice(0, size) for size in shape)]
    return np.pad(cropped, [(0, size - have) for size, have in zip(shape, cropped.shape, strict=True)])


def resample(mask: NDArray[Any], voxel_spacing: float, wanted: float) -> NDArray[Any]:
    """Bring a volume from one voxel spacing (Å) to another, from the origin on: every voxel takes the value of the
    nearest one. Half-way between two it is the former, so that a voxel twice as large covers two along each axis."""
    for axis, size in enumerate(mask.shape):
        steps = np.arange(int(size * voxel_spacing / wanted) + 2)
        places = to_voxels(to_angstrom(np.repeat(steps[:, None], 3, axis=1), wanted), voxel_spacing)[:, 0]
        nearest = np.ceil(places - 0.5 - ROUNDING).astype(int)
        mask = mask.take(nearest[nearest < size], axis)
    return mask


# The stage


class _TargetMaker:
    """Draws the targets of one run."""

    def __init__(self, config: Config, plan: TargetPlan, project: Project, record: RunRecord) -> None:
        self.project = project
        self.record = record
        self.classes = plan.classes
        self.stored = plan.stored_labels[record.project]
        self.options = config.targets
        self.config = config
        # Positions are in Å: the same for every voxel spacing.
        self.picks = {
            entry.label: [(s, project.read_picks(record.run, s).positions) for s in entry.sources if s in record.picks]
            for entry in plan.classes
            if entry.is_particle
        }

    def draw(self, uri: str) -> tuple[NDArray[np.integer], dict[str, Any]]:
        """The target at the voxel spacing and of the shape of a tomogram, and what it is made of."""
        voxel_spacing, shape = TomogramUri.parse(uri).voxel_spacing, self.record.tomograms[uri]
        labels = np.zeros(shape, dtype=label_type(len(self.classes)))
        drawn = self._draw_segmentations(labels, voxel_spacing)
        spheres, counts = self._collect_spheres(uri, voxel_spacing)
        if self.options.existing is not None:
            return self._copy_existing(uri, voxel_spacing, spheres, counts)
        voxels, met = rasterise(labels, spheres)
        classes = []
        for entry in self.classes:
            facts = entry.to_json()
            if entry.is_particle:
                own = spheres.labels == entry.label
                facts["voxels"] = int(voxels[own].sum())
                facts["picks"] = {
                    **counts[entry.label],
                    "overlapping": int(met[own].sum()),
                    "without_voxels": int((voxels[own] == 0).sum()),
                }
                facts |= self._warn_of_small_spheres(entry, voxel_spacing, facts["picks"])
            else:
                facts["segmentation"], before = drawn.get(entry.label, (None, 0))
                facts["voxels"] = int(np.count_nonzero(labels == entry.label)) if before else 0
                facts["voxels_lost_to_particles"] = before - facts["voxels"]
            classes.append(facts)
        return labels, {"tomogram": uri, "shape": list(shape), "classes": classes}

    def _copy_existing(
        self, uri: str, voxel_spacing: float, spheres: Spheres, counts: dict[int, dict[str, Any]]
    ) -> tuple[NDArray[np.integer], dict[str, Any]]:
        """The target as somebody else has made it, and how many picks lie on voxels of their class there."""
        shape = self.record.tomograms[uri]
        found = existing_target(self.config, self.record, voxel_spacing)
        if found is None:
            raise TomoscoutError(f"{self.record.key}: no segmentation {self.options.existing} (targets.existing)")
        what = f"{self.record.key}: segmentation {found}"
        values = {**self.stored, **self.options.labels}
        stored = {entry.name: values[entry.name] for entry in self.classes}
        labels = from_stored(self._bring_over(found, voxel_spacing, what), stored, what)
        labels = align(labels, shape, what)
        there = labels[tuple(np.floor(spheres.centres + 0.5).astype(int).T)]
        classes = []
        for entry in self.classes:
            facts = entry.to_json()
            facts["voxels"] = int(np.count_nonzero(labels == entry.label))
            if entry.is_particle:
                own = spheres.labels == entry.label
                missed = int(np.count_nonzero(there[own] != entry.label))
                facts["picks"] = {**counts[entry.label], "overlapping": 0, "without_voxels": missed}
                if missed > own.sum() / 2:
                    self._warn(
                        f"{entry.name}: {missed} of {own.sum()} picks do not lie on its voxels in {found}: are "
                        "these its labels (targets.labels) and positions?"
                    )
            classes.append(facts)
        return labels, {"tomogram": uri, "shape": list(shape), "existing": str(found), "classes": classes}

    def _bring_over(self, source: Segmentation, voxel_spacing: float, what: str) -> NDArray[Any]:
        """A segmentation, resampled where it is of another voxel spacing (Å)."""
        volume = self.project.read_segmentation(
            self.record.run, source, allow_missing_chunks=self.options.allow_missing_chunks
        )
        if source.voxel_spacing == voxel_spacing:
            return volume
        print(f"{what} brought to {voxel_spacing} Å, where there is none", file=sys.stderr)
        return resample(volume, source.voxel_spacing, voxel_spacing)

    def _draw_segmentations(self, labels: NDArray[np.integer], voxel_spacing: float) -> dict[int, tuple[str, int]]:
        """Draw the continuous classes; where they meet, the one listed first stays. Returns by label the
        segmentation that was drawn and how many voxels it got."""
        drawn: dict[int, tuple[str, int]] = {}
        for entry in self.classes:
            found = source_segmentation(entry, self.record, voxel_spacing)
            if found is None:
                continue
            what = f"{self.record.key}: segmentation {found}"
            mask = self._bring_over(found, voxel_spacing, what)
            if found.voxel_spacing != voxel_spacing:
                what += f" brought to {voxel_spacing} Å"
            free = align(self._is_inside(mask, what), labels.shape, what) & (labels == 0)
            labels[free] = entry.label
            drawn[entry.label] = str(found), int(np.count_nonzero(free))
        return drawn

    def _is_inside(self, volume: NDArray[Any], what: str) -> NDArray[np.bool_]:
        """Which voxels of a segmentation belong to its class."""
        if volume.dtype.kind != "f":
            if volume.min(initial=0) < 0:
                raise TomoscoutError(f"{what}: holds negative values, expected 0 outside of the class and more inside")
            present: NDArray[np.bool_] = volume != 0
            return present
        threshold = self.options.segmentation_threshold
        if not np.isfinite(volume).all():
            raise TomoscoutError(f"{what}: holds NaN or infinite values")
        if not np.isin(volume, (0, 1)).all():
            print(
                f"warning: {what} holds fractions; voxels from {threshold:g} on belong to it "
                "(targets.segmentation_threshold)",
                file=sys.stderr,
            )
        within: NDArray[np.bool_] = volume >= threshold
        return within

    def _collect_spheres(self, uri: str, voxel_spacing: float) -> tuple[Spheres, dict[int, dict[str, Any]]]:
        centres, radii, labels = [np.zeros((0, 3))], [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
        counts: dict[int, dict[str, Any]] = {}
        for entry in self.classes:
            if entry.target_radius is None:
                continue
            counts[entry.label] = {"used": 0, "outside": 0, "outside_at": []}
            for source, positions in self.picks[entry.label]:
                if doubt := self.record.doubtful.get(str(source)):
                    self._warn(f"picks {source}: {doubt}")
                indices = to_voxels(positions, voxel_spacing)
                kept = inside(indices, self.record.tomograms[uri])
                self._report_outside(counts[entry.label], uri, source, positions[~kept])
                counts[entry.label]["used"] += int(kept.sum())
                centres.append(indices[kept])
                radii.append(np.full(int(kept.sum()), entry.target_radius / voxel_spacing))
                labels.append(np.full(int(kept.sum()), entry.label))
        return Spheres(np.concatenate(centres), np.concatenate(radii), np.concatenate(labels)), counts

    def _report_outside(self, counts: dict[str, Any], uri: str, source: Source, positions: NDArray[np.float64]) -> None:
        if not len(positions):
            return
        counts["outside"] += len(positions)
        counts["outside_at"] += [[str(source), *(round(float(v), 3) for v in p)] for p in positions]
        some = "; ".join(", ".join(f"{v:.0f}" for v in p) for p in positions[:3])
        self._warn(
            f"{len(positions)} picks of {source} lie outside the tomogram {uri} and are left out "
            f"(x, y, z in Å: {some}{' …' if len(positions) > 3 else ''})"
        )

    def _warn_of_small_spheres(self, entry: TargetClass, voxel_spacing: float, picks: dict[str, Any]) -> dict[str, str]:
        if entry.target_radius is None or entry.target_radius >= voxel_spacing or not picks["used"]:
            return {}
        warning = (
            f"the target radius of {entry.target_radius:g} Å is less than a voxel of {voxel_spacing:g} Å; "
            f"{picks['without_voxels']} of {picks['used']} picks got no voxel"
        )
        self._warn(f"{entry.name}: {warning}")
        return {"warning": warning}

    def _warn(self, text: str) -> None:
        print(f"warning: {self.record.key}: {text}", file=sys.stderr)


def make_targets(
    config: Config,
    plan: TargetPlan,
    project: Project,
    record: RunRecord,
    before_writing: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Make, write and describe the targets of one run, one for every voxel spacing among its tomograms.
    `before_writing` is called when all are drawn.

    Raises:
        TomoscoutError: a source is broken or does not fit the tomogram.
    """
    maker = _TargetMaker(config, plan, project, record)
    # All are drawn before any is written: where a source cannot be used, what was made earlier stays whole.
    drawn = [
        (target_segmentation(config, voxel_spacing), *maker.draw(uri))
        for voxel_spacing, uri in reference_tomograms(config, record).items()
    ]
    stored = plan.stored_labels[record.project]
    classes = [{**entry.to_json(), "stored_label": stored[entry.name]} for entry in plan.classes]
    attributes = {"classes": classes, "inputs": plan.inputs[record.key]}
    before_writing()
    return [
        {
            "segmentation": str(wanted),
            **facts,
            "digest": project.write_segmentation(record.run, wanted, to_stored(labels, stored), attributes),
        }
        for wanted, labels, facts in drawn
    ]


def read_target(
    project: Project, config: Config, plan: TargetPlan, record: RunRecord, voxel_spacing: float, shape: Shape
) -> NDArray[np.integer]:
    """The target of a run at a voxel spacing (Å): labels 1 to C (z, y, x), cropped or padded to `shape`.

    Raises:
        TomoscoutError: it is not there, not the one that the configuration stands for, or of quite another shape.
    """
    wanted = target_segmentation(config, voxel_spacing)
    project.require(record.run, wanted, plan.inputs[record.key], "targets")
    what = f"{record.key}: target {wanted}"
    labels = from_stored(project.read_segmentation(record.run, wanted), plan.stored_labels[record.project], what)
    return align(labels, shape, what)


def run_targets(config: Config, records: Sequence[RunRecord], batch: int, output: Path) -> None:
    """Make the targets of a batch of runs. A run whose targets are there and up to date is left alone; where
    anything they depend on has changed, which tomograms it has among it, all targets of the run are made again.
    Targets that are not wanted any more are removed: those of a run that lost its annotations, and those at a voxel
    spacing that is no longer listed.

    Raises:
        TomoscoutError: a source is broken or does not fit the tomogram, or somebody else's segmentation has the name
            of the targets.
    """
    plan = plan_targets(config, records)
    work = Batch(config, records, batch, output)
    for record in work.records:
        with work.attempt(record):
            if record.key in plan.inputs:
                _update_targets(config, plan, work, record)
            else:
                _remove_targets(config, work, record, kept=())
                work.manifest_path(record).unlink(missing_ok=True)
    work.write()


def _update_targets(config: Config, plan: TargetPlan, work: Batch, record: RunRecord) -> None:
    inputs = plan.inputs[record.key]
    spacings = reference_tomograms(config, record)
    written = [target_segmentation(config, voxel_spacing) for voxel_spacing in spacings]
    if work.is_done(record, inputs, written):
        return
    project = work.project(record)
    targets = make_targets(config, plan, project, record, lambda: work.claim(record, inputs, written, "targets.name"))
    _remove_targets(config, work, record, kept=spacings)
    work.finish(record, inputs, written, {"targets": targets})
    print(f"{record.key}: {'; '.join(map(_describe, targets))}", file=sys.stderr)


def _describe(target: dict[str, Any]) -> str:
    used = sum(entry["picks"]["used"] for entry in target["classes"] if "picks" in entry)
    return f"{used} picks in {target['tomogram']}"


def _remove_targets(config: Config, work: Batch, record: RunRecord, kept: Collection[float]) -> None:
    """Delete the targets in the manifest of a run, but for those of the voxel spacings kept. Targets of another user
    or session may be meant to stay beside the new ones."""
    path = work.manifest_path(record)
    if not path.exists():
        return
    project = work.project(record)
    for target in read_json(path, project=str, run=str).get("targets", []):
        spacing = TomogramUri.parse(target["tomogram"]).voxel_spacing
        written = target_segmentation(config, spacing)
        if str(written) != target["segmentation"] or spacing in kept:
            continue
        there = project.made_from(record.run, written) is not None
        if there and not work.owns(record, written):
            continue
        # Also where it is gone: a process that was killed while it removed it may have left something behind.
        project.delete(record.run, written)
        if there:
            print(f"{record.key}: {written} is not wanted any more, removed", file=sys.stderr)
