"""The command line: one command per stage."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from tomoscout import __version__
from tomoscout.machine.at_work import at_work_as
from tomoscout.machine.errors import TomoscoutError, foreseen, printing_never_fails
from tomoscout.machine.lease import leased_gpu
from tomoscout.machine.locks import alone_in

FILE = click.Path(path_type=Path)


class _Commands(click.Group):
    """Lists the commands in their order and ends every foreseen error in one line."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        printing_never_fails()
        return super().main(*args, **kwargs)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:
            # Who reads what is printed has seen enough; click ends without a word.
            raise
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            line = foreseen(error)
            if line is None:
                raise
            click.echo(f"error: {line}", err=True)
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Find particles in cryo-electron tomograms.

    Usually snakemake runs these commands: `snakemake --cores 8 --configfile my.yaml` does everything. Each can be
    run alone with the same configuration file, in the order in which they are listed.
    """
    context.with_resource(at_work_as(f"tomoscout {context.invoked_subcommand}"))


def _options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--inventory", type=FILE, default=Path("results/inventory.tsv"), show_default=True, help="The list of runs."
    )(command)
    return click.option(
        "--config", type=FILE, required=True, help="Configuration (YAML); see config/README.md for every option."
    )(command)


def _load(config: Path, inventory: Path) -> tuple[Any, Any]:
    from tomoscout.data.inventory import read_inventory
    from tomoscout.options.config import load_config

    return load_config(config), read_inventory(inventory)


def _echo_file(text: str) -> None:
    """Print what is meant to become a file: UTF-8, whatever the locale."""
    click.echo(text.encode(), nl=False)


_batch = click.option("--batch", type=int, required=True, help="Which batch of runs (a column of the inventory).")
_output = click.option("--output", type=FILE, required=True, help="File to write last, when all else is done.")
_model = click.option("--model", type=FILE, required=True, help="Model folder.")
_models = click.option(
    "--model", "models", type=FILE, required=True, multiple=True, help="Model folder; given several times: an ensemble."
)
_threads = click.option("--threads", type=int, help="CPU threads. Default: all.")


@main.command()
@click.argument("folder", type=FILE)
@click.option("--config", type=FILE, help="Take the options of the section `phantom` of this configuration.")
@click.option("--runs", type=int, help="Number of tomograms.")
@click.option("--seed", type=int, help="Seed of everything random.")
@click.option("--membranes", type=int, help="Vesicles per tomogram.")
@click.option("--signal-to-noise", type=float, help="Variance of the signal in particles over that of the noise.")
def phantom(folder: Path, config: Path | None, **given: Any) -> None:
    """Write a copick project of made-up tomograms whose particles are known, into FOLDER."""
    from pydantic import ValidationError

    from tomoscout.options.config import load_config
    from tomoscout.options.messages import first_error
    from tomoscout.phantom.options import Phantom
    from tomoscout.phantom.project import make_phantom

    options = load_config(config).phantom if config else Phantom()
    try:
        options = Phantom.model_validate(
            options.model_dump() | {name: value for name, value in given.items() if value is not None}
        )
    except ValidationError as error:
        raise TomoscoutError(f"phantom: {first_error(error)}") from None
    click.echo(make_phantom(folder, options))


@main.command()
@click.option("--config", type=FILE, required=True, help="Configuration (YAML).")
@click.option("--output", type=FILE, default=Path("results/inventory.tsv"), show_default=True, help="File to write.")
@click.option("--all", "everything", is_flag=True, help="Read every run again, changed or not.")
@click.option("--runs", is_flag=True, help="Print what each run holds, of however many there are.")
@click.option("--quiet", is_flag=True, help="Print no tables.")
def inventory(config: Path, output: Path, everything: bool, runs: bool, quiet: bool) -> None:
    """List what the projects hold: runs, tomograms, picks, segmentations. Reads only what changed."""
    from tomoscout.data.inventory import refresh
    from tomoscout.data.listing import RUNS_SHOWN, list_projects
    from tomoscout.options.config import load_config

    settings = load_config(config)
    records = refresh(output, settings.projects, settings.runs_per_job, everything=everything)
    click.echo(f"{output}: {len(records)} runs, {sum(bool(r.picks) for r in records)} with picks", err=True)
    if not quiet:
        click.echo(list_projects(records, None if runs else RUNS_SHOWN), nl=False)


@main.command()
@_options
@_batch
@_output
def targets(config: Path, inventory: Path, batch: int, output: Path) -> None:
    """Make training targets from picks and segmentations."""
    from tomoscout.stages.targets import run_targets

    run_targets(*_load(config, inventory), batch, output)


@main.command()
@_options
@click.option("--targets", type=FILE, required=True, help="Folder of the targets' manifests.")
@_batch
@_output
def overlays(config: Path, inventory: Path, targets: Path, batch: int, output: Path) -> None:
    """Draw the targets over their tomograms, to check them by eye."""
    from tomoscout.stages.overlays import run_overlays

    run_overlays(*_load(config, inventory), targets, batch, output)


@main.command()
@_options
@_output
def split(config: Path, inventory: Path, output: Path) -> None:
    """Divide the annotated runs into training, validation and test runs."""
    from tomoscout.plan.classes import plan_targets, print_warnings
    from tomoscout.plan.splits import make_split, write_split

    settings, records = _load(config, inventory)
    plan = plan_targets(settings, records)
    print_warnings(plan)
    result = make_split(settings, records, plan)
    write_split(settings, result, output)


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """A training in a folder: told to stop, it ends with a code of its own. PyTorch is imported within."""
    _share_cores()
    from tomoscout.learning.trainer import EXIT_INTERRUPTED, Interrupted

    try:
        yield
    except Interrupted:
        click.echo(f"stopped; {folder / 'checkpoint.pt'} is written, the same command goes on from it", err=True)
        sys.exit(EXIT_INTERRUPTED)


def _share_cores() -> None:
    """Let waiting threads sleep. PyTorch's spin by default, and where another process wants their core, a training
    step took three to eight times as long. OpenMP reads this once, before PyTorch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class _NeededAlone(click.Option):
    """Required, unless a command follows."""

    def handle_parse_result(
        self, context: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        self.required = not args
        return super().handle_parse_result(context, opts, args)


@main.group(cls=_Commands, invoke_without_command=True)
@click.option("--config", type=FILE, cls=_NeededAlone, help="Configuration (YAML).")
@click.option(
    "--inventory", type=FILE, default=Path("results/inventory.tsv"), show_default=True, help="The list of runs."
)
@click.option("--model", type=FILE, cls=_NeededAlone, help="Model folder.")
@click.option("--fold", type=click.IntRange(min=0), help="Which fold of the split. Default: split.fold.")
@_threads
@click.pass_context
def train(
    context: click.Context, config: Path, inventory: Path, model: Path, fold: int | None, threads: int | None
) -> None:
    """Train a network, or end a training early. Stopped or killed, the same command goes on from the last checkpoint.

    Exits with 75 where SIGTERM or SIGUSR1 stopped it after writing a checkpoint.
    """
    if context.invoked_subcommand:
        return
    settings, records = _load(config, inventory)
    with alone_in(model), leased_gpu(settings.train.device), _resumable(model):
        from tomoscout.stages.train import run_train

        run_train(settings, records, model, fold, threads)


@train.command()
@click.argument("folder", type=FILE)
def finish(folder: Path) -> None:
    """End the training in FOLDER early: it becomes complete with the best model so far.

    One that runs ends after the step it is at and one more validation; another when the same command is given again.
    """
    from tomoscout.stages.finish import FINISH, finish_training

    owner = finish_training(folder)
    when = f"{owner} ends it after its step and a validation" if owner else "it ends when it is started again"
    click.echo(f"{folder}: {when}; to take this back remove {folder / FINISH}", err=True)


@main.command()
@click.argument("folder", type=FILE)
@click.option("--config", type=FILE, required=True, help="Configuration (YAML): its section `tracking` says where to.")
@click.option("--output", type=FILE, help="File to write when all is recorded: the id of MLflow's run.")
def track(folder: Path, config: Path, output: Path | None) -> None:
    """Record the training of the model in FOLDER in MLflow, or what is not recorded of it yet."""
    from tomoscout.machine.files import write_json
    from tomoscout.options.config import load_config
    from tomoscout.tracking.store import default_uri, sync

    run = sync(folder, load_config(config).tracking, default_uri(folder.absolute().parent.parent))
    click.echo(f"{folder}: run {run}", err=True)
    if output:
        write_json(output, {"run": run})


@main.command()
@click.argument("folders", type=FILE, nargs=-1, required=True)
@_output
def compare_folds(folders: tuple[Path, ...], output: Path) -> None:
    """Put the scores of a cross-validation's models, in FOLDERS, into one table."""
    from tomoscout.stages.cross_validation import run_summary

    run_summary(folders, output)


_study = click.option("--study", type=FILE, required=True, help="Folder of the study.")
_trials = click.option("--trials", type=click.IntRange(min=1), required=True, help="How many trials it has.")


@main.group(cls=_Commands)
def explore() -> None:
    """Search for the best training: start, suggest, summarise; look at a study."""


@explore.command()
@click.option("--config", type=FILE, help="Configuration (YAML). Default: what is searched by default.")
def space(config: Path | None) -> None:
    """Print what is searched, as YAML to put changes under `explore` in a configuration."""
    from tomoscout.explore.options import Explore
    from tomoscout.explore.space import SearchSpace, describe_space
    from tomoscout.options.config import load_config

    options = load_config(config).explore if config else Explore()
    _echo_file(describe_space(SearchSpace.of(options), list(options.networks)))


@explore.command()
@_options
@_study
def start(config: Path, inventory: Path, study: Path) -> None:
    """Write study.json: all that the proposals of a study depend on."""
    from tomoscout.explore.start import start_study

    start_study(*_load(config, inventory), study)


@explore.command()
@click.argument("number", type=int)
@_options
@_study
def suggest(number: int, config: Path, inventory: Path, study: Path) -> None:
    """Propose trial NUMBER from what is known of the ones before; where nothing is, those after it, too."""
    from tomoscout.explore.start import suggest as propose

    propose(*_load(config, inventory), study, number)


@explore.command()
@click.argument("folder", type=FILE)
@_trials
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="How many of the best to keep.")
@click.option("--title", default="tomoscout", help="Heading of the page.")
def summarise(folder: Path, trials: int, top: int, title: str) -> None:
    """Write table, page, journal and best models of the study in FOLDER."""
    from tomoscout.explore.summary import format_best, run_summary

    click.echo(format_best(run_summary(folder, trials, top, title)), nl=False)


