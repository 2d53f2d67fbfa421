"""A study: its trials follow from its settings, its data and the results that each may know, and from nothing else."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import json_to_distribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from scipy.stats import qmc

from support.project import SmallProject, error_of, succeeded, tomoscout
from support.study import EXPLORE, TRAIN, configure, fits, outcome, run
from tomoscout.explore.optuna_trials import frozen_trials, rebuild
from tomoscout.explore.proposals import MOST_REFUSED, SEED_PRIME, Misfit, propose
from tomoscout.explore.records import (
    Ask,
    Refused,
    Result,
    best_names,
    trial_folder,
    trial_name,
    trial_numbers,
)
from tomoscout.explore.samplers import make_sampler
from tomoscout.explore.study import Study
from tomoscout.explore.summary import MODEL_FILES, run_summary
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest_folder, write_json
from tomoscout.plan.plan import Plan
from tomoscout.stages.explore import Picking, start_study, study_of, suggest_trial
from tomoscout.tasks.picking.options import Train

SAMPLERS = ("tpe", "random", "cmaes", "qmc")
LOSS = ("loss.name", "loss.alpha", "loss.beta", "loss.gamma", "loss.weight_tversky", "foreground_weight")


@pytest.fixture
def project(small: SmallProject) -> SmallProject:
    for name in ("one", "two", "three"):
        small.add_run(name)
        small.add_picks(name, "ribosome:expert/0", [(100, 100, 100), (200, 150, 100)])
    configure(small)
    succeeded(small.list_runs())
    return small


def too_large(options: Train) -> str | None:
    return f"batches of {options.batch_size} are too large" if options.batch_size > 16 else None


# Proposals


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_do_not_depend_on_the_order_in_which_trials_end(
    project: SmallProject, sampler: str, pruner: str, tmp_path: Path
) -> None:
    """Under Hyperband a sampler sees the trials of one bracket alone."""
    study = configure(project, {"sampler": sampler, "pruner": pruner})
    early = run(study, tmp_path / "early", 14, too_large)
    late = run(study, tmp_path / "late", 14, too_large, late=True)
    assert early == late
    assert len({json.dumps(ask.params, sort_keys=True) for ask in early}) == 14
    assert {result_of(tmp_path / "early", n).state for n in range(13)} == {"COMPLETE", "PRUNED"}


def result_of(folder: Path, number: int) -> Result:
    return Result.read(trial_folder(folder, number))


def test_what_is_told_are_the_trials_before_the_window() -> None:
    for window in (1, 2, 5):
        study = Study({"window": window}, Train)
        for number in range(12):
            # Trial t: results of 0 … t - W, so that at most W - 1 others are under way.
            assert list(study.told(number)) == [earlier for earlier in range(number) if earlier <= number - window]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_proposal_knows_what_is_before_the_window_alone(project: SmallProject, tmp_path: Path, sampler: str) -> None:
    # With few axes, and so small generations.
    few = dict.fromkeys(("weight_decay", "foreground_weight", "background_fraction", "augmentation.noise", "patch"))
    study = configure(project, {"sampler": sampler, "space": few})
    last = 14
    run(study, tmp_path, last + 1)
    asked, decided = propose(study, tmp_path, last, fits), set[int]()
    for number in range(last):
        path = trial_folder(tmp_path, number) / "result.json"
        kept = path.read_bytes()
        ask, curve = Ask.read(path.parent), dict.fromkeys(range(1, 5), 9.0)
        Result(number, ask.params, ask.distributions, "COMPLETE", 9.0, curve, {}).write(path)
        if propose(study, tmp_path, last, fits) != asked:
            decided.add(number)
        path.write_bytes(kept)
    assert decided
    assert decided <= set(study.told(last))
    # In the window nothing but the proposals is read.
    for number in set(range(last)) - set(study.told(last)):
        (trial_folder(tmp_path, number) / "result.json").unlink()
    assert propose(study, tmp_path, last, fits) == asked


def test_a_window_of_one_is_one_trial_after_the_other(project: SmallProject, tmp_path: Path) -> None:
    study = configure(project, {"window": 1})
    asks = run(study, tmp_path / "study", 6)
    assert list(study.told(5)) == [0, 1, 2, 3, 4]
    assert asks == run(study, tmp_path / "late", 6, late=True)


def test_a_running_trial_keeps_others_away(project: SmallProject, tmp_path: Path) -> None:
    """The constant liar: the proposal of a trial whose result is not known yet counts."""
    study = configure(project, {"window": 4})
    folder = tmp_path / "study"
    run(study, folder, 10)
    asked = propose(study, folder, 10, fits)
    path = trial_folder(folder, 9) / "ask.json"
    values = json.loads(path.read_text())
    values["params"] = asked.params
    values["distributions"] = asked.distributions
    path.write_text(json.dumps(values))
    assert propose(study, folder, 10, fits) != asked


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_are_those_of_an_ordinary_study_of_optunas(
    project: SmallProject, tmp_path: Path, sampler: str
) -> None:
    """Told by hand: the results that are known, what runs, and what was refused, in the order of the trials."""
    study = configure(project, {"sampler": sampler})
    asks = run(study, tmp_path, 10, too_large)
    assert any(ask.refused for ask in asks)
    number = 9
    ordinary = optuna.create_study(direction="maximize")
    for ask in asks[:number]:
        for entry in ask.refused:
            assert entry.reason
            ordinary.add_trial(by_hand(entry.params, entry.distributions, TrialState.PRUNED, None, {}))
        result = result_of(tmp_path, ask.number)
        if ask.number + study.window <= number:
            state, value, curve = TrialState[result.state], result.value, result.intermediate
            ordinary.add_trial(by_hand(ask.params, ask.distributions, state, value, curve))
        else:
            ordinary.add_trial(by_hand(ask.params, ask.distributions, TrialState.RUNNING, None, {}))
    ordinary.sampler = make_sampler(
        study.settings, study.space, study.settings["seed"] * SEED_PRIME + number, len(study.told(number))
    )
    proposed = []
    while not proposed or proposed[-1]["batch_size"] > 16:
        trial = ordinary.ask()
        study.space.values(lambda name, domain: suggest_by_hand(trial, name, domain), {})  # noqa: B023 used at once
        proposed.append(trial.params)
        ordinary.tell(trial, state=TrialState.PRUNED)
    assert proposed == [*(entry.params for entry in asks[number].refused), asks[number].params]


def by_hand(
    params: dict[str, Any], texts: dict[str, str], state: TrialState, value: float | None, curve: dict[int, float]
) -> optuna.trial.FrozenTrial:
    distributions = {name: json_to_distribution(text) for name, text in texts.items()}
    return optuna.trial.create_trial(
        state=state, params=params, distributions=distributions, value=value, intermediate_values=curve
    )


def suggest_by_hand(trial: optuna.Trial, name: str, domain: Any) -> Any:
    if hasattr(domain, "choices"):
        texts = [json.dumps(value) if isinstance(value, list) else value for value in domain.choices]
        return domain.choices[texts.index(trial.suggest_categorical(name, texts))]
    if isinstance(domain.low, int):
        return trial.suggest_int(name, domain.low, domain.high, step=domain.step or 1, log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)


def test_more_trials_do_not_change_those_that_are_there(project: SmallProject, tmp_path: Path) -> None:
    study = configure(project)
    short = run(study, tmp_path / "study", 6)
    before = digest_folder(tmp_path / "study")
    longer = run(study, tmp_path / "longer", 9)
    assert longer[:6] == short
    assert propose(study, tmp_path / "study", 5, fits) == short[5]
    assert digest_folder(tmp_path / "study") == before


def test_a_proposal_is_complete(project: SmallProject, tmp_path: Path) -> None:
    """A training follows from it, the same as from its parameters; what is for the machine is not in it."""
    study = configure(project)
    for ask in run(study, tmp_path / "study", 6):
        options = Train.model_validate(ask.train)
        assert not {"name", "device", "checkpoint_seconds"} & ask.train.keys()
        assert options.validate_every == math.ceil(options.steps / study.settings["validations"])
        assert options.seed == study.base.seed
        assert options.network.family == ask.params["network"]
        assert set(ask.params) == set(ask.distributions)
        for name, text in ask.distributions.items():
            distribution = json_to_distribution(text)
            assert distribution._contains(distribution.to_internal_repr(ask.params[name]))
        assert Ask.read(trial_folder(tmp_path / "study", ask.number)) == ask


def test_the_space_may_hold_a_single_point(project: SmallProject, tmp_path: Path) -> None:
    fixed = {"networks": {"UNet": dict.fromkeys(UNET)}, "space": dict.fromkeys(configured_names(project))}
    for sampler in SAMPLERS:
        study = configure(project, {**fixed, "sampler": sampler})
        assert not study.space.searched
        ask = propose(study, tmp_path, 0, fits)
        assert ask.params == {}
        assert Train.model_validate(ask.train).network.family == "UNet"


UNET = ("width", "levels", "bottleneck_levels", "residual_units", "dropout")


def configured_names(project: SmallProject) -> list[str]:
    return [
        entry.name for entry in configure(project).space.entries if "." not in entry.name or entry.name[0].islower()
    ][1:]


# The baseline


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_first_trial_is_the_training_as_it_is(project: SmallProject, tmp_path: Path, sampler: str) -> None:
    train = {**TRAIN, "learning_rate": 3e-3, "patch": [16, 32, 32], "network": {"family": "AttentionUNet"}}
    study = configure(project, {"baseline": True, "sampler": sampler}, train=train)
    first, *others = run(study, tmp_path / "early", 12, too_large)
    assert (first.params, first.distributions, first.refused) == ({}, {}, [])
    options = Train.model_validate(first.train)
    assert options.validate_every == 10
    assert options.model_dump(exclude={"validate_every"}) == project.config.train.model_dump(exclude={"validate_every"})
    assert [first, *others] == run(study, tmp_path / "late", 12, too_large, late=True)
    for ask in others:
        assert {"network", "learning_rate"} <= ask.params.keys()


def test_a_baseline_counts_among_what_is_known(project: SmallProject, tmp_path: Path) -> None:
    """For pruners its curve is one like others, and its place is the first."""
    study = configure(project, {"baseline": True})
    run(study, tmp_path, 5)
    rebuilt = rebuild(study, tmp_path, 4)
    assert rebuilt.trials[0].params == {}
    assert rebuilt.trials[0].intermediate_values == result_of(tmp_path, 0).intermediate


def test_a_baseline_that_cannot_be_trained_is_an_error(project: SmallProject, tmp_path: Path) -> None:
    study = configure(project, {"baseline": True})
    with pytest.raises(TomoscoutError, match=r"^explore\.baseline: the training as `train` has it .* made: no room$"):
        propose(study, tmp_path, 0, lambda options: "no room")


# Refused proposals

TURNS = {
    "augmentation.rotate90": {"choices": [True, False]},
    "patch": {"choices": [[16, 32, 32], [24, 32, 40]]},
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_cannot_be_trained_is_given_back(project: SmallProject, tmp_path: Path, sampler: str) -> None:
    study = configure(project, {"sampler": sampler})
    asks = run(study, tmp_path / "study", 8, too_large)
    refused = [entry for ask in asks for entry in ask.refused]
    assert refused
    for entry in refused:
        assert entry.params["batch_size"] > 16
        assert entry.reason == f"batches of {entry.params['batch_size']} are too large"
        assert set(entry.params) == set(entry.distributions)
    assert all(ask.params["batch_size"] <= 16 for ask in asks)


def test_what_does_not_go_together_is_given_back_too(project: SmallProject, tmp_path: Path) -> None:
    """Quarter turns and tomograms that are not square."""
    study = configure(project, {"space": TURNS, "sampler": "random"})
    asks = run(study, tmp_path / "study", 12)
    reasons = {entry.reason for ask in asks for entry in ask.refused}
    assert reasons
    assert all(reason.startswith("augmentation.rotate90 needs a patch as wide as it is high") for reason in reasons)


def test_trials_have_the_same_place_in_every_study_that_is_rebuilt(project: SmallProject, tmp_path: Path) -> None:
    """Hyperband's brackets and Sobol's points go by the place."""
    study = configure(project)
    folder = tmp_path / "study"
    asks = run(study, folder, 9, too_large)
    expected = [(params, index) for index, params in enumerate(places(asks))]
    for number in range(1, 9):
        rebuilt = rebuild(study, folder, number)
        assert rebuilt.study_name == study.name
        assert rebuilt.direction == optuna.study.StudyDirection.MAXIMIZE
        seen = [(trial.params, trial.number) for trial in rebuilt.trials]
        assert seen == expected[: len(seen)]
        assert len(seen) == number + sum(len(ask.refused) for ask in asks[:number])
        states = {trial.user_attrs["trial"]: trial.state.name for trial in rebuilt.trials if trial.user_attrs}
        assert states == {trial_name(told): result_of(folder, told).state for told in study.told(number)}
        running = [trial.params for trial in rebuilt.trials if trial.state == TrialState.RUNNING]
        assert running == [ask.params for ask in asks[:number] if ask.number not in study.told(number)]


def places(asks: Sequence[Ask]) -> Iterator[dict[str, Any]]:
    for ask in asks:
        yield from (entry.params for entry in ask.refused)
        yield ask.params


def test_sobol_points_are_used_up_by_what_is_refused(project: SmallProject, tmp_path: Path) -> None:
    study = configure(project, {"sampler": "qmc"})
    asks = run(study, tmp_path / "study", 8, too_large)
    searched = study.space.searched
    points = qmc.Sobol(len(searched), scramble=True, rng=study.settings["seed"]).random(64)
    for params, point in zip(places(asks), points, strict=False):
        position = dict(zip((name for name, _ in searched), point.tolist(), strict=True))
        for name, domain in searched:
            if name in params:
                value = domain.at(position[name])
                assert params[name] == (json.dumps(value) if isinstance(value, list) else value)


def test_a_space_too_large_for_the_machine_is_an_error(project: SmallProject, tmp_path: Path) -> None:
    study = configure(project)
    with pytest.raises(TomoscoutError, match=rf"0000: {MOST_REFUSED} proposals, and none can be trained; the last: no"):
        propose(study, tmp_path, 0, lambda options: "no room")


def test_a_missing_trial_is_named(project: SmallProject, tmp_path: Path) -> None:
    study = configure(project)
    folder = tmp_path / "study"
    run(study, folder, 6)
    path = trial_folder(folder, 1) / "result.json"
    path.unlink()
    with pytest.raises(TomoscoutError, match=r"0001/result\.json: no such file"):
        propose(study, folder, 6, fits)
    path.write_text("[]")
    with pytest.raises(TomoscoutError, match=r"0001/result\.json: not the result of a trial \(top level: .*\[\]\)"):
        propose(study, folder, 6, fits)
    path.write_text('{"number": 1}')
    with pytest.raises(TomoscoutError, match=r"0001/result\.json: not the result of a trial"):
        propose(study, folder, 6, fits)
    (trial_folder(folder, 4) / "ask.json").write_text('{"number": 4}')
    with pytest.raises(TomoscoutError, match=r"0004/ask\.json: not what a trial is asked"):
        run_result(folder, 1)
        propose(study, folder, 6, fits)


def run_result(folder: Path, number: int) -> None:
    outcome(Ask.read(trial_folder(folder, number))).write(trial_folder(folder, number) / "result.json")


# Memory that is stated


def misfit(project: SmallProject) -> Misfit:
    config, records = project.config, project.refresh()
    return Picking(Plan(config, records)).misfit()


def test_what_does_not_fit_the_stated_gpu_is_refused_without_one(project: SmallProject) -> None:
    study = configure(project, train={**TRAIN, "gpu_memory_gb": 1.5, "patch": [16, 32, 32]})
    judge = misfit(project)
    assert judge(study.base) is None
    reason = judge(study.base.model_copy(update={"patch": [128, 128, 128]}))
    assert reason is not None
    assert reason.startswith("memory: the GPU would have to hold ")
    assert "train.gpu_memory_gb" in reason
    assert "\n" not in reason


def test_what_does_not_fit_the_stated_main_memory_is_refused_on_a_cpu(project: SmallProject) -> None:
    study = configure(project, train={**TRAIN, "memory_gb": 0.2, "device": "cpu", "patch": [16, 32, 32]})
    reason = misfit(project)(study.base)
    assert reason is not None
    assert reason.startswith("memory: main memory would have to hold ")
    configure(project, train={**TRAIN, "memory_gb": 8, "device": "cpu", "patch": [16, 32, 32]})
    assert misfit(project)(study.base.model_copy(update={"memory_gb": 8.0})) is None


def test_a_patch_that_is_planned_is_planned_before_it_is_judged(project: SmallProject, tmp_path: Path) -> None:
    study = configure(project, {"space": {"patch": None}}, train={**TRAIN, "gpu_memory_gb": 16.0, "patch": "auto"})
    ask = propose(study, tmp_path, 0, misfit(project))
    assert ask.train["patch"] == "auto"
    reason = misfit(project)(study.base.model_copy(update={"gpu_memory_gb": 0.7}))
    assert reason is not None
    assert reason.startswith("memory: the GPU")


def test_without_a_statement_everything_fits(project: SmallProject) -> None:
    study = configure(project)
    assert misfit(project)(study.base.model_copy(update={"batch_size": 10**6})) is None


# The name of a study


def test_other_settings_are_another_study(project: SmallProject) -> None:
    study = configure(project)
    names = {study.name}

    def is_another(*arguments: Any, **sections: Any) -> bool:
        before = len(names)
        names.add(configure(project, *arguments, **sections).name)
        return len(names) > before

    assert is_another({"seed": 1})
    assert is_another({"window": 4})
    assert is_another({"sampler": "random"})
    assert is_another({"pruner": "hyperband"})
    assert is_another({"validations": 5})
    assert is_another({"startup_trials": 4})
    assert is_another({"baseline": True})
    assert is_another({"threads": 1})
    assert is_another({"space": {"learning_rate": 1e-3}})
    assert is_another({"networks": ["UNet"]})
    assert is_another({"name": "other"})
    assert is_another(train={**TRAIN, "steps": 41})
    assert is_another(train={**TRAIN, "seed": 41})
    assert is_another(train={**TRAIN, "gpu_memory_gb": 8})
    assert is_another(split={"train": ["one"], "validate": ["three"]})
    assert is_another(targets={"picks": ["ribosome:expert/0"], "radius_scale": 0.7})
    assert study.name.startswith("search-")


def test_what_decides_on_no_trial_does_not_make_another_study(project: SmallProject) -> None:
    name = configure(project).name
    for explore in ({"trials": 3}, {"top": 4}, {"networks": dict(reversed(EXPLORE["networks"].items()))}):
        assert configure(project, explore).name == name, explore
    for train in ({"device": "cpu"}, {"checkpoint_seconds": 7}, {"name": "mine"}):
        assert configure(project, train={**TRAIN, **train}).name == name, train
    assert configure(project, tracking={"enabled": False}, evaluate={"beta": 1.0}).name == name


def test_other_data_is_another_study(project: SmallProject) -> None:
    name = configure(project).name
    project.add_run("four")
    project.add_picks("four", "ribosome:expert/0", [(100, 100, 100)])
    # Neither trained nor validated on.
    assert configure(project).name == name
    project.add_picks("two", "ribosome:expert/0", [(100, 100, 100), (200, 150, 110)])
    assert configure(project).name != name


def test_where_memory_is_stated_the_device_decides(project: SmallProject) -> None:
    """Which memory refuses proposals depends on it."""
    names = {configure(project, train={**TRAIN, "memory_gb": 1.0, "device": device}).name for device in ("cpu", "cuda")}
    assert len(names) == 2


def test_the_code_of_a_network_of_the_user_is_part_of_the_study(project: SmallProject, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "config/examples/my_network.py"
    own = tmp_path / "mine.py"
    shutil.copy(example, own)
    networks = {"networks": {str(own): {"channels": {"choices": [4, 8]}}}}
    name = configure(project, networks).name
    own.write_text(own.read_text() + "\n# changed\n")
    assert configure(project, networks).name != name


def test_validations_are_those_that_take_place(project: SmallProject) -> None:
    """Hyperband counts with them."""
    assert configure(project).settings["validations"] == 4
    study = configure(project, {"pruner": "hyperband"}, train={"steps": 41, "validate_every": 5})
    assert study.settings["validations"] == 9
    assert rebuild(study, project.folder, 0).pruner._max_resource == 9  # type: ignore[attr-defined]


def test_a_study_read_again_proposes_the_same(project: SmallProject, tmp_path: Path) -> None:
    study = configure(project)
    folder = tmp_path / study.name
    start_study(Picking(Plan(project.config, project.refresh())), folder)
    read = Study.read(folder, Train)
    assert read.name == study.name
    assert read.space == study.space
    assert read.base == study.base
    assert run(read, tmp_path / "read", 6) == run(study, tmp_path / "made", 6)
    content = (folder / "study.json").read_bytes()
    start_study(Picking(Plan(project.config, project.refresh())), folder)
    assert (folder / "study.json").read_bytes() == content


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TomoscoutError, match=r"study\.json: no such file"):
        Study.read(tmp_path, Train)
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(TomoscoutError, match=r"study\.json: not the settings of a study"):
        Study.read(tmp_path, Train)


def test_trials_are_no_fine_tunings(project: SmallProject) -> None:
    with pytest.raises(TomoscoutError, match=r"^explore: trials are trained from scratch; leave out train\.base$"):
        configure(project, train={**TRAIN, "base": "results/models/unet"})


# Commands


def test_the_commands_write_what_the_functions_say(project: SmallProject) -> None:
    study = configure(project)
    options = ("--config", project.settings, "--inventory", project.inventory)
    folder = project.folder / "results/explore" / study.name
    succeeded(tomoscout("explore", "start", *options, "--study", folder))
    assert json.loads((folder / "study.json").read_text()) == study.settings
    for number in range(2):
        succeeded(tomoscout("explore", "suggest", str(number), *options, "--study", folder))
    asks = [Ask.read(trial_folder(folder, number)) for number in range(2)]
    assert asks == run(study, project.folder / "again", 2)
    content = (folder / "0001/ask.json").read_bytes()
    (folder / "0001/ask.json").unlink()
    suggest_trial(Picking(Plan(project.config, project.refresh())), folder, 1)
    assert (folder / "0001/ask.json").read_bytes() == content


def test_the_folder_of_another_study_is_refused(project: SmallProject) -> None:
    study = configure(project)
    options = ("--config", project.settings, "--inventory", project.inventory)
    folder = project.folder / "results/explore/search-00000000"
    expected = f"{folder}: not the study of these settings and data, which is {study.name}"
    for command in (("explore", "start"), ("explore", "suggest", "0")):
        assert error_of(tomoscout(*command, *options, "--study", folder)) == expected
    assert not folder.exists()
    assert study_of(Plan(project.config, project.refresh())) == study


def test_refused_proposals_are_told_of(project: SmallProject) -> None:
    study = configure(project, {"space": TURNS})
    options = ("--config", project.settings, "--inventory", project.inventory)
    folder = project.folder / "results/explore" / study.name
    for number in range(3):
        said = succeeded(tomoscout("explore", "suggest", str(number), *options, "--study", folder)).stderr
        ask = Ask.read(trial_folder(folder, number))
        assert said.splitlines() == [f"trial {trial_name(number)}: refused: {entry.reason}" for entry in ask.refused]


# What is shown of the baseline


@pytest.fixture
def with_baseline(project: SmallProject) -> tuple[Study, Path]:
    """A study with results; its baseline lies outside of the range of batch_size, its network in no range at all."""
    train = {"steps": 40, "learning_rate": 2e-3, "batch_size": 2, "patch": [64, 64, 64]}
    study = configure(project, {"baseline": True, "space": {"batch_size": {"low": 4, "high": 8}}}, train=train)
    folder = project.folder / "results/explore" / study.name
    write_json(folder / "study.json", study.settings)
    run(study, folder, 6)
    for number in range(6):
        ask = Ask.read(trial_folder(folder, number))
        outcome(ask).write(trial_folder(folder, number) / "result.json")
        for name in MODEL_FILES:
            (trial_folder(folder, number) / name).touch()
    return study, folder


def test_the_values_of_the_baseline_are_in_the_table(with_baseline: tuple[Study, Path]) -> None:
    _, folder = with_baseline
    run_summary(folder, 6, 1, "", Train)
    with (folder / "trials.csv").open(newline="") as handle:
        first, *others = csv.DictReader(handle)
    assert [row["proposed"] for row in (first, *others)] == ["no", *["yes"] * 5]
    shown = {name: first[name] for name in ("network", "learning_rate", "batch_size", "patch", "loss.name")}
    assert shown == {
        "network": "UNet",
        "learning_rate": "0.002",
        "batch_size": "2",
        "patch": "64",
        "loss.name": "CrossEntropyTversky",
    }
    assert (first["loss.alpha"], first["loss.gamma"], first["UNet.width"]) == ("0.3", "", "")
    page = (folder / "report.html").read_text()
    assert "UNet.channels [16, 32, 64, 64]" in page and '<td class="number">2</td>' in page


def test_the_values_of_the_baseline_are_in_the_journal(with_baseline: tuple[Study, Path]) -> None:
    study, folder = with_baseline
    run_summary(folder, 6, 1, "", Train)
    journal = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    [first, *others] = optuna.load_study(study_name=study.name, storage=journal).trials
    assert (first.params["learning_rate"], first.params["loss.name"]) == (2e-3, "CrossEntropyTversky")
    assert (first.user_attrs["batch_size"], first.user_attrs["proposed"]) == (2, False)
    assert first.user_attrs["UNet.channels"] == "[16, 32, 64, 64]"
    for name, distribution in first.distributions.items():
        assert all(trial.distributions.get(name, distribution) == distribution for trial in others)
    # What proposes and prunes knows nothing of them.
    assert rebuild(study, folder, 6).trials[0].params == {}


def test_the_network_of_the_baseline_as_the_search_makes_it(project: SmallProject) -> None:
    levels = {"networks": {"UNet": {}}}
    network = {"family": "UNet", "channels": [16, 32, 64, 64], "strides": [2, 2, 1], "dropout": 0.5}
    values = configure(project, levels, train={**TRAIN, "network": network}).configured
    found = {name: value for name, value in values.items() if name.startswith("UNet.")}
    assert found == {
        "UNet.width": 16,
        "UNet.levels": 3,
        "UNet.bottleneck_levels": 1,
        "UNet.residual_units": 1,
        "UNet.dropout": 0.5,
    }
    other = configure(project, levels, train={**TRAIN, "network": {"family": "SegResNet"}}).configured
    assert (other["network"], other["SegResNet.init_filters"]) == ("SegResNet", 16)
    two = configure(project, {"space": dict.fromkeys(LOSS)}, train={**TRAIN, "loss": ["Dice", "Focal"]})
    assert not [name for name in two.configured if name.startswith("loss.")]


KILLED = """
import os, signal, sys
from pathlib import Path
from tomoscout.explore.summary import run_summary
from tomoscout.tasks.picking.options import Train

