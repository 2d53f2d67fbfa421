"""The Python interface: the stages of the workflow as functions, for a notebook or a script.

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

The functions write the same files as the workflow, in the same places, so `snakemake` can continue from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tomoscout.data.inventory import RunRecord
from tomoscout.data.inventory_refresh import refresh
from tomoscout.explore.records import Result, best_names, trial_folder
from tomoscout.machine.files import read_json
from tomoscout.machine.locks import alone_in
from tomoscout.options.config import Config, load_config, parse_config
from tomoscout.options.forms import read_entries
from tomoscout.plan.folds import check_folds
from tomoscout.plan.members import Member
from tomoscout.plan.paths import Results, batch_file, read_manifest
from tomoscout.plan.plan import Plan
from tomoscout.stages.compare_folds import run_compare_folds
from tomoscout.stages.own_loss import NamedLoss, own_loss

Configuration = Config | Mapping[str, Any] | str | Path


@dataclass(frozen=True)
class TrainedModel:
    """A model folder and the history of its training.

    `history` holds a row per logged step: `step`, `loss`, `learning_rate`, and after a validation also `score`, which
    selects the best weights, and the score of each class by name. `score`, `scores` and `thresholds` are those of the
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
    """A study: its folder, the results of its trials, and the folders of the best models, best first."""

    folder: Path
    trials: list[Result]
    best: list[Path]


