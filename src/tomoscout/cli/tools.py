"""Commands for maintenance: `verify` results, `serve` a project to a viewer, print `options`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tomoscout.cli.common import Commands, configured, echo_file, load, results_option

commands = Commands()


@commands.command()
@configured
@results_option
def verify(config: Path, inventory: Path, results: Path) -> None:
    """Compare every manifest with the data it stands for."""
    from tomoscout.stages.verify import verify as compare

    compared, problems = compare(load(config, inventory, results))
    for problem in problems:
        click.echo(f"error: {problem}", err=True)
    click.echo(f"{compared} digests compared, {len(problems)} problems")
    sys.exit(1 if problems else 0)


@commands.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
def serve(folders: tuple[Path, ...]) -> None:
    """Let neuroglancer read the folders of a project, until Ctrl+C.

    The report has the links that open its runs. Only this machine can read, and only below FOLDERS.
    """
    from tomoscout.report.serve import server

    with server(list(folders)) as serving:
        host, port = serving.server_address[:2]
        click.echo(f"serving {', '.join(map(str, folders))} at http://{host!s}:{port}/ until Ctrl+C")
        serving.serve_forever()


@commands.command()
@click.argument("form", type=click.Choice(["schema", "yaml", "markdown"]))
def options(form: str) -> None:
    """Print every option: as a JSON schema, a commented YAML file, or a Markdown page."""
    from tomoscout.options import reference

    texts = {"schema": reference.json_schema, "yaml": reference.commented_yaml, "markdown": reference.markdown}
    echo_file(texts[form]())
