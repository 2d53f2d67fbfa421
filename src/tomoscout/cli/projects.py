"""Commands for projects: `phantom` makes one, `inventory` lists what projects hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tomoscout.cli.common import FILE, Commands
from tomoscout.machine.errors import TomoscoutError

commands = Commands()


@commands.command()
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
    from tomoscout.options.validation_errors import first_error
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


@commands.command()
@click.option("--config", type=FILE, required=True, help="Configuration (YAML).")
@click.option("--output", type=FILE, default=Path("results/inventory.tsv"), show_default=True, help="File to write.")
@click.option("--all", "everything", is_flag=True, help="Read every run again, changed or not.")
@click.option("--runs", is_flag=True, help="Print what each run holds, of however many there are.")
@click.option("--quiet", is_flag=True, help="Print no tables.")
def inventory(config: Path, output: Path, everything: bool, runs: bool, quiet: bool) -> None:
    """List what the projects hold: runs, tomograms, picks, segmentations. Reads only what changed."""
    from tomoscout.data.inventory_refresh import refresh
    from tomoscout.data.listing import RUNS_SHOWN, list_projects
    from tomoscout.options.config import load_config

    settings = load_config(config)
    records = refresh(output, settings.projects, settings.runs_per_job, everything=everything)
    click.echo(f"{output}: {len(records)} runs, {sum(bool(r.picks) for r in records)} with picks", err=True)
    if not quiet:
        click.echo(list_projects(records, None if runs else RUNS_SHOWN), nl=False)