@explore.command("track")
@click.argument("folder", type=FILE)
@click.option("--config", type=FILE, required=True, help="Configuration (YAML): its section `tracking` says where to.")
@_output
def track_study(folder: Path, config: Path, output: Path) -> None:
    """Record the trials of the study in FOLDER in MLflow, or what is not recorded of them yet."""
    from tomoscout.explore.records import trial_folder, trial_numbers
    from tomoscout.machine.files import write_json
    from tomoscout.options.config import load_config
    from tomoscout.tracking.store import default_uri, sync_all

    folders = [trial_folder(folder, number) for number in trial_numbers(folder, "result.json")]
    runs = sync_all(folders, load_config(config).tracking, default_uri(folder.absolute().parent.parent))
    write_json(output, runs)


_results = click.option(
    "--results", type=FILE, default=Path("results"), show_default=True, help="Folder of the results."
)


@explore.command()
@click.argument("name", required=False)
@_results
@click.option("--trials", type=click.IntRange(min=1), help="How many are planned. Default: as the workflow last ran.")
def status(name: str | None, results: Path, trials: int | None) -> None:
    """Show how far a study is: the one called NAME, or the latest."""
    from tomoscout.explore.status import find_study, planned_trials, status_lines

    study = find_study(results, name)
    for line in status_lines(study, trials or planned_trials(results, study)):
        click.echo(line)


