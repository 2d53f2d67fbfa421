"""Shared by the groups of commands: options, reading of configuration and inventory, errors and exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tomoscout.machine.errors import foreseen, printing_never_fails
from tomoscout.networks.quick_monai import import_monai

if TYPE_CHECKING:
    from tomoscout.plan.plan import Plan

FILE = click.Path(path_type=Path)
"""The type of an argument or an option that is a path."""

config_option = click.option(
    "--config", type=FILE, required=True, help="Configuration (YAML); see config/README.md for every option."
)
tracking_option = click.option(
    "--config", type=FILE, required=True, help="Configuration (YAML): its section `tracking` says where to."
)
inventory_option = click.option(
    "--inventory", type=FILE, default=Path("results/inventory.tsv"), show_default=True, help="The list of runs."
)
results_option = click.option(
    "--results", type=FILE, default=Path("results"), show_default=True, help="Folder of the results."
)
batch_option = click.option("--batch", type=int, required=True, help="Which batch of runs (a column of the inventory).")
output_option = click.option("--output", type=FILE, required=True, help="File to write last, when all else is done.")
model_option = click.option("--model", type=FILE, required=True, help="Model folder.")
models_option = click.option(
    "--model", "models", type=FILE, required=True, multiple=True, help="Model folder; given several times: an ensemble."
)
threads_option = click.option("--threads", type=int, help="CPU threads. Default: all.")


def configured(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options `--config` and `--inventory`."""
    return config_option(inventory_option(command))


def load(config: Path, inventory: Path, results: Path | None = None) -> Plan:
    """Read configuration and inventory, and make the plan. `results`: folder of the results. Default: the folder of the
    inventory.

    Raises:
        TomoscoutError: one of the files is missing or not valid.
    """
    from tomoscout.data.inventory import read_inventory
    from tomoscout.options.config import load_config
    from tomoscout.plan.plan import Plan

    return Plan(load_config(config), read_inventory(inventory), results or inventory.parent)


def echo_file(text: str) -> None:
    """Print the content of a file: in UTF-8, whatever the locale."""
    click.echo(text.encode(), nl=False)


def share_cores() -> None:
    """Make the OpenMP threads of PyTorch sleep while they wait. By default they spin (busy waiting), and a training
    step took three to eight times as long where another process used the same core. OpenMP reads the variable once, so
    call this before PyTorch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def resumable(folder: Path, checkpoint: str = "checkpoint.pt") -> Iterator[None]:
    """Context of a training in a folder: if a signal interrupts the training, the command exits with
    `EXIT_INTERRUPTED`. PyTorch and MONAI are imported within. `checkpoint`: what the training goes on from, in the
    folder."""
    share_cores()
    import_monai()
    from tomoscout.learning.trainer import EXIT_INTERRUPTED, Interrupted

    try:
        yield
    except Interrupted:
        click.echo(f"stopped; {folder / checkpoint} is written, the same command goes on from it", err=True)
        sys.exit(EXIT_INTERRUPTED)


class Commands(click.Group):
    """A group that lists its commands in the order of their definition and reports expected errors in one line."""

    def list_commands(self, context: click.Context) -> list[str]:
        """The names of the commands, in the order of their definition."""
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run what the command line asks for."""
        printing_never_fails()
        return super().main(*args, **kwargs)

    def invoke(self, context: click.Context) -> Any:
        """Run a command; an expected error is printed and exits with 1, Ctrl-C with 130."""
        try:
            return super().invoke(context)
        except BrokenPipeError:
            # The reader of the output has closed it: click ends the command silently.
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
