"""Trials: real trainings whose results go back to the study, whatever happens to them; and what comes of a study."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from support.project import error_of, succeeded, tomoscout
from support.training import SETTINGS, Workspace, trained
from tomoscout.cli import main
from tomoscout.explore.records import Ask, Result, State, trial_folder, trial_name
from tomoscout.explore.study import Study
from tomoscout.explore.summary import MODEL_FILES, format_best, ranked, run_summary
from tomoscout.explore.trial import _Judge, _Pruned, give_up
from tomoscout.learning.progression import Progression
from tomoscout.learning.trainer import EXIT_INTERRUPTED
from tomoscout.machine.errors import TomoscoutError
from tomoscout.machine.files import digest_folder, read_json
from tomoscout.machine.locks import owner_of
from tomoscout.plan.plan import Plan
from tomoscout.stages.explore import Picking, start_study, study_of, suggest_trial, train_trial
from tomoscout.tasks.picking.model import PickingModel
from tomoscout.tasks.picking.options import Train
from tomoscout.tracking.options import Tracking
from tomoscout.tracking.store import sync_all

STEPS, VALIDATIONS = 12, 4
TRAIN = {name: SETTINGS["train"][name] for name in ("device", "seed", "checkpoint_seconds")} | {"steps": STEPS}
EXPLORE: dict[str, Any] = {
    "window": 2,
    "startup_trials": 2,
    "baseline": False,
    "pruner_startup_trials": 1,
    "pruner_warmup": 0,
    "validations": VALIDATIONS,
    "threads": 1,
    "networks": {
        "UNet": {"width": {"choices": [2, 4]}, "levels": 2, "bottleneck_levels": 0, "residual_units": 1, "dropout": 0.1}
    },
    # Spheres as the targets have them: those of another size are drawn from the picks, and need no target.
    "space": {"patch": 16, "batch_size": 2, "learning_rate": {"choices": [1e-6, 3e-2]}, "radius_scale": None},
}
DIVERGING: dict[str, Any] = {
    "pruner": "none",
    "validations": 8,
    "networks": {"UNet": {"width": 2, "levels": 2, "bottleneck_levels": 0, "residual_units": 1, "dropout": 0.0}},
    "space": {
        "patch": 16,
        "batch_size": 2,
        "loss.name": "Tversky",
        "learning_rate": 1e4,
        **dict.fromkeys(("loss.alpha", "loss.beta", "weight_decay", "background_fraction")),
        **dict.fromkeys(f"augmentation.{name}" for name in ("probability", "rotate", "tilt", "noise")),
    },
}
"""Its loss is lost between the first and the second validation."""


@dataclass(frozen=True)
class Made:
    """A study in a workspace."""

    workspace: Workspace
    folder: Path

    @classmethod
    def start(cls, workspace: Workspace, explore: dict[str, Any] | None = None, **sections: Any) -> Made:
        values = {"train": {**TRAIN, "network": {}, "validate_every": None, "patch": [16, 16, 16]}, **sections}
        config = workspace.configure(explore={**EXPLORE, **(explore or {})}, **values)
        study = study_of(Plan(config, workspace.records()))
        folder = workspace.folder / "results/explore" / study.name
        start_study(Picking(Plan(config, workspace.records())), folder)
        return cls(workspace, folder)

    def suggest(self, number: int) -> Ask:
        return suggest_trial(Picking(Plan(self.config, self.workspace.records())), self.folder, number)

    def run(self, number: int) -> Result:
        return train_trial(Picking(Plan(self.config, self.workspace.records())), self.folder, number)

    @property
    def config(self) -> Any:
        from tomoscout.options.config import load_config

        return load_config(self.workspace.config_path)

    @property
    def options(self) -> tuple[str | Path, ...]:
        """Of the commands."""
        workspace = self.workspace
        return ("--config", workspace.config_path, "--inventory", workspace.inventory_path, "--study", self.folder)

    def trial(self, number: int) -> Path:
        return trial_folder(self.folder, number)

    def file(self, number: int) -> Path:
        return self.trial(number) / "result.json"

    def results(self, count: int) -> list[Result]:
        return [Result.read(self.trial(number)) for number in range(count)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With targets; to be copied."""
    return trained(tmp_path_factory.getbasetemp())


