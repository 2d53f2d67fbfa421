"""Commands that prepare training: `targets`, `overlays`, `split`."""

from __future__ import annotations

from pathlib import Path

import click

from tomoscout.cli.common import FILE, Commands, batch_option, configured, load, output_option

commands = Commands()


@commands.command()
@configured
@batch_option
@output_option
def targets(config: Path, inventory: Path, batch: int, output: Path) -> None:
    """Make training targets from picks and segmentations."""
    from tomoscout.stages.targets import run_targets

    run_targets(load(config, inventory), batch, output)


@commands.command()
@configured
@click.option("--targets", type=FILE, required=True, help="Folder of the targets' manifests.")
@batch_option
@output_option
def overlays(config: Path, inventory: Path, targets: Path, batch: int, output: Path) -> None:
    """Draw the targets over their tomograms, to check them by eye."""
    from tomoscout.stages.overlays import run_overlays

    run_overlays(load(config, inventory), targets, batch, output)


@commands.command()
@configured
@output_option
def split(config: Path, inventory: Path, output: Path) -> None:
    """Divide the annotated runs into training, validation and test runs."""
    from tomoscout.stages.split import run_split

    run_split(load(config, inventory), output)
