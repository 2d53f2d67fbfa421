"""Commands that score and report picks: `evaluate`, `show-scores`, `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tomoscout.cli.common import FILE, Commands, configured, load, output_option

commands = Commands()

localized_option = click.option(
    "--localized", type=FILE, required=True, help="Folder of the localize stage's manifests."
)


@commands.command()
@configured
@localized_option
@click.option("--output", type=FILE, required=True, help="Folder of the scores.")
def evaluate(config: Path, inventory: Path, localized: Path, output: Path) -> None:
    """Score the picks against reference picks."""
    from tomoscout.stages.evaluate import run_evaluate

    run_evaluate(load(config, inventory), localized, output)


@commands.command()
@click.argument("folder", type=FILE)
def show_scores(folder: Path) -> None:
    """Print the table of scores that evaluate wrote into FOLDER."""
    from tomoscout.tasks.picking.score_tables import format_table, read_scores

    click.echo(format_table(read_scores(folder)), nl=False)


@commands.command()
@configured
@click.option("--model", type=FILE, help="Model folder; none for a segmentation.")
@localized_option
@click.option("--scores", type=FILE, help="Folder of the scores.")
@click.option("--split", type=FILE, help="The split file.")
@click.option("--targets", type=FILE, help="Folder of the targets' manifests.")
@click.option("--pictures", type=FILE, help="Folder of the targets' pictures.")
@click.option("--benchmarks", type=FILE, help="Folder of what Snakemake measured.")
@output_option
def report(config: Path, inventory: Path, output: Path, **folders: Any) -> None:
    """Collect everything in one HTML page: of what is not given nothing is shown."""
    from tomoscout.stages.report import run_report

    run_report(load(config, inventory), output=output, **folders)