TRIALS = 6


@pytest.fixture(scope="module")
def finished(base: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A study that was not disturbed; not to be changed."""
    made = Made.start(base.copy(tmp_path_factory.mktemp("finished") / "workspace"))
    for number in range(TRIALS):
        made.suggest(number)
        made.run(number)
    return made


@pytest.fixture
def workspace(base: Workspace, tmp_path: Path) -> Workspace:
    return base.copy(tmp_path / "workspace")


@pytest.fixture
def made(workspace: Workspace) -> Made:
    """The same study without any trial."""
    return Made.start(workspace)


def is_checkpointed(folder: Path, count: int) -> Callable[[], bool]:
    """Tells once so many checkpoints have been seen in a folder."""
    seen = set[int]()

    def check() -> bool:
        # Between the last and the new one there is none for a moment.
        with contextlib.suppress(FileNotFoundError):
            seen.add((folder / "checkpoint.pt").stat().st_mtime_ns)
        return len(seen) >= count

    return check


FAILED = 70


def fork(action: Callable[[], Any]) -> int:
    """Begin it in a process of its own."""
    process = os.fork()
    if not process:
        code = FAILED
        try:
            action()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 71
        finally:
            os._exit(code)
    return process


def in_child(action: Callable[[], Any], number: signal.Signals, when: Callable[[], bool]) -> int:
    """Run in a process that is sent a signal in the midst of it; returns its exit status, negative for a signal."""
    process = fork(action)
    while not when():
        assert os.waitpid(process, os.WNOHANG)[0] == 0, "ended before it was interrupted"
        time.sleep(0.001)
    os.kill(process, number)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def interrupted(made: Made, trial: int, counts: Sequence[int]) -> None:
    """A trial that is killed after so many checkpoints, again and again."""
    for count in counts:
        when = is_checkpointed(made.trial(trial), count)
        assert in_child(lambda: made.run(trial), signal.SIGKILL, when) == -signal.SIGKILL
        assert not made.file(trial).exists()
        assert (made.trial(trial) / "checkpoint.pt").exists()


# What a trial is


def test_a_result_is_what_the_training_found(finished: Made) -> None:
    results = finished.results(TRIALS)
    complete = [result for result in results if result.state == "COMPLETE"]
    assert complete
    for result in complete:
        folder = finished.trial(result.number)
        found = read_json(folder / "results.json")
        with (folder / "metrics.csv").open(newline="") as handle:
            scores = [float(row["score"]) for row in csv.DictReader(handle) if row["score"]]
        assert result.value == found["score"] == max(scores)
        assert result.intermediate == dict(enumerate(scores, 1))
        assert len(scores) == VALIDATIONS
        assert result.scores == found["scores"]
        assert result.reason is None
        assert PickingModel.read(folder).name == f"{finished.folder.name}-{trial_name(result.number)}"
    for result in results:
        ask = Ask.read(finished.trial(result.number))
        assert (result.number, result.params, result.distributions) == (ask.number, ask.params, ask.distributions)
        assert not list(finished.trial(result.number).glob("*checkpoint*"))


def test_a_trial_is_the_ordinary_training_of_its_options(finished: Made, tmp_path: Path) -> None:
    from tomoscout.stages.train import run_train

    number = ranked(finished.results(TRIALS))[0].number
    ask = Ask.read(finished.trial(number))
    options = Train.model_validate(
        {**ask.train, "device": "cpu", "name": f"{finished.folder.name}-{trial_name(number)}"}
    )
    config = finished.config.model_copy(update={"train": options})
    run_train(Plan(config, finished.workspace.records()), tmp_path / "model", threads=1)
    for name in MODEL_FILES:
        assert (tmp_path / "model" / name).read_bytes() == (finished.trial(number) / name).read_bytes(), name


def test_a_study_made_again_elsewhere_is_the_same(finished: Made, made: Made) -> None:
    assert made.folder.name == finished.folder.name
    for number in range(3):
        made.suggest(number)
        made.run(number)
        for name in ("ask.json", "result.json"):
            assert (made.trial(number) / name).read_bytes() == (finished.trial(number) / name).read_bytes()


@pytest.mark.parametrize("counts", [[1, 4, 2], [9]])
def test_killed_at_any_moment_a_trial_ends_as_undisturbed(finished: Made, made: Made, counts: list[int]) -> None:
    number = ranked(finished.results(2))[0].number
    for trial in range(number + 1):
        shutil.copytree(finished.trial(trial), made.trial(trial))
    shutil.rmtree(made.trial(number))
    made.suggest(number)
    interrupted(made, number, counts)
    made.run(number)
    for name in (*MODEL_FILES, "result.json"):
        assert (made.trial(number) / name).read_bytes() == (finished.trial(number) / name).read_bytes(), name


def test_told_to_stop_a_trial_writes_its_checkpoint(finished: Made, made: Made) -> None:
    made.suggest(0)
    command = [str(part) for part in ("trial", "run", "0", *made.options)]
    code = in_child(lambda: main(command), signal.SIGTERM, is_checkpointed(made.trial(0), 3))
    assert code == EXIT_INTERRUPTED
    assert not made.file(0).exists()
    said = succeeded(tomoscout("trial", "run", "0", *made.options)).stderr
    assert "resumed at step" in said
    assert made.file(0).read_bytes() == finished.file(0).read_bytes()


# Done once


def test_what_is_done_is_not_trained_again(finished: Made, made: Made) -> None:
    shutil.copytree(finished.trial(0), made.trial(0))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in made.trial(0).iterdir()}
    # Not even the data is needed any more.
    shutil.rmtree(made.workspace.folder / "phantom")
    result = succeeded(tomoscout("trial", "run", "0", *made.options))
    assert "training search" not in result.stderr
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in made.trial(0).iterdir()} == before


def test_two_at_once_do_it_once(finished: Made, made: Made) -> None:
    """As after a killed Snakemake whose jobs go on, and the same command given again."""
    made.suggest(0)
    command = [sys.executable, "-m", "tomoscout", "trial", "run", "0", *map(str, made.options)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while owner_of(made.trial(0)) is None:
        assert first.poll() is None
        time.sleep(0.001)
    first.send_signal(signal.SIGSTOP)
    second = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert second.stderr
    assert f"process {first.pid} on " in second.stderr.readline()
    first.send_signal(signal.SIGCONT)
    assert "training search" not in second.communicate(timeout=120)[1]
    assert [first.wait(), second.returncode] == [0, 0]
    assert made.file(0).read_bytes() == finished.file(0).read_bytes()


def test_what_is_asked_stays(finished: Made, made: Made) -> None:
    shutil.copytree(finished.trial(0), made.trial(0))
    path = made.trial(0) / "ask.json"
    before = path.stat().st_mtime_ns
    assert made.suggest(0) == Ask.read(finished.trial(0))
    assert path.stat().st_mtime_ns == before


def test_the_first_are_proposed_together_and_each_as_it_would_be_alone(finished: Made, made: Made) -> None:
    made.suggest(0)
    asked = sorted(path.parent.name for path in made.folder.glob("*/ask.json"))
    assert asked == [trial_name(number) for number in range(EXPLORE["window"])]
    (made.trial(1) / "ask.json").unlink()
    assert made.suggest(1) == Ask.read(finished.trial(1))
    # The third is told the result of the first.
    assert not (made.trial(2) / "ask.json").exists()


def test_no_more_are_proposed_than_are_wanted(workspace: Workspace) -> None:
    made = Made.start(workspace, {"window": 8, "trials": 3})
    made.suggest(0)
    assert len(list(made.folder.glob("*/ask.json"))) == 3


def test_a_trial_can_be_given_up(finished: Made, made: Made) -> None:
    ask = made.suggest(0)
    interrupted(made, 0, [3])
    # As of tomograms that did not fit into memory, and of a checkpoint that was being written.
    volume = made.trial(0) / "volumes/phantom-000.tomogram"
    volume.parent.mkdir()
    volume.write_bytes(bytes(1000))
    (made.trial(0) / ".checkpoint.pt.tmp").write_bytes(bytes(1000))
    result = succeeded(tomoscout("trial", "give-up", "0", "--study", made.folder))
    assert "trial 0000 is given up" in result.stderr
    kept = Result.read(made.trial(0))
    assert kept == Result(0, ask.params, ask.distributions, "PRUNED", None, {}, {}, "given up")
    assert not list(made.trial(0).glob("*checkpoint*"))
    assert not volume.parent.exists()
    # It stays so, and the study goes on.
    assert made.run(0) == kept
    assert not (made.trial(0) / "model.yaml").exists()
    for number in (1, 2):
        assert made.suggest(number).number == number


def test_a_trial_given_up_while_it_runs_ends_after_its_next_validation(made: Made) -> None:
    ask = made.suggest(0)
    command = [str(part) for part in ("trial", "run", "0", *made.options)]
    process = fork(lambda: main(command))
    is_under_way = is_checkpointed(made.trial(0), 2)
    while not is_under_way():
        time.sleep(0.001)
    os.kill(process, signal.SIGSTOP)
    said = succeeded(tomoscout("trial", "give-up", "0", "--study", made.folder)).stderr
    assert said.endswith("trial 0000 is given up; it ends after its next validation, or once its job is ended\n")
    assert not made.file(0).exists()
    os.kill(process, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    kept = Result.read(made.trial(0))
    assert kept == Result(0, ask.params, ask.distributions, "PRUNED", None, {}, {}, "given up")
    assert not (made.trial(0) / "model.yaml").exists()
    assert not list(made.trial(0).glob("*checkpoint*"))


def test_what_is_done_cannot_be_given_up(finished: Made, made: Made) -> None:
    shutil.copytree(finished.trial(0), made.trial(0))
    before = digest_folder(made.folder)
    expected = f"{made.file(0)}: trial 0000 is done; its result stays"
    assert error_of(tomoscout("trial", "give-up", "0", "--study", made.folder)) == expected
    with pytest.raises(TomoscoutError, match=r"0007/ask\.json: no such file"):
        give_up(made.folder, 7)
    assert digest_folder(made.folder) == before


# Failures: its own, and the machine's


def test_a_training_that_diverges_is_pruned(workspace: Workspace) -> None:
    made = Made.start(workspace, DIVERGING, train={**TRAIN, "network": {}, "validate_every": None, "steps": 24})
    made.suggest(0)
    said = succeeded(tomoscout("trial", "run", "0", *made.options)).stderr
    result = Result.read(made.trial(0))
    assert result.state == "PRUNED"
    assert result.reason is not None
    assert re.match(r"training: the (loss|norm of the weights) became (nan|inf) before step ", result.reason)
    assert said.splitlines()[-1] == f"pruned: {result.reason}"
    assert len(result.intermediate) == 1
    assert result.value == result.intermediate[1]
    assert result.scores == {}
    assert not list(made.trial(0).glob("*checkpoint*"))
    assert not (made.trial(0) / "model.yaml").exists()
    # Killed in the midst of it, it ends the same.
    content = made.file(0).read_bytes()
    for count in (1, 3):
        made.file(0).unlink()
        interrupted(made, 0, [count])
        made.run(0)
        assert made.file(0).read_bytes() == content


def test_a_training_that_diverges_at_once_is_pruned_without_a_score(workspace: Workspace) -> None:
    made = Made.start(workspace, {**DIVERGING, "space": {**DIVERGING["space"], "learning_rate": 1e30}})
    made.suggest(0)
    result = made.run(0)
    assert (result.state, result.value, result.intermediate) == ("PRUNED", None, {})
    # The next proposals can be made from it.
    made.suggest(1)
    made.run(1)
    made.suggest(2)


@pytest.mark.parametrize("lost", ["tomogram", "target"])
def test_missing_data_is_not_the_trials_fault(made: Made, lost: str) -> None:
    run = made.workspace.folder / "phantom/ExperimentRuns/phantom-000"
    runs = [run, *(made.workspace.folder / "phantom").glob("**/ExperimentRuns/phantom-000")]
    pattern = "VoxelSpacing20.000/wbp.zarr" if lost == "tomogram" else "Segmentations/*targets*.zarr"
    found = {path for run in runs for path in run.glob(pattern)}
    assert len(found) == 1
    made.suggest(0)
    records = made.workspace.records()
    for path in found:
        path.rename(path.with_name("lost"))
    with pytest.raises(TomoscoutError, match="phantom-000") as caught:
        train_trial(Picking(Plan(made.config, records)), made.folder, 0)
    assert "\n" not in str(caught.value)
    assert error_of(tomoscout("trial", "run", "0", *made.options)) == str(caught.value)
    assert not made.file(0).exists()
    # Once it is back, the trial can be made.
    for path in found:
        path.with_name("lost").rename(path)
    assert made.run(0).number == 0


def test_too_little_main_memory_is_not_the_trials_fault(made: Made) -> None:
    ask = made.suggest(0)
    replace(ask, train={**ask.train, "memory_gb": 0.05}).write(made.trial(0) / "ask.json")
    with pytest.raises(TomoscoutError, match="memory: main memory would have to hold "):
        made.run(0)
    assert not made.file(0).exists()


def test_a_configuration_of_another_study_is_refused(made: Made) -> None:
    made.suggest(0)
    made.workspace.configure(explore={**EXPLORE, "seed": 5}, train=TRAIN)
    message = error_of(tomoscout("trial", "run", "0", *made.options))
    assert message.startswith(f"{made.folder}: not the study of these settings and data, which is search-")
    assert not made.file(0).exists()


def test_a_trial_that_was_not_asked_is_named(made: Made) -> None:
    assert error_of(tomoscout("trial", "run", "3", *made.options)) == f"{made.trial(3) / 'ask.json'}: no such file"


# Pruning, as Optuna's own pruners do it


def curve_of(number: int, planned: int) -> list[float]:
    generator = np.random.default_rng(number)
    return np.round(np.cumsum(generator.random(planned)) * generator.random() / planned, 3).tolist()


Curves = list[tuple[bool, list[float]]]


def ordinary_study(study: Study, pruner: optuna.pruners.BasePruner, trials: int, planned: int) -> Curves:
    """Whether trials are complete, and their curves, in a study of Optuna's that runs one after the other."""
    ordinary = optuna.create_study(study_name=study.name, direction="maximize", pruner=pruner)
    seen = []
    for number in range(trials):
        trial, reported = ordinary.ask(), []
        for step, score in enumerate(curve_of(number, planned), 1):
            reported.append(score)
            trial.report(score, step)
            if trial.should_prune() and step < planned:
                ordinary.tell(trial, state=TrialState.PRUNED)
                seen.append((False, reported))
                break
        else:
            ordinary.tell(trial, max(reported))
            seen.append((True, reported))
    return seen


@pytest.mark.parametrize(
    ("settings", "pruner"),
    [
        (
            {"pruner": "median", "pruner_startup_trials": 3, "pruner_warmup": 2},
            optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=3),
        ),
        (
            {"pruner": "hyperband", "hyperband_reduction": 2},
            optuna.pruners.HyperbandPruner(min_resource=1, max_resource=8, reduction_factor=2),
        ),
        ({"pruner": "none"}, optuna.pruners.NopPruner()),
    ],
)
def test_trials_are_pruned_as_optuna_would(
    workspace: Workspace, settings: dict[str, Any], pruner: optuna.pruners.BasePruner
) -> None:
    """Curves that are made up, told to what watches over a training; the study and its files are real."""
    planned, trials = 8, 30
    fixed = {"UNet": {"width": 4, "levels": 2, "bottleneck_levels": 0, "residual_units": 1, "dropout": 0.1}}
    made = Made.start(
        workspace, {**settings, "window": 1, "validations": planned, "sampler": "random", "networks": fixed}
    )
    study = Study.read(made.folder, Train)
    seen = []
    for number in range(trials):
        ask = Ask(number, {}, {}, {"steps": 8, "validate_every": 1})
        ask.write(made.trial(number) / "ask.json")
        curve = curve_of(number, planned)
        judge, again = _Judge(study, made.folder, ask), _Judge(study, made.folder, ask)
        complete = is_complete(judge, curve, chunk=1)
        # Taken up from a checkpoint, several validations come at once.
        assert is_complete(again, curve, chunk=3) == complete
        assert again.scores == judge.scores
        assert again.attributes == judge.attributes
        points, value = dict(enumerate(judge.scores, 1)), max(judge.scores)
        state: State = "COMPLETE" if complete else "PRUNED"
        Result(number, {}, {}, state, value, points, {}, None, judge.attributes).write(made.file(number))
        seen.append((complete, judge.scores))
    assert seen == ordinary_study(study, pruner, trials, planned)
    pruned = sum(not complete for complete, _ in seen)
    assert (pruned > 5) == (settings["pruner"] != "none")


