"""The command line: a file for each group of commands. A command imports what it runs only when it is called."""

from __future__ import annotations

import click

from tomoscout import __version__
from tomoscout.cli import apply, cells, evaluate, exchange, explore, projects, targets, tools, train
from tomoscout.cli.common import Commands
from tomoscout.machine.at_work import at_work_as
from tomoscout.plan.code import refuse_other_code

__all__ = ["main"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Find particles in cryo-electron tomograms.

    Usually snakemake runs these commands: `snakemake --cores 8 --configfile my.yaml` does everything. Each can be
    run alone with the same configuration file, in the order in which they are listed.
    """
    refuse_other_code()
    context.with_resource(at_work_as(f"tomoscout {context.invoked_subcommand}"))


# The order in which the help lists the commands.
for _group in (projects, targets, train, explore, apply, evaluate, exchange, cells, tools):
    main.commands |= _group.commands.commands
