"""The plan: all decisions that follow from a configuration and the inventory, made once and without reading volumes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tomoscout.data.copick_config import read_objects
from tomoscout.data.inventory import RunRecord
from tomoscout.options.config import Config
from tomoscout.plan.exchange import exported_runs
from tomoscout.plan.extractions import extracted_runs
from tomoscout.plan.folds import Fold
from tomoscout.plan.localized import localized_runs
from tomoscout.plan.members import Member, curve_members, member_of
from tomoscout.plan.paths import Results
from tomoscout.plan.predictions import segmented_runs
from tomoscout.plan.scored import Scored, scored_runs
from tomoscout.plan.splits import SplitResult, chosen_fold, make_split
from tomoscout.plan.stages import STAGES
from tomoscout.plan.targets import TargetPlan, plan_targets, print_warnings


class Plan:
    """A configuration applied to the runs of an inventory, with the paths of its results. Every stage receives it.

    Properties are computed on first use, so that a job computes only what it needs, and cached; a process makes one
    plan.

    Raises:
        TomoscoutError: from properties and methods, where the configuration does not fit the data.
    """

    def __init__(
        self, config: Config, records: Sequence[RunRecord], results: Path = Path("results"), *, warn: bool = False
    ) -> None:
        """`warn`: whether to print the warnings about the targets once they are decided."""
        self.config = config
        self.records = records
        self.results = Results(results)
        self._warn = warn

    def with_options(self, **sections: Any) -> Plan:
        """A copy of the plan with `train` or `tracking` replaced. Classes, targets and split do not depend on these
        options and are reused."""
        decided = self.targets, self.split
        other = copy.copy(self)
        other.config = self.config.model_copy(update=sections)
        other.targets, other.split = decided
        return other

    def version(self, stage: str) -> int:
        """The version of the results of a stage."""
        return STAGES[stage].version

    def fingerprint(self, stage: str, job: str = "") -> str:
        """Digest of what a job of a stage depends on besides its input files. `job`: the number of a batch, or the name
        of a model, depending on the stage."""
        depends_on = STAGES[stage].depends_on
        assert depends_on is not None, f"{stage}: nothing in the table says what it depends on"
        return depends_on(self, job)

    # Runs

    @cached_property
    def by_key(self) -> dict[str, RunRecord]:
        """All runs by `project/run`."""
        return {record.key: record for record in self.records}

    @cached_property
    def _by_batch(self) -> dict[int, list[RunRecord]]:
        batches: dict[int, list[RunRecord]] = {}
        for record in self.records:
            batches.setdefault(record.batch, []).append(record)
        return batches

    def batch(self, number: str | int) -> list[RunRecord]:
        """The runs of a batch."""
        return self._by_batch[int(number)]

    @cached_property
    def targeted(self) -> list[RunRecord]:
        """The runs that have a target."""
        return [record for record in self.records if record.key in self.targets.inputs]

    @property
    def ever_targeted(self) -> list[RunRecord]:
        """The runs that have a target, and those whose earlier target is to be removed."""
        folder = self.results.targets(self.config.targets.name)
        made = {
            f"{path.parent.name}/{path.stem}"
            for name in self.config.projects
            for path in (folder / name).glob("*.json")
        }
        return [record for record in self.records if record.key in self.targets.inputs or record.key in made]

    @cached_property
    def segmented(self) -> list[RunRecord]:
        """The runs that are segmented."""
        return segmented_runs(self.config, self.records)

    @cached_property
    def segmented_keys(self) -> frozenset[str]:
        """The runs that are segmented, as `project/run`."""
        return frozenset(record.key for record in self.segmented)

    @cached_property
    def localized(self) -> list[RunRecord]:
        """The runs that are localised: the segmented ones, or those with the segmentation that is localised."""
        return localized_runs(self.config, self.records)

    @property
    def with_instances(self) -> list[RunRecord]:
        """The runs with tomograms in which instances are segmented: all that have the tomogram."""
        uri = self.config.cells.segment.tomogram
        return [record for record in self.records if uri in record.tomograms]

    @property
    def shown(self) -> Sequence[RunRecord]:
        """The runs that the report shows: the scored runs, or all localised runs if nothing is trained here."""
        return self.scored.records if self.config.learns else self.localized

    @cached_property
    def extracted(self) -> dict[str, list[RunRecord]]:
        """The runs in which each extraction works, in the order in which the extractions are made."""
        return extracted_runs(self)

    @cached_property
    def exported(self) -> list[RunRecord]:
        """The runs whose picks are written for other programs."""
        return exported_runs(self)

    # Classes, targets and split

    @cached_property
    def targets(self) -> TargetPlan:
        """The classes, and the inputs of the targets."""
        decided = plan_targets(self.config, self.records, self.version("targets"))
        if self._warn:
            print_warnings(decided)
        return decided

    @cached_property
    def split(self) -> SplitResult:
        """The split into training, validation and test runs."""
        return make_split(self.config, self.records, self.targets)

    def fold(self, number: int | None = None) -> Fold:
        """A fold by its number. Default: `split.fold`."""
        return chosen_fold(self.config.split, self.split, number)

    # Models that are trained

    def member_of(self, model: str) -> Member:
        """Which of the models that are trained here has this name; see `plan.members`."""
        return member_of(model, self.config.train.name)

    def runs_of(self, member: Member) -> Fold:
        """The runs that train, validate and test a member."""
        return member.runs(self.fold(member.fold))

    def plan_of(self, member: Member) -> Plan:
        """The plan of a member's training, which has a seed of its own."""
        train = self.config.train
        return self.with_options(train=train.model_copy(update={"seed": member.seed(train.seed)}))

    def model_of(self, member: Member) -> Path:
        """The model folder of a member."""
        return self.results.model(member.name(self.config.train.name))

    @property
    def curve(self) -> list[Member]:
        """The members of the learning curve."""
        return curve_members(self.config.learning_curve, len(self.fold().train))

    # Predictions and scores

    @cached_property
    def object_labels(self) -> dict[str, dict[str, int | None]]:
        """Project → object → label in the copick config, with which segmentations are written."""
        return {
            project: {name: entry.label for name, entry in read_objects(Path(path)).items()}
            for project, path in self.config.projects.items()
        }

    @cached_property
    def scored(self) -> Scored:
        """The runs that are scored, with the classes of their reference picks."""
        return scored_runs(self)