def is_complete(judge: _Judge, curve: Sequence[float], chunk: int) -> bool:
    """Whether a training with these scores, so many at a time, comes to its end."""
    history: list[dict[str, float]] = []
    for start in range(0, len(curve), chunk):
        scores = curve[start : start + chunk]
        history += [{"step": start + n + 1, "score": score} for n, score in enumerate(scores)]
        try:
            judge(Progression(history=history))
        except _Pruned:
            return False
    return True


def test_only_what_is_told_prunes(workspace: Workspace) -> None:
    """A trial knows the results that its proposal knew: not those of trials that ran beside it."""
    made = Made.start(workspace, {"window": 2, "validations": 4})
    study = Study.read(made.folder, Train)
    for number, score in enumerate((0.2, 0.9)):
        Ask(number, {}, {}, {"steps": 4, "validate_every": 1}).write(made.trial(number) / "ask.json")
        curve = dict.fromkeys(range(1, 5), score)
        Result(number, {}, {}, "COMPLETE", score, curve, {}).write(made.file(number))
    ask = Ask(2, {}, {}, {"steps": 4, "validate_every": 1})
    assert is_complete(_Judge(study, made.folder, ask), [0.5] * 4, 1)
    assert not is_complete(_Judge(study, made.folder, ask), [0.1] * 4, 1)


