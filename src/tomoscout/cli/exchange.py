"""Commands that hand picks to other programs and take theirs, and their tomograms, and what other copick projects have:
`export`, `import-picks`, `import-tomograms`, `download`."""

from __future__ import annotations

from pathlib import Path

import click

from tomoscout.cli.common import FILE, Commands, configured, load, output_option
from tomoscout.data.formats import FORMATS

commands = Commands()


@commands.command()
@configured
@click.option("--format", "form", type=click.Choice(list(FORMATS)), required=True, help="Which of the formats.")
@click.option("--localized", type=FILE, help="Folder of the localize stage's manifests, for its picks.")
@output_option
def export(config: Path, inventory: Path, form: str, localized: Path | None, output: Path) -> None:
    """Write picks for another program, into the folder of OUTPUT, which says what their coordinates refer to."""
    from tomoscout.stages.export import run_export

    run_export(load(config, inventory), form, localized, output)


@commands.command()
@click.option("--config", type=FILE, required=True, help="Configuration file.")
@click.option("--name", required=True, help="Which of the imports of the configuration.")
@output_option
def import_tomograms(config: Path, name: str, output: Path) -> None:
    """Bring tomograms in MRC, TIFF or OME-Zarr files into a project."""
    from tomoscout.options.config import load_config
    from tomoscout.stages.import_tomograms import run_import_tomograms

    run_import_tomograms(load_config(config), name, output)


@commands.command()
@configured
@click.option("--name", required=True, help="Which of the imports of the configuration.")
@output_option
def import_picks(config: Path, inventory: Path, name: str, output: Path) -> None:
    """Bring picks of another program into the projects."""
    from tomoscout.stages.import_picks import run_import_picks

    run_import_picks(load(config, inventory), name, output)


@commands.command()
@click.option("--config", type=FILE, required=True, help="Configuration file.")
@click.option("--name", required=True, help="Which of the downloads of the configuration.")
@output_option
def download(config: Path, name: str, output: Path) -> None:
    """Bring tomograms, picks and segmentations of another copick project, such as one of the CryoET data portal, into a
    project."""
    from tomoscout.options.config import load_config
    from tomoscout.stages.download import run_download

    run_download(load_config(config), name, output)
