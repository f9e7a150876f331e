"""Where option values come from, and which source wins: default < environment < code or flag."""

import os
from collections.abc import Mapping
from typing import Any

from graphile_worker_py.options import DEFAULT_SCHEMA, WorkerOptions, check_schema


def worker_options(given: Mapping[str, Any]) -> WorkerOptions:
    """Build checked options from those that were given; None counts as not given.

    Raises:
        ConfigurationError: A value is not allowed.
    """
    values = {name: value for name, value in given.items() if value is not None}
    values["schema"] = schema_name(given.get("schema"))
    return WorkerOptions(**values)


def schema_name(given: str | None) -> str:
    """The schema: the given one, else `GRAPHILE_WORKER_SCHEMA`, else `graphile_worker`.

    Raises:
        ConfigurationError: The name is not one that PostgreSQL can hold.
    """
    if given is None:
        # An empty variable counts as unset, as it does for libpq.
        given = os.environ.get("GRAPHILE_WORKER_SCHEMA") or DEFAULT_SCHEMA
    return check_schema(given)


def conninfo(given: str | None) -> str:
    """The connection string: the given one, else `DATABASE_URL`, else libpq's own variables.

    An empty string leaves everything to libpq (`PGHOST`, `PGDATABASE`, `PGSERVICE`, …).
    """
    if given is not None:
        return given
    return os.environ.get("DATABASE_URL", "")