def test_a_real_training_is_pruned(finished: Made) -> None:
    """Those that learn nothing end when better ones are known."""
    results = finished.results(TRIALS)
    pruned = [result for result in results if result.state == "PRUNED"]
    assert pruned
    for result in pruned:
        count = len(result.intermediate)
        assert result.reason == f"pruned at validation {count}: median"
        assert count < VALIDATIONS
        assert result.value == max(result.intermediate.values())
        assert result.scores == {}
        # The median of those that were known, by hand.
        known = [
            other.intermediate[count] for other in results[: max(0, result.number - 1)] if other.state == "COMPLETE"
        ]
        assert result.value < np.median(known)
        assert not (finished.trial(result.number) / "model.yaml").exists()
    for result in results:
        if result.state == "COMPLETE":
            for count in range(1, VALIDATIONS):
                told = [
                    other.intermediate[count]
                    for other in results[: max(0, result.number - 1)]
                    if other.state == "COMPLETE"
                ]
                best = max(result.intermediate[step] for step in range(1, count + 1))
                assert not told or best >= np.median(told)


# What comes of a study


@pytest.fixture
def summarised(finished: Made, tmp_path: Path) -> Iterator[Made]:
    copy = tmp_path / "results/explore" / finished.folder.name
    shutil.copytree(finished.folder, copy)
    yield Made(finished.workspace, copy)