@main.group(cls=_Commands)
def trial() -> None:
    """Run a trial of a study, or end one."""


@trial.command()
@click.argument("number", type=int)
@_options
@_study
def run(number: int, config: Path, inventory: Path, study: Path) -> None:
    """Train what trial NUMBER was asked for. Stopped or killed, the same command goes on.

    A training that cannot succeed with its options ends the trial as pruned; what is the machine's fault ends this
    command with an error. Exits with 75 where SIGTERM or SIGUSR1 stopped it after writing a checkpoint.
    """
    from tomoscout.explore.records import trial_folder

    settings, records = _load(config, inventory)
    folder = trial_folder(study, number)
    with alone_in(folder), leased_gpu(settings.train.device), _resumable(folder):
        from tomoscout.explore.trial import run_trial

        result = run_trial(settings, records, study, number)
        click.echo(f"{result.state.lower()}: {result.reason or f'{result.value:.4f}'}", err=True)


@trial.command("give-up")
@click.argument("number", type=int)
@click.option("--study", help="Name or folder of the study. Default: the latest.")
@_results
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


@main.command()
@click.argument("source", type=FILE)
@_options
@_model
@_threads
def import_model(source: Path, config: Path, inventory: Path, model: Path, threads: int | None) -> None:
    """Make a model folder of a model that octopi trained: SOURCE is its model_config.yaml, with best_model.pth."""
    _share_cores()
    settings, records = _load(config, inventory)
    with leased_gpu(settings.segment.device):
        from tomoscout.stages.import_model import run_import

        run_import(settings, records, source, model, threads)


