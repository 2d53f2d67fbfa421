"""Commands for trainings: `train` and `train finish`, `pretrain`, `track`, `compare-folds`, `learning-curve`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from tomoscout.cli.common import (
    FILE,
    Commands,
    configured,
    inventory_option,
    load,
    output_option,
    resumable,
    threads_option,
    tracking_option,
)
from tomoscout.machine.lease import leased_gpu
from tomoscout.machine.locks import alone_in

commands = Commands()


class _NeededAlone(click.Option):
    """An option that is required unless a subcommand follows."""

    def handle_parse_result(
        self, context: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        self.required = not args
        return super().handle_parse_result(context, opts, args)


@commands.group(cls=Commands, invoke_without_command=True)
@click.option("--config", type=FILE, cls=_NeededAlone, help="Configuration (YAML).")
@inventory_option
@click.option("--model", type=FILE, cls=_NeededAlone, help="Model folder.")
@click.option("--fold", type=click.IntRange(min=0), help="Which fold of the split. Default: split.fold.")
@click.option(
    "--percent", type=click.IntRange(1, 100), default=100, show_default=True, help="How many of the training runs."
)
@click.option(
    "--draw", type=click.IntRange(min=0), default=0, show_default=True, help="Which runs these are, and which seed."
)
@threads_option
@click.pass_context
def train(
    context: click.Context,
    config: Path,
    inventory: Path,
    model: Path,
    fold: int | None,
    percent: int,
    draw: int,
    threads: int | None,
) -> None:
    """Train a network, or end a training early. Stopped or killed, the same command goes on from the last checkpoint.

    Exits with 75 where SIGTERM or SIGUSR1 stopped it after writing a checkpoint.
    """
    if context.invoked_subcommand:
        return
    plan = load(config, inventory)
    with alone_in(model), leased_gpu(plan.config.train.device), resumable(model):
        from tomoscout.plan.members import Member
        from tomoscout.stages.train import run_train

        run_train(plan, model, Member(fold, percent, draw), threads)


@commands.command()
@configured
@click.option("--model", type=FILE, required=True, help="Model folder.")
@threads_option
def pretrain(config: Path, inventory: Path, model: Path, threads: int | None) -> None:
    """Train a network on phantoms of the objects (section `pretrain`), as a base for few annotated tomograms.

    Stopped or killed, the same command goes on from the last checkpoint. Exits with 75 where SIGTERM or SIGUSR1 stopped
    it after writing a checkpoint.
    """
    plan = load(config, inventory)
    with alone_in(model), leased_gpu(plan.config.train.device), resumable(model):
        from tomoscout.stages.pretrain import run_pretrain

        run_pretrain(plan, model, threads)


@train.command()
@click.argument("folder", type=FILE)
def finish(folder: Path) -> None:
    """End the training in FOLDER early: it becomes complete with the best model so far.

    One that runs ends after the step it is at and one more validation; another when the same command is given again.
    """
    from tomoscout.learning.finish import FINISH, finish_training

    owner = finish_training(folder)
    when = f"{owner} ends it after its step and a validation" if owner else "it ends when it is started again"
    click.echo(f"{folder}: {when}; to take this back remove {folder / FINISH}", err=True)


@commands.command()
@click.argument("folder", type=FILE)
@tracking_option
@click.option("--output", type=FILE, help="File to write when all is recorded: the id of MLflow's run.")
def track(folder: Path, config: Path, output: Path | None) -> None:
    """Record the training of the model in FOLDER in MLflow, or what is not recorded of it yet."""
    from tomoscout.machine.files import write_json
    from tomoscout.options.config import load_config
    from tomoscout.plan.paths import results_of
    from tomoscout.tracking.store import default_uri, sync

    run = sync(folder, load_config(config).tracking, default_uri(results_of(folder)))
    click.echo(f"{folder}: run {run}", err=True)
    if output:
        write_json(output, {"run": run})


@commands.command()
@click.argument("folders", type=FILE, nargs=-1, required=True)
@output_option
def compare_folds(folders: tuple[Path, ...], output: Path) -> None:
    """Put the scores of a cross-validation's models, in FOLDERS, into one table."""
    from tomoscout.stages.compare_folds import run_compare_folds

    run_compare_folds(folders, output)


@commands.command()
@configured
@output_option
def learning_curve(config: Path, inventory: Path, output: Path) -> None:
    """Put the scores of models trained on fewer and on all training runs into a table and a figure."""
    from tomoscout.stages.learning_curve import run_learning_curve

    run_learning_curve(load(config, inventory), output)
