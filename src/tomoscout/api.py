"""tomoscout from Python: what the workflow does, in a notebook or a script.

    from tomoscout.api import create_targets, evaluate, localize, segment, train

    config = {
        "projects": {"mydata": "/path/to/copick.json"},
        "tomograms": ["wbp@10.0"],
        "targets": {"picks": "data-portal/0"},
    }
    create_targets(config)
    trained = train(config, steps=2000, loss={"name": "Tversky", "alpha": 0.3, "beta": 0.7})
    trained.history[-1]["score"]
    segment(config)
    localize(config)
    evaluate(config)["mean"]

The files are those that the workflow writes, in the same places: what is made here, `snakemake` can go on with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tomoscout.data.inventory_refresh import refresh
from tomoscout.explore.records import Result, best_names, trial_folder
from tomoscout.machine.locks import alone_in
from tomoscout.options.config import Config, load_config, parse_config
from tomoscout.options.forms import read_entries
from tomoscout.plan.folds import check_folds, fold_name
from tomoscout.plan.paths import Results, batch_file, read_manifest
from tomoscout.plan.plan import Plan
from tomoscout.stages.compare_folds import run_compare_folds
from tomoscout.stages.own_loss import NamedLoss, own_loss

Configuration = Config | Mapping[str, Any] | str | Path


@dataclass(frozen=True)
class TrainedModel:
    """A model folder and how it came about.

    `history` holds a row per logged step: `step`, `loss`, `learning_rate`, and after a validation `score` (the one
    that chooses the weights) and the score of each class by name. `score`, `scores` and `thresholds` are those of the
    best validation, at `best_step`.
    """

    folder: Path
    history: list[dict[str, float]]
    best_step: int
    score: float
    scores: dict[str, float]
    thresholds: dict[str, float]


@dataclass(frozen=True)
class Explored:
    """A study: its folder, what came of each trial, and the folders of the best models, the best first."""

    folder: Path
    trials: list[Result]
    best: list[Path]


def create_targets(config: Configuration, results: Path | str = "results") -> dict[str, dict[str, Any]]:
    """Make the training targets of every annotated run: multilabel segmentations in the projects' overlays.

    Args:
        config: options by section as in config/config.yaml, or the path of such a file.
        results: folder of the results.

    Returns:
        Per run (`project/run`) what was written: labels, voxels per class, picks used, outside and overlapping.

    Raises:
        TomoscoutError: an option, a project or a file in it is at fault.
    """
    from tomoscout.plan.paths import read_manifest
    from tomoscout.stages.targets import run_targets

    plan = _plan(config, results)
    folder = plan.results.targets(plan.config.targets.name)
    for batch in sorted({record.batch for record in plan.ever_targeted}):
        run_targets(plan, batch, batch_file(folder, batch))
    return {record.key: read_manifest(folder, record) for record in plan.targeted}


def train(
    config: Configuration,
    results: Path | str = "results",
    *,
    fold: int | None = None,
    loss_name: str | None = None,
    **options: Any,
) -> TrainedModel:
    """Train a network on the targets; an interrupted training goes on from its checkpoint.

    The option `loss` may also be a loss of your own, a `torch.nn.Module` that returns one number for a batch:

        train(config, loss=torch.nn.CrossEntropyLoss(), loss_name="cross-entropy")
        train(config, loss=monai.losses.TverskyLoss(to_onehot_y=True, softmax=True), loss_name="monai-tversky")

    It is called with logits in float32 (batch, 1 + classes, z, y, x), background first, and labels in int64
    (batch, z, y, x). Labels are (batch, 1, z, y, x) where it, or a module in it, has `to_onehot_y` set; losses of MONAI
    that take one-hot labels need it. What the module computes cannot be seen from outside: `loss_name` stands for it.
    Another name trains anew, the same goes on from the checkpoint. It must not remember what it was called with, or a
    training that is taken up ends otherwise. Padding is shown to it as background that was found with certainty. With
    `augmentation.mixup` it is called crop by crop with the labels of both crops, and the values are blended. Of a
    network with deep supervision it sees every level. `foreground_weight` and `size_balance` have no effect on it.

    Args:
        config: options by section as in config/config.yaml, or the path of such a file.
        results: folder of the results; the model goes to `models/{train.name}` below it.
        fold: which fold of the split, in place of `split.fold`; the model's name then ends in `-fold-N`.
        loss_name: what a loss of your own is called in the fingerprint of the training.
        options: options of the section `train` in place of the configuration's, such as steps=2000.

    Raises:
        TomoscoutError: data is missing or unusable, or an option is wrong.
        tomoscout.learning.trainer.Interrupted: it was told to stop (Ctrl-C in a terminal); the checkpoint is written.
    """
    loss = own_loss(options, loss_name)
    return _train(_plan(config, results, options), fold, loss)


def cross_validate(
    config: Configuration, results: Path | str = "results", *, loss_name: str | None = None, **options: Any
) -> list[TrainedModel]:
    """Train a model for every fold, one after the other, and write the table of their scores to
    `cross_validation/{train.name}.csv`. Arguments as of `train`; `split.folds` or `split.leave_one_out` must be set.

    Raises:
        TomoscoutError: as `train`, or there are no folds.
    """
    loss = own_loss(options, loss_name)
    plan = _plan(config, results, options)
    check_folds(plan.config.split)
    models = [_train(plan, fold, loss) for fold in range(len(plan.split.folds))]
    run_compare_folds([model.folder for model in models], plan.results.compared_folds(plan.config.train.name))
    return models


def explore(config: Configuration, results: Path | str = "results", **options: Any) -> Explored:
    """Run the trials of an exploration, one after the other; those that are done already stay as they are.
    Arguments as of `train`; the section `explore` says what is searched.

    Raises:
        TomoscoutError: as `train`, or the search space is at fault, or too few trials were completed.
    """
    from tomoscout.explore.summary import run_summary as summarise
    from tomoscout.stages.explore import start_study, study_of, suggest_trial, train_trial

    plan = _plan(config, results, options)
    settings = plan.config
    folder = plan.results.study(study_of(plan).name)
    start_study(plan, folder)
    trials, top = settings.explore.trials, settings.explore.top
    found = []
    for number in range(trials):
        suggest_trial(plan, folder, number)
        with alone_in(trial_folder(folder, number)):
            found.append(train_trial(plan, folder, number))
    summarise(folder, trials, top, settings.report.title, type(settings.train))
    return Explored(folder, found, [folder / name for name in best_names(top)])


def segment(
    config: Configuration, results: Path | str = "results", *, models: Sequence[Path | str] | None = None
) -> dict[str, dict[str, Any]]:
    """Apply a model, or several as an ensemble, to every run that `segment.runs` stands for: class probabilities and
    labels in the projects' overlays. Runs that were done with the same model stay as they are.

    Args:
        config: options by section as in config/config.yaml, or the path of such a file.
        results: folder of the results.
        models: model folders; by default those that the workflow applies, as `segment.models` says. Of octopi's models
            among those, folders are made first, where there are none yet.

    Returns:
        Per run (`project/run`) what was written.

    Raises:
        TomoscoutError: a model or a tomogram is missing or cannot be used.
    """
    from tomoscout.stages.segment import run_segment

    plan = _plan(config, results)
    folder = plan.results.segment(plan.config.session)
    return _in_batches(plan, folder, partial(run_segment, plan, _models(plan, models)))


def localize(
    config: Configuration, results: Path | str = "results", *, models: Sequence[Path | str] | None = None
) -> dict[str, dict[str, Any]]:
    """Turn the class probabilities of every segmented run into scored picks in the projects' overlays; probabilities
    are then removed, unless `segment.keep_probabilities` is set. Arguments as of `segment`.

    Returns:
        Per run (`project/run`) what was written: by object the source of the picks and how many there are.

    Raises:
        TomoscoutError: a run is not segmented, or with another model.
    """
    from tomoscout.stages.localize import run_localize

    plan = _plan(config, results)
    segmented, folder = plan.results.segment(plan.config.session), plan.results.localize(plan.config.session)
    return _in_batches(plan, folder, partial(run_localize, plan, _models(plan, models), segmented))


def evaluate(config: Configuration, results: Path | str = "results") -> dict[str, Any]:
    """Score the picks of the runs that `evaluate.runs` stands for; prints the table.

    Args:
        config: options by section as in config/config.yaml, or the path of such a file.
        results: folder of the results; scores go to `evaluate/` below it.

    Returns:
        The content of scores.json: `objects`, `runs`, and what they were scored with.

    Raises:
        TomoscoutError: a run is not localised, or there is nothing to score picks by.
    """
    from tomoscout.stages.evaluate import run_evaluate
    from tomoscout.tasks.picking.score_tables import read_scores

    plan = _plan(config, results)
    folder = plan.results.evaluate(plan.config.session)
    run_evaluate(plan, plan.results.localize(plan.config.session), folder)
    return read_scores(folder)


def _in_batches(plan: Plan, folder: Path, run: Callable[[int, Path], None]) -> dict[str, dict[str, Any]]:
    """Run a stage for all batches of segmented runs. Returns the manifests, by run, that it wrote into the folder."""
    for batch in sorted({record.batch for record in plan.segmented}):
        run(batch, batch_file(folder, batch))
    return {record.key: read_manifest(folder, record) for record in plan.segmented}


def _models(plan: Plan, models: Sequence[Path | str] | None) -> list[Path]:
    """The folders of the models that are applied, those of octopi's models made where there are none yet."""
    if models is not None:
        return [Path(folder) for folder in models]
    from tomoscout.stages.applied_models import applied_models, imported_files, imported_models

    for name, source in imported_models(plan.config).items():
        if not (plan.results.model(name) / "model.yaml").exists():
            from tomoscout.stages.import_model import run_import_model

            run_import_model(plan, imported_files(source)[0], plan.results.model(name))
    return applied_models(plan)


def _plan(config: Configuration, results: Path | str, options: Mapping[str, Any] | None = None) -> Plan:
    if isinstance(config, str | Path):
        settings = load_config(Path(config))
    elif isinstance(config, Config):
        settings = config
    else:
        settings = parse_config(dict(config), "config")
    if options:
        values = settings.model_dump(mode="json", by_alias=True)
        settings = parse_config(values | {"train": values["train"] | dict(options)}, "config")
    folder = Path(results)
    return Plan(settings, refresh(Results(folder).inventory, settings.projects, settings.runs_per_job), folder)


def _train(plan: Plan, fold: int | None, loss: NamedLoss | None) -> TrainedModel:
    # PyTorch takes seconds to import, which creating targets need not wait for.
    from tomoscout.stages.train import run_train

    folder = plan.results.model(fold_name(plan.config.train.name, fold))
    with alone_in(folder):
        outcome = run_train(plan, folder, fold, loss=loss)
    entries = {"best_step": int, "score": float, "scores": dict, "thresholds": dict}
    found = read_entries(folder / "results.json", "the results of a training", **entries)
    return TrainedModel(
        folder,
        outcome.progression.history,
        found["best_step"],
        found["score"],
        found["scores"],
        found["thresholds"],
    )