@main.command()
@_options
@_models
@_batch
@_output
@_threads
def segment(
    config: Path, inventory: Path, models: tuple[Path, ...], batch: int, output: Path, threads: int | None
) -> None:
    """Apply a model, or several together, to tomograms."""
    _share_cores()
    settings, records = _load(config, inventory)
    with leased_gpu(settings.segment.device):
        from tomoscout.stages.segment import run_segment

        run_segment(settings, records, models, batch, output, threads)


@main.command()
@_options
@_models
@click.option("--segmented", type=FILE, required=True, help="Folder of the segment stage's manifests.")
@_batch
@_output
def localize(
    config: Path, inventory: Path, models: tuple[Path, ...], segmented: Path, batch: int, output: Path
) -> None:
    """Turn class probabilities into scored picks."""
    from tomoscout.stages.localize import run_localize

    run_localize(*_load(config, inventory), models, segmented, batch, output)


_localized = click.option("--localized", type=FILE, required=True, help="Folder of the localize stage's manifests.")


@main.command()
@_options
@_localized
@click.option("--output", type=FILE, required=True, help="Folder of the scores.")
def evaluate(config: Path, inventory: Path, localized: Path, output: Path) -> None:
    """Score the picks against reference picks."""
    from tomoscout.stages.evaluate import run_evaluate

    run_evaluate(*_load(config, inventory), localized, output)


@main.command()
@click.argument("folder", type=FILE)
def show_scores(folder: Path) -> None:
    """Print the table of scores that evaluate wrote into FOLDER."""
    from tomoscout.tasks.picking.scores import format_table, read_scores

    click.echo(format_table(read_scores(folder)), nl=False)


@main.command()
@_options
@_model
@_localized
@click.option("--scores", type=FILE, help="Folder of the scores.")
@click.option("--split", type=FILE, help="The split file.")
@click.option("--targets", type=FILE, help="Folder of the targets' manifests.")
@_output
def report(config: Path, inventory: Path, output: Path, **folders: Any) -> None:
    """Collect everything in one HTML page: of what is not given nothing is shown."""
    from tomoscout.stages.report import run_report

    run_report(*_load(config, inventory), output=output, **folders)


@main.command()
@_options
@_results
def verify(config: Path, inventory: Path, results: Path) -> None:
    """Compare every manifest with the data it stands for."""
    from tomoscout.stages.verify import verify as compare

    compared, problems = compare(*_load(config, inventory), results)
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    click.echo(f"{compared} digests compared, {len(problems)} problems")
    sys.exit(1 if problems else 0)


@main.command()
@click.argument("form", type=click.Choice(["schema", "yaml", "markdown"]))
def options(form: str) -> None:
    """Print every option: as a JSON schema, a commented YAML file, or a Markdown page."""
    from tomoscout.options import reference

    texts = {"schema": reference.json_schema, "yaml": reference.commented_yaml, "markdown": reference.markdown}
    _echo_file(texts[form]())
