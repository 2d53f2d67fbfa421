"""Training targets: annotated picks and segmentations become one label volume per run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.batches import Batch
from tomoscout.classes import TargetPlan, plan_targets, reference_tomogram, source_segmentation, target_segmentation
from tomoscout.config import Config, Source
from tomoscout.errors import TomoscoutError
from tomoscout.geometry import Shape, inside, to_voxels
from tomoscout.inventory import RunRecord
from tomoscout.project import Project, Segmentation

ALIGNMENT_TOLERANCE = 4
"""Voxels by which a segmentation's shape may differ from the tomogram's: binning software rounds sizes its own way."""

ROOM = 1 + 1e-9
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


def label_type(classes: int) -> type[np.unsignedinteger[Any]]:
    """The smallest unsigned integer type that holds this many labels."""
    return np.uint8 if classes <= 255 else np.uint16


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


# The stage


def make_target(config: Config, plan: TargetPlan, project: Project, record: RunRecord) -> dict[str, Any]:
    """Make, write and describe the target of one run; returns its manifest.

    Raises:
        TomoscoutError: a source is broken or does not fit the tomogram.
    """
    uri = reference_tomogram(config, record)
    shape = record.tomograms[uri]
    labels = np.zeros(shape, dtype=label_type(len(plan.classes)))
    drawn = _draw_segmentations(labels, config, plan, project, record)
    spheres, counts = _collect_spheres(config, plan, project, record, shape)
    voxels, met = rasterise(labels, spheres)
    classes = []
    for entry in plan.classes:
        facts = entry.to_json()
        if entry.is_particle:
            own = spheres.labels == entry.label
            facts["voxels"] = int(voxels[own].sum())
            facts["picks"] = {**counts[entry.name], "overlapping": int(met[own].sum())}
        else:
            facts["voxels"] = int(np.count_nonzero(labels == entry.label)) if entry.label in drawn else 0
            facts["voxels_lost_to_particles"] = drawn.get(entry.label, 0) - facts["voxels"]
        classes.append(facts)
    wanted = target_segmentation(config)
    attributes = {"classes": [entry.to_json() for entry in plan.classes]}
    return {
        "segmentation": str(wanted),
        "tomogram": uri,
        "shape": list(shape),
        "classes": classes,
        "digest": project.write_segmentation(record.run, wanted, labels, attributes),
    }


def _draw_segmentations(
    labels: NDArray[np.integer], config: Config, plan: TargetPlan, project: Project, record: RunRecord
) -> dict[int, int]:
    """Draw the continuous classes; where they meet, the one listed first stays. Returns voxels per label."""
    drawn: dict[int, int] = {}
    for entry in plan.classes:
        if entry.is_particle:
            continue
        wanted = source_segmentation(config, entry)
        if str(wanted) not in record.segmentations:
            continue
        mask = project.read_segmentation(record.run, wanted, allow_missing_chunks=config.targets.allow_missing_chunks)
        mask = align(mask, labels.shape, f"{record.key}: segmentation {wanted}")
        free = (mask > 0) & (labels == 0)
        labels[free] = entry.label
        drawn[entry.label] = int(np.count_nonzero(free))
    return drawn


def _collect_spheres(
    config: Config, plan: TargetPlan, project: Project, record: RunRecord, shape: Shape
) -> tuple[Spheres, dict[str, dict[str, Any]]]:
    centres, radii, labels = [np.zeros((0, 3))], [np.zeros(0)], [np.zeros(0, dtype=np.int64)]
    counts: dict[str, dict[str, Any]] = {}
    for entry in plan.classes:
        if entry.target_radius is None:
            continue
        counts[entry.name] = {"used": 0, "outside": 0, "outside_at": []}
        for source in entry.sources:
            if source not in record.picks:
                continue
            picks = project.read_picks(record.run, source)
            indices = to_voxels(picks.positions, config.voxel_spacing)
            kept = inside(indices, shape)
            _report_outside(counts[entry.name], record, source, picks.positions[~kept])
            counts[entry.name]["used"] += int(kept.sum())
            centres.append(indices[kept])
            radii.append(np.full(int(kept.sum()), entry.target_radius / config.voxel_spacing))
            labels.append(np.full(int(kept.sum()), entry.label))
    return Spheres(np.concatenate(centres), np.concatenate(radii), np.concatenate(labels)), counts


def _report_outside(counts: dict[str, Any], record: RunRecord, source: Source, positions: NDArray[np.float64]) -> None:
    if not len(positions):
        return
    counts["outside"] += len(positions)
    counts["outside_at"] += [[str(source), *(round(float(v), 3) for v in p)] for p in positions]
    some = "; ".join(", ".join(f"{v:.0f}" for v in p) for p in positions[:3])
    print(
        f"warning: {record.key}: {len(positions)} picks of {source} lie outside the tomogram and are left out "
        f"(x, y, z in Å: {some}{' …' if len(positions) > 3 else ''})",
        file=sys.stderr,
    )


def run_targets(config: Config, records: Sequence[RunRecord], batch: int, output: Path) -> None:
    """Make the targets of a batch of runs. Runs whose target is there and up to date are left alone; a run that
    is not among the runs of the targets any more (it lost its annotations) loses its target.

    Raises:
        TomoscoutError: a source is broken or does not fit the tomogram.
    """
    plan = plan_targets(config, records)
    wanted = target_segmentation(config)
    work = Batch(config, records, batch, output)
    for record in work.records:
        if record.key not in plan.inputs:
            _remove_target(work, record, wanted)
            continue
        inputs = plan.inputs[record.key]
        if work.is_done(record, inputs, lambda r: work.project(r).has_segmentation(r.run, wanted)):
            continue
        manifest = make_target(config, plan, work.project(record), record)
        work.finish(record, {**manifest, "inputs": inputs})
        used = sum(entry["picks"]["used"] for entry in manifest["classes"] if "picks" in entry)
        print(f"{record.key}: {used} picks", file=sys.stderr)
    work.write()


def _remove_target(work: Batch, record: RunRecord, wanted: Segmentation) -> None:
    path = work.manifest_path(record)
    if path.exists():
        work.project(record).delete_segmentation(record.run, wanted)
        path.unlink()
        print(f"{record.key}: not among the runs of the targets any more, target removed", file=sys.stderr)
