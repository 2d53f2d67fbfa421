"""A search as the rules of the workflow ask for it: the names of its trials, and its files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tomoscout.explore.options import Explore
from tomoscout.explore.records import best_names, trial_name
from tomoscout.explore.study import Study
from tomoscout.plan.paths import Results
from tomoscout.tracking.options import Tracking


@dataclass(frozen=True)
class Search:
    """The search of a configuration. `make_study`: creates its study, which is asked for only where it is needed."""

    options: Explore
    results: Results
    tracking: Tracking
    make_study: Callable[[], Study]

    @cached_property
    def study(self) -> Study:
        """The study of this configuration and data.

        Raises:
            TomoscoutError: the search space is invalid.
        """
        return self.make_study()

    @property
    def folder(self) -> Path:
        """Folder of the study."""
        return self.results.study(self.study.name)

    @property
    def folders(self) -> str:
        """Regular expression for the names of the folders of all studies with the name of this search."""
        return rf"{re.escape(self.options.name)}-[0-9a-f]{{8}}"

    @property
    def best_names(self) -> list[str]:
        """Names of the folders of the best models, best first."""
        return best_names(self.options.top)

    def best_models(self) -> list[str]:
        """Folders of the best models, best first."""
        return [str(self.folder / name) for name in self.best_names]

    def recorded(self) -> list[str]:
        """The file that is written once the study is recorded in MLflow. None where tracking is off, or where the
        trials record themselves on a tracking server."""
        if not self.tracking.enabled or self.tracking.uri:
            return []
        return [str(self.results.tracked_study(self.study.name))]

    def trials(self) -> list[str]:
        """Names of the trials."""
        return [trial_name(number) for number in range(self.options.trials)]

    def trials_before(self, trial: str) -> tuple[str | None, str | None]:
        """The trials that the proposal of `trial` waits for: the previous proposal, and the last result that is passed
        to the sampler; None where there is none. All other trials precede these two, and listing them all would keep
        Snakemake busy for minutes."""
        number, told = int(trial), self.study.told(int(trial))
        return trial_name(number - 1) if number else None, trial_name(told[-1]) if told else None
