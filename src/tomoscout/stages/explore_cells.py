"""The exploration of instances of cells."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tomoscout.explore.machine import misfit_of
from tomoscout.explore.options import Explore, key_in
from tomoscout.explore.proposals import Misfit
from tomoscout.explore.study import Study
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest
from tomoscout.options.config import Config
from tomoscout.plan.fingerprints import cell_options
from tomoscout.plan.stages import STAGES
from tomoscout.tasks.instances.options import Cells
from tomoscout.tracking.options import Tracking

if TYPE_CHECKING:
    from tomoscout.learning.options import Training
    from tomoscout.learning.progression import Outcome
    from tomoscout.stages.explore import Watch


def cell_study(cells: Cells) -> Study:
    """The study of instances of cells of a configuration. It follows from the options alone: the workflow names its
    folder before an image is read. The images are those of the division that it is started with.

    Raises:
        TomoscoutError: the search space is invalid, or the training is of a back end or its length in epochs.
    """
    if cells.train.epochs is not None:
        raise TomoscoutError("cells.train.epochs: trials of a search have a length in steps; give cells.train.steps")
    if cells.train.backend != "tomoscout":
        raise TomoscoutError(f"cells.train.backend: {cells.train.backend} is not searched over; leave it out")
    depends_on = [STAGES[stage].version for stage in ("divide_cells", "train_cells")]
    training = digest([*depends_on, cell_options(cells, "divide_cells"), cell_options(cells, "train_cells")])
    return Study.of(cells.explore, cells.train, None, training)


def heads_of(study: Study) -> set[str]:
    """The heads that trials of a study may have."""
    searched = {value for entry in study.space.entries if entry.name == "head" for value in entry.values_to_check()}
    baseline = {study.settings["train"]["head"]} if study.settings["baseline"] or not searched else set()
    return searched | baseline


@dataclass(frozen=True)
class InstancesOfCells:
    """The exploration of instances of cells; a `Subject`. `division`: the file that says which images train and which
    score the trials."""

    config: Config
    division: Path

    @property
    def explore(self) -> Explore:
        """See `Subject`."""
        return self.config.cells.explore

    @property
    def shared(self) -> Training:
        """See `Subject`."""
        return self.config.cells.train

    @property
    def tracking(self) -> Tracking:
        """See `Subject`."""
        return self.config.tracking

    def study(self) -> Study:
        """See `Subject`.

        Raises:
            TomoscoutError: the search space is invalid, there is no division, or a head needs a package that is not
                installed.
        """
        from tomoscout.tasks.instances.division import read_division

        study = cell_study(self.config.cells)
        if "star" in heads_of(study) and find_spec("stardist") is None:
            raise TomoscoutError(
                f"{key_in(study.section, 'explore')}: its trials with the star head need the package stardist: "
                "`make .venv/cells`, or install tomoscout[cells]; with cells.explore.space.head: flow there are none"
            )
        members = read_division(self.division)
        return study.with_images(digest([[vars(m) for m in members[part]] for part in ("train", "validate")]))

    def misfit(self) -> Misfit:
        """See `Subject`."""
        from tomoscout.stages.train_cells import data_of
        from tomoscout.tasks.instances.task import CellTask

        data = data_of(self.config.cells, self.config.projects, self.division)
        return misfit_of(self.shared, lambda options: CellTask(data, options))

    def train(self, options: Training, tracking: Tracking, folder: Path, watch: Watch) -> Outcome:
        """See `Subject`."""
        from tomoscout.stages.train_cells import run_train_cells

        # A model of the user's library is one that was asked for by its name.
        cells = self.config.cells.model_copy(update={"train": options, "library": None})
        own = self.config.model_copy(update={"cells": cells, "tracking": tracking})
        return run_train_cells(own, self.division, folder, self.explore.threads, watch)