def test_the_best_are_kept_as_models(summarised: Made) -> None:
    results = summarised.results(TRIALS)
    complete = sorted(
        (result for result in results if result.state == "COMPLETE"), key=lambda r: (-(r.value or 0), r.number)
    )
    assert len(complete) > 2
    best = run_summary(summarised.folder, TRIALS, 2, "Title of it", Train)
    assert best == complete[:2]
    for name, result in zip(("best", "best-2"), best, strict=True):
        folder = summarised.folder / name
        assert {path.name for path in folder.iterdir()} == {*MODEL_FILES, "train.yaml"}
        for file in MODEL_FILES:
            assert (folder / file).read_bytes() == (summarised.trial(result.number) / file).read_bytes()
        assert PickingModel.read(folder).made_from["score"] == result.value
    assert "Title of it" in (summarised.folder / "report.html").read_text()
    before = {path: path.read_bytes() for path in summarised.folder.rglob("*") if path.is_file()}
    run_summary(summarised.folder, TRIALS, 2, "Title of it", Train)
    for path, content in before.items():
        assert path.name == "journal.log" or path.read_bytes() == content, path


def test_the_recipe_of_the_best_trains_the_same_longer(summarised: Made, workspace: Workspace) -> None:
    import yaml
    from snakemake.utils import update_config

    [best] = run_summary(summarised.folder, TRIALS, 1, "", Train)
    # As Snakemake merges two configuration files: here with options of another family.
    values = {"train": {**TRAIN, "network": {"family": "SegResNet", "init_filters": 8, "dropout": 0.3}}}
    recipe = yaml.safe_load((summarised.folder / "best/train.yaml").read_text())["train"]
    update_config(values, {"train": recipe})
    options = workspace.configure(train={**values["train"], "steps": 99}).train
    asked = Train.model_validate(Ask.read(summarised.trial(best.number)).train)
    same = {"steps", "validate_every", "name", "device", "checkpoint_seconds"}
    assert options.model_dump(exclude=same) == asked.model_dump(exclude=same)
    assert (options.steps, recipe["steps"]) == (99, asked.steps)


