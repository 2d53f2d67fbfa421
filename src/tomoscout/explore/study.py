"""A study: the settings that determine its proposals.

Trial t is proposed from the results of trials 0 to t - W (W is the window) and from the proposals of the trials between
them and t. The sampler is seeded with (seed, t), and the Optuna study is rebuilt in memory for every proposal. The
trials therefore follow from study.json alone, however many run at once and however often they are interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tomoscout.explore.options import Choice, Explore, Number, key_in
from tomoscout.explore.points import configured_values, known_values, losses_of, train_options
from tomoscout.explore.records import Params, section_in
from tomoscout.explore.space import SearchSpace, label
from tomoscout.learning.options import Training
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, read_json
from tomoscout.networks import code_digest
from tomoscout.networks.options import NetworkOptions
from tomoscout.plan.stages import STAGES

if TYPE_CHECKING:
    pass

Shape = Sequence[int]

MEMORY = ("memory_gb", "gpu_memory_gb")
"""Options of a training that decide which proposals are refused."""

IMAGES = "images"
"""Entry of the settings of a study of images: the digest of those that train its trials and those that score them. The
name of the study leaves it out, as the workflow needs the name before it has read any image."""


@dataclass(frozen=True)
class Study:
    """A study. `settings`: all that its proposals depend on, the content of study.json. `options`: the class of the
    task's training options."""

    settings: dict[str, Any]
    options: type[Training]

    @classmethod
    def of(cls, options: Explore, train: Training, shapes: Sequence[Shape] | None, training: str) -> Study:
        """The study of a task.

        Args:
            train: the options that all trials share.
            shapes: voxels (*space) of the training volumes; None where they are not known before the study starts.
            training: the fingerprint of the training that `train` describes.

        Raises:
            TomoscoutError: the search space is invalid, or a value in it allows no training.
        """
        if train.base is not None:
            place, base = key_in(options.SECTION, "explore"), key_in(options.SECTION, "train.base")
            raise TomoscoutError(f"{place}: trials are trained from scratch; leave out {base}")
        # If a memory limit is stated, the device decides which limit applies to proposals.
        limited = train.memory_gb is not None or train.gpu_memory_gb is not None
        study = cls(
            {
                "version": STAGES["explore"].version,
                # Other versions may propose other trials.
                "packages": {name: version(name) for name in ("optuna", "scipy", "cmaes")},
                **options.decisive(),
                "validations": math.ceil(train.steps / train.validate_every)
                if train.validate_every
                else options.validations,
                "space": SearchSpace.of(options, type(train)).to_json(),
                "networks": {family: code_digest(NetworkOptions(family=family)) for family in options.networks},
                "train": train.decisive(keep=(*MEMORY, "device") if limited else MEMORY),
                "shape": None if shapes is None else [int(size) for size in np.median(shapes, axis=0)],
                "training": training,
                # Only where there is one: studies of picking keep their names.
                **({"section": options.SECTION} if options.SECTION else {}),
            },
            type(train),
        )
        study.check()
        return study

    @classmethod
    def read(cls, folder: Path, options: type[Training]) -> Study:
        """Read the study in a folder. `options`: the class of the task's training options.

        Raises:
            TomoscoutError: there is none, or its settings were changed.
        """
        path = folder / "study.json"
        settings = read_json(path)
        if not isinstance(settings, dict) or not {"name", "space", "train", "window"} <= settings.keys():
            raise TomoscoutError(f"{path}: not the settings of a study")
        study = cls(settings, options)
        # The name of the folder contains the digest of all settings.
        if study.name != folder.absolute().name:
            raise TomoscoutError(f"{path}: not the settings that its folder is named after, but those of {study.name}")
        return study

    @property
    def name(self) -> str:
        """Name of the folder of the study. It contains a digest of the settings."""
        named = {key: value for key, value in self.settings.items() if key != IMAGES}
        return f"{self.settings['name']}-{digest(named)[:8]}"

    def with_images(self, images: str) -> Study:
        """The study of these images, given by their digest; it has the same name."""
        return replace(self, settings={**self.settings, IMAGES: images})

    @property
    def section(self) -> str:
        """The section of the configuration that it is of; see `Explore.SECTION`."""
        return section_in(self.settings)

    @property
    def window(self) -> int:
        """How many trials may run at once."""
        return int(self.settings["window"])

    @cached_property
    def space(self) -> SearchSpace:
        """The search space."""
        return SearchSpace.parse(self.settings["space"])

    @cached_property
    def base(self) -> Training:
        """The options that all trials share."""
        return self.options.model_validate(self.settings["train"])

    def told(self, number: int) -> range:
        """The trials whose results are known when a trial is proposed, and while it runs."""
        return range(max(0, number - self.window + 1))

    @property
    def configured(self) -> Params:
        """The values of the search parameters in the baseline, which is the training that all trials share. They may
        lie outside of the searched ranges. They are not a proposal, and no sampler learns from them."""
        return {name: label(value) for name, value in configured_values(self.space, self.base).items()}

    def options_of(self, values: Params) -> Training:
        """The options of the training at a point of the search space.

        Raises:
            ValueError: the options contradict each other.
        """
        return train_options(values, self.base, self.settings)

    def check(self) -> None:
        """Check that a training is possible with every choice and with both ends of every range.

        Raises:
            TomoscoutError: with one of these values, no random point can be trained.
        """
        place = key_in(self.section, "explore")
        losses = [entry.name for entry in self.space.entries if entry.name.startswith("loss.")]
        if (count := len(losses_of(self.base))) > 1 and losses:
            raise TomoscoutError(
                f"{place}: train.loss is a sum of {count}, of which none is searched; set "
                f"{', '.join(losses)} to null in {place}.space, or train.loss to one"
            )
        for entry in self.space.entries:
            for value in entry.values_to_check():
                reason = self._hindrance(entry.name, value)
                if reason:
                    raise TomoscoutError(f"{place}: no training is possible with {entry.name} {value}: {reason}")

    def _hindrance(self, name: str, value: Any, tries: int = 200) -> str | None:
        """Why no random point with that value can be trained; None if one can, or if no point has the parameter."""
        generator, space, known = np.random.default_rng(0), self.space, known_values(self.base)
        reason = None

        def draw(entry: str, domain: Number | Choice) -> Any:
            return value if entry == name else domain.at(generator.random())

        for _ in range(tries):
            values = space.values(draw, known)
            if name in values:
                try:
                    self.options_of(values)
                    return None
                except ValueError as error:
                    reason = " ".join(str(error).split())
        return reason
