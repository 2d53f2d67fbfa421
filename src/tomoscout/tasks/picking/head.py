"""The output channels of a picking network: their loss, and the validation score of their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tomoscout.data.picks import Picks
from tomoscout.learning.losses.combined import OwnLoss, build_loss
from tomoscout.learning.progression import COLUMNS, Validation
from tomoscout.learning.readout import argmax_labels
from tomoscout.learning.volumes import ignored_label
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.messages import warn
from tomoscout.plan.classes import TargetClass
from tomoscout.tasks.picking.decoding import FindPeaks, locate_picks
from tomoscout.tasks.picking.matching import Curve, count_matches, f_beta, precision_recall
from tomoscout.tasks.picking.options import Train
from tomoscout.tasks.picking.peaks import find_peaks
from tomoscout.tasks.picking.thresholds import DEFAULT_THRESHOLD, robust_threshold, threshold_range


@dataclass(frozen=True)
class Reference:
    """The ground truth of a validation run: picks by object, and the label volume (z, y, x) for continuous classes.
    Classes named in `ignored` are not scored in this run."""

    picks: Mapping[str, Picks]
    labels: NDArray[np.integer] | None
    ignored: frozenset[str] = frozenset()


class PickingHead:
    """Semantic segmentation for picking: channel 0 is background, channel c is the class with label c.

    `find`: finds the peaks of a class.
    """

    def __init__(self, classes: Sequence[TargetClass], voxel_spacing: float, options: Train) -> None:
        """`voxel_spacing`: of the validation tomograms, in Å.

        Raises:
            TomoscoutError: an option names a class that does not exist.
        """
        self.classes = tuple(classes)
        self.voxel_spacing = voxel_spacing
        self.options = options
        self.find: FindPeaks = find_peaks
        names = [entry.name for entry in classes]
        for name in names:
            if name in COLUMNS:
                raise TomoscoutError(f"object '{name}': a column of the training's table has that name; rename it")
        by_object = options.radius_scale if isinstance(options.radius_scale, dict) else {}
        for option, given, known in (
            ("class_weights", options.class_weights, ["background", *names]),
            ("class_sampling", options.class_sampling, names),
            ("radius_scale", by_object, [entry.name for entry in classes if entry.is_particle]),
        ):
            for name in given:
                if name not in known:
                    raise TomoscoutError(f"train.{option}: no class '{name}'; the classes are {', '.join(known)}")
        label = options.best_class
        if label is not None and label > len(names):
            raise TomoscoutError(
                f"train.best_metric: {options.best_metric}, but the classes are "
                f"{', '.join(f'{number} {name}' for number, name in enumerate(names, 1))}"
            )

    @property
    def needs_labels(self) -> bool:
        """Whether references must contain label volumes."""
        return self.options.best_metric_on == "voxels" or any(not entry.is_particle for entry in self.classes)

    def counts_picks(self, entry: TargetClass) -> bool:
        """Whether a class is scored by its picks; otherwise it is scored by its voxels."""
        return entry.is_particle and self.options.best_metric_on == "particles"

    @property
    def deciding(self) -> list[TargetClass]:
        """The classes that `best_metric` averages over: the class that it names, else those scored by picks, else
        all."""
        if self.options.best_class is not None:
            return [entry for entry in self.classes if entry.label == self.options.best_class]
        return [entry for entry in self.classes if self.counts_picks(entry)] or list(self.classes)

    def loss(self, own: torch.nn.Module | None = None) -> torch.nn.Module:
        """The loss between logits and labels: `own`, or else that of the options. Padding is ignored.

        The voxels of small spheres, which are few, have larger weights: (largest target radius / own target radius) to
        the power of `size_balance`.

        Raises:
            TomoscoutError: `class_weights` are given for a loss that does not take them.
        """
        options, ignore = self.options, ignored_label(len(self.classes))
        if own is not None:
            if options.class_weights:
                raise TomoscoutError("train.class_weights: without effect on a loss of your own; let it weight classes")
            return OwnLoss(own, ignore)
        given = [options.class_weights.get(name, 1.0) for name in ["background", *(e.name for e in self.classes)]]
        radii = [entry.target_radius for entry in self.classes]
        largest = max((radius for radius in radii if radius), default=1.0)
        by_size = [
            1.0,
            *(options.foreground_weight * (largest / (radius or largest)) ** options.size_balance for radius in radii),
        ]
        voxel_weights = [weight * factor for weight, factor in zip(by_size, given, strict=True)]
        return build_loss(options.loss, torch.tensor(voxel_weights), torch.tensor(given), ignore)

    def check_references(self, references: Sequence[Reference], runs: Sequence[str]) -> None:
        """Check, before training, that the validation runs hold the classes that select the best weights; warn if they
        lack other classes. `runs`: their keys, for messages.

        Raises:
            TomoscoutError: they hold none of the classes of `deciding`.
        """

        def is_there(entry: TargetClass) -> bool:
            counted = [reference for reference in references if entry.name not in reference.ignored]
            if self.counts_picks(entry):
                return any(len(reference.picks[entry.name]) for reference in counted)
            return any(np.any(reference.labels == entry.label) for reference in counted)

        absent = [entry for entry in self.classes if not is_there(entry)]
        deciding = self.deciding
        where = f"the validation runs ({', '.join(runs)})"
        if all(entry in absent for entry in deciding):
            names = ", ".join(entry.name for entry in deciding)
            raise TomoscoutError(f"split: {where} hold no {names}; choose others under split.validate")
        if absent:
            default = f", threshold {DEFAULT_THRESHOLD}" if any(entry.is_particle for entry in absent) else ""
            names = ", ".join(entry.name for entry in absent)
            warn(f"{where} hold no {names}: no part in choosing the model{default}")

    def measure(self, predictions: Sequence[NDArray[np.uint8]], references: Sequence[Reference]) -> Validation:
        """Score predictions on validation runs by `best_metric`: F-beta of each class, and its mean over the classes of
        `deciding` that have references. Particles are scored by picks at their chosen thresholds, or by voxels if
        `best_metric_on` is `voxels`; continuous classes are scored by voxels.

        Args:
            predictions: quantised probabilities (class, z, y, x) of each run, 255 = 1.
            references: the ground truth of each run.

        Raises:
            TomoscoutError: no class of `deciding` has a reference.
        """
        curves = self._curves(predictions, references)
        chosen = {name: robust_threshold(curve, self.options.beta) for name, curve in curves.items()}
        labels = [argmax_labels(volume) for volume in predictions] if self.needs_labels else []
        scores: dict[str, float] = {}
        for entry in self.classes:
            by_picks = self.counts_picks(entry)
            score = chosen[entry.name].score if by_picks else self._voxel_score(entry, labels, references)
            if score is not None:
                scores[entry.name] = score
        chosen_by = [entry.name for entry in self.deciding if entry.name in scores]
        if not chosen_by:
            raise TomoscoutError(
                f"validation: no run has a reference for {self.options.best_metric}; choose other runs under "
                "split.validate"
            )
        details: dict[str, Any] = {
            "scores": scores,
            "thresholds": {name: threshold.value for name, threshold in chosen.items()},
        }

        def ranges() -> dict[str, Any]:
            found = {name: list(threshold_range(curve, self.options.beta)) for name, curve in curves.items()}
            return {"threshold_ranges": found}

        return Validation(float(np.mean([scores[name] for name in chosen_by])), scores, details, ranges)

    def _curves(self, predictions: Sequence[NDArray[np.uint8]], references: Sequence[Reference]) -> dict[str, Curve]:
        """Precision and recall of the picks of each particle class."""
        picking = self.options.picking
        located = [
            locate_picks(volume, self.classes, self.voxel_spacing, picking, find=self.find) for volume in predictions
        ]
        curves: dict[str, Curve] = {}
        for entry in self.classes:
            if entry.radius is None:
                continue
            reach = picking.distance * entry.radius
            curves[entry.name] = precision_recall(
                count_matches(
                    picks[entry.name].positions, picks[entry.name].scores, truth.picks[entry.name].positions, reach
                )
                for picks, truth in zip(located, references, strict=True)
                if entry.name not in truth.ignored
            )
        return curves

    def _voxel_score(
        self, entry: TargetClass, labels: Sequence[NDArray[np.integer]], references: Sequence[Reference]
    ) -> float | None:
        """F-beta of a class over the voxels of all runs, with each voxel assigned to its most probable class (argmax);
        for beta 1 this is the Dice coefficient. None if no run has a voxel of the class."""
        true_positives = predicted = true = 0
        for volume, reference in zip(labels, references, strict=True):
            if entry.name in reference.ignored:
                continue
            found, truth = volume == entry.label, reference.labels == entry.label
            true_positives += int(np.count_nonzero(found & truth))
            predicted += int(np.count_nonzero(found))
            true += int(np.count_nonzero(truth))
        if not true:
            return None
        return f_beta(true_positives, predicted - true_positives, true - true_positives, self.options.beta)
