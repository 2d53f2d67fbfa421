"""Training targets: one label volume per run and voxel spacing, made from annotated picks and segmentations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoscout.data.geometry import Shape, inside, nearest_voxels, to_voxels
from tomoscout.data.inventory import RunRecord
from tomoscout.data.labels import from_stored, label_type, to_stored
from tomoscout.data.project import Project
from tomoscout.data.written import Segmentation
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.messages import say, warn
from tomoscout.options.config import Config
from tomoscout.options.names import Source, TomogramUri
from tomoscout.plan.annotations import existing_target, reference_tomograms, source_segmentation, target_segmentation
from tomoscout.plan.classes import TargetClass
from tomoscout.plan.targets import TargetPlan
from tomoscout.tasks.picking.spheres import Spheres, rasterise

ALIGNMENT_TOLERANCE = 4
"""Largest difference in voxels between the shapes of a segmentation and its tomogram: binning programs round
differently."""


def make_targets(
    config: Config,
    plan: TargetPlan,
    project: Project,
    record: RunRecord,
    before_writing: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Make and write the targets of one run, one for every voxel spacing among its tomograms; returns their entries in
    the manifest. `before_writing` is called after all are drawn.

    Raises:
        TomoscoutError: a source cannot be read or does not fit the tomogram.
    """
    maker = _TargetMaker(config, plan, project, record)
    # All are drawn before any is written: if a source cannot be used, earlier targets remain complete.
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
        TomoscoutError: it does not exist, was not made with this configuration, or its shape differs too much.
    """
    wanted = target_segmentation(config, voxel_spacing)
    project.require(record.run, wanted, plan.inputs[record.key], "targets")
    what = f"{record.key}: target {wanted}"
    labels = from_stored(project.read_segmentation(record.run, wanted), plan.stored_labels[record.project], what)
    return align(labels, shape, what)


def draw_target(project: Project, config: Config, plan: TargetPlan, record: RunRecord, uri: str) -> NDArray[np.integer]:
    """The target of a run (labels 1 to C; z, y, x) for a tomogram as `make_targets` would draw it, without writing it.

    Raises:
        TomoscoutError: a source cannot be read or does not fit the tomogram.
    """
    return _TargetMaker(config, plan, project, record).draw(uri)[0]


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
    """Resample a volume from one voxel spacing (Å) to another by nearest neighbour; see `nearest_voxels`."""
    for axis, size in enumerate(mask.shape):
        steps = np.arange(int(size * voxel_spacing / wanted) + 2)
        nearest = nearest_voxels(steps, wanted, voxel_spacing)
        mask = mask.take(nearest[nearest < size], axis)
    return mask


class _TargetMaker:
    """Draws the targets of one run."""

    def __init__(self, config: Config, plan: TargetPlan, project: Project, record: RunRecord) -> None:
        self.project = project
        self.record = record
        self.classes = plan.classes
        self.stored = plan.stored_labels[record.project]
        self.options = config.targets
        self.config = config
        # Positions in Å are the same for every voxel spacing.
        self.picks = {
            entry.label: [(s, project.read_picks(record.run, s).positions) for s in entry.sources if s in record.picks]
            for entry in plan.classes
            if entry.is_particle
        }

    def draw(self, uri: str) -> tuple[NDArray[np.integer], dict[str, Any]]:
        """The target at the voxel spacing and of the shape of a tomogram, and its entry in the manifest."""
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
        """The target copied from the segmentation `targets.existing`, and its entry in the manifest, which counts the
        picks that do not lie on voxels of their class."""
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
        """Read a segmentation, resampled if its voxel spacing is not `voxel_spacing` (Å)."""
        volume = self.project.read_segmentation(
            self.record.run, source, allow_missing_chunks=self.options.allow_missing_chunks
        )
        if source.voxel_spacing == voxel_spacing:
            return volume
        say(f"{what} brought to {voxel_spacing} Å, where there is none")
        return resample(volume, source.voxel_spacing, voxel_spacing)

    def _draw_segmentations(self, labels: NDArray[np.integer], voxel_spacing: float) -> dict[int, tuple[str, int]]:
        """Draw the continuous classes; where they overlap, the class listed first is kept. Returns label → the
        segmentation that was drawn and its number of voxels."""
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
            warn(f"{what} holds fractions; voxels from {threshold:g} on belong to it (targets.segmentation_threshold)")
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
        warn(f"{self.record.key}: {text}")
