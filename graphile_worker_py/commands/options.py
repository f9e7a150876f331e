"""The options that several commands share."""

from collections.abc import Callable
from typing import Any

import click


def database_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--connection` and `--schema`, given to the command as `connection` and `schema`."""
    connection = click.option(
        "-c",
        "--connection",
        metavar="DSN",
        help="Connection string. Default: DATABASE_URL, else libpq's PG* variables.",
    )
    schema = click.option(
        "-s",
        "--schema",
        metavar="NAME",
        help="Schema of the job tables. Default: GRAPHILE_WORKER_SCHEMA, else graphile_worker.",
    )
    return connection(schema(command))
