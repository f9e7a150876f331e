"""The options that several commands share."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from graphile_worker_py import config
from graphile_worker_py.commands.errors import told_clearly


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

    @wraps(command)
    def call(
        *, connection: str | None, schema: str | None, config_file: str | None, **own: Any
    ) -> Any:
        with told_clearly():
            settings = config.read_settings(
                {"connection": connection, "schema": schema}, file=config_file
            )
        return command(
            connection=settings["connection"].value, schema=settings["schema"].value, **own
        )

    return configuration_options(call)