def create_targets(config: Configuration, results: Path | str = "results") -> dict[str, dict[str, Any]]:
    """Make the training targets of every annotated run: multilabel segmentations in the projects' overlays.

    Args:
        config: options by section as in config/config.yaml, or the path of such a file.
        results: folder of the results.

    Returns:
        Run (`project/run`) → its manifest: labels, voxels per class, and how many picks were used, lie outside of the
        tomogram, and overlap.

    Raises:
        TomoscoutError: an option is invalid, or a project or one of its files cannot be used.
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
    """Train a network on the targets; an interrupted training resumes from its checkpoint.

    The option `loss` may also be a loss of your own, a `torch.nn.Module` that returns one number for a batch:

        train(config, loss=torch.nn.CrossEntropyLoss(), loss_name="cross-entropy")
        train(config, loss=monai.losses.TverskyLoss(to_onehot_y=True, softmax=True), loss_name="monai-tversky")

    It is called with logits, float32 (batch, 1 + classes, z, y, x), background first, and labels, int64 (batch, z, y,
    x). If it, or a module in it, has `to_onehot_y` set, labels are (batch, 1, z, y, x), as MONAI's losses need them.

    The code of the loss is not part of the fingerprint of the training; `loss_name` represents it. With another name
    the training starts anew, with the same name it resumes from the checkpoint. The loss must not keep state between
    calls: checkpoints do not save it. Padding is passed to it as background predicted with certainty. With
    `augmentation.mixup` it is called for each crop, once with the labels of each of the two mixed crops, and the two
    values are averaged with their weights. With deep supervision it is called for every level. `foreground_weight` and
    `size_balance` have no effect on it.

    Args:
        config: options by section as in config/config.yaml, or the path of such a file.
        results: folder of the results; the model goes to `models/{train.name}` below it.
        fold: number of the fold, instead of `split.fold`; the model's name then ends in `-fold-N`.
        loss_name: the name of a loss of your own in the fingerprint of the training.
        options: options of the section `train` that replace those of the configuration, such as steps=2000.

    Raises:
        TomoscoutError: data is missing or unusable, or an option is wrong.
        tomoscout.learning.trainer.Interrupted: a signal (Ctrl-C in a terminal) stopped the training after its
            checkpoint was written.
    """
    loss = own_loss(options, loss_name)
    return _train(_plan(config, results, options), Member(fold), loss)


def cross_validate(
    config: Configuration, results: Path | str = "results", *, loss_name: str | None = None, **options: Any
) -> list[TrainedModel]:
    """Train a model for every fold, one after the other, and write the table of their scores to
    `cross_validation/{train.name}.csv`. The arguments are those of `train`; `split.folds` or `split.leave_one_out` must
    be set.

    Raises:
        TomoscoutError: as for `train`, or the split has no folds.
    """
    loss = own_loss(options, loss_name)
    plan = _plan(config, results, options)
    check_folds(plan.config.split)
    models = [_train(plan, Member(fold), loss) for fold in range(len(plan.split.folds))]
    run_compare_folds([model.folder for model in models], plan.results.compared_folds(plan.config.train.name))
    return models


def explore(config: Configuration, results: Path | str = "results", **options: Any) -> Explored:
    """Run the trials of an exploration one after the other; completed trials are kept. The arguments are those of
    `train`; the section `explore` sets the search space.

    Raises:
        TomoscoutError: as for `train`, or the search space is invalid, or too few trials were completed.
    """
    from tomoscout.explore.summary import run_summary as summarise
    from tomoscout.stages.explore import Picking, start_study, suggest_trial, train_trial

    plan = _plan(config, results, options)
    subject, settings = Picking(plan), plan.config
    folder = plan.results.study(subject.study().name)
    start_study(subject, folder)
    trials, top = settings.explore.trials, settings.explore.top
    found = []
    for number in range(trials):
        suggest_trial(subject, folder, number)
        with alone_in(trial_folder(folder, number)):
            found.append(train_trial(subject, folder, number))
    summarise(folder, trials, top, settings.report.title, type(settings.train))
    return Explored(folder, found, [folder / name for name in best_names(top)])


def segment(
    config: Configuration, results: Path | str = "results", *, models: Sequence[Path | str] | None = None
) -> dict[str, dict[str, Any]]:
    """Apply a model, or several as an ensemble, to every run selected by `segment.runs`; writes class probabilities and
    labels into the projects' overlays. Runs that are segmented with the same model already are kept.

    Args:
        config: options by section as in config/config.yaml, or the path of such a file.
        results: folder of the results.
        models: model folders. Default: those of `segment.models`; octopi models among them are imported first unless
            their model folders exist.

    Returns:
        Run (`project/run`) → its manifest.

    Raises:
        TomoscoutError: a model or a tomogram is missing or cannot be used.
    """
    from tomoscout.stages.segment import run_segment

    plan = _plan(config, results)
    folder = plan.results.segment(plan.config.session)
    return _in_batches(plan.segmented, folder, partial(run_segment, plan, _models(plan, models)))


def localize(
    config: Configuration, results: Path | str = "results", *, models: Sequence[Path | str] | None = None
) -> dict[str, dict[str, Any]]:
    """Turn the class probabilities of every segmented run into scored picks in the projects' overlays, or the labels of
    `localize.segmentation`, for which no model is read. The probabilities are then removed, unless
    `segment.keep_probabilities` is set. The arguments are those of `segment`.

    Returns:
        Run (`project/run`) → its manifest: for each object the source of its picks and their number.

    Raises:
        TomoscoutError: a run is not segmented, or was segmented with another model.
    """
    from tomoscout.stages.localize import run_localize

    plan = _plan(config, results)
    segmented, folder = plan.results.segment(plan.config.session), plan.results.localize(plan.config.session)
    applied = [] if plan.config.localize.segmentation else _models(plan, models)
    return _in_batches(plan.localized, folder, partial(run_localize, plan, applied, segmented))


def evaluate(config: Configuration, results: Path | str = "results") -> dict[str, Any]:
    """Score the picks of the runs selected by `evaluate.runs`, and print the table of scores.

    Args:
        config: options by section as in config/config.yaml, or the path of such a file.
        results: folder of the results; scores go to `evaluate/` below it.

    Returns:
        The content of scores.json: `objects`, `mean`, `pooled`, `runs`, and the options of the scoring.

    Raises:
        TomoscoutError: a run is not localised, or there are no reference picks.
    """
    from tomoscout.stages.evaluate import run_evaluate
    from tomoscout.tasks.picking.score_tables import read_scores

    plan = _plan(config, results)
    folder = plan.results.evaluate(plan.config.session)
    run_evaluate(plan, plan.results.localize(plan.config.session), folder)
    return read_scores(folder)


def score_picks(config: Configuration, picks: str, results: Path | str = "results") -> dict[str, Any]:
    """Score picks of anybody against the reference picks `evaluate.reference`, and print the table of scores. Neither a
    model nor results of the localize stage are needed. Without targets every run that has the tomogram and reference
    picks is scored, or those of `segment.runs`.

    Args:
        config: options by section as in config/config.yaml, or the path of such a file. Picks of `evaluate.also` are
            scored beside.
        picks: `user/session`.
        results: folder of the results; scores go to `evaluate/{user}-{session}/` below it.

    Returns:
        As for `evaluate`.

    Raises:
        TomoscoutError: no scored run has such picks, or there are no reference picks.
    """
    from tomoscout.stages.evaluate import run_score_picks
    from tomoscout.tasks.picking.score_tables import read_scores

    plan = _plan(config, results)
    folder = plan.results.evaluate(picks.replace("/", "-"))
    run_score_picks(plan, picks, folder)
    return read_scores(folder)


def export(config: Configuration, results: Path | str = "results") -> dict[str, dict[str, Any]]:
    """Write picks in the formats of other programs that `export.formats` names, to `export/{format}/` below `results`.

    Args:
        config: options by section as in config/config.yaml, or the path of such a file.
        results: folder of the results.

    Returns:
        Format → the content of its export.json: what the coordinates refer to, counts, and digests of the files.

    Raises:
        TomoscoutError: a run is not localised, or a format needs something that is not given.
    """
    from tomoscout.stages.export import run_export

    plan = _plan(config, results)
    localized = plan.results.localize(plan.config.session) if plan.config.export.picks is None else None
    for form in plan.config.export.formats:
        run_export(plan, form, localized, plan.results.export(form))
    return {form: read_json(plan.results.export(form)) for form in plan.config.export.formats}


def import_picks(config: Configuration, results: Path | str = "results") -> dict[str, list[str]]:
    """Bring the picks of other programs that `import_picks` names into the projects. The arguments are those of
    `export`.

    Returns:
        Import → the runs (`project/run`) that have its picks.

    Raises:
        TomoscoutError: a file cannot be read, or names no run or object that there is.
    """
    from tomoscout.stages.import_picks import run_import_picks

    plan = _plan(config, results)
    for name in plan.config.import_picks:
        run_import_picks(plan, name, plan.results.import_picks(name))
    return {name: list(read_json(plan.results.import_picks(name))["runs"]) for name in plan.config.import_picks}


def import_tomograms(config: Configuration, results: Path | str = "results") -> dict[str, list[str]]:
    """Bring the tomograms in files that `import_tomograms` names into the projects. The arguments are those of
    `export`.

    Returns:
        Import → the runs (`project/run`) that have its tomograms.

    Raises:
        TomoscoutError: a file cannot be read, or does not say its voxel spacing.
    """
    from tomoscout.stages.import_tomograms import run_import_tomograms

    settings, place = _settings(config), Results(Path(results))
    for name in settings.import_tomograms:
        run_import_tomograms(settings, name, place.import_tomograms(name))
    return {name: list(read_json(place.import_tomograms(name))["runs"]) for name in settings.import_tomograms}


def download(config: Configuration, results: Path | str = "results") -> dict[str, list[str]]:
    """Bring what `download` names of other copick projects into the projects. The arguments are those of `export`.

    Returns:
        Download → the runs (`project/run`) it looked at.

    Raises:
        TomoscoutError: a source cannot be reached or read, or has nothing that is asked for.
    """
    from tomoscout.stages.download import run_download

    settings, place = _settings(config), Results(Path(results))
    for name in settings.download:
        run_download(settings, name, place.download(name))
    return {name: list(read_json(place.download(name))["runs"]) for name in settings.download}


def extract(config: Configuration, results: Path | str = "results") -> dict[str, dict[str, dict[str, Any]]]:
    """Make all extractions of the section `extract`, in every run that has what they read.

    Args:
        config: options by section as in config/config.yaml, or the path of such a file.
        results: folder of the results; tables of distances go to `extract/` below it.

    Returns:
        Extraction → run (`project/run`) → its manifest: for each object the source of its picks and their number.

    Raises:
        TomoscoutError: no run has what an extraction reads, or it reads what is not there.
    """
    from tomoscout.stages.extract import run_extract

    plan = _plan(config, results)
    folder = plan.results.extract
    for batch in sorted({record.batch for records in plan.extracted.values() for record in records}):
        run_extract(plan, batch, batch_file(folder, batch))
    return {
        name: {record.key: read_manifest(folder / name, record) for record in records}
        for name, records in plan.extracted.items()
    }


def _in_batches(
    records: Sequence[RunRecord], folder: Path, run: Callable[[int, Path], None]
) -> dict[str, dict[str, Any]]:
    """Run a stage for all batches of some runs; returns run → its manifest in `folder`."""
    for batch in sorted({record.batch for record in records}):
        run(batch, batch_file(folder, batch))
    return {record.key: read_manifest(folder, record) for record in records}


def _models(plan: Plan, models: Sequence[Path | str] | None) -> list[Path]:
    """Folders of the models to apply; octopi models without a model folder are imported first."""
    if models is not None:
        return [Path(folder) for folder in models]
    from tomoscout.stages.applied_models import applied_models, imported_files, imported_models

    for name, source in imported_models(plan.config).items():
        if not (plan.results.model(name) / "model.yaml").exists():
            from tomoscout.stages.import_model import run_import_model

            run_import_model(plan, imported_files(source)[0], plan.results.model(name))
    return applied_models(plan)


def _settings(config: Configuration) -> Config:
    if isinstance(config, str | Path):
        return load_config(Path(config))
    return config if isinstance(config, Config) else parse_config(dict(config), "config")


def _plan(config: Configuration, results: Path | str, options: Mapping[str, Any] | None = None) -> Plan:
    settings = _settings(config)
    if options:
        values = settings.model_dump(mode="json", by_alias=True)
        settings = parse_config(values | {"train": values["train"] | dict(options)}, "config")
    folder = Path(results)
    return Plan(settings, refresh(Results(folder).inventory, settings.projects, settings.runs_per_job), folder)


def _train(plan: Plan, member: Member, loss: NamedLoss | None) -> TrainedModel:
    # Imported here: PyTorch takes seconds to import, and creating targets does not need it.
    from tomoscout.stages.train import run_train

    folder = plan.model_of(member)
    with alone_in(folder):
        outcome = run_train(plan, folder, member, loss=loss)
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
