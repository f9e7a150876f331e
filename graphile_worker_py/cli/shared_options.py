"""Make click options from the entries of options, and share them between commands."""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, Final

import click

from graphile_worker_py import config
from graphile_worker_py.cli.exits import note_settings, told_clearly
from graphile_worker_py.options import OPTIONS
from graphile_worker_py.options.declaring import Kind, Option

_METAVARS: Final = {Kind.WHOLE: "N", Kind.SECONDS: "SECONDS", Kind.DURATION: "TIME"}
Command = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def option_flags(names: Iterable[str]) -> Callable[[Command], Command]:
    """Add the flags of options to a command; `values_of_flags` reads what the command is given."""

    def add(command: Command) -> Command:
        for name in reversed(list(names)):
            command = _flag(OPTIONS[name])(command)
        return command

    return add


def values_of_flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of flags by the names of their options; None means not given."""
    names = {_parameter(name): name for name in OPTIONS}
    return {names[parameter]: _value(names[parameter], value) for parameter, value in given.items()}


def _value(name: str, value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    made = OPTIONS[name].of_flags
    if made is not None:
        return made(value) if value else None
    is_single = OPTIONS[name].is_repeatable and len(value) == 1
    return value[0] if is_single else list(value) or None


def _flag(option: Option) -> Callable[[Command], Command]:
    # Without a type: `config.read_settings` converts and checks values, whatever their source.
    shape: dict[str, Any] = {"metavar": option.metavar or _METAVARS.get(option.kind)}
    if option.choices:
        shape = {"type": click.Choice(option.choices)}
    elif option.kind is Kind.YES_NO:
        shape = {"is_flag": True}
    elif option.kind is Kind.TEXTS or option.is_repeatable:
        shape["multiple"] = True
    return click.option(
        *option.flags, _parameter(option.name), default=None, help=_help(option), **shape
    )


def _parameter(name: str) -> str:
    return name.replace(".", "_")


def _help(option: Option) -> str:
    text = option.doc.replace("`", "")
    if option.kind is Kind.TEXTS or option.is_repeatable:
        text += " Can be repeated."
    has_default = option.shown_default and option.kind is not Kind.YES_NO
    return f"{text} Default: {option.shown_default}." if has_default else text


def read_settings(flags: Mapping[str, Any], file: str | None) -> dict[str, config.Setting]:
    """The value of every option for a command."""
    settings = config.read_settings(flags, file=file)
    note_settings(settings)
    return settings


def configuration_options(command: Command) -> Command:
    """Add `--connection`, `--schema` and `--config`, given as they were written or None.

    The command passes them to `read_settings`.
    """
    return option_flags(("connection", "schema"))(config_option(command))


config_option = click.option(
    "-C",
    "--config",
    "config_file",
    metavar="FILE",
    help=f"Configuration file. Default: {config.CONFIG_FILE}, or [tool.{config.PROJECT_TABLE}] in "
    f"{config.PROJECT_FILE}, in the working directory.",
)


def database_options(command: Command) -> Command:
    """Add the same options; the command is given the settings `connection` and `schema`."""
    return database_options_and()(command)


def adding_options(command: Command) -> Command:
    """Add `database_options`, and `--use-node-time` for a command that adds jobs."""
    return database_options_and("use_node_time")(command)


def database_options_and(*names: str) -> Callable[[Command], Command]:
    """Add `database_options` and the flags of more options, whose settings the command is given."""

    def add(command: Command) -> Command:
        resolved = _resolving(command, "connection", "schema", *names)
        return configuration_options(option_flags(names)(resolved))

    return add


def _resolving(command: Command, *names: str) -> Command:
    @wraps(command)
    def call(*, config_file: str | None, **given: Any) -> Any:
        flags = {name: given.pop(name) for name in names}
        with told_clearly():
            settings = read_settings(flags, config_file)
        return command(**{name: settings[name].value for name in names}, **given)

    return call
