"""The summary of a study: a table, the best models, a page, and a journal for Optuna's own tools."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tomoscout.explore.optuna_trials import distribution_of, frozen_trials
from tomoscout.explore.records import (
    BASELINE,
    Ask,
    Params,
    Result,
    best_names,
    read_trial,
    short,
    trial_folder,
    trial_name,
)
from tomoscout.explore.study import Study
from tomoscout.learning.options import Training
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import write_table, write_text

if TYPE_CHECKING:
    import optuna

MODEL_FILES = ("weights.safetensors", "metrics.csv", "results.json", "history.png", "model.yaml")
"""The files that are copied from each of the best trials. model.yaml is the last, as it marks the folder as a complete
model."""

JOURNAL = "journal.log"
_REASONS_TOLD = 5


def run_summary(folder: Path, trials: int, top: int, title: str, options: type[Training]) -> list[Result]:
    """Write `trials.csv`, `report.html`, `journal.log` and the folders of the best models of a study. Returns the
    results of the best trials. `options`: the class of the task's training options.

    Raises:
        TomoscoutError: a trial is missing, or too few trials were completed.
    """
    from tomoscout.explore.page import write_exploration

    study = Study.read(folder, options)
    read = [read_trial(trial_folder(folder, number)) for number in range(trials)]
    asks, results = [ask for ask, _ in read], [result for _, result in read]
    _write_table(folder / "trials.csv", study, results)
    write_exploration(folder / "report.html", study.settings, asks, results, title, study.configured)
    _write_journal(folder / JOURNAL, study, asks, results)
    best = ranked(results)[:top]
    if len(best) < top:
        raise TomoscoutError(
            f"{folder}: {len(best)} of {trials} trials were completed, {top} are wanted (explore.top); the others: "
            f"{_reasons(results)}"
        )
    for old in folder.glob("best-*"):
        if old.name not in best_names(top):
            shutil.rmtree(old)
    for name, result in zip(best_names(top), best, strict=True):
        _copy_model(trial_folder(folder, result.number), folder / name)
        _write_recipe(folder / name / "train.yaml", study, asks[result.number], trial_folder(folder, result.number))
    return best


def ranked(results: Sequence[Result]) -> list[Result]:
    """The completed trials, the best first; of equal scores the earlier trial first."""
    complete = [result for result in results if result.state == "COMPLETE"]
    return sorted(complete, key=lambda result: (-(result.value or 0.0), result.number))


def _reasons(results: Sequence[Result]) -> str:
    counts = Counter(result.reason for result in results if result.reason)
    told = [f"{reason} ({count}×)" if count > 1 else reason for reason, count in counts.most_common(_REASONS_TOLD)]
    return "; ".join(told) + ("; …" if len(counts) > _REASONS_TOLD else "")


def _write_table(path: Path, study: Study, results: Sequence[Result]) -> None:
    params = [name for name, _ in study.space.searched]
    configured = {name: value for name, value in study.configured.items() if name in params}
    rows: list[dict[str, Any]] = [
        {
            "trial": trial_name(result.number),
            "state": result.state,
            "value": result.value,
            "validations": len(result.intermediate),
            **(result.params or configured),
            "reason": result.reason,
            "proposed": "yes" if result.params else "no",
        }
        for result in results
    ]
    write_table(path, ["trial", "state", "value", "validations", *params, "reason", "proposed"], rows)


def _write_recipe(path: Path, study: Study, ask: Ask, folder: Path) -> None:
    """Write the options of a trial as a configuration file that can be merged with another, to train longer or on more
    data. `folder`: the folder of the trial."""
    ask.options(folder, study.options)
    recipe = {name: value for name, value in ask.train.items() if name != "validate_every"}
    # As a list, which replaces the network of the other configuration as a whole, with all its options.
    recipe["network"] = [recipe["network"]]
    section = {"train": recipe}
    write_text(path, yaml.safe_dump({study.section: section} if study.section else section, sort_keys=False))


def _copy_model(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    (target / "model.yaml").unlink(missing_ok=True)
    for name in MODEL_FILES:
        temporary = target / f".{name}.tmp"
        shutil.copyfile(source / name, temporary)
        temporary.replace(target / name)


def _write_journal(path: Path, study: Study, asks: Sequence[Ask], results: Sequence[Result]) -> None:
    """Write the journal for optuna-dashboard and other readers of Optuna's journals: `optuna-dashboard journal.log`."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # In a new folder: the lock file that Optuna makes beside a journal remains when the process is killed, and the next
    # process would wait for it forever.
    new = path.with_name(f".{path.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        storage = JournalStorage(JournalFileBackend(str(new / path.name)))
        journal = optuna.create_study(storage=storage, study_name=study.name, direction="maximize")
        for ask, result in zip(asks, results, strict=True):
            journal.add_trials(frozen_trials(ask, result) if ask.params else _baseline(study, ask, result))
        (new / path.name).replace(path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _baseline(study: Study, ask: Ask, result: Result) -> list[optuna.trial.FrozenTrial]:
    """The baseline for the journal. Optuna takes only parameters within the searched ranges, so other values are stored
    as attributes."""
    from optuna.distributions import distribution_to_json

    domains, params, distributions = dict(study.space.searched), {}, {}
    notes: Params = {"proposed": False}
    for name, value in study.configured.items():
        distribution = distribution_of(domains[name]) if name in domains else None
        if distribution and _holds(distribution, value):
            params[name], distributions[name] = value, distribution_to_json(distribution)
        else:
            notes[name] = value
    return frozen_trials(replace(ask, params=params, distributions=distributions), result, notes)


def _holds(distribution: optuna.distributions.BaseDistribution, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:
        return False


def format_best(best: Sequence[Result]) -> str:
    """The best trials as text for a terminal."""
    lines = []
    for place, result in enumerate(best, 1):
        params = ", ".join(f"{name} {short(value)}" for name, value in result.params.items()) or BASELINE
        lines.append(f"{place}. trial {trial_name(result.number)}: {result.value:.4f}  {params}")
    return "\n".join([*lines, ""])
