"""A study: what its proposals depend on, and the proposals.

Trial t is proposed from the results of the trials 0 to t - W and the proposals of those in between, by a sampler
seeded with (seed, t), in a study of Optuna's that lives in memory and is built anew for every proposal. So the trials
follow from study.json alone, however many run at once and however often they are interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tomoscout.explore.options import Choice, Explore, Number
from tomoscout.explore.points import configured_values, known_values, train_options, with_validations
from tomoscout.explore.pruners import make_pruner
from tomoscout.explore.records import Ask, Params, Refused, Result, read_trial, trial_folder, trial_name
from tomoscout.explore.samplers import make_sampler
from tomoscout.explore.space import SearchSpace, label
from tomoscout.learning.options import Training
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest, read_json
from tomoscout.networks import code_digest
from tomoscout.networks.options import NetworkOptions
from tomoscout.plan.stages import STAGES

if TYPE_CHECKING:
    import optuna

Shape = Sequence[int]
Misfit = Callable[[Training], str | None]
"""Why a training cannot be made on the machines there are; None if it can."""

MOST_REFUSED = 100
"""Proposals that are tried for a trial before it is given up."""

SEED_PRIME = 1_000_003

MEMORY = ("memory_gb", "gpu_memory_gb")
"""Options of a training that decide which proposals are refused."""


@dataclass(frozen=True)
class Study:
    """A study. `settings`: all that its proposals depend on, the content of study.json. `options`: those of the task's
    trainings."""

    settings: dict[str, Any]
    options: type[Training]

    @classmethod
    def of(cls, options: Explore, train: Training, shapes: Sequence[Shape], training: str) -> Study:
        """The study of a task.

        Args:
            train: what all trials share.
            shapes: voxels (*space) of the training volumes.
            training: the fingerprint of the training that `train` describes.

        Raises:
            TomoscoutError: the space is at fault, or there is nothing in it that could be trained.
        """
        if train.base is not None:
            raise TomoscoutError("explore: trials are trained from scratch; leave out train.base")
        # Where memory is stated, the device decides which memory refuses proposals.
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
                "shape": [int(size) for size in np.median(shapes, axis=0)],
                "training": training,
            },
            type(train),
        )
        study.check()
        return study

    @classmethod
    def read(cls, folder: Path, options: type[Training]) -> Study:
        """The study in a folder. `options`: those of the task's trainings.

        Raises:
            TomoscoutError: there is none, or its settings were changed.
        """
        path = folder / "study.json"
        settings = read_json(path)
        if not isinstance(settings, dict) or not {"name", "space", "train", "window"} <= settings.keys():
            raise TomoscoutError(f"{path}: not the settings of a study")
        study = cls(settings, options)
        # The folder is named after all of them.
        if study.name != folder.absolute().name:
            raise TomoscoutError(f"{path}: not the settings that its folder is named after, but those of {study.name}")
        return study

    @property
    def name(self) -> str:
        """Name of its folder: with other settings, another."""
        return f"{self.settings['name']}-{digest(self.settings)[:8]}"

    @property
    def window(self) -> int:
        """How many trials may run at once."""
        return int(self.settings["window"])

    @cached_property
    def space(self) -> SearchSpace:
        """What is searched."""
        return SearchSpace.parse(self.settings["space"])

    @cached_property
    def base(self) -> Training:
        """What all trials share."""
        return self.options.model_validate(self.settings["train"])

    def told(self, number: int) -> range:
        """The trials whose results are known when a trial is proposed, and while it runs."""
        return range(max(0, number - self.window + 1))

    @property
    def configured(self) -> Params:
        """Values that the searched parameters have in the training that all share, in their ranges or not. The
        baseline is that training; its values are no proposal, and none learns from them."""
        return {name: label(value) for name, value in configured_values(self.space, self.base).items()}

    def options_of(self, values: Params) -> Training:
        """The training of a point.

        Raises:
            ValueError: its options do not go together.
        """
        return train_options(values, self.base, self.settings)

    def check(self) -> None:
        """Refuse a space that holds a value, be it a choice or an end of a range, with which nothing can be trained.

        Raises:
            TomoscoutError: none of the random points that have it can.
        """
        losses = [entry.name for entry in self.space.entries if entry.name.startswith("loss.")]
        if len(self.base.loss) > 1 and losses:
            raise TomoscoutError(
                f"explore: train.loss is a sum of {len(self.base.loss)}, of which none is searched; set "
                f"{', '.join(losses)} to null in explore.space, or train.loss to one"
            )
        for entry in self.space.entries:
            for value in entry.values_to_check():
                reason = self._hindrance(entry.name, value)
                if reason:
                    raise TomoscoutError(f"explore: no training is possible with {entry.name} {value}: {reason}")

    def _hindrance(self, name: str, value: Any, tries: int = 200) -> str | None:
        """Why no random point with that value can be trained; None if one can, or none has it."""
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


def propose(study: Study, folder: Path, number: int, misfit: Misfit) -> Ask:
    """The proposal for a trial.

    Args:
        folder: of the study, with the results and proposals of the trials before.
        misfit: tells what cannot be trained.

    Raises:
        TomoscoutError: an earlier trial is missing, or nothing that is proposed can be trained.
    """
    from optuna.distributions import distribution_to_json
    from optuna.trial import TrialState

    if number == 0 and study.settings["baseline"]:
        return _baseline(study, misfit)
    space, known = study.space, known_values(study.base)
    sampler = make_sampler(study.settings, space, _seed(study, number), len(study.told(number)))
    optuna_study = rebuild(study, folder, number, sampler)
    refused: list[Refused] = []
    while len(refused) < MOST_REFUSED:
        trial = optuna_study.ask()
        values = space.values(lambda name, domain: _suggest(trial, name, domain), known)  # noqa: B023 used at once
        distributions = {name: distribution_to_json(value) for name, value in trial.distributions.items()}
        try:
            train = study.options_of(values)
            reason = misfit(train)
        except ValueError as error:
            reason = " ".join(str(error).split())
        if reason is None:
            return Ask(number, trial.params, distributions, _asked(train), refused)
        refused.append(Refused(trial.params, distributions, reason))
        optuna_study.tell(trial, state=TrialState.PRUNED)
    raise TomoscoutError(
        f"{trial_folder(folder, number)}: {MOST_REFUSED} proposals, and none can be trained; the last: "
        f"{refused[-1].reason}"
    )


def _baseline(study: Study, misfit: Misfit) -> Ask:
    """What all trials share, with nothing searched.

    Raises:
        TomoscoutError: it cannot be trained.
    """
    train = with_validations(study.base, study.settings["validations"])
    reason = misfit(train)
    if reason:
        raise TomoscoutError(f"explore.baseline: the training as `train` has it cannot be made: {reason}")
    return Ask(0, {}, {}, _asked(train))


def _asked(train: Training) -> dict[str, Any]:
    return train.decisive(keep=MEMORY)


def _seed(study: Study, number: int) -> int:
    return (int(study.settings["seed"]) * SEED_PRIME + number) % 2**32


def distribution_of(domain: Number | Choice) -> optuna.distributions.BaseDistribution:
    """What Optuna draws a value of an entry from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):
        return CategoricalDistribution([label(value) for value in domain.choices])
    if domain.is_whole:
        return IntDistribution(int(domain.low), int(domain.high), domain.log, int(domain.step or 1))
    return FloatDistribution(domain.low, domain.high, domain.log, domain.step)


