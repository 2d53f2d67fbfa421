"""What the commands in copick's own command line have in common: options, the configuration they make, and errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml
from copick.cli.util import add_config_option, add_debug_option, add_run_names_option

from tomoscout.cli.common import FILE
from tomoscout.machine.errors import TomoscoutError, foreseen, printing_never_fails
from tomoscout.options.names import copick_name

if TYPE_CHECKING:
    from tomoscout.options.config import Config

_Function = Callable[..., None]


class CopickCommand(click.Command):
    """A command that reports expected errors in one line, as copick's do; with `--debug` with their traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"no_args_is_help": True})

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        printing_never_fails()
        is_debugged = context.params.pop("debug")
        try:
            return super().invoke(context)
        except Exception as error:
            line = foreseen(error)
            if line is None or is_debugged or isinstance(error, BrokenPipeError):
                raise
            raise click.ClickException(line) from None


def common_options(function: _Function) -> _Function:
    """Give a command the options that all have: copick's own, the folder of the results, and further options."""
    for add in (
        add_debug_option,
        click.option(
            "--set",
            "changes",
            multiple=True,
            metavar="KEY=VALUE",
            help="Another option of tomoscout, such as train.batch_size=4, in place of that in --options. Repeatable.",
        ),
        click.option("--options", "file", type=FILE, help="A configuration of tomoscout (YAML) with further options."),
        click.option(
            "--output",
            "-o",
            type=FILE,
            default=Path("results"),
            show_default=True,
            help="Folder of models, scores, exported files, and of what tomoscout remembers of the project.",
        ),
        add_run_names_option,
        add_config_option,
    ):
        function = add(function)
    return function


def tomogram_option(why: str, *, multiple: bool = False) -> Callable[[_Function], _Function]:
    """The option that names the kind of tomogram. `why`: what it is needed for."""
    text = f"Kind of tomogram, such as wbp@10.0: {why}."
    return click.option("--tomogram", "tomograms", required=True, multiple=multiple, metavar="URI", help=text)


def picks_option(option: str, what: str, *, required: bool = True) -> Callable[[_Function], _Function]:
    """An option that names picks."""

    def read(context: click.Context, parameter: click.Parameter, uris: tuple[str, ...]) -> str | list[str] | None:
        # copick's `*:user/session` is `user/session` in a configuration of tomoscout.
        names = [uri.removeprefix("*:") for uri in uris]
        if len(names) > 1 and not all(":" in name for name in names):
            raise click.BadParameter("several must all be name:user/session")
        return names if len(names) > 1 else next(iter(names), None)

    text = f"{what}: ribosome:alice/1, or alice/1 for all objects of this user and session. Repeatable."
    return click.option(option, multiple=True, required=required, metavar="URI", callback=read, help=text)


def segmentation_option(what: str, *, required: bool) -> Callable[[_Function], _Function]:
    """The option that names a segmentation."""

    def read(context: click.Context, parameter: click.Parameter, uri: str | None) -> str | None:
        if uri and "@" in uri:
            raise click.BadParameter("expected name:user/session; it is taken at the voxel spacing of --tomogram")
        return uri

    text = f"{what}, name:user/session."
    return click.option("--segmentation", required=required, metavar="URI", callback=read, help=text)


def written_as(session: str) -> Callable[[_Function], _Function]:
    """The options that name user and session of what is written. `session`: what the default is, in words."""

    def add(function: _Function) -> _Function:
        function = click.option("--session-id", help=f"Session of the picks written. Default: {session}.")(function)
        return click.option("--user-id", help="User of the picks written. Default: tomoscout.")(function)

    return add


def settings(
    options: Mapping[str, Any],
    config: str | None,
    tomograms: str | tuple[str, ...],
    file: Path | None,
    changes: Sequence[str],
) -> Config:
    """The configuration: what `file` has, the `changes` of `--set` in place of it, and in place of both the `options`
    of the command, by key such as `train.steps`; None for one that is not given. `config`: that of copick.

    Raises:
        click.UsageError: there is no project, or a change has another form than key=value.
        TomoscoutError: an option is invalid.
    """
    from tomoscout.options.config import parse_config
    from tomoscout.options.config_file import read_config_file

    if config is None:
        raise click.UsageError("no project; give copick's configuration by -c/--config or in COPICK_CONFIG")
    read = [] if file is None else [read_config_file(file)]
    values = (read[0].values or {}) if read else {}
    if not isinstance(values, dict):
        raise TomoscoutError(f"{file}: expected a mapping of options, found {type(values).__name__}")
    for change in changes:
        key, sign, text = change.partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            sign = ""
        if not sign:
            raise click.UsageError(f"--set {change}: expected key=value, such as train.batch_size=4")
        _put(values, key, value)
    given = {key: value for key, value in options.items() if value is not None}
    project = {copick_name(Path(config).stem): config}
    kinds = [tomograms] if isinstance(tomograms, str) else list(tomograms)
    for key, value in {"projects": project, "tomograms": kinds, **given}.items():
        _put(values, key, value)
    return parse_config(values, "options" if file is None else str(file), read)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a key such as `train.network.channels`."""
    *sections, last = key.split(".")
    for name in sections:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise TomoscoutError(f"{key}: {name} is a value and no section of options")
    values[last] = value
