"""The options that several commands share."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from graphile_worker_py import config
from graphile_worker_py.cli.exits import told_clearly


def configuration_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--connection`, `--schema` and `--config`, given as they were written or None.

    The command is to ask `config.read_settings` for what they are in the end.
    """
    connection = click.option(
        "-c",
        "--connection",
        metavar="DSN",
        help="Connection string. Default: DATABASE_URL, the file, libpq's PG* variables.",
    )
    schema = click.option(
        "-s",
        "--schema",
        metavar="NAME",
        help="Schema of the job tables. Default: GRAPHILE_WORKER_SCHEMA, the file, "
        "graphile_worker.",
    )
    file = click.option(
        "-C",
        "--config",
        "config_file",
        metavar="FILE",
        help=f"Default: {config.CONFIG_FILE}, or [tool.{config.PROJECT_TABLE}] in "
        f"{config.PROJECT_FILE}, if it is here.",
    )
    return connection(schema(file(command)))


def database_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the same options; the command is given `connection` and `schema` as they are to be."""
    return configuration_options(_resolving(command, "connection", "schema"))


def adding_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `database_options`, and `--use-node-time` for a command that adds jobs."""
    option = click.option(
        "--use-node-time/--no-use-node-time",
        default=None,
        help="Now is the time of this process (the database's).",
    )
    return configuration_options(
        option(_resolving(command, "connection", "schema", "use_node_time"))
    )


def _resolving(command: Callable[..., Any], *names: str) -> Callable[..., Any]:
    @wraps(command)
    def call(*, config_file: str | None, **given: Any) -> Any:
        flags = {name: given.pop(name) for name in names}
        with told_clearly():
            settings = config.read_settings(flags, file=config_file)
        return command(**{name: settings[name].value for name in names}, **given)

    return call