def _suggest(trial: optuna.Trial, name: str, domain: Number | Choice) -> Any:
    if isinstance(domain, Choice):
        chosen = trial.suggest_categorical(name, [label(value) for value in domain.choices])
        return next(value for value in domain.choices if label(value) == chosen)
    if domain.is_whole:
        return trial.suggest_int(name, int(domain.low), int(domain.high), step=int(domain.step or 1), log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)


def rebuild(
    study: Study, folder: Path, number: int, sampler: optuna.samplers.BaseSampler | None = None
) -> optuna.Study:
    """The study in memory as a trial finds it: results as far as they are told, proposals from there on.

    Proposals that were refused come before their trial, so that a trial has the same place in every rebuilt study.

    Raises:
        TomoscoutError: a trial before this one is missing.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rebuilt = optuna.create_study(
        study_name=study.name, direction="maximize", sampler=sampler, pruner=make_pruner(study.settings)
    )
    told = study.told(number)
    for earlier in range(number):
        place = trial_folder(folder, earlier)
        ask, result = read_trial(place) if earlier in told else (Ask.read(place), None)
        rebuilt.add_trials(frozen_trials(ask, result))
    return rebuilt


def frozen_trials(
    ask: Ask, result: Result | None, notes: Mapping[str, Any] | None = None
) -> list[optuna.trial.FrozenTrial]:
    """A trial for Optuna, after what was refused in its place; without a result, as one that runs. `notes`: further
    attributes of a trial with a result, for people.

    Raises:
        TomoscoutError: what its files say does not hold together.
    """
    try:
        return list(_frozen_trials(ask, result, notes or {}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        name, why = trial_name(ask.number), " ".join(str(error).split())[:200]
        raise TomoscoutError(f"{name}/ask.json or {name}/result.json: not as they were written ({why})") from None


def _frozen_trials(ask: Ask, result: Result | None, notes: Mapping[str, Any]) -> Iterator[optuna.trial.FrozenTrial]:
    from optuna.distributions import json_to_distribution
    from optuna.trial import TrialState, create_trial

    def distributions(texts: dict[str, str]) -> dict[str, Any]:
        return {name: json_to_distribution(text) for name, text in texts.items()}

    for entry in ask.refused:
        yield create_trial(
            state=TrialState.PRUNED, params=entry.params, distributions=distributions(entry.distributions)
        )
    if result is None:
        yield create_trial(state=TrialState.RUNNING, params=ask.params, distributions=distributions(ask.distributions))
    else:
        yield create_trial(
            state=TrialState[result.state],
            value=result.value,
            params=ask.params,
            distributions=distributions(ask.distributions),
            intermediate_values=result.intermediate,
            system_attrs=result.attributes,
            user_attrs={
                "trial": trial_name(ask.number),
                **({"reason": result.reason} if result.reason else {}),
                **notes,
            },
        )