folder, fsync = Path(sys.argv[1]), os.fsync

def fsync_or_die(file):
    if any(folder.glob(".*/*.lock")):
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)

os.fsync = fsync_or_die
run_summary(folder, 6, 1, "", Train)
"""


def test_a_summary_killed_while_it_writes_the_journal_hinders_no_other(with_baseline: tuple[Study, Path]) -> None:
    _, folder = with_baseline
    # What one of an earlier version left that was killed there.
    (folder / ".journal.log.tmp").write_text("half a li")
    (folder / ".journal.log.tmp.lock").symlink_to(folder / ".journal.log.tmp")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], capture_output=True, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(folder.glob(".*/*.lock"))
    again = [sys.executable, "-m", "tomoscout", "explore", "summarise", str(folder), "--trials", "6"]
    subprocess.run(again, check=True, capture_output=True, timeout=60)
    assert not list(folder.glob(".*/*"))
    assert len((folder / "journal.log").read_text().splitlines()) > 6


# Files


def test_what_is_kept_of_a_trial_is_read_as_it_was_written(tmp_path: Path) -> None:
    ask = Ask(3, {"a": 0.1, "b": "[1, 2]"}, {"a": "…", "b": "…"}, {"steps": 3}, [Refused({"a": 1}, {"a": "…"}, "no")])
    ask.write(tmp_path / "ask.json")
    assert Ask.read(tmp_path) == ask
    result = Result(3, ask.params, ask.distributions, "PRUNED", None, {1: 0.5, 10: 0.25}, {}, "why", {"rung": 0.5})
    result.write(tmp_path / "result.json")
    assert Result.read(tmp_path) == result
    assert set(json.loads((tmp_path / "result.json").read_text())) == {
        *("number", "params", "distributions", "state", "value", "intermediate", "scores", "reason", "attributes")
    }


ASKED: dict[str, Any] = {"number": 3, "params": {"a": 1}, "distributions": {"a": "…"}, "train": {}, "refused": []}
DONE: dict[str, Any] = {
    **{"number": 3, "params": {}, "distributions": {}, "state": "COMPLETE", "value": 1, "intermediate": {"1": 0.5}},
    **{"scores": {"ribosome": 0.5}, "reason": None, "attributes": {}},
}


@pytest.mark.parametrize("entry", ASKED)
def test_a_proposal_that_lacks_an_entry_is_refused(tmp_path: Path, entry: str) -> None:
    assert Ask.parse(ASKED, tmp_path).number == 3
    lacking = {key: value for key, value in ASKED.items() if key != entry}
    with pytest.raises(TomoscoutError, match=rf"not what a trial is asked \({entry} missing\)"):
        Ask.parse(lacking, tmp_path)


@pytest.mark.parametrize("entry", DONE)
def test_a_result_that_lacks_an_entry_is_refused(tmp_path: Path, entry: str) -> None:
    assert Result.parse(DONE, tmp_path).intermediate == {1: 0.5}
    with pytest.raises(TomoscoutError, match=rf"not the result of a trial \({entry} missing\)"):
        Result.parse({key: value for key, value in DONE.items() if key != entry}, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        *({"number": number} for number in (-1, "3", 3.0, True, None)),
        *({"value": value} for value in ("0.5", True, None)),
        *({"intermediate": curve} for curve in ({"0": 0.5}, {"one": 0.5}, {"1": "0.5"}, {"1": None}, [0.5])),
        *({"distributions": texts} for texts in ({"a": 1}, {"a": None}, [])),
        {"state": "FAIL"},
        {"scores": {"ribosome": True}},
        {"reason": 5},
        {"params": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_result_of_another_form_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(TomoscoutError, match="not the result of a trial"):
        Result.parse(DONE | changes, tmp_path)
    with pytest.raises(TomoscoutError, match=r"of its folder \(number is 3\)"):
        Result.parse(DONE, tmp_path / "0004" / "result.json")


def test_trials_are_found_by_their_number(tmp_path: Path) -> None:
    for name in ("0000", "0002", "0010", "12345", "best", "002", "00x0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text("{}")
    assert trial_numbers(tmp_path, "result.json") == [0, 2, 10, 12345]
    assert trial_numbers(tmp_path, "ask.json") == []
    assert [trial_name(number) for number in (0, 12, 12345)] == ["0000", "0012", "12345"]
    assert best_names(1) == ["best"]
    assert best_names(3) == ["best", "best-2", "best-3"]


def test_a_result_is_a_trial_of_optunas(project: SmallProject, tmp_path: Path) -> None:
    study = configure(project)
    asks = run(study, tmp_path / "study", 12, too_large)
    for ask in asks[:-1]:
        result = result_of(tmp_path / "study", ask.number)
        *refused, trial = frozen_trials(ask, result)
        assert [(entry.state, entry.params, entry.value) for entry in refused] == [
            (TrialState.PRUNED, entry.params, None) for entry in ask.refused
        ]
        assert trial.state.name == result.state
        assert trial.value == result.value
        assert trial.params == ask.params
        assert trial.intermediate_values == result.intermediate
        assert trial.user_attrs.get("reason") == result.reason
