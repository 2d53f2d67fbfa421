"""Commands of the exploration: `explore` for a study, `trial` for one of its trials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tomoscout.cli.common import (
    FILE,
    Commands,
    configured,
    echo_file,
    load,
    output_option,
    results_option,
    resumable,
    tracking_option,
)
from tomoscout.machine.lease import leased_gpu
from tomoscout.machine.locks import alone_in

if TYPE_CHECKING:
    from tomoscout.stages.explore import Subject

commands = Commands()

division_option = click.option(
    "--division", type=FILE, help="Of a study of cells, in place of an inventory: the division of the annotated images."
)
study_option = click.option("--study", type=FILE, required=True, help="Folder of the study.")


def of_study(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which study it works on."""
    return configured(division_option(study_option(command)))


def load_subject(config: Path, inventory: Path, division: Path | None) -> Subject:
    """Read the configuration and what is explored.

    Raises:
        TomoscoutError: a file is missing or not valid.
    """
    if division is None:
        from tomoscout.stages.explore import Picking

        return Picking(load(config, inventory))
    from tomoscout.options.config import load_config
    from tomoscout.stages.explore_cells import InstancesOfCells

    return InstancesOfCells(load_config(config), division)


@commands.group(cls=Commands)
def explore() -> None:
    """Search for the best training: start, suggest, summarise; look at a study."""


@explore.command()
@click.option("--config", type=FILE, help="Configuration (YAML). Default: what is searched by default.")
@click.option("--cells", is_flag=True, help="What is searched for instances of cells, in place of picking.")
def space(config: Path | None, cells: bool) -> None:
    """Print what is searched, as YAML to put changes under `explore` in a configuration."""
    from tomoscout.explore.options import Explore
    from tomoscout.explore.space import SearchSpace, describe_space
    from tomoscout.options.config import load_config
    from tomoscout.tasks.instances.options import CellExplore, CellTraining
    from tomoscout.tasks.picking.options import Train

    train = CellTraining if cells else Train
    if config:
        settings = load_config(config)
        options = settings.cells.explore if cells else settings.explore
    else:
        options = CellExplore() if cells else Explore()
    echo_file(describe_space(SearchSpace.of(options, train), options, train))


@explore.command()
@of_study
def start(config: Path, inventory: Path, division: Path | None, study: Path) -> None:
    """Write study.json: all that proposals depend on. A study of cells that is there already refuses other images."""
    from tomoscout.stages.explore import start_study

    start_study(load_subject(config, inventory, division), study)


@explore.command()
@click.argument("number", type=int)
@of_study
def suggest(number: int, config: Path, inventory: Path, division: Path | None, study: Path) -> None:
    """Propose trial NUMBER from what is known of the ones before; where nothing is, those after it, too."""
    from tomoscout.stages.explore import suggest_trial

    suggest_trial(load_subject(config, inventory, division), study, number)


@explore.command()
@click.argument("folder", type=FILE)
@click.option("--trials", type=click.IntRange(min=1), required=True, help="How many trials it has.")
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="How many of the best to keep.")
@click.option("--title", default="tomoscout", help="Heading of the page.")
def summarise(folder: Path, trials: int, top: int, title: str) -> None:
    """Write table, page, journal and best models of the study in FOLDER."""
    from tomoscout.explore.records import section_of
    from tomoscout.explore.summary import format_best, run_summary
    from tomoscout.tasks.instances.options import CellExplore, CellTraining
    from tomoscout.tasks.picking.options import Train

    train = CellTraining if section_of(folder) == CellExplore.SECTION else Train
    click.echo(format_best(run_summary(folder, trials, top, title, train)), nl=False)


@explore.command("track")
@click.argument("folder", type=FILE)
@tracking_option
@output_option
def track_study(folder: Path, config: Path, output: Path) -> None:
    """Record the trials of the study in FOLDER in MLflow, or what is not recorded of them yet."""
    from tomoscout.explore.records import trial_folder, trial_numbers
    from tomoscout.machine.files import write_json
    from tomoscout.options.config import load_config
    from tomoscout.plan.paths import results_of
    from tomoscout.tracking.store import default_uri, sync_all

    folders = [trial_folder(folder, number) for number in trial_numbers(folder, "result.json")]
    runs = sync_all(folders, load_config(config).tracking, default_uri(results_of(folder)))
    write_json(output, runs)


@explore.command()
@click.argument("name", required=False)
@results_option
@click.option("--trials", type=click.IntRange(min=1), help="How many are planned. Default: as the workflow last ran.")
def status(name: str | None, results: Path, trials: int | None) -> None:
    """Show how far a study is: the one called NAME, or the latest."""
    from tomoscout.explore.status import find_study, planned_trials, status_lines

    study = find_study(results, name)
    for line in status_lines(study, trials or planned_trials(results, study)):
        click.echo(line)


@commands.group(cls=Commands)
def trial() -> None:
    """Run a trial of a study, or end one."""


@trial.command()
@click.argument("number", type=int)
@of_study
def run(number: int, config: Path, inventory: Path, division: Path | None, study: Path) -> None:
    """Train what trial NUMBER was asked for. Stopped or killed, the same command goes on.

    A training that cannot succeed with its options ends the trial as pruned; what is the machine's fault ends this
    command with an error. Exits with 75 where SIGTERM or SIGUSR1 stopped it after writing a checkpoint.
    """
    from tomoscout.explore.records import trial_folder

    subject = load_subject(config, inventory, division)
    folder = trial_folder(study, number)
    with alone_in(folder), leased_gpu(subject.shared.device), resumable(folder):
        from tomoscout.stages.explore import train_trial

        result = train_trial(subject, study, number)
        click.echo(f"{result.state.lower()}: {result.reason or f'{result.value:.4f}'}", err=True)


@trial.command("give-up")
@click.argument("number", type=int)
@click.option("--study", help="Name or folder of the study. Default: the latest.")
@results_option
def give_up(number: int, study: str | None, results: Path) -> None:
    """End trial NUMBER, which can never finish: it counts as pruned, and the study goes on without it.

    One that is being trained ends after its next validation. Where it hangs, end its job: started again, it is over.
    """
    from tomoscout.explore.status import find_study
    from tomoscout.explore.trial import give_up as end_trial

    folder = Path(study) if study and Path(study, "study.json").exists() else find_study(results, study)
    ended = end_trial(folder, number)
    then = "run the workflow again" if ended else "it ends after its next validation, or once its job is ended"
    click.echo(f"{folder}: trial {number:04d} is given up; {then}", err=True)