def test_of_equals_the_first_is_the_best() -> None:
    values = [0.5, 0.9, None, 0.9, 0.7]
    results = [
        Result(number, {}, {}, "PRUNED" if value is None else "COMPLETE", value, {}, {})
        for number, value in enumerate(values)
    ]
    assert [result.number for result in ranked(results)] == [1, 3, 4, 0]
    assert [result.number for result in ranked(results[::-1])] == [1, 3, 4, 0]


def test_a_table_holds_every_trial(summarised: Made) -> None:
    run_summary(summarised.folder, TRIALS, 1, "", Train)
    with (summarised.folder / "trials.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    for row, result in zip(rows, summarised.results(TRIALS), strict=True):
        assert row["trial"] == trial_name(result.number)
        assert row["state"] == result.state
        assert float(row["value"]) == result.value
        assert int(row["validations"]) == len(result.intermediate)
        assert row["reason"] == (result.reason or "")
        searched = {name for name, _ in Study.read(summarised.folder, Train).space.searched}
        for name in searched:
            assert row[name] == (str(result.params[name]) if name in result.params else "")


def test_the_journal_is_a_study_of_optunas(summarised: Made) -> None:
    for _ in range(2):
        run_summary(summarised.folder, TRIALS, 1, "", Train)
    journal = JournalStorage(JournalFileBackend(str(summarised.folder / "journal.log")))
    loaded = optuna.load_study(study_name=summarised.folder.name, storage=journal)
    results = summarised.results(TRIALS)
    assert loaded.direction == optuna.study.StudyDirection.MAXIMIZE
    assert [(trial.state.name, trial.value, trial.params, trial.intermediate_values) for trial in loaded.trials] == [
        (result.state, result.value, result.params, result.intermediate) for result in results
    ]
    assert loaded.best_trial.user_attrs["trial"] == trial_name(ranked(results)[0].number)
    assert {path.name for path in summarised.folder.iterdir() if path.name.startswith(".")} == set()


def told_of(results: Sequence[Result]) -> str:
    """The reasons, the most frequent first."""
    reasons = [result.reason for result in results if result.reason]
    counts = sorted(set(reasons), key=lambda reason: (-reasons.count(reason), reasons.index(reason)))
    return "; ".join(f"{one} ({reasons.count(one)}×)" if reasons.count(one) > 1 else one for one in counts)


def test_too_few_complete_trials_are_an_error(summarised: Made) -> None:
    complete = len(ranked(summarised.results(TRIALS)))
    arguments = ("--trials", str(TRIALS), "--top", str(complete + 1))
    message = error_of(tomoscout("explore", "summarise", summarised.folder, *arguments))
    assert message == (
        f"{summarised.folder}: {complete} of {TRIALS} trials were completed, {complete + 1} are wanted (explore.top); "
        f"the others: {told_of(summarised.results(TRIALS))}"
    )
    assert not (summarised.folder / "best").exists()


def test_a_missing_trial_is_named_by_the_summary(summarised: Made) -> None:
    summarised.file(2).unlink()
    with pytest.raises(TomoscoutError, match=r"0002/result\.json: no such file"):
        run_summary(summarised.folder, TRIALS, 1, "", Train)


def test_the_command_prints_the_best(summarised: Made) -> None:
    printed = succeeded(
        tomoscout("explore", "summarise", summarised.folder, "--trials", str(TRIALS), "--top", "2")
    ).stdout
    best = ranked(summarised.results(TRIALS))[:2]
    assert printed == format_best(best)
    for place, (line, result) in enumerate(zip(printed.splitlines(), best, strict=True), 1):
        assert line.startswith(f"{place}. trial {trial_name(result.number)}: {result.value:.4f}  ")


# MLflow


def test_every_trial_is_a_run_of_mlflow(summarised: Made, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    folders = [summarised.trial(number) for number in range(TRIALS)]
    # Ended before its first validation, a trial has nothing to record.
    shutil.copytree(folders[0], summarised.trial(TRIALS))
    for path in summarised.trial(TRIALS).iterdir():
        if path.name not in ("ask.json", "result.json"):
            path.unlink()
    folders.append(summarised.trial(TRIALS))
    runs = sync_all(folders, Tracking(experiment="search"), uri)
    assert list(runs) == [trial_name(number) for number in range(TRIALS)]
    assert len(set(runs.values())) == TRIALS
    assert sync_all(folders, Tracking(experiment="search"), uri) == runs
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("search")
    assert experiment is not None
    assert {run.info.run_id for run in client.search_runs([experiment.experiment_id])} == set(runs.values())
    for result in summarised.results(TRIALS):
        run = client.get_run(runs[trial_name(result.number)])
        assert run.info.status == "FINISHED"
        assert run.data.tags["tomoscout.state"] == result.state
        # A thousand trials would be stored twice.
        kept = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert ("metrics.csv" in kept) == (result.state == "COMPLETE")
        assert "weights.safetensors" not in kept
        assert run.data.tags["tomoscout.study"] == summarised.folder.name
        assert run.data.tags["tomoscout.model"] == f"{summarised.folder.name}-{trial_name(result.number)}"
        scores = client.get_metric_history(run.info.run_id, "score")
        assert [point.value for point in scores] == list(result.intermediate.values())
        options = Train.model_validate(Ask.read(summarised.trial(result.number)).train)
        assert float(run.data.params["learning_rate"]) == options.learning_rate
